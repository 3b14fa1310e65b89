"""Criteria: how much each channel of a group matters, as a score. Those here see weights only."""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeprune.errors import ArgumentError, InputError
from edgeprune.structure.group import PruningGroup, Role, Slice
from edgeprune.structure.importance_data import activation, taylor, taylor_activation

Scores = npt.NDArray[np.float64]
Criterion = Callable[[PruningGroup, Any, Any], npt.NDArray[Any]]
"""(group, model, data) -> (group.size,) scores; the channels with the lowest leave first."""
CriterionName = Literal[
    "l1", "l2", "bn_scale", "fpgm", "random", "taylor", "taylor_activation", "activation"
]
_ROWS = 1024  # of a Gram matrix at once


def l1(group: PruningGroup, model: Any = None, data: Any = None) -> Scores:
    """Score each channel by the absolute sum of the weights that make it.

    Kernels of every layer that makes the group count (role ``out``), biases do not.

    Returns:
      (group.size,) scores.

    Raises:
      InputError: a weight is NaN or infinite.

    Source: Li et al. 2017, Pruning Filters for Efficient ConvNets, arXiv:1608.08710.
    """
    return _summed(group, lambda rows: np.abs(rows).sum(1))


def l2(group: PruningGroup, model: Any = None, data: Any = None) -> Scores:
    """Score each channel by the Euclidean norm of all the weights that make it.

    Kernels of every layer that makes the group count (role ``out``), biases do not.

    Returns:
      (group.size,) scores.

    Raises:
      InputError: a weight is NaN or infinite.

    Source: Li et al. 2017, Pruning Filters for Efficient ConvNets, arXiv:1608.08710.
    """
    return np.sqrt(_summed(group, lambda rows: np.square(rows).sum(1)))


def bn_scale(group: PruningGroup, model: Any = None, data: Any = None) -> Scores:
    """Score each channel by the absolute scale that normalizes it (gamma), summed over layers.

    A group of which some channel has no scale is scored by `l2` as a whole: layers without
    normalization can then be pruned along with the others.

    Returns:
      (group.size,) scores.

    Raises:
      InputError: a scale is NaN or infinite.

    Source: Liu et al. 2017, Network Slimming, arXiv:1708.06519.
    """
    if not has_scales(group):
        return l2(group, model, data)
    return _summed(group, lambda rows: np.abs(rows).sum(1), "scale")


def has_scales(group: PruningGroup) -> bool:
    """Tell whether every channel of a group is scaled by a normalization (gamma)."""
    scaled = np.zeros(group.size, bool)
    for part in group.slices:
        if part.role == "scale":
            scaled[part.channels] = True
    return bool(scaled.all())


def fpgm(group: PruningGroup, model: Any = None, data: Any = None) -> Scores:
    """Score each channel by its filters' distances to all other filters of their layers, summed.

    The filter nearest to all others says the least that they do not.

    Returns:
      (group.size,) scores.

    Raises:
      InputError: a weight is NaN or infinite.

    Source: He et al. 2019, Filter Pruning via Geometric Median, arXiv:1811.00250.
    """
    return _summed(group, _distances)


def random(group: PruningGroup, model: Any = None, data: Any = None, *, seed: int = 0) -> Scores:
    """Score each channel at random: the control that every other criterion must beat.

    Returns:
      (group.size,) scores in [0, 1), the same for the same seed and group.
    """
    return np.random.default_rng([seed, zlib.crc32(group.name.encode())]).random(group.size)


def check_finite(groups: Sequence[PruningGroup]) -> None:
    """Refuse weights that are not finite, whatever the criterion looks at.

    Raises:
      InputError: a weight of one of the groups is NaN or infinite.
    """
    parts = {id(part.variable): part for group in groups for part in group.slices}
    for part in parts.values():
        _check_finite(part, np.asarray(part.variable))


def _check_finite(part: Slice, values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise InputError(
            f"layer '{part.layer}' has NaN or infinite weights, so its channels cannot be "
            "compared; train it with a smaller learning rate, or load a sound checkpoint"
        )


def _outputs(group: PruningGroup, role: Role) -> Iterator[tuple[Slice, Scores]]:
    """Yield each slice of a role with its weight as (size of the axis, other entries)."""
    for part in group.slices:
        if part.role == role:
            values = np.moveaxis(np.asarray(part.variable, np.float64), part.axis, 0)
            rows = values.reshape(len(values), -1)
            _check_finite(part, rows)
            yield part, rows


def _summed(group: PruningGroup, reduce: Callable[[Scores], Scores], role: Role = "out") -> Scores:
    """Sum over the slices what `reduce` makes of each position's weights."""
    total = np.zeros(group.size)
    for part, rows in _outputs(group, role):
        total += np.bincount(part.channels, reduce(rows)[part.positions], group.size)
    return total


def _distances(rows: Scores) -> Scores:
    """Return for each row the sum of its Euclidean distances to all others."""
    squares = np.square(rows).sum(1)
    totals = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS):
        block = slice(start, start + _ROWS)
        squared = squares[block, None] + squares - 2 * rows[block] @ rows.T
        own = np.arange(start, start + len(squared))
        squared[own - start, own] = 0
        totals[block] = np.sqrt(np.maximum(squared, 0)).sum(1)
    return totals


_CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "fpgm": fpgm,
    "random": random,
    "taylor": taylor,
    "taylor_activation": taylor_activation,
    "activation": activation,
}


def criterion_of(criterion: CriterionName | Criterion, seed: int = 0) -> Criterion:
    """Return the function of a criterion's name; a function is returned as it is.

    Raises:
      InputError: no such criterion.
    """
    if callable(criterion):
        return criterion
    if criterion not in _CRITERIA:
        raise ArgumentError(
            f"`criterion={criterion!r}` is unknown; supported: {', '.join(_CRITERIA)}; in Python "
            "also a function (group, model, data) -> one score a channel"
        )
    return partial(random, seed=seed) if criterion == "random" else _CRITERIA[criterion]


def score(criterion: Criterion, group: PruningGroup, model: Any, data: Any) -> Scores:
    """Return a group's scores, checked: the function may be the user's.

    Raises:
      InputError: not one finite number a channel.
    """
    name = getattr(criterion, "__name__", "criterion")
    scores = np.asarray(criterion(group, model, data))
    if scores.shape != (group.size,) or scores.dtype.kind not in "fiub":
        raise InputError(
            f"{name}() gave shape {scores.shape} of {scores.dtype} for the group of layer "
            f"'{group.name}'; it must give one number for each of its {group.size} channels"
        )
    scores = scores.astype(np.float64)
    if not all(map(math.isfinite, scores)):
        raise InputError(
            f"{name}() gave NaN or infinite scores for the group of layer '{group.name}'"
        )
    return scores
