"""Plan which channels leave a model, and say what that saves, before anything is cut."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgeprune.errors import InputError, UnsupportedError
from edgeprune.keras_macs import keras_macs
from edgeprune.macs import Macs
from edgeprune.report.table import Cell, Column, format_cell, render
from edgeprune.structure.budget import Remaining
from edgeprune.structure.evidence import Evidence
from edgeprune.structure.graph import ChannelGraph, Refusal, channel_graph
from edgeprune.structure.importance import Criterion, CriterionName, criterion_of, score
from edgeprune.structure.scope import Selector, selected
from edgeprune.structure.selection import Limits, Ranking, Removed, choose
from edgeprune.structure.surgery import shrink

_MAX_RATIO = 0.9


@dataclass(frozen=True)
class GroupPlan:
    """What one group loses.

    Attributes:
      name: of the group: path of the first layer that makes its channels.
      kind: ``channels`` or ``heads``.
      layers: paths of all layers that make them.
      channels_before: how many there are.
      channels_after: how many stay.
      frozen: how many must stay.
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
      notes: what else there is to know, such as a budget that could not be met.
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
    skip: Sequence[Selector] = (),
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
        is no larger stays whole.
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
    _check(pruning_ratio, target_macs, target_parameters, ranking, round_to, min_channels)
    function = criterion_of(criterion, seed)
    limits = Limits(round_to, min_channels, _max_ratio(max_ratio, pruning_ratio))
    graph = channel_graph(model)
    skipped = {index for name in skip for index in selected(model, graph.groups, name, "skip")}
    if data is not None:
        data = Evidence(model, data, batches, batch_size, graph)
    own = _own_ratios(model, graph, ratios or {})
    scores = {
        index: score(function, group, model, data)
        for index, group in enumerate(graph.groups)
        if index not in skipped and not group.frozen.all()
    }
    macs = keras_macs(model)
    remaining = Remaining(graph, macs.by_layer)
    target, cost = None, None
    if target_parameters is not None:
        target, cost = target_parameters * model.count_params(), remaining.parameters
    if target_macs is not None:
        if macs.total is None:
            raise UnsupportedError(
                f"target_macs needs the model's multiply-accumulates, which cannot be known: "
                f"{macs.reason}; or give target_parameters or pruning_ratio"
            )
        target, cost = target_macs * macs.total, remaining.macs
    removed = choose(
        graph.groups,
        scores,
        pruning_ratio=pruning_ratio,
        target=target,
        cost=cost,
        ranking=ranking,
        limits=limits,
        ratios=own,
    )
    return _described(graph, removed, remaining, macs)


def _described(
    graph: ChannelGraph, removed: Removed, remaining: Remaining, macs: Macs
) -> PruningPlan:
    empty = np.empty(0, np.int64)
    groups = tuple(
        GroupPlan(
            group.name,
            group.kind,
            group.layers,
            group.size,
            group.size - len(removed.get(index, empty)),
            int(group.frozen.sum()),
        )
        for index, group in enumerate(graph.groups)
    )
    after = None if macs.total is None else keras_macs(shrink(graph, removed)).total
    return PruningPlan(
        graph,
        removed,
        groups,
        graph.refused,
        graph.model.count_params(),
        remaining.parameters(removed),
        macs.total,
        after,
        () if macs.reason is None else (f"MACs are unknown: {macs.reason}",),
    )


def _check(
    pruning_ratio: float | None,
    target_macs: float | None,
    target_parameters: float | None,
    ranking: str,
    round_to: int,
    min_channels: int,
) -> None:
    targets = {"target_macs": target_macs, "target_parameters": target_parameters}
    given = [
        name
        for name, value in {"pruning_ratio": pruning_ratio, **targets}.items()
        if value is not None
    ]
    if len(given) != 1:
        raise InputError(
            f"got {' and '.join(given) or 'no budget'}; give exactly one of pruning_ratio, "
            "target_macs and target_parameters"
        )
    if pruning_ratio is not None:
        _check_ratio(pruning_ratio, "pruning_ratio")
    for name, value in targets.items():
        if value is not None and not 0 < value <= 1:
            raise InputError(
                f"{name}={value} is outside (0, 1]; it is the fraction that may stay, 0.5 for half"
            )
    if ranking not in ("group", "global"):
        raise InputError(f"ranking={ranking!r} is unknown; supported: group, global")
    for name, count in {"round_to": round_to, "min_channels": min_channels}.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{name}={count!r} is not a whole number from 1 on")


def _check_ratio(ratio: float, name: str) -> None:
    if not 0 <= ratio < 1:
        raise InputError(f"{name}={ratio} is outside [0, 1); it is a fraction, 0.5 for half")


def _max_ratio(max_ratio: float | None, pruning_ratio: float | None) -> float:
    if max_ratio is None:
        return max(_MAX_RATIO, pruning_ratio or 0)
    _check_ratio(max_ratio, "max_ratio")
    return max_ratio


def _own_ratios(
    model: Any, graph: ChannelGraph, ratios: Mapping[Selector, float]
) -> dict[int, float]:
    own: dict[int, float] = {}
    for selector, ratio in ratios.items():
        _check_ratio(ratio, f"ratios[{selector!r}]")
        for index in selected(model, graph.groups, selector, "ratios"):
            own.setdefault(index, ratio)
    return own
