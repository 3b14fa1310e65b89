"""The whole flow on a user's model, from structure to the report."""

import gzip
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.data import Dataset
from edgeprune.files import atomic_path, make_folder
from edgeprune.models import kernels, load_model, save_model
from edgeprune.outcome import RESULT, TABLES, CompressionReport, Row, channel_values, with_tables
from edgeprune.recipe import ClusteringSpec, Recipe, StructureSpec, load_stated
from edgeprune.runs import RUN_FILE, RunFolder, identity_of, opened
from edgeprune.samples import evenly_spaced
from edgeprune.scoring import score
from edgeprune.targets import Devices, Targets, from_records, to_records
from edgeprune.training import Progress, compile_like, fit, plain_copy, predict

if TYPE_CHECKING:
    from edgeprune.devices.choices import Choice
    from edgeprune.devices.measurement import ModelBenchmark
    from edgeprune.export.encode import Sparse
    from edgeprune.quantization.clustering import WeightClustering

_log = logging.getLogger(__name__)

_BENCHMARK_FILE = "benchmark.json"
_DEVICES = "devices"


def compress(
    model: Any,
    data: Any,
    recipe: Recipe | str | Path,
    output: str | Path,
    *,
    device: Devices = (),
    restart: bool = False,
    unsafe: bool = False,
    quick: bool = True,
    progress: Progress | None = None,
) -> CompressionReport:
    """Make a model small and show what that cost: the recipe's stages, in the design's order.

    Every finished stage leaves its model and a line in ``run.json`` in `output`; the same call
    after a kill goes on with the first stage that was not finished.

    Devices that are named choose what the recipe leaves open, see `edgeprune.devices.choices`;
    refuse, before any training, what they cannot run or hold; and run the .tflite files in the
    end, where they can be reached.

    Args:
      model: a Keras 3 or tf_keras model with one output, or the path of one; its own compiled
        loss and optimizer are used to train.
      data: a `Dataset`, or what `load_training_data` reads: an .npz file with x and y, or
        ``module:function``.
      recipe: a `Recipe`, a preset's name, or the path of a .toml file.
      output: folder for every file of the run; made if need be.
      device: name or .toml file of the profile of a device that the model is for, or several.
        Keys that a recipe's .toml file states, and values of a preset or a `Recipe` that are not
        the default, win over what devices would choose.
      restart: throw away what an earlier run with another model, data or recipe left there.
      unsafe: load a .keras file that holds Python code (Lambda layers).
      quick: benchmark for about a second a model instead of ten.
      progress: called with (stage, fraction done, what it left in words once it is done).

    Raises:
      InputError: the model, data, recipe or device cannot be used, or `output` holds another run.
      UnsupportedError: a device cannot run the model, or cannot hold it.
      VerificationError: a converted model does not compute what the Keras model computes.
    """
    recipe, stated = load_stated(recipe)
    targets = Targets(device)
    model, data = opened(
        model,
        data,
        unsafe,
        "compress takes one, to score it; use the callbacks in your own fit, then convert",
    )
    _check(model, recipe)
    recipe, choices = targets.settle(model, recipe, stated)
    folder = make_folder(output)
    run = _Run(model, data, recipe, targets, choices, folder, quick, progress)
    run.folder.open(restart)
    return run.finish()


def _check(model: Any, recipe: Recipe) -> None:
    """Refuse, before any training, a model that a stage of the recipe would refuse."""
    if recipe.structure is not None:
        from edgeprune.ways import check_structure

        check_structure(model, recipe.structure)
    if recipe.sparsity is not None and recipe.sparsity.rewrite_padding:
        from edgeprune.structure.eligible import plan_sparse_eligible

        plan_sparse_eligible(model)
    if recipe.clustering is not None:
        _clustering_of(recipe.clustering).check(model)
    if recipe.export.look_up_tables:
        from edgeprune.devices import tflm

        tflm.version()


