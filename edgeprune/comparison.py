"""The ways to a structurally pruned model side by side, each from new initial weights."""

import json
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.data import Dataset
from edgeprune.errors import InputError
from edgeprune.files import make_folder
from edgeprune.models import load_model, save_model
from edgeprune.recipe import Recipe, StructureSpec, Way
from edgeprune.runs import RunFolder, identity_of, opened
from edgeprune.scoring import score
from edgeprune.training import Progress, plain_copy, predict
from edgeprune.ways import (
    Leg,
    Trainer,
    check_structure,
    legs,
    macs_of,
    own_seeds,
    plan_share,
    renewed,
    scratch_epochs,
)

_log = logging.getLogger(__name__)

WAYS = {
    "dense": "unpruned",
    "longer": "unpruned, fine-tuned too",
    "fine-tune": "trained, pruned, fine-tuned",
    "during": "pruned during training",
    "scratch-e": "scratch-E: same epochs",
    "scratch-b": "scratch-B: same compute",
}
"""What each way is called. `longer` is the control of `fine-tune`: the same epochs, nothing cut."""
_CONTINUED = ("longer", "fine-tune")
_PRUNING: tuple[Way, ...] = ("fine-tune", "during")


@dataclass(frozen=True)
class Trained:
    """One model of the comparison, after one leg of its training.

    Attributes:
      way: a key of `WAYS`.
      seed: of its initial weights and of the order of its data.
      leg: which part of its training, from 1.
      file: in the run's folder.
      epochs: of this leg.
      macs: multiply-accumulates of one inference.
      parameters: of the model.
      score_name: what the score is.
      score: on the validation data.
    """

    way: str
    seed: int
    leg: int
    file: str
    epochs: int
    macs: int
    parameters: int
    score_name: str
    score: float


@dataclass(frozen=True)
class WayResult:
    """What one way gave, over all seeds.

    Attributes:
      way: a key of `WAYS`.
      name: the way in words.
      macs: multiply-accumulates of one inference, the seeds' mean.
      parameters: the seeds' mean.
      epochs: that its training took in all, the dense training included where it starts from
        there; the seeds' mean.
      compute: of its training (MACs x epochs) by that of training the unpruned model.
      scores: one for each seed.
      mean: of the scores.
      std: standard deviation of the scores (n - 1); None of one seed.
      difference: mean over the seeds of this score less the unpruned model's of the same seed.
      difference_std: standard deviation of these differences; None of one seed.
      files: the trained models, one for each seed.
    """

    way: str
    name: str
    macs: int
    parameters: int
    epochs: float
    compute: float
    scores: tuple[float, ...]
    mean: float
    std: float | None
    difference: float
    difference_std: float | None
    files: tuple[str, ...]


@dataclass(frozen=True)
class WaysReport:
    """All ways against the unpruned model.

    Attributes:
      output: the run's folder.
      score_name: ``accuracy`` or ``mean squared error``, on the validation data.
      seeds: how often everything was trained.
      ways: the unpruned model first.
      notes: what the figures rest on.
    """

    output: Path
    score_name: str
    seeds: tuple[int, ...]
    ways: tuple[WayResult, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Return the report as one JSON document."""
        return json.dumps({**asdict(self), "output": str(self.output)}, indent=2)


def compare_ways(
    model: Any,
    data: Any,
    recipe: Recipe | str | Path,
    output: str | Path,
    *,
    seeds: int = 3,
    restart: bool = False,
    unsafe: bool = False,
    progress: Progress | None = None,
) -> WaysReport:
    """Train a model in every way that leads to a pruned one, and compare what comes out.

    For each seed, everything starts from new initial weights: the unpruned model is trained for
    `dense_epochs` of the recipe's structure; pruned and fine-tuned; pruned while it is trained;
    and the architecture that fine-tuning had is trained from scratch, for the same epochs and for
    the same compute. The weights compared are those after the last epoch: nothing is chosen by the
    validation data. Every finished training leaves its model and a line in ``run.json``; the same
    call after a kill goes on, and one with more seeds adds to it.

    Args:
      model: a Keras 3 model with one output, or its path; how it is built and compiled is used,
        its weights only in layers that are not trainable or were adapted to data.
      data: as for `compress`.
      recipe: with a structure; of the rest only its training is used.
      output: folder for every file of the run.
      seeds: how many, counted from the recipe's.
      restart: throw away what an earlier run with another model, data or recipe left there.
      unsafe: load a .keras file that holds Python code (Lambda layers).
      progress: as `compress` calls it.

    Raises:
      InputError: the model, data or recipe cannot be used, or `output` holds another run.
      UnsupportedError: the model cannot be pruned, or its MACs cannot be known.

    Source: Han et al. 2015, arXiv:1506.02626; Liu et al. 2019, arXiv:1810.05270.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe)
    if recipe.structure is None:
        raise InputError(
            "the recipe prunes no structure, so there are no ways to compare; give it a "
            "[structure], or take the preset 'structured'"
        )
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    for way in _PRUNING:
        replace(recipe.structure, way=way).check()
    model, data = opened(model, data, unsafe, "the ways are compared by one score")
    check_structure(model, recipe.structure)
    run = _Comparison(model, data, recipe, recipe.structure, make_folder(output), seeds, progress)
    run.folder.open(restart)
    return run.finish()


