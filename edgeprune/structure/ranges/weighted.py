"""Layers with a kernel: sums of products."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.structure.ranges.pointwise import activated, added
from edgeprune.structure.readings import Reading, Step, channel_axis, placed
from edgeprune.structure.readings import range_rule as rule
from edgeprune.structure.values import Value, Weights, exactly, product

Array = npt.NDArray[Any]


def _weighted(
    step: Step,
    axis: int,
    taps: tuple[int, ...],
    in_axis: int,
    out_axes: tuple[int, ...],
    *,
    padded: bool,
    bias: Any = None,
    foldable: bool = True,
) -> Value | None:
    """Return the range of each output, in the order of `out_axes`, and note what is read."""
    if not _plain(step.layer):
        return None
    kernel = step.layer.kernel
    given = step.first.along(axis, kernel.shape[in_axis])
    reading = _noted(step, kernel, given, axis, taps, in_axis, out_axes, foldable and not padded)
    shift = np.zeros(reading.weights.used.shape[1]) if bias is None else np.asarray(bias)
    return reading.weights.applied(given, shift.astype(np.float64), padded)


def _plain(layer: Any) -> bool:
    """Tell whether a layer computes with its kernel as it is."""
    return not (getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False))


def _noted(
    step: Step,
    kernel: Any,
    given: Value,
    axis: int,
    taps: tuple[int, ...],
    in_axis: int,
    out_axes: tuple[int, ...],
    foldable: bool,
    first: Any = None,
) -> Reading:
    """Note what a call reads, beside what the layer's other calls read."""
    layer = step.layer
    known = step.readings.get(id(layer))
    if known is None:
        values = np.asarray(kernel)
        columns = math.prod(values.shape[a] for a in out_axes)
        matrix = values.transpose(*taps, in_axis, *out_axes)
        weights = Weights(matrix.reshape(-1, values.shape[in_axis], columns), step.rounding)
        axis %= step.first.low.ndim
        known = Reading(layer, kernel, axis, in_axis, out_axes, weights, foldable, given, first)
        step.readings[id(layer)] = known
    known.given = known.given.joined(given)
    return known


def _fused(step: Step, value: Value | None) -> Value | None:
    """Apply a weighted layer's own activation."""
    return None if value is None else activated(step.layer.activation, value, step.rounding)


@rule("Dense")
def _dense(step: Step) -> Value | None:
    made = _weighted(step, -1, (), 0, (1,), padded=False, bias=step.layer.bias)
    return _fused(step, made and placed(made, step.first.low.ndim, -1))


@rule("Conv1D", "Conv2D", "Conv3D")
def _convolution(step: Step) -> Value | None:
    layer, rank = step.layer, step.first.low.ndim
    axis = channel_axis(layer)
    padded = layer.padding != "valid" and any(size > 1 for size in layer.kernel_size)
    if layer.groups > 1:
        made = _by_group(step, axis, padded)
    else:
        taps = tuple(range(rank - 2))
        made = _weighted(step, axis, taps, rank - 2, (rank - 1,), padded=padded, bias=layer.bias)
    return _fused(step, made and placed(made, rank, axis))


@rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed(step: Step) -> Value | None:
    # Some of an output's taps fall between the inputs: as if they met zeros.
    layer, rank = step.layer, step.first.low.ndim
    axis, taps = channel_axis(layer), tuple(range(rank - 2))
    made = _weighted(step, axis, taps, rank - 1, (rank - 2,), padded=True, bias=layer.bias)
    return _fused(step, made and placed(made, rank, axis))


