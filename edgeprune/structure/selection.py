"""Choose the channels that leave: by their scores, within a budget, in multiples.

Every block of a group (the channels that lie along the same producing axes) can be cut to a few
numbers of channels only, the multiples of `round_to`. All these cuts are put in one order, the
order in which the channels' scores ask for them, and a selection is the first so many cuts. So a
larger ratio always removes what a smaller one does, and more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeprune.structure.group import PruningGroup

Ranking = Literal["group", "global"]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Norm = Callable[[Floats], Any]
Removed = dict[int, npt.NDArray[np.integer[Any]]]
"""Position of a group -> its channels that leave, ascending."""
_NEAR = 0.98  # of a target is near enough
_LOOK = 64  # cuts to try beyond the first that meets a target,
_REACH = 0.1  # none of which is asked for by a ratio so much larger: groups stay comparable
_FUZZ = 1e-9  # 0.7 * 10 is 7
_FIRST = -1.0  # the level of cuts that are made whatever the budget


@dataclass(frozen=True)
class Limits:
    """What no selection goes beyond.

    Attributes:
      round_to: kept channels come in multiples of this along every producing axis; an axis that
        is no larger is cut to multiples of the largest power of two up to half of it.
      min_channels: that stay along every producing axis.
      max_ratio: fraction of a block's channels that may leave.
    """

    round_to: int = 8
    min_channels: int = 1
    max_ratio: float = 0.9


def choose(
    groups: Sequence[PruningGroup],
    scores: Mapping[int, Floats],
    *,
    pruning_ratio: float | None = None,
    target: float | None = None,
    cost: Callable[[Removed], float] | None = None,
    ranking: Ranking = "group",
    limits: Limits | None = None,
    ratios: Mapping[int, float] | None = None,
    before: Mapping[int, int] | None = None,
    norm: Norm | None = None,
) -> Removed:
    """Choose the channels that leave.

    Args:
      groups: of the model.
      scores: position of a group -> (size,) scores; a group without scores stays whole.
      pruning_ratio: fraction of channels to remove, in [0, 1): of each group, or of all groups
        together with ``ranking="global"``. Frozen channels stay, and count.
      target: the most that `cost` may be of what is left; give this or `pruning_ratio`.
      cost: of the model without some channels; it falls as more leave.
      ranking: ``group``: each group loses the same share; ``global``: scores, divided by their
        group's mean, are compared over all groups.
      limits: `Limits`.
      ratios: position of a group -> its own ratio, whatever the budget.
      before: position of a group -> the channels that ratios are fractions of, where some of
        them have left already.
      norm: what a group's scores are divided by with ``ranking="global"``, if not their mean.

    Returns:
      {position of a group: channels that leave}. A target is met from below, as nearly as a few
      cuts more allow; one that the limits do not allow to be met gives all that may leave.
    """
    limits = limits or Limits()
    ratios = ratios or {}
    sizes = {index: (before or {}).get(index, groups[index].size) for index in scores}
    gone = {index: sizes[index] - groups[index].size for index in scores}
    levels = {index: np.full(groups[index].size, np.inf) for index in scores}
    for index, level in levels.items():
        own = np.flatnonzero(~groups[index].frozen)
        # Among equals the lower channel goes first.
        order = own[np.argsort(scores[index][own], kind="stable")]
        level[order] = (np.arange(len(order)) + gone[index] + 0.5) / sizes[index]
        if index in ratios:
            level[order] = np.where(level[order] <= ratios[index] + _FUZZ, _FIRST, np.inf)
    if ranking == "global":
        _compare(levels, scores, ratios, norm or _mean)
    cuts = _Cuts(groups, levels, limits, ratios, sizes)
    if target is not None and cost is not None:
        return cuts.within(target, cost)
    ratio = pruning_ratio or 0.0
    if ranking == "group":
        return cuts.removed(int(np.searchsorted(cuts.levels, ratio + _FUZZ, "right")))
    free = [index for index in scores if index not in ratios]
    asked = ratio * sum(sizes[index] for index in free) - sum(gone[index] for index in free)
    return cuts.removed(cuts.nearest(asked))


def _mean(scores: Floats) -> Any:
    return np.abs(scores).mean()


def _compare(
    levels: Mapping[int, Floats],
    scores: Mapping[int, Floats],
    ratios: Mapping[int, float],
    norm: Norm,
) -> None:
    """Put the channels of all groups without a ratio of their own in one order."""
    free = {
        index: np.flatnonzero(level < np.inf)
        for index, level in levels.items()
        if index not in ratios
    }
    if not free:
        return
    values = np.concatenate(
        [scores[index][own] / (norm(scores[index]) or 1) for index, own in free.items()]
    )
    level = np.empty(len(values))
    level[np.argsort(values, kind="stable")] = (np.arange(len(values)) + 0.5) / max(len(values), 1)
    ends = np.cumsum([len(own) for own in free.values()])[:-1]
    for (index, own), part in zip(free.items(), np.split(level, ends), strict=True):
        levels[index][own] = part


class _Cuts:
    """All cuts that the limits allow, in the order in which they are made."""

    def __init__(
        self,
        groups: Sequence[PruningGroup],
        levels: Mapping[int, Floats],
        limits: Limits,
        ratios: Mapping[int, float],
        sizes: Mapping[int, int],
    ) -> None:
        self._owners: list[int] = []
        self._orders: list[Ints] = []
        """For each block its channels, the first to leave first."""
        made: list[tuple[float, list[tuple[int, int]]]] = []
        for index, level in levels.items():
            most = max(limits.max_ratio, ratios.get(index, 0))
            group = groups[index]
            began = sizes[index] / group.size
            made += self._group(index, group, level, limits, most, began)
        made.sort(key=lambda cut: cut[0])  # stable: each block's cuts stay in their order
        self.levels = np.array([level for level, _ in made])
        self._ends = np.cumsum([0] + [len(cut) for _, cut in made])
        self._steps = np.array([step for _, cut in made for step in cut], int).reshape(-1, 2)
        self._sizes = np.array([len(order) for order in self._orders], int)

    def _group(
        self,
        index: int,
        group: PruningGroup,
        level: Floats,
        limits: Limits,
        most: float,
        began: float,
    ) -> list[tuple[float, list[tuple[int, int]]]]:
        """List a group's cuts; it `began` with that many times the channels that it has."""
        columns, block_of = np.unique(group.widths, axis=1, return_inverse=True)
        cuts: list[tuple[float, list[tuple[int, int]]]] = []
        odd: list[tuple[int, int]] = []
        for number, column in enumerate(columns.T):
            channels = np.flatnonzero(block_of.ravel() == number)
            order = channels[np.argsort(level[channels], kind="stable")]
            block = len(self._orders)
            self._owners.append(index)
            self._orders.append(order)
            size = len(order)
            axis = began * int(group.widths.sum(1)[column > 0].max())
            step = _multiple(column, _rounding(round(axis), limits.round_to))
            floor = max(
                int(group.frozen[order].sum()),
                math.ceil((1 - most) * began * size - _FUZZ),
                -(-limits.min_channels // int(column[column > 0].min())),
                1,
            )
            before = size
            for kept in range((size - 1) // step * step, floor - 1, -step):
                # To the nearest multiple, of two equally near ones the larger.
                asked = (2 * size - before - kept) // 2
                at = float(level[order[asked]])
                if at < np.inf:
                    cuts.append((at, [(block, kept)]))
                if before % step:
                    odd.append((block, kept))
                before = kept
        if cuts and odd:
            # One cut makes every axis a multiple, also those that were none before.
            first = min(range(len(cuts)), key=lambda cut: cuts[cut][0])
            own_block = cuts[first][1][0]
            cuts[first][1].extend(step for step in odd if step != own_block)
        return cuts

    def removed(self, count: int) -> Removed:
        """Return what the first `count` cuts remove."""
        return self._gone(self._after(self._sizes, 0, count))

    def _after(self, kept: Ints, start: int, stop: int) -> Ints:
        """Return what each block keeps after the cuts from `start` to `stop`."""
        steps = self._steps[self._ends[start] : self._ends[stop]]
        kept = kept.copy()
        np.minimum.at(kept, steps[:, 0], steps[:, 1])
        return kept

    def _gone(self, kept: Ints) -> Removed:
        leaving: dict[int, list[Ints]] = {}
        for block in np.flatnonzero(kept < self._sizes):
            gone = self._orders[block][: self._sizes[block] - kept[block]]
            leaving.setdefault(self._owners[block], []).append(gone)
        return {index: np.sort(np.concatenate(parts)) for index, parts in leaving.items()}

    def within(self, target: float, cost: Callable[[Removed], float]) -> Removed:
        """Return the first cuts after which the cost is within the target; all if it never is.

        Where the last of them takes much more than is needed, it is passed over for later ones
        that take less.
        """
        low, high = self._forced(), len(self.levels)
        while low < high:
            middle = (low + high) // 2
            if cost(self.removed(middle)) <= target:
                high = middle
            else:
                low = middle + 1
        best = self.removed(low)
        nearest = cost(best)
        if nearest > target or low == self._forced():
            return best
        kept = self._after(self._sizes, 0, low - 1)
        passed = {*self._blocks(low - 1)}
        for cut in range(low, min(low + _LOOK, len(self.levels))):
            if nearest >= _NEAR * target or self.levels[cut] > self.levels[low - 1] + _REACH:
                break
            if passed & {*self._blocks(cut)}:
                continue
            tried = self._after(kept, cut, cut + 1)
            removed = self._gone(tried)
            left = cost(removed)
            if left > target:
                kept = tried
                continue
            passed |= {*self._blocks(cut)}
            if left > nearest:
                best, nearest = removed, left
        return best

    def _blocks(self, cut: int) -> list[int]:
        return [int(block) for block in self._steps[self._ends[cut] : self._ends[cut + 1], 0]]

    def nearest(self, asked: float) -> int:
        """Return after how many cuts the channels removed, own ratios apart, are nearest."""
        forced = self._forced()
        kept = self._sizes.copy()
        counts = [0]
        for start, stop in zip(self._ends[forced:-1], self._ends[forced + 1 :], strict=True):
            blocks, left = self._steps[start:stop].T
            left = np.minimum(kept[blocks], left)
            counts.append(counts[-1] + int((kept[blocks] - left).sum()))
            kept[blocks] = left
        return forced + int(np.argmin(np.abs(np.array(counts) - asked)))

    def _forced(self) -> int:
        return int(np.searchsorted(self.levels, _FIRST, "right"))


def _rounding(axis: int, round_to: int) -> int:
    """Return the multiple for an axis that began with so many channels.

    Half of a small axis costs half in the layers that read it, whatever it costs to make.
    """
    return round_to if axis > round_to else 1 << max(0, (axis // 2).bit_length() - 1)


def _multiple(column: npt.NDArray[Any], round_to: int) -> int:
    """Return of what number the kept channels of a block must be a multiple."""
    steps = [round_to // math.gcd(round_to, int(width)) for width in np.unique(column[column > 0])]
    return math.lcm(*steps)
