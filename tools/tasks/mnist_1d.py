"""MNIST-1D: ten one-dimensional digits that only a model with the right bias learns well.

The procedure and its constants are those of Greydanus & Kobak 2020, arXiv:2011.14439, and of the
defaults that the authors publish with it (github.com/greydanus/mnist1d).
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from tasks.task import Array, Task, balanced_labels, generators, sizes

TEMPLATE_LENGTH = 12
PADDING = (36, 60)  # zeros put behind a template, both ends included
CANVAS = TEMPLATE_LENGTH + PADDING[1]  # every padded template is stretched to this length
MAX_TRANSLATION = 48
SCALE = 0.4  # amplitudes differ by up to half of this either way
CORRELATED_NOISE = 0.25  # only where the padding was
CORRELATION_LENGTH = 2.0
IID_NOISE = 0.02
SHEAR = 0.75
LENGTH = 40

# One row a digit: its strokes seen from the side, as the paper draws them.
_STROKES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)


def mnist1d(n_train: int = 4000, n_val: int = 1000, n_test: int = 1000, seed: int = 0) -> Task:
    """Make MNIST-1D anew: the published procedure, other random numbers than the published file.

    Each split is drawn on its own; all are shifted and scaled by the training samples' mean and
    standard deviation.

    Args:
      n_train: samples to train on; the paper's are 4000.
      n_val: samples to choose by; the paper has none.
      n_test: samples to report on; the paper's are 1000.
      seed: of everything that is drawn.

    Returns:
      x of shape (n, 40, 1), float32 of mean 0 and standard deviation 1; 10 classes.

    Raises:
      InputError: a split has fewer than 10 samples, or the seed is negative.

    Source: arXiv:2011.14439, section 2.
    """
    arrays: dict[str, Array] = {}
    rngs = generators(seed)
    for split, number in sizes(n_train, n_val, n_test, 10).items():
        y = balanced_labels(rngs[split], number, 10)
        arrays[f"x_{split}"], arrays[f"y_{split}"] = distorted(rngs[split], y), y
    mean, std = arrays["x_train"].mean(), arrays["x_train"].std()
    for split in ("train", "val", "test"):
        x = (arrays[f"x_{split}"] - mean) / std
        arrays[f"x_{split}"] = x.astype(np.float32)[..., None]
    return Task("mnist1d", **arrays, classes=tuple("0123456789"))


def templates() -> Array:
    """Return the ten digits, (10, 12): each of standard deviation 1/6, starting and ending at 0."""
    strokes = np.array(_STROKES)
    strokes = strokes / strokes.std(axis=1, keepdims=True)
    return (strokes - strokes[:, :1]) / 6


def distorted(rng: np.random.Generator, y: Array) -> Array:
    """Pad, stretch, scale, shift, add noise, shear and subsample a template for each label.

    Args:
      rng: where the draws come from.
      y: (n,) labels.

    Returns:
      (n, 40) float64.
    """
    rows = np.arange(len(y))[:, None]
    columns = np.arange(CANVAS)
    padded = TEMPLATE_LENGTH + rng.integers(PADDING[0], PADDING[1] + 1, len(y))
    # Where in the padded template each sample of the stretched one lies; behind it all is zero.
    position = columns * (padded[:, None] - 1) / (CANVAS - 1)
    on_template = position < TEMPLATE_LENGTH
    left = np.minimum(position.astype(int), TEMPLATE_LENGTH)
    known = np.pad(templates(), ((0, 0), (0, 2)))[y]
    share = np.clip(position - left, 0, 1)
    x = (1 - share) * known[rows, left] + share * known[rows, left + 1]
    x *= 1 + SCALE * rng.uniform(-0.5, 0.5, (len(y), 1))

    shifted = (columns - rng.integers(0, MAX_TRANSLATION, (len(y), 1))) % CANVAS
    x, on_template = x[rows, shifted], on_template[rows, shifted]
    noise = CORRELATED_NOISE * rng.standard_normal(x.shape)
    x = np.where(on_template, x, gaussian_filter1d(noise, CORRELATION_LENGTH, axis=1))
    x += IID_NOISE * rng.standard_normal(x.shape)
    x -= SHEAR * rng.uniform(-0.5, 0.5, (len(y), 1)) * np.linspace(-0.5, 0.5, CANVAS)

    wanted = np.linspace(0, CANVAS - 1, LENGTH)
    left = np.minimum(wanted.astype(int), CANVAS - 2)
    share = wanted - left
    return (1 - share) * x[:, left] + share * x[:, left + 1]
