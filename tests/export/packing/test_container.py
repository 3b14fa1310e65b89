"""Packed files: byte for byte back, small, and refused in one line when anything is wrong."""

import gzip
import hashlib
import lzma
import tracemalloc
from pathlib import Path

import brotli
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.export.packing import rest
from edgeprune.export.packing.arrays import find_arrays
from edgeprune.export.packing.container import HEADER_BYTES, read, read_header, write
from edgeprune.export.packing.plan import varint, write_plan
from edgeprune.export.sizes import entropy_bytes, histogram
from edgeprune.export.tflite import read as read_tflite


def packed(content):
    return write(content, find_arrays(read_tflite(content))).content


def unpacked(content):
    return read(content, read_header(content[:HEADER_BYTES]))


@pytest.fixture(scope="module")
def contents(make_tflite, trained_weights):
    """int8 and float32, pruned, clustered, and both at once."""
    cases = [("int8", 0.9, False), ("int8", 0.5, True), ("float32", 0.8, False)]
    kernels = [trained_weights(*case, shape=(16, 60)) for case in cases]
    kernels.append(trained_weights("float32", 0.5, True, (16, 60)) * np.float32(0.37))
    return [make_tflite([kernel]) for kernel in kernels] + [make_tflite(kernels)]


@pytest.fixture(scope="module")
def packs(contents):
    return [packed(content) for content in contents]


def test_every_file_comes_back(contents, packs):
    for content, pack in zip(contents, packs, strict=True):
        assert unpacked(pack) == content


def test_any_bytes_with_no_arrays_come_back():
    for content in (b"x", b"TFL3" * 1000, np.random.default_rng(0).bytes(5000)):
        assert unpacked(write(content, []).content) == content


def test_the_header_is_as_documented(contents):
    content = contents[0]
    spans = find_arrays(read_tflite(content))
    written = write(content, spans)
    header = read_header(written.content[:HEADER_BYTES])
    between = len(content) - sum(span.end - span.start for span in spans)
    assert written.content[:4] == b"EPK\1"
    assert header.content_bytes == len(content)
    assert header.rest_bytes == between + len(write_plan(spans))
    assert header.packed_bytes == len(written.content)
    assert header.digest == hashlib.sha256(content).digest()[:8]
    lengths = [header.content_bytes, header.rest_bytes, *header.part_bytes]
    start = b"EPK\1" + b"".join(map(varint, lengths)) + header.digest
    assert written.content.startswith(start)
    assert header.header_bytes == len(start)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.8, 0.9])
def test_smaller_than_every_other_compressor(
    make_tflite, trained_weights, dtype, clusters, sparsity
):
    kernel = trained_weights(dtype, sparsity, clusters)
    content = make_tflite([kernel])
    written = write(content, find_arrays(read_tflite(content)))
    others = [
        gzip.compress(content, 9),
        lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
        zstandard.ZstdCompressor(level=19).compress(content),
        brotli.compress(content, quality=11),
    ]
    assert len(written.content) < min(map(len, others))
    entropy = entropy_bytes(histogram(kernel.reshape(-1), 0), kernel.nbytes)
    assert written.weight_bits / 8 <= 1.02 * entropy
    assert written.weights == kernel.size


def test_products_are_not_stored(make_tflite, trained_weights):
    kernel = trained_weights("int8", 0.9, False, (256, 16))
    content = make_tflite([kernel])
    spans = find_arrays(read_tflite(content))
    stored = [span for span in spans if not span.product]
    assert len(write(content, spans).content) + 256 * 2 < len(write(content, stored).content)


def refused(content):
    """Return whether a damaged file is refused, and with what: one line."""
    try:
        unpacked(content)
    except InputError as error:
        return "\n" not in str(error)
    return False


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_flipped_bytes(packs, data):
    content = packs[data.draw(st.integers(0, 3))]
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    if bytes(damaged) != content:
        assert refused(bytes(damaged))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_truncations_and_additions(packs, data):
    content = packs[data.draw(st.integers(0, 3))]
    assert refused(content[: data.draw(st.integers(0, len(content) - 1))])
    assert refused(content + data.draw(st.binary(min_size=1, max_size=9)))


def reassembled(content, plain, content_bytes=None):
    """Put another rest into a packed file, with a header that fits."""
    header = read_header(content[:HEADER_BYTES])
    compressed = rest.compress(plain)
    lengths = (
        header.content_bytes if content_bytes is None else content_bytes,
        len(plain),
        len(compressed),
        *header.part_bytes[1:],
    )
    coded = content[header.header_bytes + header.part_bytes[0] :]
    return content[:4] + b"".join(map(varint, lengths)) + header.digest + compressed + coded


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_hostile_plans(contents, packs, data):
    """Here zstd has nothing to notice: the plan itself is another."""
    index = data.draw(st.integers(0, 4))
    original, content = contents[index], packs[index]
    header = read_header(content[:HEADER_BYTES])
    part = content[header.header_bytes : header.header_bytes + header.part_bytes[0]]
    plain = bytearray(rest.decompress(part, header.rest_bytes))
    for _ in range(data.draw(st.integers(1, 4))):
        plain[data.draw(st.integers(0, 30))] = data.draw(st.integers(0, 255))
    sizes = [header.content_bytes, 0, 1, 2 * header.content_bytes, 10**6]
    hostile = reassembled(content, bytes(plain), data.draw(st.sampled_from(sizes)))
    assert refused(hostile) or unpacked(hostile) == original


@settings(deadline=None, max_examples=80)
@given(st.binary(max_size=200))
def test_noise_after_the_magic(content):
    assert refused(b"EPK\1" + content)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_other_versions_are_named(packs, version):
    content = packs[0]
    other = content[:3] + bytes([version]) + content[4:]
    with pytest.raises(InputError, match=f"version {version} of the format, supported: 1"):
        read_header(other[:HEADER_BYTES])


def test_lengths_that_lie_take_no_memory(packs):
    content = packs[0]
    header = read_header(content[:HEADER_BYTES])
    part = content[header.header_bytes : header.header_bytes + header.part_bytes[0]]
    plain = rest.decompress(part, header.rest_bytes)
    huge = reassembled(content, plain, 10**9)
    tracemalloc.start()
    try:
        assert refused(huge)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_an_endless_varint_is_refused():
    with pytest.raises(InputError, match="too long"):
        read_header(b"EPK\1" + b"\xff" * 60)


def test_files_of_the_first_version_unpack():
    """All kinds of tables and ways, as the first version wrote them; the checksum vouches."""
    content = unpacked(Path(__file__).with_name("version1.epk").read_bytes())
    sizes = [tensor.entries for tensor in read_tflite(content).weights()]
    assert sizes == [16 * 60] * 5


def test_the_dictionary_is_the_one_of_this_version():
    """Files that are packed already need this very dictionary."""
    content = Path(rest.__file__).with_name("dictionary.bin").read_bytes()
    assert hashlib.sha256(content).hexdigest() == DICTIONARY


DICTIONARY = "a653aa8ad067d900acd03b207e769a407070a5d2d3e3b0ef6fa9d606b83db4f9"
