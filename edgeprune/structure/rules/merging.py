"""Several tensors become one: entry by entry, or end to end."""

from typing import Any

import numpy as np

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes, Ids
from edgeprune.structure.registry import register_pruning_rule as rule

_OPERATIONS = (
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "DivideNoNan", "FloorDivide"),
    *("Mod", "Fmod", "Power", "Maximum", "Minimum", "Fmax", "Fmin", "Arctan2", "Hypot"),
    *("Logaddexp", "Logaddexp2", "Heaviside", "Equal", "NotEqual", "Greater", "GreaterEqual"),
    *("Less", "LessEqual", "LogicalAnd", "LogicalOr", "LogicalXor", "Isclose", "Where"),
)


@rule(
    *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"),
    *("applications.CustomScaleLayer", *(f"ops.{name}" for name in _OPERATIONS)),
)
def merge(call: Call) -> list[Axes]:
    """Tie the channels that meet, after NumPy's broadcasting; slice the constants among them."""
    rank = len(call.output_shapes[0])
    tensors = iter(zip(call.input_shapes, call.inputs, strict=True))
    operands: list[tuple[int, tuple[int | None, ...], Axes | None]] = []
    for position, argument in enumerate(call.arguments):
        if is_tensor(argument):
            operands.append((position, *next(tensors)))
        elif hasattr(argument, "assign"):  # a variable that no layer owns cannot be made anew
            operands.append((position, tuple(argument.shape), (None,) * len(argument.shape)))
        elif argument is not None:
            operands.append((position, np.shape(argument), None))
    made: list[Ids | None] = []
    for axis in range(-rank, 0):
        # Operands of size 1 are spread over the others.
        wide = [given for given in operands if len(given[1]) >= -axis and given[1][axis] != 1]
        met = [axes[axis] for _, _, axes in wide if axes is not None]
        for other in met[1:]:
            call.tie(met[0], other)
        followed = met[0] if met and all(ids is not None for ids in met) else None
        for position, shape, axes in wide:
            if axes is None and followed is not None:
                call.constant(position, axis % len(shape), followed)
        made.append(followed)
    return [tuple(made)]


def is_tensor(argument: Any) -> bool:
    """Tell whether an argument of a call is a symbolic tensor of the graph."""
    return hasattr(argument, "_keras_history")


@rule("Concatenate", "ops.Concatenate")
def concatenate(call: Call) -> list[Axes]:
    """Put the channels end to end; tie those along the other axes."""
    return [joined(call, call.layer.axis)]


def joined(call: Call, axis: int) -> Axes:
    """Return the axes of inputs that are put end to end along `axis`."""
    axis %= len(call.output_shapes[0])
    made: list[Ids | None] = []
    for index in range(len(call.output_shapes[0])):
        along = [axes[index] for axes in call.inputs]
        if index != axis:
            for other in along[1:]:
                call.tie(along[0], other)
            made.append(None if any(ids is None for ids in along) else along[0])
        else:
            made.append(_end_to_end(call, along, axis))
    return tuple(made)


def _end_to_end(call: Call, along: list[Ids | None], axis: int) -> Ids | None:
    if all(ids is None for ids in along):
        return None
    # Channels that stay are numbered too, so that those beside them can leave.
    numbered = []
    for ids, shape in zip(along, call.input_shapes, strict=True):
        if ids is None:
            if shape[axis] is None:
                for other in along:
                    call.freeze(other, "joins them with an axis of unknown size")
                return None
            ids = call.new(shape[axis] or 0, "fixed")
            call.freeze(ids, "joins them with an axis that keeps its size")
        numbered.append(ids)
    return np.concatenate(numbered)