@rule("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(step: Step) -> Value | None:
    layer, rank = step.layer, step.first.low.ndim
    axis = channel_axis(layer)
    padded = layer.padding != "valid" and any(size > 1 for size in layer.kernel_size)
    kernel = np.asarray(layer.kernel)
    made = _each_channel(step, kernel.reshape(-1, *kernel.shape[-2:]), axis, padded)
    bias = exactly(_bias(layer, len(made.low)))
    return _fused(step, placed(added(made, bias).widened(step.rounding), rank, axis))


@rule("SeparableConv1D", "SeparableConv2D")
def _separable(step: Step) -> Value | None:
    layer, rank = step.layer, step.first.low.ndim
    axis = channel_axis(layer)
    padded = layer.padding != "valid" and any(size > 1 for size in layer.kernel_size)
    kernel = np.asarray(layer.depthwise_kernel)
    # What the pointwise kernel reads: padding is behind it, so its bias takes any constant over.
    given = _each_channel(step, kernel.reshape(-1, *kernel.shape[-2:]), axis, padded)
    taps = tuple(range(rank - 2))
    reading = _noted(
        *(step, layer.pointwise_kernel, given, axis, taps, rank - 2, (rank - 1,), True),
        first=layer.depthwise_kernel,
    )
    made = reading.weights.applied(given, _bias(layer, layer.filters), padded=False)
    return _fused(step, placed(made, rank, axis))


def _by_group(step: Step, axis: int, padded: bool) -> Value | None:
    layer = step.layer
    kernel = np.asarray(layer.kernel)
    groups, width, filters = layer.groups, kernel.shape[-2], kernel.shape[-1]
    if width == 1:
        made = _each_channel(step, kernel.reshape(-1, groups, filters // groups), axis, padded)
        return added(made, exactly(_bias(layer, filters))).widened(step.rounding)
    given = step.first.along(axis, width * groups)
    bias = _bias(layer, filters)
    taps = kernel.reshape(-1, width, filters)
    parts = []
    for group in range(groups):
        inputs = slice(group * width, (group + 1) * width)
        outputs = slice(group * filters // groups, (group + 1) * filters // groups)
        own = Value(given.low[inputs], given.high[inputs])
        weights = Weights(taps[..., outputs], step.rounding)
        parts.append(weights.applied(own, bias[outputs], padded))
    return Value(
        np.concatenate([part.low for part in parts]), np.concatenate([part.high for part in parts])
    )


def _each_channel(step: Step, taps: Array, axis: int, padded: bool) -> Value:
    """Return the range of sums over one channel each; taps (taps, channels, outputs)."""
    given = step.first.along(axis, taps.shape[1])
    if padded:
        given = given.joined(exactly(0.0))
    column = Value(given.low[:, None], given.high[:, None])
    positive = exactly(np.maximum(taps, 0).sum(0, dtype=np.float64))
    negative = exactly(np.minimum(taps, 0).sum(0, dtype=np.float64))
    parts = product(column, positive), product(column, negative)
    low, high = parts[0].low + parts[1].low, parts[0].high + parts[1].high
    ends = [np.where(np.isfinite(end), np.abs(end), 0.0) for end in (column.low, column.high)]
    magnitude = np.maximum(*ends) * (positive.high - negative.low)
    bound = Value(low, high).widened((len(taps) + 1) * step.rounding, magnitude)
    # Rounding keeps the sign of a sum whose terms all have that sign.
    never_below = (parts[0].low >= 0) & (parts[1].low >= 0)
    never_above = (parts[0].high <= 0) & (parts[1].high <= 0)
    return Value(
        np.where(never_below, np.maximum(bound.low, 0.0), bound.low).ravel(),
        np.where(never_above, np.minimum(bound.high, 0.0), bound.high).ravel(),
    )


def _bias(layer: Any, size: int) -> Array:
    return np.zeros(size) if layer.bias is None else np.asarray(layer.bias, np.float64)


@rule("EinsumDense")
def _einsum(step: Step) -> Value | None:
    """Follow equations that sum over one letter, "ab,bc->ac" and "...a,abc->...bc" among them."""
    layer, rank = step.layer, len(step.output_shapes[0])
    left, _, result = layer.equation.replace(" ", "").partition("->")
    source, _, kernel = left.partition(",")
    if any("..." in term.removeprefix("...") for term in (source, kernel, result)):
        return None
    source, result = source.removeprefix("..."), result.removeprefix("...")
    summed = [letter for letter in kernel if letter in source and letter not in result]
    made = "".join(letter for letter in kernel if letter not in source)
    plain = len(summed) == 1 and len(made) == len(kernel) - 1
    if not plain or any(letter not in result + summed[0] for letter in source):
        return None
    out_axes = tuple(kernel.index(letter) for letter in made)
    aligned = layer.bias is not None and "".join(x for x in result if x in made) == made
    value = _weighted(
        step,
        source.index(summed[0]) - len(source),
        (),
        kernel.index(summed[0]),
        out_axes,
        padded=False,
        foldable=aligned
        and tuple(layer.bias.shape) == tuple(layer.kernel.shape[a] for a in out_axes),
    )
    if value is None:
        return None
    sizes = [layer.kernel.shape[axis] for axis in out_axes]
    order = sorted(range(len(made)), key=lambda i: result.index(made[i]))
    shape = [1] * rank
    for i in order:
        shape[result.index(made[i]) - len(result)] = sizes[i]
    low, high = (
        end.reshape(sizes).transpose(order).reshape(shape) for end in (value.low, value.high)
    )
    placed = Value(low, high)
    if layer.bias is not None:
        placed = added(placed, exactly(layer.bias)).widened(step.rounding)
    return _fused(step, placed)


@rule("Embedding")
def _embedded(step: Step) -> Value | None:
    layer = step.layer
    if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        return None
    table = np.asarray(layer.embeddings, np.float64)
    return placed(Value(table.min(0), table.max(0)), len(step.output_shapes[0]), -1)
