"""The whole flow on a user's model: sparsity, quantization, export, devices, report."""

import gzip
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.data import Dataset
from edgeprune.errors import InputError
from edgeprune.files import atomic_path, make_folder
from edgeprune.models import kernels, load_model, save_model
from edgeprune.recipe import Recipe, StructureSpec
from edgeprune.runs import RunFolder, identity_of, opened
from edgeprune.samples import evenly_spaced
from edgeprune.scoring import score
from edgeprune.training import Progress, compile_like, fit, plain_copy, predict

if TYPE_CHECKING:
    from edgeprune.devices.measurement import ModelBenchmark
    from edgeprune.sparsity.patterns import Pattern

_log = logging.getLogger(__name__)

_BENCHMARK_FILE = "benchmark.json"


@dataclass(frozen=True)
class Row:
    """One model of the report: the baseline, a control or a result.

    Attributes:
      name: what it is, in words.
      file: its file in the run's folder.
      score_name: ``accuracy`` or ``mean squared error``, on the validation data.
      score: the figure.
      bytes: of the file.
      gzip_bytes: of the file after gzip, level 9.
      sparsity: fraction of zeros in a Keras model's kernels, or counted in the .tflite.
      latency_ms: measured median on this machine; None for a Keras file, which no device runs.
      relative_latency: of the float baseline's, pair by pair in one interleaved run.
      parameters: of the Keras model that it is, or was converted from; counted, like `macs`, where
        the recipe changes them.
      macs: its multiply-accumulates; None also where they cannot be known.
    """

    name: str
    file: str
    score_name: str
    score: float
    bytes: int
    gzip_bytes: int
    sparsity: float
    latency_ms: float | None = None
    relative_latency: float | None = None
    parameters: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class CompressionReport:
    """Before and after, side by side.

    Attributes:
      output: the run's folder.
      rows: the baseline first, the result last.
      stages: what each stage took and left: ``stage seconds score_name score sparsity parameters
        macs file``, and where channels left, ``groups refused``.
    """

    output: Path
    rows: tuple[Row, ...]
    stages: tuple[dict[str, Any], ...]

    def to_json(self) -> str:
        """Return the report as one JSON document."""
        document = {
            "output": str(self.output),
            "rows": [asdict(row) for row in self.rows],
            "stages": list(self.stages),
        }
        return json.dumps(document, indent=2)


