"""Which Keras layer an operator of a .tflite file was, by the names that the converter keeps."""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from edgeprune.export.artifact import record_path
from edgeprune.export.graph import Operator, Subgraph, TfliteModel
from edgeprune.export.micro import kernels_in_tables
from edgeprune.files import sha256

# The operations, as TensorFlow names them, that layers with a kernel compute with.
_KERNEL_OPERATIONS = re.compile(
    r"(?P<layer>[^/;]+)/(convolution|depthwise|separable_conv2d|conv2d_transpose|conv_transpose|"
    r"MatMul|Tensordot|Conv2D|DepthwiseConv2D|BiasAdd|while)(_\d+|\d+)?(/[^;]*)?$"
)
# How names of the converter's own begin.
_NO_LAYERS = ("StatefulPartitionedCall", "PartitionedCall", "serving_default", "tfl.")
_ONE_MORE_CALL = re.compile(r"_\d+$")


class Layers:
    """Names the Keras layer of each operator of a .tflite file, wherever one is shown.

    Attributes:
      known: names of the Keras model's layers; none without a record.
      source: where the names are from: ``record``, the JSON that `edgeprune.convert` wrote beside
        the file, or ``file``. Keras counts a layer's calls in the names that reach the file, so
        that these may end in a number more (``conv1_1``).
    """

    INPUT = "(input)"
    OUTPUT = "(output)"

    def __init__(self, path: Path | None, model: TfliteModel) -> None:
        """Look for the record beside a file; None for a model in memory, which has none."""
        self._graph = model.subgraphs[0]
        self._position = {id(one): at for at, one in enumerate(self._graph.operators)}
        self.known = frozenset[str]() if path is None else _recorded_layers(path)
        self.source = "record" if self.known else "file"

    def of(self, position: int) -> str:
        """Return the layer that the operator at a position of the main graph computes.

        What the converter named after the model's output, such as a last activation, counts as
        the layer's before it; what turns numbers into others at the ends is no layer's.
        """
        while True:
            operator = self._graph.operators[position]
            found = layer_of(self._graph, operator, self.known)
            if not found.startswith(_NO_LAYERS) and found != operator.name:
                return found
            producers = (self._graph.producers.get(index) for index in operator.inputs)
            before = next((self._position[id(one)] for one in producers if one is not None), None)
            if operator.name in ("QUANTIZE", "DEQUANTIZE"):
                return self.INPUT if before is None else self.OUTPUT
            if before is None or before >= position:
                return found
            position = before


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
    for kernel in (*graph.kernels(operator), *kernels_in_tables(graph, operator)):
        yield from kernel.name.split(";")
    for index in operator.outputs:
        if index >= 0:
            yield from graph.tensors[index].name.split(";")


def _recorded_layers(path: Path) -> frozenset[str]:
    """Return the names of the Keras model's layers, if the file has its record beside it."""
    try:
        record = json.loads(record_path(path).read_text(encoding="utf-8"))
        names = record["made_by"]["layers"]
        if record["sha256"] == sha256(path):
            return frozenset(map(str, names))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return frozenset()
