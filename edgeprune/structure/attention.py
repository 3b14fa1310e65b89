"""Prune attention heads: whole ones, by their weights or by what the loss would miss."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from edgeprune.errors import ArgumentError, InputError, UnsupportedError
from edgeprune.structure.evidence import evidence
from edgeprune.structure.graph import ChannelGraph, channel_graph
from edgeprune.structure.group import PruningGroup
from edgeprune.structure.importance import Criterion, Scores
from edgeprune.structure.plan import PruningPlan, described, plan
from edgeprune.structure.pruning import FineTune, compile_as, in_rounds
from edgeprune.structure.request import PruningRequest
from edgeprune.structure.scope import Selector, selected
from edgeprune.structure.selection import Ranking, Removed

HeadCriterionName = Literal["l1", "l2", "gate", "taylor", "fpgm", "random"]
_NAMES = ("l1", "l2", "gate", "taylor", "fpgm", "random")
_BATCH = 32


def gate(group: PruningGroup, model: Any, data: Any) -> Scores:
    """Score each head by how much each sample's loss changes, to first order, as it is shut.

    Multiply what the head hands to the output's kernel by a gate, which is 1: the score is the
    mean over samples of \\|d loss / d gate\\|. The gate might as well multiply the rows of the
    kernel that read the head, so for a single sample that is the sum of weight x gradient over
    these rows. The model runs in inference mode; its loss is its own, without regularization, or
    if it is not compiled the one that fits its targets.

    Args:
      group: of heads, of the model.
      model: the model.
      data: `edgeprune.structure.evidence.Evidence` in batches of one sample.

    Returns:
      (group.size,) scores.

    Raises:
      InputError: no data or targets, batches of more than one sample, or weights or gradients
        that are not finite.

    Source: Michel et al. 2019, Are Sixteen Heads Really Better than One?, arXiv:1905.10650.
    """
    seen = evidence(model, data, "gate", group.kind)
    if any(len(x[0]) != 1 for x, _ in seen):
        raise InputError(
            f"criterion 'gate' looks at samples one by one, and model '{model.name}' was given "
            "several at once; build it without a fixed batch size, or take 'taylor'"
        )
    total: Any = 0
    for part in group.slices:
        if part.role == "in":
            along = seen.saliency[id(part.variable)][part.axis]
            own = np.zeros((len(along), group.size))
            np.add.at(own.T, part.channels, along.T[part.positions].astype(np.float64))
            total = total + own
    scores: Scores = np.abs(np.atleast_2d(total)).mean(0)
    return scores


def plan_heads(
    model: Any,
    *,
    pruning_ratio: float | None = None,
    heads: Mapping[Selector, Sequence[int]] | None = None,
    criterion: HeadCriterionName | Criterion = "l2",
    ranking: Ranking = "group",
    data: Any = None,
    samples: int = 128,
    skip: Selector | Sequence[Selector] = (),
    ratios: Mapping[Selector, float] | None = None,
    seed: int = 0,
) -> PruningPlan:
    """Plan which attention heads of a model leave. The model is not changed.

    Heads of `keras.layers.MultiHeadAttention` and `keras.layers.GroupQueryAttention` are known;
    of the latter a head is one of keys and values, which leaves with all the query heads that it
    answers, or where all share one, a query head. Every layer keeps at least one.

    Args:
      model: a built Keras 3 Functional or Sequential model.
      pruning_ratio: fraction of heads to remove, in [0, 1): of each layer, or of all layers
        together with ``ranking="global"``. This or `heads` is given.
      heads: layer (its name, path, a pattern or class) -> indices of its heads that leave.
      criterion: ``l1``, ``l2``, ``fpgm`` (of the kernels of queries, keys and values),
        ``gate``, ``taylor``, ``random``, or a function (group, model, data) -> one score a head,
        of which the lowest leave.
      ranking: ``group``: each layer loses the same share; ``global``: scores, divided by the
        Euclidean norm of their layer's, are compared over all layers.
      data: what ``gate`` and ``taylor`` look at: (x, y), an `edgeprune.data.Dataset`, an .npz
        file or ``module:function``.
      samples: how many of it.
      skip: layers that keep their heads: names, paths, patterns, class names or classes.
      ratios: the same -> ratio of its own, in [0, 1); the first that matches.
      seed: of the criterion ``random``.

    Returns:
      The plan; its `groups` and `refused` are those of heads.

    Raises:
      InputError: a bad argument, a model without attention layers, weights or gradients that are
        not finite, or no data where the criterion needs some.
      UnsupportedError: a subclassed or tf_keras model, or `heads` names one that must stay.

    Source: of the removal and of ``gate``, Michel et al. 2019, arXiv:1905.10650.
    """
    graph = _attentive(model)
    if heads is not None:
        if pruning_ratio is not None:
            raise InputError("got pruning_ratio and heads; give one of them")
        return described(graph, _stated(graph, heads), "heads")
    asked = _request(
        pruning_ratio=pruning_ratio,
        criterion=criterion,
        ranking=ranking,
        data=data,
        samples=samples,
        skip=skip,
        ratios=ratios,
        seed=seed,
    )
    planned = plan(model, asked)
    if ratios is None and pruning_ratio is not None:
        planned = replace(
            planned, notes=(*planned.notes, *_rounded(planned, pruning_ratio, ranking))
        )
    return planned


def _rounded(planned: PruningPlan, ratio: float, ranking: Ranking) -> list[str]:
    """Say what a ratio comes to where that is not the ratio itself."""
    sizes = [
        (group.channels_before, group.channels_before - group.channels_after)
        for group in planned.groups
        if group.frozen < group.channels_before
    ]
    if ranking == "global":
        sizes = [(sum(size for size, _ in sizes), sum(leaving for _, leaving in sizes))]
    return [
        f"heads leave whole: {ratio:g} of {size} is {ratio * size:g}, and {leaving} "
        + ("leaves" if leaving == 1 else "leave")
        for size, leaving in dict.fromkeys(sizes)
        if not np.isclose(ratio * size, leaving)
    ]


def prune_heads(
    model: Any, *, rounds: int = 1, fine_tune: FineTune | None = None, **request: Any
) -> Any:
    """Return a smaller plain Keras model, without the attention heads that matter least.

    A quarter of each layer's heads, by what the loss would miss::

        smaller = edgeprune.prune_heads(model, pruning_ratio=0.25, criterion="gate", data=(x, y))

    and two heads of one layer::

        smaller = edgeprune.prune_heads(model, heads={"attention_1": [0, 3]})

    Args:
      model: a built Keras 3 Functional or Sequential model; it is not changed.
      rounds: in how many steps to get to `pruning_ratio`, each by scores of the model as it then
        is.
      fine_tune: called with the smaller model and the round (from 0) after every round.
      **request: as for `plan_heads`: `pruning_ratio` or `heads`, a criterion, data.

    Returns:
      A new model with smaller `num_heads`; `key_dim`, `value_dim`, the widths of all outputs, and
      the layers' names, dtype policies and trainable flags are the original's. If that is
      compiled, so is this, in the same way and with a fresh optimizer.

    Raises:
      InputError: a bad argument, a model without attention layers, or weights or data that are
        not finite.
      UnsupportedError: the model cannot be pruned.
    """
    if request.get("heads") is None:
        _attentive(model)
        return in_rounds(model, _request(**request), rounds, fine_tune)
    if rounds != 1 or fine_tune is not None:
        raise InputError(
            "got heads with rounds or fine_tune; heads that are named leave at once: fine-tune the "
            "model that is returned"
        )
    smaller = plan_heads(model, **request).apply()
    compile_as(smaller, model)
    return smaller


def _attentive(model: Any) -> ChannelGraph:
    graph = channel_graph(model)
    if not any(group.kind == "heads" for group in graph.groups):
        raise InputError(
            f"model '{model.name}' has no attention heads that are known; supported: "
            "keras.layers.MultiHeadAttention and GroupQueryAttention; of other layers prune the "
            "channels"
        )
    return graph


def _request(
    *,
    criterion: HeadCriterionName | Criterion = "l2",
    samples: int = 128,
    heads: None = None,
    **rest: Any,
) -> PruningRequest:
    if rest.get("pruning_ratio") is None:
        raise InputError("got neither pruning_ratio nor heads; give one of them")
    if not callable(criterion) and criterion not in _NAMES:
        raise ArgumentError(
            f"`criterion={criterion!r}` is unknown for heads; supported: {', '.join(_NAMES)}; in "
            "Python also a function (group, model, data) -> one score a head"
        )
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError(f"samples={samples!r} is not a whole number from 1 on")
    batch_size = 1 if criterion in ("gate", gate) else min(_BATCH, samples)
    function: Any = gate if criterion == "gate" else criterion
    return PruningRequest(
        criterion=function,
        batches=-(-samples // batch_size),
        batch_size=batch_size,
        round_to=1,
        kind="heads",
        **rest,
    )


def _stated(graph: ChannelGraph, heads: Mapping[Selector, Sequence[int]]) -> Removed:
    """Check which heads are named, and return them by group."""
    places = [index for index, group in enumerate(graph.groups) if group.kind == "heads"]
    groups = [graph.groups[index] for index in places]
    removed: dict[int, set[int]] = {}
    for selector, indices in heads.items():
        for number in selected(graph.model, groups, selector, "heads"):
            group = groups[number]
            leaving = removed.setdefault(places[number], set())
            for head in indices:
                if not isinstance(head, int | np.integer) or not 0 <= head < group.size:
                    raise InputError(
                        f"heads: layer '{group.name}' has no head {head!r}; it has {group.size}, "
                        "counted from 0"
                    )
                if group.frozen[head]:
                    raise UnsupportedError(
                        f"head {head} of layer '{group.name}' must stay: {'; '.join(group.reasons)}"
                    )
                leaving.add(int(head))
            if len(leaving) == group.size:
                raise InputError(
                    f"heads: all {group.size} heads of layer '{group.name}' would leave; at least "
                    "one must stay, or take the layer out with prune_layers"
                )
    return {index: np.array(sorted(leaving), int) for index, leaving in removed.items() if leaving}
