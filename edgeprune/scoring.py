"""How good predictions are: one figure that is read the same way off Keras and off a .tflite."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeprune.errors import InputError

Task = Literal["classes", "one-hot", "binary", "regression"]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Score:
    """A figure and what it is.

    Attributes:
      name: ``accuracy`` (fraction, higher is better) or ``mean squared error`` (lower is better).
      value: the figure.
    """

    name: str
    value: float


def task_of(targets: Array, predictions: Array) -> Task:
    """Tell what is predicted from the shapes and values of targets and predictions.

    Args:
      targets: (n,), (n, 1) or (n, ..., k).
      predictions: (n, ..., k), the model's output for the same samples.

    Returns:
      ``classes``: whole-number labels for k > 1 outputs; ``one-hot``: rows with a single one;
      ``binary``: labels 0 and 1 for one output; ``regression``: anything else of equal shape.

    Raises:
      InputError: the shapes do not belong together, or a label is not below k.
    """
    units = predictions.shape[-1] if predictions.ndim > 1 else 1
    labels = _squeeze(targets)
    if units > 1 and labels.shape == predictions.shape[:-1]:
        if not np.all(labels == np.floor(labels)) or labels.min() < 0 or labels.max() >= units:
            raise InputError(
                f"labels run from {labels.min():g} to {labels.max():g}, but the model has "
                f"{units} outputs; supported: whole numbers from 0 to {units - 1}"
            )
        return "classes"
    if labels.shape != _squeeze(predictions).shape:
        raise InputError(
            f"targets of shape {targets.shape} do not fit predictions of shape "
            f"{predictions.shape}; give one label or one row of {units} a sample"
        )
    if units > 1 and np.all((targets == 0) | (targets == 1)) and np.all(targets.sum(-1) == 1):
        return "one-hot"
    if units == 1 and np.all((targets == 0) | (targets == 1)):
        return "binary"
    return "regression"


def score(targets: Array, predictions: Array) -> Score:
    """Score predictions: accuracy of classifiers, mean squared error of everything else.

    Args:
      targets: as in `task_of`.
      predictions: as in `task_of`; probabilities or logits alike, since only their order counts.
        A single output within [0, 1] is a probability (threshold 0.5), otherwise a logit (0).

    Raises:
      InputError: see `task_of`.
    """
    task = task_of(targets, predictions)
    if task == "regression":
        errors = _squeeze(predictions).astype(np.float64) - _squeeze(targets)
        return Score("mean squared error", float(np.mean(errors**2)))
    if task == "binary":
        outputs = _squeeze(predictions)
        threshold = 0.5 if outputs.min() >= 0 and outputs.max() <= 1 else 0.0
        hits = (outputs > threshold) == (_squeeze(targets) == 1)
    else:
        labels = targets.argmax(-1) if task == "one-hot" else _squeeze(targets)
        hits = predictions.argmax(-1) == labels
    return Score("accuracy", float(np.mean(hits)))


def _squeeze(values: Array) -> Array:
    return values[..., 0] if values.ndim > 1 and values.shape[-1] == 1 else values
