"""Several tensors become one: entry by entry, or end to end."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

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
    given = operands(call)
    if hasattr(call.layer, "weights"):  # a layer, not an operation
        if any(operand.input is None for operand in given):
            return list(call.freeze_all("merges them with an array"))
        given = [_layer_operand(operand, rank) for operand in given]
    labels = [range(-len(operand.shape), 0) for operand in given]
    return [product(call, given, labels, range(-rank, 0))]


class Operand(NamedTuple):
    """An argument of an operation on several tensors.

    Attributes:
      position: among the flattened arguments.
      input: which of the tensors it is; None for a constant.
      shape: its sizes, None where unknown.
      axes: of a tensor; a constant has none of its own.
    """

    position: int
    input: int | None
    shape: tuple[int | None, ...]
    axes: Axes | None


def operands(call: Call) -> list[Operand]:
    """Return the tensors, arrays and numbers that an operation is called with, in order."""
    found: list[Operand] = []
    index = 0
    for position, argument in enumerate(call.arguments):
        if hasattr(argument, "_keras_history"):
            found.append(Operand(position, index, call.input_shapes[index], call.inputs[index]))
            index += 1
        elif hasattr(argument, "assign"):  # a variable that no layer owns cannot be made anew
            shape = tuple(argument.shape)
            found.append(Operand(position, None, shape, (None,) * len(shape)))
        elif argument is not None:
            found.append(Operand(position, None, np.shape(argument), None))
    return found


def product(
    call: Call,
    given: Sequence[Operand],
    labels: Sequence[Sequence[Hashable]],
    result: Sequence[Hashable],
) -> Axes:
    """Return the axes of an operation that works like `einsum`, entry by entry included.

    Args:
      call: the call; channels that meet are tied, constants sliced with them.
      given: its operands.
      labels: for each of them a label for each axis; axes of the same label meet. Where one of
        them has size 1 it is spread over the others.
      result: labels of the result's axes; over the others is summed.
    """
    followed: dict[Hashable, Ids | None] = {}
    places: dict[Hashable, list[tuple[Operand, int]]] = {}
    for operand, names in zip(given, labels, strict=True):
        for axis, name in enumerate(names):
            places.setdefault(name, []).append((operand, axis))
    for name, meeting in places.items():
        wide = [(operand, axis) for operand, axis in meeting if operand.shape[axis] != 1]
        if name not in result and 0 < len(wide) < len(meeting):
            wide = []
            for operand, axis in meeting:
                if operand.axes is not None:
                    call.freeze(operand.axes[axis], "sums over an axis that it spreads")
        met = [operand.axes[axis] for operand, axis in wide if operand.axes is not None]
        for other in met[1:]:
            call.tie(met[0], other)
        followed[name] = ids = met[0] if met and all(one is not None for one in met) else None
        for operand, axis in wide:
            if ids is not None and operand.axes is None:
                call.constant(operand.position, axis, ids)
            if operand.input is not None and name not in result:
                call.sees(operand.input, axis)
    return tuple(followed.get(name) for name in result)


def _layer_operand(operand: Operand, rank: int) -> Operand:
    """Put axes of size 1 behind the batch's, as merging layers do for inputs of lower rank."""
    missing = rank - len(operand.shape)
    if operand.axes is None or missing <= 0:
        return operand
    return operand._replace(
        shape=(operand.shape[0], *[1] * missing, *operand.shape[1:]),
        axes=(operand.axes[0], *[None] * missing, *operand.axes[1:]),
    )


@rule("Dot")
def dot(call: Call) -> list[Axes]:
    """Sum over one axis of each input, which lose the same channels."""
    given = operands(call)
    axes = call.layer.axes
    over = [
        axis % len(operand.shape)
        for axis, operand in zip(
            (axes, axes) if isinstance(axes, int) else axes, given, strict=True
        )
    ]
    labels: list[list[Hashable]] = [
        [
            "batch" if axis == 0 else "summed" if axis == over[which] else (which, axis)
            for axis in range(len(operand.shape))
        ]
        for which, operand in enumerate(given)
    ]
    result = ["batch", *(name for names in labels for name in names if isinstance(name, tuple))]
    made = product(call, given, labels, result)
    return [(*made, *[None] * (len(call.output_shapes[0]) - len(made)))]


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
