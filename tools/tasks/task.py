"""What a task is: samples with labels in three splits, and the draws that all of them share."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.errors import InputError

Array = npt.NDArray[Any]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task.

    Attributes:
      name: what it is called in reports.
      x_train: (n, ...) float32.
      y_train: (n,) int64, an index into `classes`.
      x_val: like `x_train`, to choose by.
      y_val: their labels.
      x_test: like `x_train`, to report on.
      y_test: their labels.
      classes: names of the classes.
    """

    name: str
    x_train: Array
    y_train: Array
    x_val: Array
    y_val: Array
    x_test: Array
    y_test: Array
    classes: tuple[str, ...]


def generators(seed: int) -> dict[str, np.random.Generator]:
    """Return one random generator a split: a split's samples do not hang on the others' sizes.

    Raises:
      InputError: the seed is negative.
    """
    if seed < 0:
        raise InputError(f"got seed {seed}; supported: 0 and above")
    children = np.random.SeedSequence(seed).spawn(len(SPLITS))
    return {
        split: np.random.default_rng(child) for split, child in zip(SPLITS, children, strict=True)
    }


def sizes(n_train: int, n_val: int, n_test: int, classes: int) -> dict[str, int]:
    """Return the number of samples of each split, checked.

    Raises:
      InputError: a split has fewer samples than there are classes.
    """
    wanted = dict(zip(SPLITS, (n_train, n_val, n_test), strict=True))
    for split, number in wanted.items():
        if number < classes:
            raise InputError(
                f"got n_{split}={number} for {classes} classes; give one sample a class or more"
            )
    return wanted


def balanced_labels(rng: np.random.Generator, number: int, classes: int) -> Array:
    """Return `number` labels in random order, each class as often as any other, give or take 1."""
    return rng.permutation(np.arange(number) % classes)
