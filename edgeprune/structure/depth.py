"""Layers leave: whole residual blocks and encoder layers, chosen and taken out of the graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from edgeprune import models
from edgeprune.errors import ArgumentError, InputError
from edgeprune.keras_macs import keras_macs
from edgeprune.rebuild import duplicate
from edgeprune.report.table import Column, format_cell, render
from edgeprune.structure.blocks import Block
from edgeprune.structure.graph import Refusal
from edgeprune.structure.layerdrop import check_plain
from edgeprune.structure.pruning import compile_as
from edgeprune.structure.residual import Granularity, find_blocks

LayerCriterionName = Literal["position", "last", "magnitude", "loss"]
LayerCriterion = Callable[[Block, Any, Any], float]
"""(block, model, data) -> its score; the blocks with the lowest leave first."""

_NAMES: tuple[LayerCriterionName, ...] = ("position", "last", "magnitude", "loss")


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """Which blocks leave a model, and what that saves.

    Attributes:
      model: the model, which stays as it is.
      blocks: all that could leave, in the order in which they are computed.
      removed: positions of those that leave, ascending.
      scores: of each block, of which the lowest left; None where position or name decided, and
        for blocks that were skipped.
      refused: additions that look alike but cannot leave, and why.
      notes: what else there is to know.
    """

    model: Any
    blocks: tuple[Block, ...]
    removed: tuple[int, ...]
    scores: tuple[float | None, ...]
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...] = ()

    def apply(self) -> Any:
        """Return a new, smaller model, not compiled; the model of the plan stays as it is."""
        leaving = [self.blocks[index] for index in self.removed]
        bypass = {id(block.exit): (block.entry, None) for block in leaving}
        return duplicate(self.model, bypass=bypass)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        before, after = self._sizes
        return {
            "parameters_before": before[0],
            "parameters_after": after[0],
            "macs_before": before[1],
            "macs_after": after[1],
            "groups": [
                {
                    "name": block.name,
                    "label": label,
                    "kind": "layers",
                    "layers": list(block.operations),
                    "removed": index in self.removed,
                    "score": score,
                }
                for index, (block, label, score) in enumerate(
                    zip(self.blocks, self.labels, self.scores, strict=True)
                )
            ],
            "refused": [
                {"layer": refusal.layer, "reason": refusal.reason} for refusal in self.refused
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Return tables of the blocks, of what was refused, and the totals."""
        parts = []
        if self.blocks:
            parts.append(
                render(
                    ["block", Column("layers", "count"), Column("score", "text"), ""],
                    [
                        [
                            label,
                            len(block.operations),
                            None if score is None else f"{score:.4g}",
                            "leaves" if index in self.removed else "stays",
                        ]
                        for index, (block, label, score) in enumerate(
                            zip(self.blocks, self.labels, self.scores, strict=True)
                        )
                    ],
                )
            )
        if self.refused:
            parts.append(
                render(["kept", "because"], [[row.layer, row.reason] for row in self.refused])
            )
        before, after = self._sizes
        parts.append(
            "\n".join(
                f"{name}: {format_cell(old, 'count')} -> {format_cell(new, 'count')}"
                for name, old, new in zip(("parameters", "MACs"), before, after, strict=True)
            )
        )
        return "\n\n".join([*parts, *self.notes])

    @property
    def labels(self) -> list[str]:
        """What tables call the blocks: by layers that someone named, where that tells them apart.

        `plan_layers` knows the blocks by these names too.
        """
        names = [block.label for block in self.blocks]
        return [
            name if names.count(name) == 1 else block.name
            for name, block in zip(names, self.blocks, strict=True)
        ]

    @cached_property
    def _sizes(self) -> tuple[tuple[int, int | None], tuple[int, int | None]]:
        """(parameters, MACs) before and after; MACs are None where they cannot be known."""
        after = self.apply()
        return (
            (self.model.count_params(), keras_macs(self.model).total),
            (after.count_params(), keras_macs(after).total),
        )


