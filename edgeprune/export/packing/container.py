"""The packed file: a header, the rest compressed, raw bytes, and coded weights.

    4 bytes   "EPK" and the version of the format
    varints   lengths: of the .tflite file, of the rest before and after compression, of raw bytes,
              of coded weights
    8 bytes   the first of the SHA-256 of the .tflite file
    parts     the rest (`rest.py`), raw bytes, coded weights (`coder.py`), nothing after them

The rest begins with a plan of the arrays that were taken out of the file (`plan.py`); then come
the bytes that lie between them. Varints have 7 bits to a byte, the lowest first.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.packing import rest
from edgeprune.export.packing.arrays import Span
from edgeprune.export.packing.coder import Decoder, Encoder
from edgeprune.export.packing.kinds import KINDS, SCALES, Kind
from edgeprune.export.packing.numbers import code_numbers
from edgeprune.export.packing.plan import Varints, read_plan, varint, write_plan

MAGIC = b"EPK"
VERSION = 1
HEADER_BYTES = 64  # at most
_DIGEST_BYTES = 8


@dataclass(frozen=True)
class Header:
    """What a packed file says of itself.

    Attributes:
      content_bytes: length of the .tflite file.
      rest_bytes: of the rest, decompressed.
      part_bytes: of the three parts, as they lie in the file.
      digest: the first bytes of the .tflite file's SHA-256.
      header_bytes: of the header itself.
    """

    content_bytes: int
    rest_bytes: int
    part_bytes: tuple[int, int, int]
    digest: bytes
    header_bytes: int

    @property
    def packed_bytes(self) -> int:
        """Length of the packed file."""
        return self.header_bytes + sum(self.part_bytes)


def read_header(start: bytes) -> Header:
    """Read the header from a file's first `HEADER_BYTES` bytes, or all of a shorter one.

    Raises:
      InputError: not a packed file, one of another version, or cut off.
    """
    if start[: len(MAGIC)] != MAGIC:
        raise InputError("it is not a packed model; give a file that `edgeprune pack` has written")
    version = start[len(MAGIC) : len(MAGIC) + 1]
    if version and version[0] != VERSION:
        raise InputError(
            f"it has version {version[0]} of the format, supported: {VERSION}; "
            "unpack it with the edgeprune that packed it"
        )
    reader = Varints(start, len(MAGIC) + 1)
    content_bytes, rest_bytes, *parts = (reader.next() for _ in range(5))
    digest = start[reader.position : reader.position + _DIGEST_BYTES]
    if len(digest) < _DIGEST_BYTES:
        raise InputError("it is cut off in its header")
    # An array takes more than its entry in the plan, and nothing packed is much longer than before.
    if max(rest_bytes, sum(parts)) > 2 * content_bytes + 4096:
        raise InputError("it is damaged: its header contradicts itself")
    return Header(
        content_bytes,
        rest_bytes,
        (parts[0], parts[1], parts[2]),
        digest,
        reader.position + _DIGEST_BYTES,
    )


@dataclass(frozen=True)
class Written:
    """A packed file.

    Attributes:
      content: of the file.
      weights: how many numbers are in arrays that are coded by themselves.
      weight_bits: what they take.
      encoder: what coded all arrays.
    """

    content: bytes
    weights: int
    weight_bits: float
    encoder: Encoder


def write(content: bytes, spans: list[Span]) -> Written:
    """Pack a file's content.

    Args:
      content: of any file.
      spans: the arrays in it, in ascending order, without overlap.
    """
    encoder = Encoder()
    weights, weight_bits = 0, 0.0
    for kind, members in _streams(spans):
        bits = [np.frombuffer(content, kind.bits, span.number, span.start) for span in members]
        joined = np.concatenate(bits)
        bits_before = encoder.bits
        code_numbers(encoder, kind, joined.size, joined, members[0].channels)
        if not members[0].shared:
            weights += joined.size
            weight_bits += encoder.bits - bits_before
    coded, raw = encoder.finish()
    plain = write_plan(spans) + between_arrays(content, spans)
    compressed = rest.compress(plain)
    lengths = (len(content), len(plain), len(compressed), len(raw), len(coded))
    header = MAGIC + bytes([VERSION]) + b"".join(map(varint, lengths)) + _digest(content)
    return Written(header + compressed + raw + coded, weights, weight_bits, encoder)


def read(packed: bytes, header: Header) -> bytes:
    """Unpack a file whose header has been read.

    Raises:
      InputError: cut off, damaged, or not written by `write`.
    """
    if len(packed) != header.packed_bytes:
        what = "is cut off" if len(packed) < header.packed_bytes else "has bytes after its end"
        raise InputError(f"it {what}: {len(packed)} bytes instead of {header.packed_bytes}")
    view = memoryview(packed)
    parts, position = [], header.header_bytes
    for length in header.part_bytes:
        parts.append(view[position : position + length])
        position += length
    plain = rest.decompress(parts[0], header.rest_bytes)
    spans, position = read_plan(plain, header.content_bytes)
    coded_bytes = sum(span.end - span.start for span in spans)
    if len(plain) - position + coded_bytes != header.content_bytes:
        raise InputError("it is damaged: its parts do not add up")
    decoder = Decoder(parts[2], parts[1])
    content = bytearray(header.content_bytes)
    end = 0
    for span in spans:
        content[end : span.start] = plain[position : position + span.start - end]
        position += span.start - end
        end = span.end
    content[end:] = plain[position:]
    for kind, members in _streams(spans):
        found = code_numbers(decoder, kind, sum(span.number for span in members))
        found = found.view(np.uint8)
        for span in members:
            size = span.end - span.start
            content[span.start : span.end] = found[:size].data
            found = found[size:]
    decoder.check_end()
    for span in spans:
        if span.product is not None:
            content[span.start : span.end] = _product(content, span)
    result = bytes(content)
    if _digest(result) != header.digest:
        raise InputError("its checksum does not fit")
    return result


def between_arrays(content: bytes, spans: list[Span]) -> bytes:
    """Return what lies between the arrays of a file."""
    parts, position = [], 0
    for span in spans:
        parts.append(content[position : span.start])
        position = span.end
    return b"".join([*parts, content[position:]])


def _streams(spans: list[Span]) -> Iterator[tuple[Kind, list[Span]]]:
    """Yield what is coded together: each array of its own, then the shared ones of each kind."""
    for span in spans:
        if not span.shared:
            yield span.kind, [span]
    for kind in KINDS:
        members = [
            span for span in spans if span.shared and span.product is None and span.kind is kind
        ]
        if members:
            yield kind, members


def _product(content: bytearray, span: Span) -> bytes:
    """Compute a bias's scales."""
    product = span.product
    assert product is not None
    weights = np.frombuffer(content, SCALES.float, span.number, product.weights_start)
    with np.errstate(all="ignore"):
        scales = weights * np.frombuffer(content, SCALES.float, 1, product.factor_start)
    return bytes(scales.tobytes())


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_DIGEST_BYTES]
