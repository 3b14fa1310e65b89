"""Choose the channels that leave: by their scores, within a budget, in multiples.

Every block of a group (the channels that lie along the same producing axes) can be cut to a few
numbers of channels only, the multiples of `round_to`. All these cuts are put in one order, the
order in which the channels' scores ask for them, and a selection is the first so many cuts. So a
larger ratio always removes what a smaller one does, and more. Only for a target are cuts left out
that take too much: each block is then cut to one of the two multiples nearest to its share.
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
_LOOK = 64  # cuts to try after, and as many to try before, the first that meets a target
_REACH = 0.05  # of levels: how far a cut may be moved, if not within what it takes
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
    stop: float | None = None,
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
      stop: on the way to the target, a cost that is enough for now: only the first of the target's
        cuts are made, until what is left costs no more.
      ranking: ``group``: each group loses the same share; ``global``: scores, divided by their
        group's mean, are compared over all groups.
      limits: `Limits`.
      ratios: position of a group -> its own ratio, whatever the budget.
      before: position of a group -> the channels that ratios are fractions of, where some of
        them have left already.
      norm: what a group's scores are divided by with ``ranking="global"``, if not their mean.

    Returns:
      {position of a group: channels that leave}. A target is met from below, as nearly as cutting
      each block to the one or the other multiple next to its share allows; one that the limits do
      not allow to be met gives all that may leave.
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
        return cuts.within(target, cost, target if stop is None else stop)
    ratio = pruning_ratio or 0.0
    if ranking == "group":
        return cuts.removed(int(np.searchsorted(cuts.levels, ratio + _FUZZ, "right")))
    free = [index for index in scores if index not in ratios]
    asked = ratio * sum(sizes[index] for index in free) - sum(gone[index] for index in free)
    return cuts.removed(cuts.nearest(asked))


def whole(group: PruningGroup, limits: Limits, before: int) -> bool:
    """Tell whether limits leave a group of `before` channels at first no cut at all."""
    level = np.where(group.frozen, np.inf, 0.0)
    return not len(_Cuts([group], {0: level}, limits, {}, {0: before}).levels)


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


@dataclass(frozen=True)
class _Cut:
    """What leaves at once.

    Attributes:
      level: at which a ratio asks for it: that of its middle channel.
      first: the least level at which it may be made: that of its first channel.
      last: the largest level at which it may be left out: that of its last channel.
      steps: (block, channels that it keeps).
    """

    level: float
    first: float
    last: float
    steps: list[tuple[int, int]]


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
        made: list[_Cut] = []
        for index, level in levels.items():
            most = max(limits.max_ratio, ratios.get(index, 0))
            group = groups[index]
            began = sizes[index] / group.size
            made += self._group(index, group, level, limits, most, began)
        made.sort(key=lambda cut: cut.level)  # stable: each block's cuts stay in their order
        self.levels = np.array([cut.level for cut in made])
        self._first = np.array([cut.first for cut in made])
        self._last = np.array([cut.last for cut in made])
        self._ends = np.cumsum([0] + [len(cut.steps) for cut in made])
        self._steps = np.array([step for cut in made for step in cut.steps], int).reshape(-1, 2)
        self._sizes = np.array([len(order) for order in self._orders], int)

    def _group(
        self,
        index: int,
        group: PruningGroup,
        level: Floats,
        limits: Limits,
        most: float,
        began: float,
    ) -> list[_Cut]:
        """List a group's cuts; it `began` with that many times the channels that it has."""
        columns, block_of = np.unique(group.widths, axis=1, return_inverse=True)
        cuts: list[_Cut] = []
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
                    ends = level[order[[size - before, size - kept - 1]]]
                    first = min(float(ends[0]), at - _REACH)
                    last = max(float(ends[1]), at + _REACH)
                    cuts.append(_Cut(at, first, last, [(block, kept)]))
                if before % step:
                    odd.append((block, kept))
                before = kept
        if cuts and odd:
            # One cut makes every axis a multiple, also those that were none before.
            earliest = min(cuts, key=lambda cut: cut.level)
            earliest.steps.extend([step for step in odd if step != earliest.steps[0]])
        return cuts

    def removed(self, count: int) -> Removed:
        """Return what the first `count` cuts remove."""
        return self._gone(np.arange(count))

    def _gone(self, made: Ints) -> Removed:
        """Return what these cuts remove; of each block they are its first ones."""
        are_made = np.zeros(len(self.levels), bool)
        are_made[made] = True
        steps = self._steps[np.repeat(are_made, np.diff(self._ends))]
        kept = self._sizes.copy()
        np.minimum.at(kept, steps[:, 0], steps[:, 1])
        leaving: dict[int, list[Ints]] = {}
        for block in np.flatnonzero(kept < self._sizes):
            gone = self._orders[block][: self._sizes[block] - kept[block]]
            leaving.setdefault(self._owners[block], []).append(gone)
        return {index: np.sort(np.concatenate(parts)) for index, parts in leaving.items()}

    def within(self, target: float, cost: Callable[[Removed], float], stop: float) -> Removed:
        """Return the first cuts after which the cost is within the target; all if it never is.

        Where the last of them takes much more than is needed, it is left out for later ones that
        take less, or earlier ones are left out for it: whatever comes nearest. At some level all
        cuts that are made may be made, and all those that are left out may be left out.

        Of these cuts, the first after which the cost is within `stop` are returned.
        """
        every = np.arange(len(self.levels))
        forced = self._forced()
        count = self._enough(every, forced, target, cost)
        made = every[:count]
        left = cost(self._gone(made))
        if left <= target and count > forced:
            for tried in (self._later, self._fewer):
                if left < _NEAR * target:
                    other, costs = tried(count, target, cost)
                    if costs > left:
                        made, left = other, costs
        return self._gone(made[: self._enough(made, forced, stop, cost)])

    def _enough(
        self, cuts: Ints, least: int, target: float, cost: Callable[[Removed], float]
    ) -> int:
        """Return how many of the cuts bring the cost within the target, or all of them."""
        low, high = least, len(cuts)
        while low < high:
            middle = (low + high) // 2
            if cost(self._gone(cuts[:middle])) <= target:
                high = middle
            else:
                low = middle + 1
        return low

    def _later(
        self, count: int, target: float, cost: Callable[[Removed], float]
    ) -> tuple[Ints, float]:
        """Leave out the last of the first `count` cuts, and others that would meet the target.

        Returns:
          Of the selections that meet the target with one of these, the nearest, and its cost.
        """
        made = np.arange(count - 1)
        best, nearest = made, -np.inf
        passed, until = {*self._blocks(count - 1)}, self._last[count - 1]
        for cut in range(count, min(count + _LOOK, len(self.levels))):
            if nearest >= _NEAR * target:
                break
            if self._first[cut] > until or passed & {*self._blocks(cut)}:
                continue
            tried = np.append(made, cut)
            left = cost(self._gone(tried))
            if left > target:
                made = tried
                continue
            passed |= {*self._blocks(cut)}
            if left > nearest:
                best, nearest = tried, left
            until = min(until, self._last[cut])
        return best, nearest

    def _fewer(
        self, count: int, target: float, cost: Callable[[Removed], float]
    ) -> tuple[Ints, float]:
        """Of the first `count` cuts leave out those without which the target is met as well.

        Returns:
          The cuts that are left, and what then is left of the cost.
        """
        made = np.arange(count)
        nearest = cost(self._gone(made))
        needed = {*self._blocks(count - 1)}
        for cut in range(count - 2, max(count - 2 - _LOOK, self._forced() - 1), -1):
            if nearest >= _NEAR * target:
                break
            tried = made[made != cut]
            if not needed & {*self._blocks(cut)} and self._first[tried].max() <= self._last[cut]:
                left = cost(self._gone(tried))
                if left <= target:
                    made, nearest = tried, left
                    continue
            needed |= {*self._blocks(cut)}
        return made, nearest

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