class _Run:
    """One run in one folder. A stage reads the files of those before it, so it can be resumed."""

    def __init__(
        self,
        model: Any,
        data: Dataset,
        recipe: Recipe,
        targets: Targets,
        choices: "tuple[Choice, ...]",
        folder: Path,
        quick: bool,
        progress: Progress | None,
    ) -> None:
        from edgeprune.sparsity.patterns import pattern_of

        self.model = model
        self.data = data
        self.recipe = recipe
        self.targets = targets
        self.choices = choices
        self.quick = quick
        self.progress = progress
        self.details: dict[str, Any] = {}  # of the stage that runs, for its summary
        self.pattern = pattern_of(recipe.sparsity.pattern if recipe.sparsity else "unstructured")
        quantize = recipe.export.quantize
        files = ["baseline.keras", "baseline.tflite", f"baseline-{quantize}.tflite"]
        files += ["structured.keras", "sparse.keras", "clustered.keras"]
        files += ["quantized.keras", RESULT, TABLES]
        identity = {"kind": "compress", **identity_of(model, data, recipe), **targets.identity}
        self.folder = RunFolder(folder, identity, Row, files, [_BENCHMARK_FILE])

    def finish(self) -> CompressionReport:
        steps: list[tuple[str, Callable[[], list[Row]]]] = [("baseline", self._baseline)]
        if self.recipe.structure is not None:
            steps += self._structure_steps(self.recipe.structure)
        if self.recipe.sparsity is not None:
            steps.append(("sparsity", self._sparsity))
        if self.recipe.clustering is not None:
            steps.append(("clustering", self._clustering))
        if self.recipe.quantization is not None:
            steps.append(("quantization", self._quantization))
        steps += [("export", self._export), ("benchmark", self._benchmark)]
        finished = self.folder.finished
        if len(finished) == len(steps):
            self._tell("finished before", 1.0, f"{self.folder.path} shows that run; see --restart")
        elif self.choices:
            told = ", ".join(f"{c.name} {c.value}" for c in self.choices if c.value is not None)
            self._tell("device choices", 1.0, told)
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
            told = ""
            if name != "benchmark":  # which makes the rows there are anew
                keys = ("score_name", "score", "sparsity", "parameters", "macs", "file")
                summary |= {key: getattr(rows[0], key) for key in keys}
                told = _in_words(rows[0])
                between = name.startswith("structure ")  # a round before the last
                rows = self.folder.rows + ([] if between else rows)
            self.folder.finish({**summary, **self.details}, rows)
            self.details = {}
            self._tell(name, 1.0, told)
        *stages, last = self.folder.stages
        return CompressionReport(
            self.folder.path,
            tuple(self.folder.rows),
            (*stages, {key: value for key, value in last.items() if key != _DEVICES}),
            self.choices,
            from_records(last.get(_DEVICES, ()), str(self.folder.path / RUN_FILE)),
        )

    def _baseline(self) -> list[Row]:
        """The model as it came: in Keras, as float .tflite, and quantized without training."""
        save_model(plain_copy(self.model), self.folder.path / "baseline.keras")
        rows = [self._keras_row("Keras baseline", self.model, "baseline.keras")]
        recipe = self.recipe
        quantize = recipe.export.quantize
        # A model that is not pruned yet may have nothing to encode.
        sparse: Sparse = "auto" if recipe.export.sparse == "on" else recipe.export.sparse
        file = "baseline.tflite"
        rows.append(self._tflite_row("float baseline", self.model, file, "none", sparse))
        trained = any((recipe.structure, recipe.sparsity, recipe.clustering, recipe.quantization))
        if quantize != "none" and trained:
            file = f"baseline-{quantize}.tflite"
            name = f"{quantize} baseline"
            rows.append(self._tflite_row(name, self.model, file, quantize, sparse))
        if trained:
            self.targets.check(self.folder.path / file, recipe)
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
        if spec.rewrite_padding:
            model = _with_rewritten_padding(model)
        pruning = MagnitudePruning(
            PolynomialDecay(
                initial_sparsity=spec.initial_sparsity,
                final_sparsity=spec.final_sparsity,
            ),
            pattern=self.pattern,
            ranking=spec.ranking,
            skip=spec.skip,
        )
        self._train(model, spec, [pruning], "sparsity")
        save_model(plain_copy(model), self.folder.path / "sparse.keras")
        return [self._keras_row("pruned (Keras)", model, "sparse.keras")]

    def _clustering(self) -> list[Row]:
        spec = self.recipe.clustering
        assert spec is not None
        model = self._latest()
        clustering = _clustering_of(spec)
        # Kernels that are not clustered may have zeros too.
        self._train(model, spec, [*_preserving_sparsity(model), clustering], "clustering")
        self.details = {"kernels": [asdict(kernel) for kernel in clustering.report]}
        save_model(plain_copy(model), self.folder.path / "clustered.keras")
        return [self._keras_row("clustered (Keras)", model, "clustered.keras")]

    def _quantization(self) -> list[Row]:
        from edgeprune.export.strip import strip
        from edgeprune.quantization.kernel_values import values_of
        from edgeprune.quantization.preserve_clusters import PreserveClusters
        from edgeprune.quantization.qat import quantize_aware

        spec = self.recipe.quantization
        assert spec is not None
        model = self._latest()
        callbacks = _preserving_sparsity(model)
        # In kernels of hardly more weights than clusters there may be nothing to keep.
        if self.recipe.clustering and any(values_of(kernel).clustered for kernel in kernels(model)):
            callbacks.append(PreserveClusters())
        aware = quantize_aware(model, skip=spec.skip)
        self._train(aware, spec, callbacks, "quantization")
        model = strip(aware)
        self.details = {"kernel_values": [asdict(values_of(kernel)) for kernel in kernels(model)]}
        save_model(model, self.folder.path / "quantized.keras")
        return [self._keras_row("int8 grid (Keras)", model, "quantized.keras")]

    def _export(self) -> list[Row]:
        recipe, spec = self.recipe, self.recipe.export
        words = {
            "structured": recipe.structure is not None,
            "pruned": recipe.sparsity is not None,
            "clustered": recipe.clustering is not None,
            spec.quantize: spec.quantize != "none",
        }
        name = " ".join(word for word, said in words.items() if said) or "float"
        model = self._latest()
        row = self._tflite_row(name, model, RESULT, spec.quantize, spec.sparse)
        tables, self.details = (
            with_tables(self.folder.path, row) if spec.look_up_tables else ([], {})
        )
        if recipe.clustering is not None:
            self.details["distinct_in_channel"] = channel_values(self.folder.path / RESULT)
        return [row, *tables]

    def _benchmark(self) -> list[Row]:
        from edgeprune.devices.run import benchmark

        listed = [row for row in self.folder.rows if row.file.endswith(".tflite")]
        runnable = [row for row in listed if row.file != TABLES]
        tables = self.folder.path / TABLES if len(runnable) < len(listed) else None
        files = [self.folder.path / row.file for row in runnable]
        measured = benchmark(files, quick=self.quick)
        with atomic_path(self.folder.path / _BENCHMARK_FILE) as path:
            path.write_text(measured.to_json(), encoding="utf-8")
        if self.targets.profiles:
            found = self.targets.measure(files, tables, measured, self.quick, self.progress)
            self.details = {_DEVICES: to_records(found)}
        results = dict(zip((row.file for row in runnable), measured, strict=True))
        return [
            _with_latency(row, results[row.file]) if row.file in results else row
            for row in self.folder.rows
        ]

    def _train(self, model: Any, spec: Any, callbacks: list[Any], stage: str) -> None:
        training = self.recipe.training
        rate = spec.learning_rate or training.learning_rate
        compile_like(model, self.model, self.data, rate)
        fit(model, self.data, spec.epochs, training, callbacks, stage, self.progress)

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

    def _tflite_row(self, name: str, model: Any, file: str, quantize: str, sparse: "Sparse") -> Row:
        from edgeprune.export.convert import convert
        from edgeprune.export.verify import run_tflite

        spec = self.recipe.export
        artifact = convert(
            model,
            self.folder.path / file,
            quantize=quantize,
            calibration=self._calibration() if quantize in ("int8", "int16x8") else None,
            io=spec.io if quantize == "int8" else "float",
            sparse=sparse,
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

    def _tell(self, stage: str, fraction: float, note: str = "") -> None:
        if self.progress is not None:
            self.progress(stage, fraction, note)


def _with_rewritten_padding(model: Any) -> Any:
    from edgeprune.structure.eligible import FineTuningNeededWarning, make_sparse_eligible

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FineTuningNeededWarning)  # it is trained next
        return make_sparse_eligible(model)


def _in_words(row: Row) -> str:
    return f"{row.score_name} {row.score:.4g}, sparsity {row.sparsity:.3f}"


def _with_latency(row: Row, result: "ModelBenchmark") -> Row:
    latency = result.latency_ms.median if result.latency_ms else None
    return replace(row, latency_ms=latency, relative_latency=result.relative_latency)


def _clustering_of(spec: ClusteringSpec) -> "WeightClustering":
    from edgeprune.quantization.clustering import WeightClustering

    return WeightClustering(spec.clusters, per_channel=spec.per_channel, skip=spec.skip)


def _preserving_sparsity(model: Any) -> list[Any]:
    from edgeprune.sparsity.callbacks import PreserveSparsity

    return [PreserveSparsity()] if _sparsity_of(model) > 0 else []


def _sparsity_of(model: Any) -> float:
    """Fraction of zeros over all kernels, as it is counted in a .tflite file."""
    arrays = [np.asarray(kernel.variable) for kernel in kernels(model)]
    entries = sum(array.size for array in arrays)
    return 1 - sum(map(np.count_nonzero, arrays)) / entries if entries else 0.0
