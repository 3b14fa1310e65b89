"""Where a .tflite file holds arrays of numbers, and which can be computed from others."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgeprune.export.graph import Operator, Subgraph, Tensor, TfliteModel
from edgeprune.export.packing.coder import Array
from edgeprune.export.packing.kinds import KINDS, SCALES, Channels, Kind

# Smaller arrays are left to the compressor of the rest; tables of their own would cost more.
SMALLEST_BYTES = 32
# Reading takes memory for each array, however few bytes name it: no real model comes near so many.
MOST_ARRAYS = 1 << 16
_OWN_BYTES = 128
_LARGE_BYTES = 4096
_IN_BYTE = {"int4": 2, "uint4": 2}
_WITH_BIAS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


@dataclass(frozen=True, slots=True)
class Product:
    """A bias's scales: those of the weights times that of the input.

    Attributes:
      weights_start: where the weights' scales begin in the file.
      factor_start: where the input's one scale lies.
    """

    weights_start: int
    factor_start: int


@dataclass(frozen=True, slots=True)
class Span:
    """An array in a file.

    Attributes:
      start: its first byte.
      number: of its numbers.
      kind: of its numbers.
      shared: whether it is coded together with all others like it, not by itself.
      channels: as of `code_bytes`.
      product: how to compute it; None if it has to be coded.
    """

    start: int
    number: int
    kind: Kind
    shared: bool
    channels: Channels = ()
    product: Product | None = None

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.start + self.number * self.kind.itemsize


def find_arrays(model: TfliteModel) -> list[Span]:
    """List the arrays worth coding in ascending order, without overlap; the largest of too many."""
    products = {
        start_of(model, scales): Product(start_of(model, weights), start_of(model, factor))
        for scales, weights, factor in _products(model)
    }
    found: dict[int, Span] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            for span in _spans(model, tensor, products):
                found.setdefault(span.start, span)
    spans: list[Span] = []
    for span in sorted(found.values(), key=lambda span: span.start):
        # A file may point at the same bytes in several ways; the first is taken.
        if not spans or span.start >= spans[-1].end:
            spans.append(span)
    if len(spans) > MOST_ARRAYS:
        largest = sorted(spans, key=lambda span: span.start - span.end)[:MOST_ARRAYS]
        spans = sorted(largest, key=lambda span: span.start)
    return _computable(spans)


def start_of(model: TfliteModel, array: Array) -> int:
    """Return where an array that was read from a file begins in it."""
    return _address(array) - _address(np.frombuffer(model.content, np.uint8))


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _spans(model: TfliteModel, tensor: Tensor, products: dict[int, Product]) -> Iterator[Span]:
    kind = _kind(tensor.dtype)
    if tensor.data is not None and kind is not None:
        size = tensor.data.nbytes
        own = size >= _LARGE_BYTES or (len(tensor.shape) > 1 and size >= _OWN_BYTES)
        number, remainder = divmod(size, kind.itemsize)
        if not remainder and (own or (size >= SMALLEST_BYTES and kind.itemsize > 1)):
            start = start_of(model, tensor.data)
            yield Span(start, number, kind, not own, _channels(tensor, number) if own else ())
    if tensor.quantization is not None:
        scales = tensor.quantization.scale
        if scales.nbytes >= SMALLEST_BYTES:
            start = start_of(model, scales)
            yield Span(start, scales.size, SCALES, True, (), products.get(start))


def _kind(dtype: str) -> Kind | None:
    return next((kind for kind in KINDS if dtype in kind.dtypes), None)


def _channels(tensor: Tensor, number: int) -> Channels:
    """Return the ways in which a tensor's numbers fall into channels: by its first or last axis.

    int4 tensors have two weights a byte; the bytes of one channel, or of two neighbours, are alike.
    """
    shape = tensor.shape
    in_byte = _IN_BYTE.get(tensor.dtype, 1)
    if tensor.sparsity is not None or number * in_byte != tensor.entries:
        return ()
    first, last = (shape[0], number // shape[0]), (shape[-1] // in_byte, 1)
    return tuple(way for way in (first, last) if way[0] * way[1] and not number % (way[0] * way[1]))


def _products(model: TfliteModel) -> Iterator[tuple[Array, Array, Array]]:
    """Yield a bias's scales with the weights' and the input's of which they are the product."""
    for graph in model.subgraphs:
        for operator in graph.operators:
            scales = _scales(graph, operator)
            if scales is None:
                continue
            factor, weights, bias = scales
            with np.errstate(all="ignore"):
                product = weights * factor
            if (
                factor.size == 1
                and weights.size == bias.size > 1
                and np.isfinite(product).all()
                and product.tobytes() == bias.tobytes()
            ):
                yield bias, weights, factor


def _scales(graph: Subgraph, operator: Operator) -> tuple[Array, Array, Array] | None:
    if operator.name not in _WITH_BIAS or len(operator.inputs) < 3 or min(operator.inputs) < 0:
        return None
    scales = [
        quantization.scale
        for index in operator.inputs[:3]
        if (quantization := graph.tensors[index].quantization) is not None
    ]
    return (scales[0], scales[1], scales[2]) if len(scales) == 3 else None


def _computable(spans: list[Span]) -> list[Span]:
    """Leave out products of what is not coded by itself: a factor within an array, say."""
    coded = {span.start: span.number for span in spans if span.shared and span.product is None}
    kept = []
    for span in spans:
        product = span.product
        if product is not None and not (
            coded.get(product.weights_start) == span.number
            and all(
                product.factor_start + 4 <= other.start or product.factor_start >= other.end
                for other in spans
            )
        ):
            span = Span(span.start, span.number, span.kind, span.shared, span.channels)
        kept.append(span)
    return kept
