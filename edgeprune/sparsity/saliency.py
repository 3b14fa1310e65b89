"""Score weights by magnitude and choose every mask of a model at once."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from edgeprune.sparsity.patterns import GlobalPattern, Mask, Pattern, Scores, keep_largest

Ranking = Literal["layer", "global"]


@dataclass(frozen=True)
class Ranked:
    """One kernel to choose a mask for: its weights, its target now, its output axes."""

    weights: NDArray[Any]
    sparsity: float
    output_axes: tuple[int, ...] = (-1,)


def magnitude(weights: NDArray[Any]) -> Scores:
    """Return |weights|; half precision is widened, since it sorts slowly."""
    scores: Scores = np.abs(weights if weights.dtype.itemsize >= 4 else weights.astype(np.float32))
    return scores


def layer_masks(kernels: Sequence[Ranked], pattern: Pattern) -> list[Mask]:
    """Rank every kernel by itself.

    Returns:
      One bool array a kernel, True where a weight is kept.
    """

    def choose(kernel: Ranked) -> Mask:
        if kernel.sparsity == 0:
            return np.ones(kernel.weights.shape, np.bool_)
        return pattern.mask(magnitude(kernel.weights), kernel.sparsity, kernel.output_axes)

    # NumPy releases the lock while it partitions and compares. The largest kernels go first, so
    # that no thread is left with one of them at the end.
    order = sorted(range(len(kernels)), key=lambda i: -kernels[i].weights.size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chosen = dict(zip(order, pool.map(lambda i: choose(kernels[i]), order), strict=True))
    return [chosen[i] for i in range(len(kernels))]


def global_masks(kernels: Sequence[Ranked], pattern: GlobalPattern) -> list[Mask]:
    """Rank the units of all kernels together; every kernel keeps at least one.

    Args:
      kernels: all with the same `sparsity`, the fraction of zero units over all of them.

    Returns:
      One bool array a kernel; over all, exactly ``round(sparsity * units)`` units are False.
    """
    if not kernels or kernels[0].sparsity == 0:
        return [np.ones(kernel.weights.shape, np.bool_) for kernel in kernels]
    units = [pattern.units(magnitude(kernel.weights), kernel.output_axes) for kernel in kernels]
    for scores in units:
        # The last of the largest is the one that would go last: put it out of reach.
        scores[scores.size - 1 - int(np.argmax(scores[::-1]))] = np.inf
    kept = keep_largest(np.concatenate(units), kernels[0].sparsity, protected=len(kernels))
    parts = np.split(kept, np.cumsum([scores.size for scores in units])[:-1])
    return [
        pattern.spread(part, kernel.weights.shape, kernel.output_axes)
        for part, kernel in zip(parts, kernels, strict=True)
    ]


def choose_masks(kernels: Sequence[Ranked], pattern: Pattern, ranking: Ranking) -> list[Mask]:
    """Choose the masks of kernels that are ranked together."""
    if ranking == "global":
        return global_masks(kernels, cast(GlobalPattern, pattern))
    return layer_masks(kernels, pattern)
