"""Prune a model's structure and fine-tune what is left: what `edgeprune prune` does.

TensorFlow is loaded once the files and figures that were given are known to be usable.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeprune.data import Dataset, check_source, load_training_data
from edgeprune.errors import ArgumentError, InputError
from edgeprune.files import check_target
from edgeprune.models import load_model, save_model
from edgeprune.recipe import BUDGETS, StructureSpec, TrainingSpec
from edgeprune.scoring import Score, score
from edgeprune.training import LEARNING_RATE, Progress, check_labels, predict

What = Literal["channels", "heads", "layers"]


@dataclass(frozen=True, eq=False)
class Pruned:
    """A smaller model, and what it lost.

    Attributes:
      model: compiled as the original is; None where it was only planned.
      figures: ``parameters_before parameters_after macs_before macs_after groups refused notes``
        as plain values, and ``score_name score_before score_after validation`` if there were
        data; the last says in words what they were scored on.
    """

    model: Any
    figures: dict[str, Any]


def prune_file(
    path: Path,
    output: Path | None,
    spec: StructureSpec,
    *,
    what: What = "channels",
    criterion: str | None = None,
    data: str | None = None,
    training: TrainingSpec | None = None,
    unsafe: bool = False,
    progress: Progress | None = None,
) -> Pruned:
    """Prune a model file. Arguments are those of `prune_structure`, and:

    Args:
      path: the .keras or .h5 file.
      output: the file to write; None only plans, without training.
      data: what `load_training_data` reads.
      unsafe: load a .keras file that holds Python code (Lambda layers).

    Raises:
      InputError: a file cannot be read or written, or is both; see also `prune_structure`.
    """
    spec.check(where="")
    if output is not None:
        if output.suffix not in (".keras", ".h5"):
            raise ArgumentError(f"cannot save a model as {output}; supported: .keras, .h5")
        check_target(output)
        if output.exists() and path.exists() and output.samefile(path):
            raise ArgumentError(f"{output} is the model to prune; name another file to write")
    if data is not None:
        check_source(data)
    model = load_model(path, unsafe=unsafe)
    pruned = prune_structure(
        model,
        spec,
        what=what,
        criterion=criterion,
        data=None if data is None else load_training_data(data).for_model(model),
        training=training,
        dry_run=output is None,
        progress=progress,
    )
    if output is not None:
        optimizer = getattr(pruned.model, "optimizer", None)
        if optimizer is not None and not optimizer.built:
            # Keras warns of each file whose optimizer has no variables yet.
            optimizer.build(pruned.model.trainable_variables)
        save_model(pruned.model, output)
    return pruned


def prune_structure(
    model: Any,
    spec: StructureSpec,
    *,
    what: What = "channels",
    criterion: str | None = None,
    data: Dataset | None = None,
    training: TrainingSpec | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Pruned:
    """Prune channels, heads or layers, in rounds if there is fine-tuning between them.

    Args:
      model: a built Keras 3 Functional or Sequential model; it is not changed.
      spec: budget, limits, rounds and epochs. Heads and layers leave by ratio, all at once.
      what: leaves.
      criterion: what decides; of heads and layers one of their own. None for the usual one.
      data: to fine-tune on, and for criteria that look at some.
      training: batch size and seed.
      dry_run: only plan, without training: what the first round would be, had it the whole budget.
      progress: called with (stage, fraction done, note).

    Raises:
      InputError: a bad argument, weights or data that are not finite or become so, labels that
        the model has no output for, or no data where some are needed.
      UnsupportedError: the model cannot be pruned.
    """
    from edgeprune.structure.pruning import compile_as
    from edgeprune.ways import Leg, Trainer, legs

    spec.check(where="")
    training = training or TrainingSpec()
    parts = legs("fine-tune", spec) if what == "channels" else [Leg(1.0, 0, spec.epochs)]
    if dry_run:
        parts = [Leg(1.0, 0, 0)]
    tell = progress or (lambda stage, fraction, note: None)
    trainer = None
    if data is not None:
        for targets in (data.y, data.y_val):
            check_labels(model, getattr(model, "loss", None), targets)
        trainer = Trainer(model, data, spec, training, progress)
    before = None if dry_run else _score(model, data)
    documents = []
    smaller = model
    for number, leg in enumerate(parts):
        part = f" {number + 1}/{len(parts)}" if len(parts) > 1 else ""
        tell(f"planning{part}", 0.0, "")
        plan = _plan(model, smaller, spec, what, criterion, leg.share, data, training.seed)
        documents.append({"notes": [], **plan.to_json()})
        tell(f"planning{part}", 1.0, _in_words(documents[-1]))
        if dry_run:
            return Pruned(None, documents[0])
        smaller = plan.apply()
        if trainer is not None and leg.end > leg.begin:
            stage = f"fine-tuning{part}"
            tell(stage, 0.0, "")
            trainer.train(smaller, leg, parts[-1].end, stage, tuning=True)
            tell(stage, 1.0, "")
    figures = _over_rounds(documents)
    if spec.epochs and getattr(model, "loss", None) is None:
        rate = spec.learning_rate or training.learning_rate or LEARNING_RATE
        figures["notes"] = [
            *figures["notes"],
            f"the model is not compiled: it was fine-tuned with Adam, learning rate {rate:g}, and "
            f"the loss {smaller.loss.name}",
        ]
    compile_as(smaller, model)
    after = None if before is None else _score(smaller, data)
    if before is not None and after is not None:
        figures |= {"score_name": before.name, "score_before": before.value}
        figures |= {"score_after": after.value, "validation": data.validation if data else ""}
    return Pruned(smaller, figures)


def _score(model: Any, data: Dataset | None) -> Score | None:
    """Score a model on the validation data; None where there is no one figure for it."""
    if data is None or len(model.outputs) != 1:
        return None
    outputs = predict(model, data.x_val)
    if outputs.dtype.kind == "O":  # a dict of one output
        return None
    if not np.isfinite(outputs).all():
        raise InputError(
            f"model '{model.name}' gives NaN or infinity on the validation data; fine-tune with a "
            "smaller learning rate, or load a sound checkpoint"
        )
    try:
        return score(data.y_val, outputs)
    except InputError:  # targets of the user's own loss, say
        return None


def _plan(
    original: Any,
    model: Any,
    spec: StructureSpec,
    what: What,
    criterion: str | None,
    share: float,
    data: Dataset | None,
    seed: int,
) -> Any:
    from edgeprune.structure.attention import plan_heads
    from edgeprune.structure.depth import plan_layers
    from edgeprune.ways import plan_share

    own: dict[str, Any] = {} if criterion is None else {"criterion": criterion}
    if what == "channels":
        return plan_share(original, model, original, replace(spec, **own), share, data, seed)
    if spec.pruning_ratio is None:
        raise InputError(
            f"{what} are pruned by ratio, not by {BUDGETS[1]} or {BUDGETS[2]}; give a pruning ratio"
        )
    own |= {"pruning_ratio": spec.pruning_ratio, "skip": spec.skip, "data": data}
    if what == "heads":
        return plan_heads(model, ranking=spec.ranking, seed=seed, **own)
    return plan_layers(model, **own)


def _in_words(figures: dict[str, Any]) -> str:
    return f"{figures['parameters_before']:,} -> {figures['parameters_after']:,} parameters"


def _over_rounds(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Tell what all rounds together took, from what each took."""
    first, last = documents[0], documents[-1]
    if first is last:
        return dict(first)
    after = {group["name"]: group["channels_after"] for group in last["groups"]}
    groups = [{**group, "channels_after": after[group["name"]]} for group in first["groups"]]
    kept = {key: first[key] for key in ("parameters_before", "macs_before", "refused")}
    return {**last, **kept, "groups": groups}
