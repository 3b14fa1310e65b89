"""Weights that are no numbers, by layer: what diverged in training, or was damaged."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune import models
from edgeprune.errors import listed
from edgeprune.export.graph import TfliteModel
from edgeprune.export.layer_names import layer_of

Array = npt.NDArray[Any]

_FLOATS = ("float32", "float16", "float64")
# They only unpack a constant for the operator that computes with it.
_DENSE_VIEWS = ("DEQUANTIZE", "DENSIFY")


@dataclass(frozen=True)
class NotFinite:
    """A layer with weights that are no numbers.

    Attributes:
      layer: its path through nested models.
      nan, infinite: how many of its weights are.
      total: how many weights it has.
    """

    layer: str
    nan: int
    infinite: int
    total: int

    def __str__(self) -> str:
        counts = ((self.nan, "NaN"), (self.infinite, "infinite"))
        what = " and ".join(f"{count:,} {name}" for count, name in counts if count)
        return f"layer '{self.layer}' has {what} of {self.total:,} weights"


def not_finite(model: Any) -> tuple[NotFinite, ...]:
    """Find the layers of a Keras model, of either flavour, with weights that are no numbers."""
    owner = {id(variable): model.name for variable in model.weights}
    for path, layer in models.layers(model):
        # Outer layers come first: a variable ends with the innermost that holds it.
        owner |= {id(variable): path for variable in layer.weights}
    return _counted((owner[id(variable)], np.asarray(variable)) for variable in model.weights)


def not_finite_in_file(model: TfliteModel, known: Collection[str] = ()) -> tuple[NotFinite, ...]:
    """Find the layers of a .tflite file with float kernels or biases that are no numbers.

    Args:
      model: its content.
      known: names of the Keras model's layers, if they are known.
    """
    found: dict[int, tuple[str, Array]] = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            if operator.name in _DENSE_VIEWS:
                continue
            for tensor in map(graph.constant, operator.inputs):
                if tensor is not None and tensor.dtype in _FLOATS and tensor.buffer not in found:
                    name = layer_of(graph, operator, known)
                    found[tensor.buffer] = (name, tensor.stored())
    return _counted(found.values())


def in_words(found: Sequence[NotFinite]) -> str:
    """Name the layers in one line."""
    return listed([str(layer) for layer in found])


def _counted(arrays: Iterable[tuple[str, Array]]) -> tuple[NotFinite, ...]:
    """Sum up by layer, and keep those that have some."""
    counts: dict[str, list[int]] = {}
    for layer, values in arrays:
        row = counts.setdefault(layer, [0, 0, 0])
        row[2] += values.size
        if values.dtype.kind not in "biu" and not np.isfinite(values).all():
            row[0] += int(np.isnan(values).sum())
            row[1] += int(np.isinf(values).sum())
    return tuple(NotFinite(layer, *row) for layer, row in counts.items() if row[0] or row[1])
