"""Where the arrays of a file are, and which are products of others."""

from itertools import pairwise

import numpy as np

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
