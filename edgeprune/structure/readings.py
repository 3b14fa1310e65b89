"""Which values every tensor of a model can take, and what its weighted layers read.

One pass over the calls, each by a small rule for its type; a type without a rule may give
anything. Only what holds for every input counts, in inference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.rebuild import calls, is_container
from edgeprune.structure.registry import type_key
from edgeprune.structure.values import ROUNDING, Value, Weights, anything

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]


@dataclass(eq=False)
class Reading:
    """A weighted layer, and what it reads at any of its calls.

    Attributes:
      layer: the layer.
      kernel: its variable.
      axis: of the input, the batch's included, that the kernel's inputs run along.
      in_axis: of the kernel, along that axis.
      out_axes: of the kernel, along the outputs.
      weights: the kernel's values.
      foldable: whether a constant input adds the same to every entry of an output channel, so
        that the bias can take it over.
      given: range of each input, over all calls.
      first: a kernel (..., channels, multiplier) that the inputs pass one by one before, or None.
    """

    layer: Any
    kernel: Any
    axis: int
    in_axis: int
    out_axes: tuple[int, ...]
    weights: Weights
    foldable: bool
    given: Value
    first: Any = None


@dataclass(frozen=True, eq=False)
class Step:
    """One call, as its rule sees it.

    Attributes:
      layer: the layer or operation.
      arguments: flattened; a `Value` for each tensor, anything else as it is.
      shapes: of the tensors among them.
      output_shapes: of the results.
      training: whether it behaves as in training even in inference.
      readings: id of a layer -> what it reads, for the rule to fill.
    """

    layer: Any
    arguments: list[Any]
    shapes: list[Shape]
    output_shapes: list[Shape]
    training: bool
    readings: dict[int, Reading]

    @property
    def first(self) -> Value:
        """The first tensor."""
        return next(given for given in self.arguments if isinstance(given, Value))

    @property
    def rounding(self) -> float:
        """Largest relative error of one operation."""
        return ROUNDING.get(
            str(getattr(self.layer, "compute_dtype", "float32")), ROUNDING["float16"]
        )


Rule = Callable[[Step], Value | None]
_RULES: dict[Any, Rule] = {}


def range_rule(*types: str) -> Callable[[Rule], Rule]:
    """Say which values the results of some types of layers and operations can take."""

    def add(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(types, rule))
        return rule

    return add


def find_readings(model: Any) -> list[Reading]:
    """Follow the values through a model.

    Args:
      model: a built Functional or Sequential Keras 3 model, nested models included.

    Returns:
      One reading for each weighted layer, in the order of their first calls.
    """
    _load()
    readings: dict[int, Reading] = {}
    _follow(model, [anything(len(tensor.shape)) for tensor in model.inputs], False, readings)
    return list(readings.values())


@cache
def _load() -> None:
    for module in ("weighted", "pointwise", "shaping"):
        import_module(f"edgeprune.structure.ranges.{module}")


def _follow(
    container: Any, inputs: Sequence[Value], training: bool, readings: dict[int, Reading]
) -> list[Value]:
    graph = container if hasattr(container, "_nodes_by_depth") else container._functional
    known = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}
    for node, _ in calls(graph):
        layer = node.operation
        shapes = [tuple(tensor.shape) for tensor in node.outputs]
        trains = bool(node.arguments.kwargs.get("training")) or training
        if is_container(layer):
            made = _follow(
                layer, [known[id(tensor)] for tensor in node.input_tensors], trains, readings
            )
        else:
            step = Step(
                layer,
                [known.get(id(given), given) for given in node.arguments._flat_arguments],
                [tuple(tensor.shape) for tensor in node.input_tensors],
                shapes,
                trains,
                readings,
            )
            rule = _RULES.get(type_key(type(layer)))
            value = rule(step) if rule and len(shapes) == 1 else None
            made = [_fitted(value, shape) for shape in shapes]
        known |= {id(tensor): value for tensor, value in zip(node.outputs, made, strict=True)}
    return [known[id(tensor)] for tensor in graph.outputs]


def _fitted(value: Value | None, shape: Shape) -> Value:
    """Hold a rule's answer against the tensor; what does not fit says nothing."""
    if value is None or value.low.ndim != len(shape):
        return anything(len(shape))
    if any(size not in (1, full) for size, full in zip(value.shape[1:], shape[1:], strict=True)):
        return anything(len(shape))
    # What could not be computed, such as 0 x inf, may be anything.
    known = Value(
        np.where(np.isnan(value.low), -np.inf, value.low),
        np.where(np.isnan(value.high), np.inf, value.high),
    )
    return known.collapsed((0,)) if shape else known


def channel_axis(layer: Any) -> int:
    """Return the axis of the channels."""
    return -1 if getattr(layer, "data_format", "channels_last") == "channels_last" else 1


def placed(vector: Value, rank: int, axis: int) -> Value:
    """Let vectors run along one axis of a tensor."""
    shape = [1] * rank
    shape[axis] = -1
    return Value(vector.low.reshape(shape), vector.high.reshape(shape))
