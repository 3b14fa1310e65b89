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
    layer = step.layer
    if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        return None
    known = step.readings.get(id(layer))
    if known is None:
        kernel = np.asarray(layer.kernel)
        ordered = kernel.transpose(*taps, in_axis, *out_axes)
        columns = math.prod(kernel.shape[a] for a in out_axes)
        matrix = ordered.reshape(-1, kernel.shape[in_axis], columns)
        weights = Weights(matrix, step.rounding)
    else:
        weights = known.weights
    given = step.first.along(axis, weights.used.shape[0])
    if known is None:
        positive = axis % step.first.low.ndim
        step.readings[id(layer)] = Reading(
            layer,
            layer.kernel,
            positive,
            in_axis,
            out_axes,
            weights,
            foldable and not padded,
            given,
        )
    else:
        known.given = known.given.joined(given)
    shift = np.zeros(weights.used.shape[1]) if bias is None else np.asarray(bias, np.float64)
    return weights.applied(given, shift, padded)


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
    return _fused(step, placed(made, rank, axis))


def _by_group(step: Step, axis: int, padded: bool) -> Value | None:
    layer = step.layer
    kernel = np.asarray(layer.kernel)
    groups, width, filters = layer.groups, kernel.shape[-2], kernel.shape[-1]
    if width == 1:
        return _each_channel(step, kernel.reshape(-1, groups, filters // groups), axis, padded)
    given = step.first.along(axis, width * groups)
    bias = _bias(layer, filters)
    taps = kernel.reshape(-1, width, filters)
    made = []
    for group in range(groups):
        inputs = slice(group * width, (group + 1) * width)
        outputs = slice(group * filters // groups, (group + 1) * filters // groups)
        own = Value(given.low[inputs], given.high[inputs])
        weights = Weights(taps[..., outputs], step.rounding)
        made.append(weights.applied(own, bias[outputs], padded))
    return Value(
        np.concatenate([part.low for part in made]), np.concatenate([part.high for part in made])
    )


def _each_channel(step: Step, taps: Array, axis: int, padded: bool) -> Value:
    """Return the range of outputs that read one channel each; taps (taps, channels, outputs)."""
    given = step.first.along(axis, taps.shape[1])
    if padded:
        given = given.joined(exactly(0.0))
    column = Value(given.low[:, None], given.high[:, None])
    positive = exactly(np.maximum(taps, 0).sum(0, dtype=np.float64))
    negative = exactly(np.minimum(taps, 0).sum(0, dtype=np.float64))
    parts = product(column, positive), product(column, negative)
    bias = _bias(step.layer, taps[0].size)
    low = (parts[0].low + parts[1].low).ravel()
    high = (parts[0].high + parts[1].high).ravel()
    magnitude = np.maximum(
        *(np.abs(np.where(np.isfinite(end), end, 0.0)) for end in (low, high))
    ) + np.abs(bias)
    bound = Value(low, high).widened((len(taps) + 1) * step.rounding, 2 * magnitude)
    # Without a bias in the way, sums of one sign keep it.
    bound = Value(
        np.where(low >= 0, np.maximum(bound.low, 0.0), bound.low),
        np.where(high <= 0, np.minimum(bound.high, 0.0), bound.high),
    )
    return Value(bound.low + bias, bound.high + bias)


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
