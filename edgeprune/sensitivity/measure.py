"""Measure how much worse a model gets when one kernel at a time is changed."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import models
from edgeprune.drop import ACCURACY, AGREEMENT, ERROR, Yardstick, few_samples
from edgeprune.errors import InputError, counted
from edgeprune.report.table import Column, render
from edgeprune.sensitivity.changes import CHANGES, Change
from edgeprune.sensitivity.trial import Array, Progress, Trial, check_weights, judge_each

_DROPS = {
    AGREEMENT: "fraction of samples whose arg max is another than the unchanged model's",
    ERROR: "rms change of the outputs, in their standard deviations",
}


@dataclass(frozen=True)
class Point:
    """One kernel, changed in one way.

    Attributes:
      change: ``int8``, ``int4``, ``0.8 zeros``, ``16 values``, ...
      drop: how much worse the model is; infinite where it gives NaN.
      output_error: rms change of the outputs, in their standard deviations.
    """

    change: str
    drop: float
    output_error: float


@dataclass(frozen=True)
class LayerSensitivity:
    """What one kernel's changes cost.

    Attributes:
      name: of the layer, or of the kernel where the layer has several; as `skip` takes it.
      op: class of the layer.
      weights: entries of the kernel.
      points: in the order of the changes.
    """

    name: str
    op: str
    weights: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What `measure_sensitivity` measured.

    Attributes:
      drop_of: what drops, or rises: see `edgeprune.drop.Yardstick`.
      score: the unchanged model's own figure.
      samples: that it was measured on.
      layers: in the order of the model.
    """

    drop_of: str
    score: float
    samples: int
    layers: tuple[LayerSensitivity, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, keyed as the attributes; None for infinite."""
        document = asdict(self)
        for layer in document["layers"]:
            for point in layer["points"]:
                for name in ("drop", "output_error"):
                    point[name] = point[name] if isfinite(point[name]) else None
        return document

    def to_json(self) -> str:
        """Return one JSON document."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of the table: the layer, its weights, and a column for each change."""
        changes = [point.change for point in self.layers[0].points]
        return (
            Column("layer"),
            Column("op"),
            Column("weights", "count"),
            *(Column(name, "count") for name in changes),
        )

    def rows(self) -> list[tuple[str | int, ...]]:
        """Return the values of `columns`, a row a layer."""
        return [
            (layer.name, layer.op, layer.weights, *(f"{p.drop:.4f}" for p in layer.points))
            for layer in self.layers
        ]

    def summary(self) -> str:
        """Say what the figures are."""
        what = _DROPS.get(self.drop_of, f"{self.drop_of} lost against the unchanged model")
        own = f" ({self.score:.4f})" if self.drop_of not in _DROPS else ""
        note = (
            f"drop: {what}{own}, with that layer alone changed, on "
            f"{counted(self.samples, 'sample')}"
        )
        few = few_samples(self.drop_of, self.samples)
        if self.drop_of in (ACCURACY, AGREEMENT) and not few:
            note += f"; one sample is {1 / self.samples:.4f}"
        return "\n".join([note, *few])

    def __str__(self) -> str:
        return f"{render(self.columns, self.rows())}\n\n{self.summary()}"


def measure_sensitivity(
    model: Any,
    data: Any,
    *,
    changes: Sequence[Change] = CHANGES,
    samples: int = 1024,
    unsafe: bool = False,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure what changing one kernel at a time costs: quantized, pruned or clustered.

    Weights are changed in place, as they would be after the change, and nothing is trained: int8
    and int4 are the symmetric grid of each output channel, zeros the smallest weights of the
    kernel, values those of the optimal clusters over the kernel. Afterwards every weight is as it
    was, to the bit.

    Args:
      model: a .keras or .h5 file of Keras 3 or tf_keras, or such a model.
      data: samples to run it on: x, or (x, y) for accuracy; see `edgeprune.data.load_samples`.
        Those that the data hold out (`x_val`, `y_val`) are taken, where there are any.
      changes: what to try; int8, int4, four sparsities and two numbers of clusters by default.
      samples: as many are used, evenly spaced.
      unsafe: load a .keras file that carries Python code.
      progress: called with (stage, fraction done, note).

    Raises:
      InputError: no data, data or targets that do not fit, NaN weights, a .tflite file, or a
        model without kernels.
    """
    loaded = keras_model(model, unsafe)
    trial = Trial.of(loaded, data, samples)
    kernels = models.kernels(loaded)
    if not kernels:
        raise InputError(
            f"model '{loaded.name}' has no kernels; sensitivity is of dense, convolutional, "
            "recurrent and embedding layers"
        )
    if not changes:
        raise InputError("changes is empty; give one Change or more")
    check_weights(kernels)
    yardstick = Yardstick(trial.run(), trial.samples.targets, trial.sample_shapes)

    def changed(kernel: models.Kernel, weights: Array) -> Iterator[Array]:
        for change in changes:
            yield change.apply(kernel, weights)

    def judged() -> tuple[float, float]:
        outputs = trial.run()
        return float(yardstick.drop(outputs)), float(yardstick.error(outputs))

    figures = judge_each(kernels, changed, judged, progress)
    owners = [kernel.name.rpartition("/")[0] for kernel in kernels]
    return Sensitivity(
        drop_of=yardstick.name,
        score=float(yardstick.score),
        samples=len(trial.samples),
        layers=tuple(
            LayerSensitivity(
                name=owner if owners.count(owner) == 1 else kernel.name,
                op=type(kernel.layer).__name__,
                weights=int(np.prod(kernel.variable.shape)),
                points=tuple(
                    Point(change.name, *pair) for change, pair in zip(changes, own, strict=True)
                ),
            )
            for kernel, owner, own in zip(kernels, owners, figures, strict=True)
        ),
    )


def keras_model(model: Any, unsafe: bool) -> Any:
    if not isinstance(model, str | os.PathLike):
        models.keras_of(model)
        return model
    path = Path(model)
    if path.suffix.lower() == ".tflite":
        raise InputError(
            f"sensitivity changes the weights of a Keras model, and {path} is a .tflite file; "
            "give the .keras or .h5 file that it was made from"
        )
    return models.load_model(path, unsafe=unsafe, compile=False)
