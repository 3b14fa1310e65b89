"""What files made to mislead take in memory: no more than a few times what they claim to hold."""

import subprocess
import sys

import numpy as np
import pytest

from edgeprune.export.packing import coder as coding
from edgeprune.export.packing import rest
from edgeprune.export.packing.arrays import MOST_ARRAYS
from edgeprune.export.packing.classes import code_bytes
from edgeprune.export.packing.coder import Encoder
from edgeprune.export.packing.container import MAGIC, VERSION
from edgeprune.export.packing.kinds import KINDS, SCALES
from edgeprune.export.packing.numbers import _code_integers, _code_split
from edgeprune.export.packing.plan import varint

# Times what a file claims to hold, and what unpacking takes anyway.
TIMES, FIXED = 9, 40_000_000
OWN, SHARED, COMPUTED = range(3)


def hostile(claimed, plan, between=b"", encoder=None):
    """A packed file whose header fits its parts, with a wrong checksum."""
    coded, raw = (encoder or Encoder()).finish()
    plain = plan + between
    compressed = rest.compress(plain)
    lengths = (claimed, len(plain), len(compressed), len(raw), len(coded))
    header = MAGIC + bytes([VERSION]) + b"".join(map(varint, lengths)) + bytes(8)
    return header + compressed + raw + coded


def array(kind, role, number):
    return varint(0) + varint(3 * KINDS.index(kind) + role) + varint(number)


def many_arrays(number):
    """Scales of 32 bytes, each followed by a product of them: 8 bytes of a plan for 64."""
    pair = array(SCALES, SHARED, 8) + array(SCALES, COMPUTED, 8) + b"\1\0"
    return hostile(32 * number, varint(number) + pair * (number // 2))


def one_array(kind, number, encoder):
    return hostile(number * kind.itemsize, varint(1) + array(kind, OWN, number), b"", encoder)


def scaled(number):
    """Half-precision floats of which each is a channel with a factor of its own."""
    kind = next(kind for kind in KINDS if kind.dtypes == ("float16",))
    encoder = Encoder()
    encoder.integer(4, 3)  # by values and factors
    coding.count(encoder, number)
    coding.count(encoder, 1)
    encoder.integer(256, 3)  # four values
    _code_split(encoder, kind, 4, np.arange(4, dtype=np.uint16), ())
    _code_split(encoder, kind, number, np.full(number, 0x3C00, np.uint16), ())
    code_bytes(encoder, number, np.full(number, 2, np.uint8))
    _code_integers(encoder, kind, number, np.zeros(number, np.uint16), ())
    return one_array(kind, number, encoder)


def integers(number):
    """Integers of 32 bits, all alike."""
    kind = next(kind for kind in KINDS if "int32" in kind.dtypes)
    encoder = Encoder()
    encoder.integer(4, 1)  # by length
    _code_integers(encoder, kind, number, np.full(number, 2, np.uint32), ())
    return one_array(kind, number, encoder)


# On Linux ru_maxrss survives exec and so holds the parent's memory; VmHWM does not.
PROGRAM = """
import resource, sys
import edgeprune as ep

def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

def tried(name):
    try:
        ep.unpack(name, "out.tflite")
    except ep.EdgepruneError as error:
        return str(error)

tried("small.epk")  # loads what unpacking needs
before = peak()
message = tried("hostile.epk")
print(peak() - before, message)
"""


@pytest.mark.parametrize(
    ("make", "number", "bytes_each", "message"),
    [
        (many_arrays, 3_000_000, 32, "lists 3000000 arrays, over 65536"),
        (many_arrays, MOST_ARRAYS, 32, "ends before its weights do"),
        (scaled, 1 << 23, 2, "checksum"),
        (integers, 1 << 22, 4, "checksum"),
    ],
)
def test_memory_stays_within_what_the_header_admits(tmp_path, make, number, bytes_each, message):
    content = make(number)
    assert len(content) < 10_000  # and yet it claims megabytes
    (tmp_path / "hostile.epk").write_bytes(content)
    (tmp_path / "small.epk").write_bytes(scaled(100))
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    taken, _, said = ran.stdout.partition(" ")
    assert message in said
    assert int(taken) < TIMES * number * bytes_each + FIXED
    assert not (tmp_path / "out.tflite").exists()
