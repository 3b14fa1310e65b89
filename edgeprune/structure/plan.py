"""Plan which channels leave a model, and say what that saves, before anything is cut."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from edgeprune.errors import UnsupportedError
from edgeprune.keras_macs import keras_macs
from edgeprune.macs import Macs
from edgeprune.report.table import Cell, Column, format_cell, render
from edgeprune.structure.budget import Remaining
from edgeprune.structure.evidence import Evidence
from edgeprune.structure.graph import ChannelGraph, Refusal, channel_graph
from edgeprune.structure.importance import (
    Criterion,
    CriterionName,
    Scores,
    check_finite,
    criterion_of,
    score,
)
from edgeprune.structure.notes import held_back, off_target, without_scales
from edgeprune.structure.request import Kind, PruningRequest
from edgeprune.structure.scope import Selector, selected
from edgeprune.structure.selection import Ranking, Removed, choose
from edgeprune.structure.surgery import shrink

_TRIES = 5


@dataclass(frozen=True)
class GroupPlan:
    """What one group loses, counted in channels (or heads) of the first layer that makes them.

    The group's other layers may have other counts: those of a layer that reads a concatenation, or
    of a depthwise convolution that makes several channels of each, lose the same in proportion.

    Attributes:
      name: of the group: path of that first layer.
      kind: ``channels`` or ``heads``.
      layers: paths of all layers that make the group's channels.
      channels_before: how many channels the first layer makes.
      channels_after: how many of them stay.
      frozen: how many of them must stay.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    channels_before: int
    channels_after: int
    frozen: int


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Which channels leave a model, and what that saves.

    Attributes:
      graph: of the model, with its groups.
      removed: position of a group -> its channels that leave, ascending.
      groups: what each group loses.
      refused: the layers whose channels stay, and why.
      parameters_before: of the model.
      parameters_after: of the smaller model.
      macs_before: multiply-accumulates of one inference at batch 1; None where they cannot be
        known, and `notes` says why.
      macs_after: of the smaller model.
      notes: what else there is to know.
      missed: the note that says how far a budget is from being met, or that what stays is far
        below it; None where the budget is met nearly.
    """

    graph: ChannelGraph
    removed: Removed
    groups: tuple[GroupPlan, ...]
    refused: tuple[Refusal, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int | None
    macs_after: int | None
    notes: tuple[str, ...] = field(default=())
    missed: str | None = None

    def apply(self) -> Any:
        """Return the smaller model, not compiled; the model of the plan stays as it is."""
        return shrink(self.graph, self.removed)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values; which channels leave is left out."""
        return {
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "groups": [{**asdict(group), "layers": list(group.layers)} for group in self.groups],
            "refused": [asdict(refusal) for refusal in self.refused],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Return tables of the groups, of what was refused, and the totals."""
        rows: list[list[Cell]] = [
            [
                ", ".join(group.layers),
                group.channels_before,
                group.channels_after,
                1 - group.channels_after / group.channels_before,
            ]
            for group in self.groups
        ]
        columns: list[Column | str] = [
            "layers",
            Column("channels", "count"),
            Column("after", "count"),
        ]
        parts = [render([*columns, Column("removed", "fraction")], rows)] if rows else []
        if self.refused:
            kept: list[list[Cell]] = [[refusal.layer, refusal.reason] for refusal in self.refused]
            parts.append(render(["kept", "because"], kept))
        parts.append(
            "\n".join(
                f"{name}: {format_cell(before, 'count')} -> {format_cell(after, 'count')}"
                for name, before, after in (
                    ("parameters", self.parameters_before, self.parameters_after),
                    ("MACs", self.macs_before, self.macs_after),
                )
            )
        )
        return "\n\n".join([*parts, *self.notes])


def plan_channels(
    model: Any,
    *,
    pruning_ratio: float | None = None,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    criterion: CriterionName | Criterion = "l2",
    ranking: Ranking = "group",
    data: Any = None,
    batches: int = 8,
    batch_size: int = 32,
    round_to: int = 8,
    min_channels: int = 1,
    max_ratio: float | None = None,
    skip: Selector | Sequence[Selector] = (),
    ratios: Mapping[Selector, float] | None = None,
    seed: int = 0,
) -> PruningPlan:
    """Plan which channels of a model leave. The model is not changed.

    Exactly one budget is given: `pruning_ratio`, `target_macs` or `target_parameters`.

    Args:
      model: a built Keras 3 Functional or Sequential model.
      pruning_ratio: fraction of channels to remove, in [0, 1): of each group, or of all groups
        together with ``ranking="global"``.
      target_macs: fraction of the model's multiply-accumulates that may stay, in (0, 1].
      target_parameters: fraction of its parameters that may stay, in (0, 1].
      criterion: ``l1``, ``l2``, ``bn_scale``, ``fpgm``, ``taylor``, ``taylor_activation``,
        ``activation``, ``random``, or a function (group, model, data) -> one score a channel, of
        which the lowest leave.
      ranking: ``group``: each group loses the same share; ``global``: scores, divided by their
        group's mean, are compared over all groups.
      data: what ``taylor``, ``taylor_activation`` and ``activation`` look at: (x, y), an
        `edgeprune.data.Dataset`, an .npz file or ``module:function``.
      batches: how many batches of it.
      batch_size: samples a batch.
      round_to: kept channels come in multiples of this, along every producing axis; an axis that
        is no larger is cut to multiples of the largest power of two up to half of it.
      min_channels: that stay along every producing axis.
      max_ratio: the most that a group loses; by default 0.9, or `pruning_ratio` if that is larger.
      skip: layers whose own channels stay: names, paths, patterns, class names or classes.
      ratios: the same -> ratio of its own, in [0, 1), whatever the budget; the first that matches.
      seed: of the criterion ``random``.

    Returns:
      The plan. Where the limits do not allow the budget to be met, its notes say so.

    Raises:
      InputError: a bad argument, weights or data that are not finite, or no data where the
        criterion needs some.
      UnsupportedError: a subclassed or tf_keras model, or `target_macs` of a model whose
        multiply-accumulates cannot be known.
    """
    request = PruningRequest(
        pruning_ratio=pruning_ratio,
        target_macs=target_macs,
        target_parameters=target_parameters,
        criterion=criterion,
        ranking=ranking,
        data=data,
        batches=batches,
        batch_size=batch_size,
        round_to=round_to,
        min_channels=min_channels,
        max_ratio=max_ratio,
        skip=skip,
        ratios=ratios,
        seed=seed,
    )
    return plan(model, request)


def plan(
    model: Any, request: PruningRequest, first: PruningPlan | None = None, share: float = 1
) -> PruningPlan:
    """Plan as `plan_channels` does, or one round of several.

    Args:
      model: what is left of the original.
      request: the arguments of `plan_channels`.
      first: the first round's plan: budgets are fractions of the model before it.
      share: of the way to the budget to have gone after this round, in (0, 1].
    """
    graph = channel_graph(model)
    # What is asked for one kind says nothing of the other.
    places = [index for index, group in enumerate(graph.groups) if group.kind == request.kind]
    groups = [graph.groups[index] for index in places]
    skipped = {
        places[index]
        for selector in request.skipped
        for index in selected(model, groups, selector, "skip")
    }
    own: dict[int, float] = {}
    for selector, ratio in (request.ratios or {}).items():
        for index in selected(model, groups, selector, "ratios"):
            own.setdefault(places[index], ratio)
    macs = _counted(model)
    if request.target_macs is not None and macs.total is None:
        raise UnsupportedError(
            "`target_macs` needs the model's multiply-accumulates, which are not known: "
            f"{macs.reason}; or give `target_parameters` or `pruning_ratio` instead"
        )
    data = request.data
    if data is not None:
        data = Evidence(model, data, request.batches, request.batch_size, graph)
    check_finite(groups)
    function = criterion_of(request.criterion, request.seed)
    scores = {
        index: score(function, group, model, data)
        for index, group in zip(places, groups, strict=True)
        if index not in skipped and not group.frozen.all()
    }
    return _Planning(graph, request, scores, own, macs, first, share).plan()


class _Planning:
    """One plan in the making."""

    def __init__(
        self,
        graph: ChannelGraph,
        request: PruningRequest,
        scores: dict[int, Scores],
        own: dict[int, float],
        macs: Macs,
        first: PruningPlan | None,
        share: float,
    ) -> None:
        self._graph = graph
        self._request = request
        self._scores = scores
        self._own = {index: ratio * share for index, ratio in own.items()}
        self._macs = macs
        self._share = share
        known = (
            [group for group in first.graph.groups if group.kind == request.kind] if first else []
        )
        names = _numbered([group.name for group in known])
        sizes = {name: group.size for name, group in zip(names, known, strict=True)}
        own_places = [i for i, group in enumerate(graph.groups) if group.kind == request.kind]
        names = _numbered([graph.groups[index].name for index in own_places])
        self._before = {
            index: max(graph.groups[index].size, sizes.get(name, 0))
            for index, name in zip(own_places, names, strict=True)
        }
        self._all_parameters = first.parameters_before if first else graph.model.count_params()
        self._all_macs = first.macs_before if first else macs.total
        self._remaining = Remaining(graph, macs.by_layer)

    def plan(self) -> PruningPlan:
        request = self._request
        notes = [] if self._macs.reason is None else [f"MACs are not known: {self._macs.reason}"]
        missed = None
        if request.target_parameters is not None:
            before, target = self._all_parameters, request.target_parameters
            stop = before * _part(target, self._share)
            removed = self._choose(before * target, self._remaining.parameters, stop)
            left = self._remaining.parameters(removed)
            missed = off_target("target_parameters", left, stop, before, request)
            macs = self._macs_after(removed)
        elif request.target_macs is not None and self._all_macs is not None:
            stop = self._all_macs * _part(request.target_macs, self._share)
            removed, macs = self._within_macs(self._all_macs * request.target_macs, stop)
            missed = off_target("target_macs", macs or 0, stop, self._all_macs, request)
        else:
            removed = self._choose()
            macs = self._macs_after(removed)
            if request.pruning_ratio and not removed and self._untouched():
                missed = (
                    f"`pruning_ratio={request.pruning_ratio:g}`: nothing leaves: every group is "
                    "refused, skipped, at its limits, or would lose less than half of "
                    f"`round_to={request.round_to}`"
                )
        notes += [*([missed] if missed else []), *self._notes(removed)]
        return replace(self._described(removed, macs, notes), missed=missed)

    def _choose(
        self,
        target: float | None = None,
        cost: Callable[[Removed], float] | None = None,
        stop: float | None = None,
    ) -> Removed:
        request, groups = self._request, self._graph.groups
        return choose(
            groups,
            self._scores,
            pruning_ratio=(request.pruning_ratio or 0) * self._share,
            target=target,
            cost=cost,
            stop=stop,
            ranking=request.ranking,
            limits=request.limits,
            ratios=self._own,
            norm=np.linalg.norm if request.kind == "heads" else None,
            before=self._before,
        )

    def _macs_after(self, removed: Removed) -> int | None:
        if self._macs.total is None or not removed:
            return self._macs.total
        return _counted(shrink(self._graph, removed)).total

    def _within_macs(self, target: float, stop: float) -> tuple[Removed, int | None]:
        """Choose by the estimate, count, and aim lower where the estimate was too low."""
        aim = stop
        for _ in range(_TRIES):
            removed = self._choose(target * aim / stop, self._remaining.macs, aim)
            macs = self._macs_after(removed)
            estimate = self._remaining.macs(removed)
            if macs is None or macs <= stop or estimate > aim:
                break
            aim = min(aim * stop / macs, estimate - 1)
        return removed, macs

    def _untouched(self) -> bool:
        """Tell whether no channel has left yet, in this round or before it."""
        groups = self._graph.groups
        return all(groups[index].size == size for index, size in self._before.items())

    def _notes(self, removed: Removed) -> Iterator[str]:
        request = self._request
        ranked = {index: self._graph.groups[index] for index in self._scores}
        yield from without_scales(request, list(ranked.values()))
        if request.pruning_ratio != 0:
            free = {index: group for index, group in ranked.items() if index not in self._own}
            yield from held_back(free, self._before, removed, request.limits)

    def _described(self, removed: Removed, macs: int | None, notes: list[str]) -> PruningPlan:
        after = self._remaining.parameters(removed)
        return _plan(self._graph, self._request.kind, removed, after, self._macs, macs, notes)


def _plan(
    graph: ChannelGraph,
    kind: Kind,
    removed: Removed,
    parameters: int,
    macs: Macs,
    macs_after: int | None,
    notes: Sequence[str],
) -> PruningPlan:
    own = [(index, group) for index, group in enumerate(graph.groups) if group.kind == kind]
    groups = tuple(
        GroupPlan(
            group.name,
            group.kind,
            tuple(dict.fromkeys(group.layers)),  # some layers make several axes
            int(group.widths[0].sum()),
            int(np.delete(group.widths[0], removed.get(index, ())).sum()),
            int(group.widths[0][group.frozen].sum()),
        )
        for index, group in own
    )
    return PruningPlan(
        graph,
        removed,
        groups,
        tuple(Refusal(group.name, "; ".join(group.reasons)) for _, group in own if group.reasons),
        graph.model.count_params(),
        parameters,
        macs.total,
        macs_after,
        tuple(notes),
    )


def described(graph: ChannelGraph, removed: Removed, kind: Kind) -> PruningPlan:
    """Return the plan of a removal that was chosen already."""
    macs = _counted(graph.model)
    smaller = shrink(graph, removed)
    notes = [] if macs.reason is None else [f"MACs are not known: {macs.reason}"]
    after = None if macs.total is None else _counted(smaller).total
    return _plan(graph, kind, removed, smaller.count_params(), macs, after, notes)


def _counted(model: Any) -> Macs:
    try:
        return keras_macs(model)
    except UnsupportedError as error:
        return Macs(None, reason=str(error))


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """Tell groups of the same name apart, by which of them they are."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        numbered.append((name, seen[name]))
        seen[name] += 1
    return numbered


def _part(target: float, share: float) -> float:
    """Return the fraction that may stay after a share of the way from 1 to the target."""
    return 1 - (1 - target) * share
