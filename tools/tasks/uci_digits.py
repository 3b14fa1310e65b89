"""UCI's handwritten digits, which scikit-learn ships."""

import numpy as np

from tasks.task import SPLITS, Array, Task, generators

_HELD_OUT = {"val": 0.1, "test": 0.2}


def digits(seed: int = 0) -> Task:
    """Load the 1797 digits of 8x8 pixels, written by 43 people.

    Of each class a fifth is for tests and a tenth for validation, drawn by the seed. Who wrote a
    digit is not recorded, so the splits share writers.

    Args:
      seed: of the splits.

    Returns:
      x of shape (n, 8, 8, 1), float32 in [0, 1]; 10 classes.

    Source: Alpaydin & Kaynak 1998, doi:10.24432/C50P49.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)  # ink of 4x4 blocks: 0 to 16
    rng = generators(seed)["train"]
    parts: dict[str, list[Array]] = {split: [] for split in SPLITS}
    for label in range(10):
        indices = rng.permutation(np.flatnonzero(y == label))
        for split, fraction in _HELD_OUT.items():
            number = round(fraction * np.count_nonzero(y == label))
            parts[split].append(indices[:number])
            indices = indices[number:]
        parts["train"].append(indices)
    arrays: dict[str, Array] = {}
    for split in SPLITS:
        chosen = rng.permutation(np.concatenate(parts[split]))
        arrays[f"x_{split}"] = images[chosen]
        arrays[f"y_{split}"] = y[chosen].astype(np.int64)
    return Task("digits", **arrays, classes=tuple("0123456789"))
