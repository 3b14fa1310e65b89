"""How channels pass through each kind of operator: a small rule each, in one table.

A rule reads an operator's inputs from `Channels` and puts its output there, channels and range of
values; it raises `FrozenError` where it cannot follow. Operators that are not in the table freeze
their channels, so a missing rule costs savings, never correctness.
"""

import math

import numpy as np

from edgeprune.export.cleanup import elementwise
from edgeprune.export.cleanup.channels import Channels, Reading, Rule
from edgeprune.export.cleanup.ranges import Range, activated, anything, of_weighted, same_scale
from edgeprune.export.cleanup.weighted import WEIGHTED, FrozenError, weighted
from edgeprune.export.graph import Operator, Tensor

# Scalar functions of one input, computed for each entry alike.
_FUNCTIONS = (
    "LOGISTIC",
    "TANH",
    "HARD_SWISH",
    "LEAKY_RELU",
    "ELU",
    "GELU",
    "ABS",
    "NEG",
    "EXP",
    "SQRT",
    "RSQRT",
    "SQUARE",
)
# As `ActivationFunctionType` numbers them.
_RECTIFIERS = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_ARITHMETIC = ("ADD", "SUB", "MUL")
# Operators of two inputs, either of which may be a constant to slice with the other.
PAIRWISE = (*_ARITHMETIC, "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "PRELU")
# Types of a constant operand; others are packed in bits, or unknown to NumPy.
_SLICED = ("float32", "int8", "uint8", "int16", "int32", "int64")
_REDUCTIONS = ("SUM", "REDUCE_MAX", "REDUCE_MIN")


def _weighted(channels: Channels, operator: Operator, position: int) -> None:
    layer = weighted(channels.graph, position)
    source, output = _ends(channels, operator)
    columns, given = channels.tensors[layer.source], channels.range(layer.source)
    if operator.name == "FULLY_CONNECTED":
        times = layer.positive.shape[1] // len(columns)
        columns, given = np.tile(columns, times), given.tiled(times)
    made = activated(output, of_weighted(layer, source, output, given), _activation(operator))
    if layer.mixing:
        rows = channels.new(layer.channels)
    else:
        rows = np.repeat(columns, layer.channels // len(columns))
    channels.put(layer.output, rows, made)
    channels.readings.append(Reading(layer, rows, columns, given, made))


def _function(channels: Channels, operator: Operator, position: int) -> None:
    _, output = _ends(channels, operator)
    channels.put(output.index, channels.tensors[operator.inputs[0]], anything(output))


def _rectifier(channels: Channels, operator: Operator, position: int) -> None:
    source, output = _ends(channels, operator)
    given = elementwise.rescaled(source, output, channels.range(source.index))
    made = activated(output, given, _RECTIFIERS[operator.name])
    channels.put(output.index, channels.tensors[source.index], made)


def _rescale(channels: Channels, operator: Operator, position: int) -> None:
    source, output = _ends(channels, operator)
    given = elementwise.rescaled(source, output, channels.range(source.index))
    channels.put(output.index, channels.tensors[source.index], activated(output, given, 0))


def _pool(channels: Channels, operator: Operator, position: int) -> None:
    source, output = _ends(channels, operator)
    given = elementwise.kept(source, output, channels.range(source.index))
    made = activated(output, given, _activation(operator))
    channels.put(output.index, channels.tensors[source.index], made)


def _resize(channels: Channels, operator: Operator, position: int) -> None:
    source, output = _ends(channels, operator)
    nearest = operator.name == "RESIZE_NEAREST_NEIGHBOR"
    given = channels.range(source.index)
    made = elementwise.kept(source, output, given) if nearest else anything(output)
    channels.put(output.index, channels.tensors[source.index], made)


def _pad(channels: Channels, operator: Operator, position: int) -> None:
    source, output = _ends(channels, operator)
    paddings = _integers(channels, operator, 1)
    if len(paddings) != 2 * len(source.shape) or any(paddings[-2:]):
        raise FrozenError(f"{operator.name} of channels")
    given = channels.range(source.index)
    if operator.name == "MIRROR_PAD":
        made = elementwise.kept(source, output, given)
    elif operator.name == "PAD":
        made = elementwise.padded(source, output, given, None)
    else:
        value = channels.graph.tensors[operator.inputs[2]]
        if value.data is None or value.entries != 1 or not same_scale(value, output):
            raise FrozenError("PADV2 with a computed value")
        made = elementwise.padded(source, output, given, float(value.values().reshape(-1)[0]))
    channels.put(output.index, channels.tensors[source.index], made)


def _reduce(channels: Channels, operator: Operator, position: int) -> None:
    source, output = _ends(channels, operator)
    rank = len(source.shape)
    axes = {axis + rank if axis < 0 else axis for axis in _integers(channels, operator, 1)}
    if not axes or not axes <= set(range(rank - 1)):
        raise FrozenError(f"{operator.name} over channels")
    made = anything(output)
    if operator.name == "MEAN" and all(source.signature[axis] > 0 for axis in axes):
        count = math.prod(source.shape[axis] for axis in axes)
        given = elementwise.averaged(source, output, channels.range(source.index), count)
        made = activated(output, given, 0)
    channels.put(output.index, channels.tensors[source.index], made)


def _reshape(channels: Channels, operator: Operator, position: int) -> None:
    source, output = _ends(channels, operator)
    if operator.name == "RESHAPE" and len(operator.inputs) > 1:
        _integers(channels, operator, 1)
    ids = channels.tensors[source.index]
    if not output.entries or not source.entries or output.shape[-1] % len(ids):
        raise FrozenError(f"{operator.name} that splits channels")
    times = output.shape[-1] // len(ids)
    given = elementwise.kept(source, output, channels.range(source.index).tiled(times))
    channels.put(output.index, np.tile(ids, times), given)


def _pairwise(channels: Channels, operator: Operator, position: int) -> None:
    _, output = _ends(channels, operator)
    if len(operator.inputs) != 2:
        raise FrozenError(f"{operator.name} of other than two inputs")
    operands = [channels.graph.tensors[index] for index in operator.inputs]
    ids = None
    for operand in operands:
        size = operand.shape[-1] if operand.shape else 1
        if size not in (1, output.shape[-1]) or not operand.entries:
            raise FrozenError("shapes that do not fit")
        if operand.data is not None:
            if operand.dtype not in _SLICED or operand.sparsity is not None:
                raise FrozenError(f"a constant of {operand.dtype}")
            continue
        here = channels.tensors[operand.index]
        if len(here) != output.shape[-1]:
            channels.freeze_tensor(operand.index, f"broadcast by {operator.name}")
        elif ids is None:
            ids = here
        else:
            channels.tie(ids, here)
    if ids is None:
        raise FrozenError(f"{operator.name} of constants")
    made = anything(output)
    if operator.name in _ARITHMETIC:
        one, other = operands
        pair = ((one, channels.range(one.index)), (other, channels.range(other.index)))
        given = elementwise.combined(operator.name, output, pair)
        made = activated(output, given, _activation(operator))
    channels.put(output.index, ids, made)


def _concatenate(channels: Channels, operator: Operator, position: int) -> None:
    output = channels.graph.tensors[operator.outputs[0]]
    parts = [channels.graph.tensors[index] for index in operator.inputs]
    if any(part.data is not None for part in parts) or not output.shape:
        raise FrozenError("CONCATENATION with a constant")
    if any(part.dtype != output.dtype for part in parts):
        raise FrozenError("CONCATENATION of several types")
    ranges = [
        channels.range(part.index) if same_scale(part, output) else anything(part) for part in parts
    ]
    ids = [channels.tensors[part.index] for part in parts]
    axis = int(operator.options.get("axis", 0))
    if axis in (-1, len(output.shape) - 1):
        made = Range(
            np.concatenate([given.low for given in ranges]),
            np.concatenate([given.high for given in ranges]),
        )
        joined = np.concatenate(ids)
    else:
        made, joined = ranges[0], ids[0]
        for here, given in zip(ids[1:], ranges[1:], strict=True):
            if len(here) != len(joined):
                raise FrozenError("shapes that do not fit")
            channels.tie(joined, here)
            made = made.joined(given)
    channels.put(output.index, joined, activated(output, made, _activation(operator)))


def _ends(channels: Channels, operator: Operator) -> tuple[Tensor, Tensor]:
    """Return the first input and the only output."""
    if len(operator.outputs) != 1 or not operator.inputs or operator.inputs[0] < 0:
        raise FrozenError(f"{operator.name} with other inputs or outputs than usual")
    source = channels.graph.tensors[operator.inputs[0]]
    output = channels.graph.tensors[operator.outputs[0]]
    if source.data is not None and operator.name not in PAIRWISE:
        raise FrozenError(f"{operator.name} of a constant")
    if not output.shape or not (source.shape or operator.name in PAIRWISE):
        raise FrozenError(f"{operator.name} of a single number")
    return source, output


def _integers(channels: Channels, operator: Operator, slot: int) -> list[int]:
    """Return a constant integer input, flat."""
    tensor = None
    if len(operator.inputs) > slot and operator.inputs[slot] >= 0:
        tensor = channels.graph.tensors[operator.inputs[slot]]
    if tensor is None or tensor.data is None or tensor.dtype not in ("int32", "int64"):
        raise FrozenError(f"{operator.name} with computed parameters")
    return [int(value) for value in tensor.values().reshape(-1)]


def _activation(operator: Operator) -> int:
    return int(operator.options.get("fused_activation_function", 0))


RULES: dict[str, Rule] = {
    **dict.fromkeys(WEIGHTED, _weighted),
    **dict.fromkeys(_FUNCTIONS, _function),
    **dict.fromkeys(_RECTIFIERS, _rectifier),
    **dict.fromkeys(("QUANTIZE", "DEQUANTIZE"), _rescale),
    **dict.fromkeys(("MAX_POOL_2D", "AVERAGE_POOL_2D"), _pool),
    **dict.fromkeys(("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"), _resize),
    **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD"), _pad),
    **dict.fromkeys(("MEAN", *_REDUCTIONS), _reduce),
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), _reshape),
    **dict.fromkeys(PAIRWISE, _pairwise),
    "CONCATENATION": _concatenate,
}
