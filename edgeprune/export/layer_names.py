"""Which Keras layer an operator of a .tflite file was, by the names that the converter keeps."""

import re
from collections.abc import Collection, Iterator

from edgeprune.export.graph import Operator, Subgraph

# The operations, as TensorFlow names them, that layers with a kernel compute with.
_KERNEL_OPERATIONS = re.compile(
    r"(?P<layer>[^/;]+)/(convolution|depthwise|separable_conv2d|conv2d_transpose|conv_transpose|"
    r"MatMul|Tensordot|Conv2D|DepthwiseConv2D|BiasAdd|while)(_\d+|\d+)?(/[^;]*)?$"
)
_ONE_MORE_CALL = re.compile(r"_\d+$")


def layer_of(graph: Subgraph, operator: Operator, known: Collection[str] = ()) -> str:
    """Name the layer that an operator computes.

    Args:
      graph: that the operator is in.
      operator: with a kernel or without.
      known: names of the model's Keras layers, if there is a model. Keras 3 counts the calls of
        a layer in the names that it gives to operations (``conv1_1``), which only they can tell
        from a layer's own name.

    Returns:
      The layer's name; the first part of the output's name where none is to be seen there.
    """
    paths = [path for path in _paths(graph, operator) if path]
    for path in paths:
        found = _KERNEL_OPERATIONS.search(path)
        if found:
            name = _plain(found["layer"], known)
            if not known or name in known:
                return name
    for path in paths:
        for part in reversed(path.split("/")):
            if (name := _plain(part, known)) in known:
                return name
    first = next(iter(paths), operator.name)
    parts = first.split("/")
    return parts[-2] if len(parts) > 1 else parts[0]


def _plain(part: str, known: Collection[str]) -> str:
    """Take the number of a call off a layer's name, where that is what it is."""
    shorter = _ONE_MORE_CALL.sub("", part)
    return shorter if shorter in known else part


def _paths(graph: Subgraph, operator: Operator) -> Iterator[str]:
    """Yield the names that were merged into an operator's: its kernels' first, then its output's.

    What the converter fuses is joined by semicolons.
    """
    for kernel in graph.kernels(operator):
        yield from kernel.name.split(";")
    for index in operator.outputs:
        if index >= 0:
            yield from graph.tensors[index].name.split(";")
