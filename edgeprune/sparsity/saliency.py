"""Score weights by magnitude and choose every mask of a model at once."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from edgeprune.sparsity.patterns import GlobalPattern, Mask, Pattern, Scores, kth_smallest, sortable

Ranking = Literal["layer", "global"]
_T = TypeVar("_T")


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

    return _threaded(choose, kernels)


def global_masks(kernels: Sequence[Ranked], pattern: GlobalPattern) -> list[Mask]:
    """Rank the units of all kernels together; every kernel keeps at least one.

    Args:
      kernels: all with the same `sparsity`, the fraction of zero units over all of them.

    Returns:
      One bool array a kernel; over all, exactly ``round(sparsity * units)`` units are False
      (fewer, if that left a kernel with none).
    """
    if not kernels or kernels[0].sparsity == 0:
        return [np.ones(kernel.weights.shape, np.bool_) for kernel in kernels]

    kept = _rank_together(kernels, pattern, protected=False)
    if not all(part.any() for part in kept):
        kept = _rank_together(kernels, pattern, protected=True)
    return [
        pattern.spread(part, kernel.weights.shape, kernel.output_axes)
        for part, kernel in zip(kept, kernels, strict=True)
    ]


def _rank_together(
    kernels: Sequence[Ranked], pattern: GlobalPattern, *, protected: bool
) -> list[Mask]:
    """Tell for each unit of each kernel whether it is kept; if `protected`, one of each is."""

    def units(kernel: Ranked) -> Scores:
        scores = sortable(pattern.units(magnitude(kernel.weights), kernel.output_axes))
        if protected:  # the last of the largest would go last: put it out of reach
            scores[scores.size - 1 - int(np.argmax(scores[::-1]))] = np.iinfo(scores.dtype).max
        return scores

    # Scores are made twice rather than kept: at these sizes new memory costs more than arithmetic.
    everything = np.concatenate(_threaded(units, kernels))
    most = everything.size - len(kernels) if protected else everything.size - 1
    zeros = min(round(kernels[0].sparsity * everything.size), most)
    if zeros <= 0:
        return [np.ones(part.shape, np.bool_) for part in _threaded(units, kernels)]
    threshold = kth_smallest(everything, zeros - 1)
    kept = _threaded(lambda kernel: np.greater(units(kernel), threshold), kernels)
    ties = everything.size - sum(int(np.count_nonzero(part)) for part in kept) - zeros
    for index in reversed(range(len(kernels))):  # among equals, the last of all stay
        if ties == 0:
            break
        last = np.flatnonzero(units(kernels[index]) == threshold)[-ties:]
        kept[index][last] = True
        ties -= last.size
    return kept


def _threaded(act: Callable[[Ranked], _T], kernels: Sequence[Ranked]) -> list[_T]:
    """Map over kernels on all cores: NumPy releases the lock while it partitions and compares."""
    # The largest go first, so that no thread is left alone with one of them at the end.
    order = sorted(range(len(kernels)), key=lambda index: -kernels[index].weights.size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda index: act(kernels[index]), order)
        by_index = dict(zip(order, results, strict=True))
    return [by_index[index] for index in range(len(kernels))]


def choose_masks(kernels: Sequence[Ranked], pattern: Pattern, ranking: Ranking) -> list[Mask]:
    """Choose the masks of kernels that are ranked together."""
    if ranking == "global":
        return global_masks(kernels, cast(GlobalPattern, pattern))
    return layer_masks(kernels, pattern)
