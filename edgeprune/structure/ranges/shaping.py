"""Layers that move, merge or drop axes and places."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.structure.readings import Shape, Step, channel_axis
from edgeprune.structure.readings import range_rule as rule
from edgeprune.structure.values import Value, exactly

Array = npt.NDArray[Any]
# Averages of many terms round more than once, but never past zero.
_AVERAGED = 2.0**-10
_LARGEST = 2**24  # entries of a tensor whose ranges are worth following one by one

# Shapes


def _everywhere(step: Step) -> Value:
    """Return one range a channel, whatever the place."""
    rank = step.first.low.ndim
    axis = channel_axis(step.layer) % rank
    return step.first.collapsed(tuple(i for i in range(rank) if i != axis))


@rule(*(f"MaxPooling{n}D" for n in (1, 2, 3)), *(f"Cropping{n}D" for n in (1, 2, 3)))
def _window(step: Step) -> Value:
    return _everywhere(step)


@rule(*(f"AveragePooling{n}D" for n in (1, 2, 3)))
def _averaging(step: Step) -> Value:
    return _everywhere(step).widened(_AVERAGED)


@rule(*(f"UpSampling{n}D" for n in (1, 2, 3)))
def _upsampled(step: Step) -> Value | None:
    if getattr(step.layer, "interpolation", "nearest") not in ("nearest", "bilinear"):
        return None
    return _everywhere(step).widened(_AVERAGED)


@rule(*(f"ZeroPadding{n}D" for n in (1, 2, 3)))
def _zero_padded(step: Step) -> Value:
    return _everywhere(step).joined(exactly(0.0))


@rule(*(f"Global{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)))
def _pooled(step: Step) -> Value:
    value = _everywhere(step).widened(_AVERAGED)
    return value if step.layer.keepdims else Value(*_squeezed(value, channel_axis(step.layer)))


def _squeezed(value: Value, axis: int) -> tuple[Array, Array]:
    size = value.shape[axis]
    return value.low.reshape(1, size), value.high.reshape(1, size)


@rule("Flatten")
def _flattened(step: Step) -> Value | None:
    shape, value = step.shapes[0], step.first
    if step.layer.data_format == "channels_first" and len(shape) > 1:
        shape = (shape[0], *shape[2:], shape[1])
        value = Value(np.moveaxis(value.low, 1, -1), np.moveaxis(value.high, 1, -1))
    return _reshaped(value, shape, step.output_shapes[0])


@rule("Reshape", "ops.Reshape", "ops.Squeeze", "ops.ExpandDims")
def _reshape(step: Step) -> Value | None:
    return _reshaped(step.first, step.shapes[0], step.output_shapes[0])


def _reshaped(value: Value, shape: Shape, output: Shape) -> Value | None:
    if None in shape[1:] or None in output[1:]:
        return None
    before, after = ([size or 0 for size in sizes[1:]] for sizes in (shape, output))
    # Entries of different samples may be mixed where the sizes of one sample differ.
    if math.prod(before) != math.prod(after) or math.prod(before) > _LARGEST:
        return None
    ends = (np.broadcast_to(end, (1, *before)) for end in (value.low, value.high))
    return Value(*(end.reshape(1, *after) for end in ends))


@rule("Permute")
def _permuted(step: Step) -> Value:
    order = (0, *step.layer.dims)
    return Value(step.first.low.transpose(order), step.first.high.transpose(order))


@rule("ops.Transpose")
def _transposed_axes(step: Step) -> Value | None:
    order = step.layer.axes
    if order is None or order[0] != 0:
        return None
    return Value(step.first.low.transpose(order), step.first.high.transpose(order))
