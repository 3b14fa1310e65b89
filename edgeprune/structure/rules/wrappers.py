"""Layers that hold a layer."""

from collections.abc import Sequence
from typing import TypeVar

from edgeprune.rebuild import is_container
from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.registry import rule_for

_T = TypeVar("_T")


@rule("TimeDistributed")
def time_distributed(call: Call) -> Sequence[Axes]:
    """Ask the inner layer's rule about one step; hand the axis of time on."""
    inner = call.layer.layer
    follow = None if is_container(inner) else rule_for(inner)
    if follow is None:
        return call.freeze_all(f"holds a {type(inner).__name__}, which is not followed inside it")
    for mask in call.inputs[1:]:
        for ids in mask:
            call.freeze(ids, "takes them for a mask")
    time = call.inputs[0][1]
    within = call.inside(
        inner,
        ("layer", "config"),
        [_step(call.inputs[0])],
        [_step(call.input_shapes[0])],
        [_step(shape) for shape in call.output_shapes],
        lambda given, axis: (given, axis + (axis > 0)),
    )
    return [(axes[0], time, *axes[1:]) for axes in follow(within)]


def _step(axes: tuple[_T, ...]) -> tuple[_T, ...]:
    """Leave out the axis of time."""
    return (axes[0], *axes[2:])
