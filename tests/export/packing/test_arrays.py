"""Where the arrays of a file are, and which are products of others."""

from itertools import pairwise

import brotli
import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeprune.export.packing import arrays, container
from edgeprune.export.packing.arrays import find_arrays
from edgeprune.export.tflite import read


def test_arrays_are_found_where_they_lie(make_tflite, trained_weights):
    kernel = trained_weights("int8", 0.5, False, (16, 40))
    content = make_tflite([kernel])
    spans = find_arrays(read(content))
    by_kind = {(span.kind.dtypes[0], span.shared): span for span in spans if not span.product}
    assert set(by_kind) == {("int8", False), ("int32", True), ("float32", True)}
    weights = by_kind["int8", False]
    assert content[weights.start : weights.end] == kernel.tobytes()
    assert weights.channels == ((16, 40), (40, 1))
    bias = by_kind["int32", True]
    assert content[bias.start : bias.end] == (np.arange(16) * 37 - 500).astype("<i4").tobytes()
    (product,) = [span for span in spans if span.product]
    scales = by_kind["float32", True]
    assert product.product.weights_start == scales.start
    factor = product.product.factor_start
    assert content[factor : factor + 4] == np.float32(0.05).tobytes()


def test_spans_never_overlap_and_ascend(make_tflite, trained_weights):
    kernels = [trained_weights("float32", 0, False, (8, 40)), np.ones((3, 3), np.float32)]
    spans = find_arrays(read(make_tflite(kernels)))
    assert [span.number for span in spans if not span.shared] == [320]
    assert all(a.end <= b.start for a, b in pairwise(spans))


def test_scales_that_are_no_product_are_coded(make_tflite, trained_weights):
    content = bytearray(make_tflite([trained_weights("int8", 0, False, (16, 40))]))
    (product,) = [span for span in find_arrays(read(bytes(content))) if span.product]
    content[product.start] ^= 1
    assert not [span for span in find_arrays(read(bytes(content))) if span.product]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_of_too_many_arrays_the_largest_are_taken(make_tflite, trained_weights, monkeypatch, most):
    """A product is not computed from what is no longer coded; the file comes back all the same."""
    content = make_tflite([trained_weights("int8", 0.5, False, (16, 40))])
    assert len(find_arrays(read(content))) == 4
    monkeypatch.setattr(arrays, "MOST_ARRAYS", most)
    spans = find_arrays(read(content))
    assert len(spans) == most
    assert max(span.number for span in spans) == 16 * 40
    assert all(a.end <= b.start for a, b in pairwise(spans))
    packed = container.write(content, spans).content
    assert container.read(packed, container.read_header(packed)) == content


def as_int4(content, shape):
    """The same file with a kernel of int4, two weights a byte, without scales."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    kernel = model.subgraphs[0].tensors[1]
    kernel.type, kernel.shape = schema.TensorType.INT4, np.array(shape, np.int32)
    kernel.quantization = None
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_channels_of_int4_weights_have_tables_of_their_own(make_tflite):
    """Half of the channels is small: 2 bits a weight, and 3.9 for the others."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-2, 2, (32, 1024))
    weights[::2] = rng.integers(-7, 8, (16, 1024))
    pairs = (weights & 15).astype(np.uint8).reshape(32, 512, 2)
    data = (pairs[..., 0] | pairs[..., 1] << 4).view(np.int8)
    content = as_int4(make_tflite([data]), weights.shape)
    spans = find_arrays(read(content))
    (kernel,) = [span for span in spans if not span.shared]
    assert kernel.channels == ((32, 512), (512, 1))
    written = container.write(content, spans)
    bits = weights.size / 2 * (2 + np.log2(15))
    assert bits * 0.99 < written.weight_bits < bits * 1.02 + 8 * 200
    assert len(written.content) < len(brotli.compress(content, quality=11))
    assert container.read(written.content, container.read_header(written.content)) == content


def test_int4_channels_that_begin_within_a_byte_are_none(make_tflite, trained_weights):
    content = as_int4(make_tflite([trained_weights("int8", 0, False, (27, 5))]), (10, 27))
    (kernel,) = [span for span in find_arrays(read(content)) if not span.shared]
    assert (kernel.number, kernel.channels) == (135, ())