class _Comparison:
    """One comparison in one folder. Each leg reads the files of those before it."""

    def __init__(
        self,
        model: Any,
        data: Dataset,
        recipe: Recipe,
        spec: StructureSpec,
        folder: Path,
        seeds: int,
        progress: Progress | None,
    ) -> None:
        self._model = model
        self._data = data
        self._spec = spec
        self._training = recipe.training
        self._progress = progress
        self._seeds = range(recipe.training.seed, recipe.training.seed + seeds)
        self._macs = macs_of(model)
        used = Recipe(training=recipe.training, structure=spec)
        identity = {"kind": "comparison of ways", **identity_of(model, data, used)}
        files = [_file(way, seed) for seed in self._seeds for way in WAYS]
        self.folder: RunFolder[Trained] = RunFolder(folder, identity, Trained, files)

    def finish(self) -> WaysReport:
        ran = False
        for seed in self._seeds:
            for way in WAYS:
                parts = self._legs(way, seed)
                for number, leg in enumerate(parts):
                    part = f" {number + 1}/{len(parts)}" if len(parts) > 1 else ""
                    stage = f"seed {seed}: {WAYS[way]}{part}"
                    if stage not in self.folder.finished:
                        self._leg(way, seed, number, leg, parts[-1].end, stage)
                        ran = True
        if not ran:
            self._tell("finished before", 1.0, f"{self.folder.path} shows that run; see --restart")
        return self._report()

    def _legs(self, way: str, seed: int) -> list[Leg]:
        match way:
            case "dense":
                return [Leg(0.0, 0, self._spec.dense_epochs)]
            case "longer":
                return [Leg(0.0, 0, self._spec.epochs)]
            case "fine-tune" | "during" | "scratch-e":
                return legs(way, self._spec)
            case _:
                pruned = self._rows("fine-tune", seed)[-1].macs
                return [Leg(1.0, 0, scratch_epochs(self._spec.dense_epochs, self._macs, pruned))]

    def _leg(self, way: str, seed: int, number: int, leg: Leg, epochs: int, stage: str) -> None:
        self._tell(stage, 0.0)
        started = time.perf_counter()
        model = self._start(way, seed)
        if way in _PRUNING and leg.share > 0:
            plan = plan_share(
                self._model, model, self._model, self._spec, leg.share, self._data, seed
            )
            for note in plan.notes:
                _log.warning("%s: %s", stage, note)
            model = plan.apply()
        training = replace(self._training, seed=seed)
        trainer = Trainer(self._model, self._data, self._spec, training, self._progress)
        trainer.train(model, leg, epochs, stage, tuning=way in _CONTINUED)
        figure = score(self._data.y_val, predict(model, self._data.x_val))
        row = Trained(
            way=way,
            seed=seed,
            leg=number + 1,
            file=_file(way, seed, number + 1 if leg.end < epochs else None),
            epochs=leg.end - leg.begin,
            macs=macs_of(model),
            parameters=model.count_params(),
            score_name=figure.name,
            score=figure.value,
        )
        save_model(plain_copy(model), self.folder.path / row.file)
        seconds = round(time.perf_counter() - started, 2)
        done = {"stage": stage, "seconds": seconds, "file": row.file, "score": row.score}
        self.folder.finish(done, [*self.folder.rows, row])
        share = row.macs / self._macs
        self._tell(stage, 1.0, f"{row.score_name} {row.score:.4g}, {share:.3g}x MACs")

    def _start(self, way: str, seed: int) -> Any:
        """The model that a way's next leg trains, or prunes and trains."""
        if earlier := self._rows(way, seed):
            return self._load(earlier)
        if way in _CONTINUED:
            return self._load(self._rows("dense", seed))
        if way.startswith("scratch"):
            return renewed(self._load(self._rows("fine-tune", seed)), seed)
        return renewed(self._model, seed)

    def _load(self, rows: Sequence[Trained]) -> Any:
        return load_model(self.folder.path / rows[-1].file, unsafe=True)

    def _rows(self, way: str, seed: int) -> list[Trained]:
        return [row for row in self.folder.rows if (row.way, row.seed) == (way, seed)]

    def _report(self) -> WaysReport:
        notes = [
            "Scores are those after the last epoch. The compute of training from scratch leaves "
            "out what finding the architecture took."
        ]
        if held := own_seeds(self._model):
            notes.append(
                "These layers' initializers have seeds of their own, so their initial weights are "
                f"the same for every seed: {', '.join(held)}."
            )
        results = tuple(self._result(way) for way in WAYS)
        name = self.folder.rows[0].score_name
        return WaysReport(self.folder.path, name, tuple(self._seeds), results, tuple(notes))

    def _result(self, way: str) -> WayResult:
        runs = [self._rows(way, seed) for seed in self._seeds]
        ends = [rows[-1] for rows in runs]
        dense = [self._rows("dense", seed) for seed in self._seeds]
        trained = [
            [*first, *rows] if way in _CONTINUED else rows
            for first, rows in zip(dense, runs, strict=True)
        ]
        scores = [row.score for row in ends]
        differences = [own - first[-1].score for own, first in zip(scores, dense, strict=True)]
        return WayResult(
            way=way,
            name=WAYS[way],
            macs=round(statistics.mean(row.macs for row in ends)),
            parameters=round(statistics.mean(row.parameters for row in ends)),
            epochs=statistics.mean(sum(row.epochs for row in rows) for rows in trained),
            compute=statistics.mean(
                _work(rows) / _work(first) for rows, first in zip(trained, dense, strict=True)
            ),
            scores=tuple(scores),
            mean=statistics.mean(scores),
            std=_std(scores),
            difference=statistics.mean(differences),
            difference_std=_std(differences),
            files=tuple(row.file for row in ends),
        )

    def _tell(self, stage: str, fraction: float, note: str = "") -> None:
        if self._progress is not None:
            self._progress(stage, fraction, note)


def _work(rows: Sequence[Trained]) -> int:
    return sum(row.epochs * row.macs for row in rows)


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _file(way: str, seed: int, leg: int | None = None) -> str:
    part = "" if leg is None else f"-{leg}"
    return f"{way}-seed-{seed}{part}.keras"