def plan_layers(
    model: Any,
    *,
    pruning_ratio: float | None = None,
    count: int | None = None,
    names: Sequence[str] | None = None,
    criterion: LayerCriterionName | LayerCriterion = "position",
    granularity: Granularity = "block",
    data: Any = None,
    batches: int = 8,
    batch_size: int = 32,
    greedy: bool = False,
    skip: Sequence[str] = (),
) -> LayerPlan:
    """Plan which residual blocks or encoder layers of a model leave. The model is not changed.

    Exactly one of `pruning_ratio`, `count` and `names` is given.

    Args:
      model: a built Keras 3 Functional or Sequential model, nested models included.
      pruning_ratio: fraction of its blocks to remove, in [0, 1), rounded to the nearest number.
      count: how many to remove.
      names: which to remove: names, paths or patterns of blocks, or of layers inside them.
      criterion: which leave, if not by name. ``position``: every other one, or as many as asked
        for spread as evenly (of every m blocks the m-th, the first one staying longest);
        ``last``: the last ones; ``magnitude``: those with the lowest mean |w| over their kernels;
        ``loss``: those without which the loss on `data` is lowest; or a function
        (block, model, data) -> score, of which the lowest leave.
      granularity: ``block``: encoder layers whole, and residual branches outside of them;
        ``branch``: residual branches one by one. `find_blocks` says what they are.
      data: of the criterion ``loss``: (x, y), an `edgeprune.data.Dataset`, an .npz file,
        ``module:function`` or batches. Its loss is that of the compiled model, otherwise the one
        that fits the targets.
      batches: how many batches of `data` the loss is taken over.
      batch_size: samples a batch.
      greedy: with ``loss``, remove one block at a time and weigh the others again without it.
      skip: blocks that stay: as `names`.

    Returns:
      The plan, also with the additions that look like residual blocks but cannot leave.

    Raises:
      InputError: a bad argument, a model without blocks that can leave, a name that matches no
        block, more blocks than there are,
        weights or scores that are not finite, or no data where the criterion needs some.
      UnsupportedError: a subclassed or tf_keras model.

    Source: Fan, Grave & Joulin 2020, Reducing Transformer Depth on Demand with Structured
    Dropout, arXiv:1909.11556 ("every other").
    """
    _check(pruning_ratio, count, names, criterion)
    check_plain(model)
    blocks = find_blocks(model, granularity)
    _check_weights(model)
    skipped = blocks.named(skip, "skip")
    scores: list[float | None] = [None] * len(blocks.found)
    if names is not None:
        removed = blocks.named(names, "names") - skipped
        return LayerPlan(model, blocks.found, tuple(sorted(removed)), tuple(scores), blocks.refused)
    if not blocks.found and count != 0:
        more = blocks.refused[0] if blocks.refused else None
        raise InputError(
            f"model '{model.name}' has no block that can leave"
            + (f" ('{more.layer}': {more.reason})" if more else "")
            + "; supported: residual branches and encoder layers, whose input is added to what "
            "they compute; of other models prune the channels"
        )
    free = [index for index in range(len(blocks.found)) if index not in skipped]
    notes: tuple[str, ...] = ()
    if count is None:
        assert pruning_ratio is not None
        count = min(int(pruning_ratio * len(blocks.found) + 0.5), len(free))
        notes = _rounded(pruning_ratio, len(blocks.found), len(skipped), count)
    if count > len(free):
        raise InputError(
            f"count={count} is more than the {len(free)} blocks of model '{model.name}' that may "
            "leave; give fewer, or skip fewer"
        )
    if criterion == "position":
        # Of 12 blocks, numbered from 1, half are 2, 4, ..., 12 and a third 3, 6, 9, 12.
        spread = [(number * count) // max(1, len(free)) for number in range(len(free) + 1)]
        removed = {index for at, index in enumerate(free) if spread[at + 1] > spread[at]}
    elif criterion == "last":
        removed = set(free[len(free) - count :])
    elif criterion == "loss":
        from edgeprune.structure.trial import by_loss

        chosen = [blocks.found[index] for index in free]
        order, found = by_loss(model, chosen, count, data, batches, batch_size, greedy)
        removed = {free[at] for at in order}
        for index, value in zip(free, found, strict=True):
            scores[index] = value
    else:
        function = magnitude if criterion == "magnitude" else criterion
        assert callable(function)
        for index in free:
            scores[index] = _score(function, blocks.found[index], model, data)
        removed = set(sorted(free, key=lambda index: (scores[index], index))[:count])
    return LayerPlan(
        model, blocks.found, tuple(sorted(removed)), tuple(scores), blocks.refused, notes
    )


def prune_layers(
    model: Any,
    *,
    pruning_ratio: float | None = None,
    count: int | None = None,
    names: Sequence[str] | None = None,
    criterion: LayerCriterionName | LayerCriterion = "position",
    granularity: Granularity = "block",
    data: Any = None,
    batches: int = 8,
    batch_size: int = 32,
    greedy: bool = False,
    skip: Sequence[str] = (),
) -> Any:
    """Return a plain model without some of its residual blocks or encoder layers.

    What a block was given stands for what it returned: the smaller model computes what the
    original would if the branches of these blocks returned zeros (and, where an encoder layer
    normalizes behind its additions, if the layer were not there at all). Fine-tune it after; a
    model trained with `layer_drop` needs less of that.

    Args and errors are those of `plan_layers`, which tells what would leave.

    Returns:
      A new model with the original's names, weights, dtype policies and trainable flags. If that
      is compiled, so is this, in the same way and with a fresh optimizer.
    """
    smaller = plan_layers(
        model,
        pruning_ratio=pruning_ratio,
        count=count,
        names=names,
        criterion=criterion,
        granularity=granularity,
        data=data,
        batches=batches,
        batch_size=batch_size,
        greedy=greedy,
        skip=skip,
    ).apply()
    compile_as(smaller, model)
    return smaller


def magnitude(block: Block, model: Any = None, data: Any = None) -> float:
    """Score a block by the mean |w| over its kernels; 0 if it has none.

    Kernels are all its weights of two and more axes, each variable once.

    Args:
      block: of a model.
      model: is not looked at.
      data: is not looked at.
    """
    kernels = {
        id(weight): np.asarray(weight, np.float64)
        for _, layer in block.layers()
        for weight in getattr(layer, "weights", ())
        if len(weight.shape) > 1 and "float" in str(weight.dtype)
    }
    total = sum(kernel.size for kernel in kernels.values())
    return sum(float(np.abs(kernel).sum()) for kernel in kernels.values()) / max(1, total)


def _check(
    ratio: float | None, count: int | None, names: Sequence[str] | None, criterion: Any
) -> None:
    budgets = {"pruning_ratio": ratio, "count": count, "names": names}
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise InputError(
            f"got {' and '.join(given) or 'no budget'}; give exactly one of pruning_ratio, count "
            "and names"
        )
    if ratio is not None and not 0 <= ratio < 1:
        raise ArgumentError(
            f"`pruning_ratio={ratio}` is outside [0, 1); it is a fraction, 0.5 for half"
        )
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
        raise InputError(f"count={count!r} is not a whole number from 0 on")
    if not callable(criterion) and criterion not in _NAMES:
        raise ArgumentError(
            f"`criterion={criterion!r}` is unknown; supported: {', '.join(_NAMES)}; in Python also "
            "a function (block, model, data) -> its score"
        )


def _rounded(ratio: float, blocks: int, skipped: int, count: int) -> tuple[str, ...]:
    """Say what a ratio comes to where that is not the ratio itself."""
    asked = ratio * blocks
    notes = []
    if not np.isclose(asked, count):
        but = f" ({skipped} are skipped)" if skipped else ""
        verb = "leaves" if count == 1 else "leave"
        notes.append(
            f"blocks leave whole: {ratio:g} of {blocks} is {asked:g}, and {count} {verb}{but}"
        )
    if count == blocks:
        notes.append(f"all {blocks} blocks leave; what is left is the model around them")
    return tuple(notes)


def _check_weights(model: Any) -> None:
    for path, layer in models.layers(model):
        for weight in layer.weights:
            if "float" in str(weight.dtype) and not np.isfinite(np.asarray(weight, "f4")).all():
                raise InputError(
                    f"layer '{path}' has NaN or infinite weights; train it with a smaller learning "
                    "rate, or load a sound checkpoint"
                )


def _score(function: LayerCriterion, block: Block, model: Any, data: Any) -> float:
    name = getattr(function, "__name__", "criterion")
    given = function(block, model, data)
    try:
        value = float(given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name}() gave no number for block '{block.name}'; it must give one score a block"
        ) from error
    if not np.isfinite(value):
        raise InputError(f"{name}() gave {value} for block '{block.name}'; scores must be finite")
    return value