def compress(
    model: Any,
    data: Any,
    recipe: Recipe | str | Path,
    output: str | Path,
    *,
    restart: bool = False,
    unsafe: bool = False,
    quick: bool = True,
    progress: Progress | None = None,
) -> CompressionReport:
    """Make a model small and show what that cost: the recipe's stages, in the design's order.

    Every finished stage leaves its model and a line in ``run.json`` in `output`; the same call
    after a kill goes on with the first stage that was not finished.

    Args:
      model: a Keras 3 or tf_keras model with one output, or the path of one; its own compiled
        loss and optimizer are used to train.
      data: a `Dataset`, or what `load_training_data` reads: an .npz file with x and y, or
        ``module:function``.
      recipe: a `Recipe`, a preset's name, or the path of a .toml file.
      output: folder for every file of the run; made if need be.
      restart: throw away what an earlier run with another model, data or recipe left there.
      unsafe: load a .keras file that holds Python code (Lambda layers).
      quick: benchmark for about a second a model instead of ten.
      progress: called with (stage, fraction done, what it left in words once it is done).

    Raises:
      InputError: the model, data or recipe cannot be used, or `output` holds another run.
      VerificationError: a converted model does not compute what the Keras model computes.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe)
    model, data = opened(
        model,
        data,
        unsafe,
        "compress takes one, to score it; use the callbacks in your own fit, then convert",
    )
    if recipe.structure is not None:
        from edgeprune.ways import check_structure

        check_structure(model, recipe.structure)
    folder = make_folder(output)
    run = _Run(model, data, recipe, folder, quick, progress)
    run.folder.open(restart)
    return run.finish()


class _Run:
    """One run in one folder. A stage reads the files of those before it, so it can be resumed."""

    def __init__(
        self,
        model: Any,
        data: Dataset,
        recipe: Recipe,
        folder: Path,
        quick: bool,
        progress: Progress | None,
    ) -> None:
        self.model = model
        self.data = data
        self.recipe = recipe
        self.quick = quick
        self.progress = progress
        self.details: dict[str, Any] = {}  # of the stage that runs, for its summary
        self.pattern = _pattern(recipe.sparsity.pattern if recipe.sparsity else "unstructured")
        quantize = recipe.export.quantize
        files = ["baseline.keras", "baseline.tflite", f"baseline-{quantize}.tflite"]
        files += ["structured.keras", "sparse.keras", "quantized.keras", "model.tflite"]
        identity = {"kind": "compress", **identity_of(model, data, recipe)}
        self.folder = RunFolder(folder, identity, Row, files, [_BENCHMARK_FILE])

    def finish(self) -> CompressionReport:
        steps: list[tuple[str, Callable[[], list[Row]]]] = [("baseline", self._baseline)]
        if self.recipe.structure is not None:
            steps += self._structure_steps(self.recipe.structure)
        if self.recipe.sparsity is not None:
            steps.append(("sparsity", self._sparsity))
        if self.recipe.quantization is not None:
            steps.append(("quantization", self._quantization))
        steps += [("export", self._export), ("benchmark", self._benchmark)]
        finished = self.folder.finished
        if len(finished) == len(steps):
            self._tell("finished before", 1.0, f"{self.folder.path} shows that run; see --restart")
        for name, work in steps:
            if name in finished:
                continue
            self._tell(name, 0.0)
            started = time.perf_counter()
            rows = work()
            summary: dict[str, Any] = {
                "stage": name,
                "seconds": round(time.perf_counter() - started, 2),
            }
            if name == "benchmark":
                self.folder.finish(summary, rows)
            else:
                keys = ("score_name", "score", "sparsity", "parameters", "macs", "file")
                summary |= {key: getattr(rows[0], key) for key in keys} | self.details
                self.details = {}
                between = name.startswith("structure ")  # a round before the last
                self.folder.finish(summary, self.folder.rows + ([] if between else rows))
            self._tell(name, 1.0, "" if name == "benchmark" else _in_words(rows[0]))
        return CompressionReport(
            self.folder.path, tuple(self.folder.rows), tuple(self.folder.stages)
        )

    def _baseline(self) -> list[Row]:
        """The model as it came: in Keras, as float .tflite, and quantized without training."""
        save_model(plain_copy(self.model), self.folder.path / "baseline.keras")
        rows = [self._keras_row("Keras baseline", self.model, "baseline.keras")]
        rows.append(self._tflite_row("float baseline", self.model, "baseline.tflite", "none"))
        quantize = self.recipe.export.quantize
        recipe = self.recipe
        trained = any((recipe.structure, recipe.sparsity, recipe.quantization))
        if quantize != "none" and trained:
            rows.append(
                self._tflite_row(
                    f"{quantize} baseline", self.model, f"baseline-{quantize}.tflite", quantize
                )
            )
        return rows

    def _structure_steps(self, spec: StructureSpec) -> list[tuple[str, Callable[[], list[Row]]]]:
        """One step a round, each of which leaves its model."""
        from edgeprune.ways import legs

        rounds = legs(spec.way, spec)
        names = [f"structure {number + 1}/{len(rounds)}" for number in range(len(rounds) - 1)]
        return [
            (name, partial(self._structure, spec, number, name))
            for number, name in enumerate([*names, "structure"])
        ]

    def _structure(self, spec: StructureSpec, number: int, stage: str) -> list[Row]:
        from edgeprune.ways import Trainer, legs, macs_of, plan_share, renewed, scratch_epochs

        training = self.recipe.training
        rounds = legs(spec.way, spec)
        leg = rounds[number]
        model = self._latest()
        original = model if number == 0 else self._load("baseline.keras")
        if number == 0 and spec.way == "during":
            model = renewed(model, training.seed)
        if leg.share > 0:
            plan = plan_share(
                original, model, self.model, spec, leg.share, self.data, training.seed
            )
            for note in plan.notes:
                _log.warning("%s: %s", stage, note)
            self.details = {key: plan.to_json()[key] for key in ("groups", "refused")}
            model = plan.apply()
        if spec.way.startswith("scratch"):
            model = renewed(model, training.seed)
        if spec.way == "scratch-b":
            epochs = scratch_epochs(spec.dense_epochs, macs_of(original), macs_of(model))
            leg = rounds[-1] = replace(leg, end=epochs)
        trainer = Trainer(self.model, self.data, spec, training, self.progress)
        trainer.train(model, leg, rounds[-1].end, stage, tuning=spec.way == "fine-tune")
        last = number == len(rounds) - 1
        file = "structured.keras" if last else f"structured-{number + 1}.keras"
        save_model(plain_copy(model), self.folder.path / file)
        return [self._keras_row("structured (Keras)", model, file)]

    def _sparsity(self) -> list[Row]:
        from edgeprune.sparsity.callbacks import MagnitudePruning
        from edgeprune.sparsity.schedules import PolynomialDecay

        spec = self.recipe.sparsity
        assert spec is not None
        model = self._latest()
        compile_like(model, self.model, self.data, self._rate(spec.learning_rate))
        pruning = MagnitudePruning(
            PolynomialDecay(
                initial_sparsity=spec.initial_sparsity,
                final_sparsity=spec.final_sparsity,
            ),
            pattern=self.pattern,
            ranking=spec.ranking,
            skip=spec.skip,
        )
        fit(
            model,
            self.data,
            spec.epochs,
            self.recipe.training,
            [pruning],
            "sparsity",
            self.progress,
        )
        save_model(plain_copy(model), self.folder.path / "sparse.keras")
        return [self._keras_row("pruned (Keras)", model, "sparse.keras")]

    def _quantization(self) -> list[Row]:
        from edgeprune.export.strip import strip
        from edgeprune.quantization.qat import quantize_aware
        from edgeprune.sparsity.callbacks import PreserveSparsity

        spec = self.recipe.quantization
        assert spec is not None
        model = self._latest()
        callbacks = [PreserveSparsity()] if _sparsity_of(model) > 0 else []
        aware = quantize_aware(model, skip=spec.skip)
        compile_like(aware, self.model, self.data, self._rate(spec.learning_rate))
        training = self.recipe.training
        fit(aware, self.data, spec.epochs, training, callbacks, "quantization", self.progress)
        model = strip(aware)
        save_model(model, self.folder.path / "quantized.keras")
        return [self._keras_row("int8 grid (Keras)", model, "quantized.keras")]

    def _export(self) -> list[Row]:
        words: list[str] = (
            [self.recipe.export.quantize] if self.recipe.export.quantize != "none" else []
        )
        if self.recipe.sparsity is not None:
            words.insert(0, "pruned")
        if self.recipe.structure is not None:
            words.insert(0, "structured")
        name = " ".join(words) or "float"
        return [self._tflite_row(name, self._latest(), "model.tflite", self.recipe.export.quantize)]

    def _benchmark(self) -> list[Row]:
        from edgeprune.devices.run import benchmark

        runnable = [row for row in self.folder.rows if row.file.endswith(".tflite")]
        measured = benchmark([self.folder.path / row.file for row in runnable], quick=self.quick)
        with atomic_path(self.folder.path / _BENCHMARK_FILE) as path:
            path.write_text(measured.to_json(), encoding="utf-8")
        results = dict(zip((row.file for row in runnable), measured, strict=True))
        return [
            _with_latency(row, results[row.file]) if row.file in results else row
            for row in self.folder.rows
        ]

    def _latest(self) -> Any:
        """The newest Keras model of the run, read back from its file as a resumed run would."""
        return self._load(self.folder.stages[-1]["file"])

    def _load(self, file: str) -> Any:
        return load_model(self.folder.path / file, unsafe=True)

    def _keras_row(self, name: str, model: Any, file: str) -> Row:
        figure = score(self.data.y_val, predict(model, self.data.x_val))
        path = self.folder.path / file
        return Row(
            name=name,
            file=file,
            score_name=figure.name,
            score=figure.value,
            bytes=path.stat().st_size,
            gzip_bytes=len(gzip.compress(path.read_bytes(), 9)),
            sparsity=_sparsity_of(model),
            **self._sizes(model),
        )

    def _tflite_row(self, name: str, model: Any, file: str, quantize: str) -> Row:
        from edgeprune.export.convert import convert
        from edgeprune.export.verify import run_tflite

        spec = self.recipe.export
        artifact = convert(
            model,
            self.folder.path / file,
            quantize=quantize,
            calibration=self._calibration() if quantize in ("int8", "int16x8") else None,
            io=spec.io if quantize == "int8" else "float",
            sparse=spec.sparse,
        )
        for note in artifact.verification.notes if artifact.verification else ():
            _log.warning("%s: %s", file, note)
        figure = score(self.data.y_val, run_tflite(artifact.path, self.data.x_val))
        return Row(
            name=name,
            file=file,
            score_name=figure.name,
            score=figure.value,
            bytes=artifact.bytes,
            gzip_bytes=artifact.gzip_bytes,
            sparsity=artifact.sparsity,
            **self._sizes(model),
        )

    def _sizes(self, model: Any) -> dict[str, int | None]:
        if self.recipe.structure is None:
            return {}
        from edgeprune.keras_macs import keras_macs

        return {"parameters": model.count_params(), "macs": keras_macs(model).total}

    def _calibration(self) -> Any:
        # Spread over the data set: files are often sorted by class.
        return self.data.take(
            evenly_spaced(len(self.data.y), self.recipe.export.calibration_samples)
        )

    def _rate(self, stage_rate: float | None) -> float | None:
        return stage_rate if stage_rate is not None else self.recipe.training.learning_rate

    def _tell(self, stage: str, fraction: float, note: str = "") -> None:
        if self.progress is not None:
            self.progress(stage, fraction, note)


def _in_words(row: Row) -> str:
    return f"{row.score_name} {row.score:.4g}, sparsity {row.sparsity:.3f}"


def _with_latency(row: Row, result: "ModelBenchmark") -> Row:
    latency = result.latency_ms.median if result.latency_ms else None
    return replace(row, latency_ms=latency, relative_latency=result.relative_latency)


def _pattern(text: str) -> "Pattern":
    from edgeprune.sparsity.patterns import NM, Block, Unstructured

    if text == "unstructured":
        return Unstructured()
    if found := re.fullmatch(r"block (\d+)x(\d+)", text):
        return Block(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        return NM(keep=int(found[1]), of=int(found[2]))
    raise InputError(
        f"recipe: sparsity.pattern is '{text}'; supported: unstructured, block ROWSxCOLUMNS, "
        "such as 'block 4x1', and KEEP:OF, such as '2:4'"
    )


def _sparsity_of(model: Any) -> float:
    """Fraction of zeros over all kernels, as it is counted in a .tflite file."""
    arrays = [np.asarray(kernel.variable) for kernel in kernels(model)]
    entries = sum(array.size for array in arrays)
    return 1 - sum(map(np.count_nonzero, arrays)) / entries if entries else 0.0
