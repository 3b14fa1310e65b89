"""Which layers' channels do not fill a device's kernels, and how far they can shrink."""

from dataclasses import dataclass

from edgeprune.devices.advice import Reason
from edgeprune.devices.subject import Subject
from edgeprune.export.graph import Operator, Subgraph

_CHANNEL_AXES = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}


@dataclass(frozen=True)
class Width:
    """A layer that makes channels, and may make fewer.

    Attributes:
      layer: its name.
      channels: that it makes.
    """

    layer: str
    channels: int


def widths(subject: Subject) -> list[Width]:
    """List the layers whose channels are the model's own matter, in order.

    The last ones make the model's outputs, whose number is the task's; depthwise ones make as
    many as they are given.
    """
    graph = subject.tflite.subgraphs[0]
    last = _last(graph)
    found = []
    for operator in graph.operators:
        axis = _CHANNEL_AXES.get(operator.name)
        kernels = graph.kernels(operator)
        if axis is not None and kernels and kernels[0].shape and id(operator) not in last:
            found.append(Width(subject.layer(operator), kernels[0].shape[axis]))
    return found


def uneven(found: list[Width], multiple: int) -> list[Reason]:
    """Say of each layer whose channels are no multiple what its kernels compute for nothing."""
    reasons = []
    for width in found:
        filled = -(-width.channels // multiple) * multiple
        if filled != width.channels:
            wasted = 1 - width.channels / filled
            reasons.append(
                Reason(
                    f"has {width.channels} channels, no multiple of {multiple}: kernels compute "
                    f"{filled}, {wasted:.0%} of them for nothing",
                    width.layer,
                )
            )
    return reasons


def _last(graph: Subgraph) -> set[int]:
    """Return the ids of the operators with kernels that no other such operator reads."""
    waiting, seen, last = list(graph.outputs), set(graph.outputs), set()
    while waiting:
        operator: Operator | None = graph.producers.get(waiting.pop())
        if operator is None:
            continue
        if operator.name in _CHANNEL_AXES and graph.kernels(operator):
            last.add(id(operator))
            continue
        more = {index for index in operator.inputs if index >= 0} - seen
        seen |= more
        waiting.extend(more)
    return last
