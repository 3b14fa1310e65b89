"""The whole flow on a user's model: sparsity, quantization, export, devices, report."""

import gzip
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune import __version__
from edgeprune.data import Dataset, load_training_data
from edgeprune.errors import InputError
from edgeprune.export.artifact import record_path
from edgeprune.files import atomic_path, make_folder
from edgeprune.models import fingerprint, kernels, load_model, save_model
from edgeprune.recipe import Recipe
from edgeprune.samples import evenly_spaced
from edgeprune.scoring import score
from edgeprune.training import Progress, compile_like, fit, plain_copy, predict

if TYPE_CHECKING:
    from edgeprune.devices.measurement import ModelBenchmark
    from edgeprune.sparsity.patterns import Pattern

_log = logging.getLogger(__name__)

RUN_FILE = "run.json"
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


@dataclass(frozen=True)
class CompressionReport:
    """Before and after, side by side.

    Attributes:
      output: the run's folder.
      rows: the baseline first, the result last.
      stages: what each stage took and left: ``stage seconds score sparsity``.
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
    if isinstance(model, str | Path):
        model = load_model(model, unsafe=unsafe)
    if not isinstance(data, Dataset):
        data = load_training_data(data)
    if len(getattr(model, "outputs", None) or ()) > 1:
        raise InputError(
            f"the model has {len(model.outputs)} outputs; compress takes one, to score it; use the "
            "callbacks in your own fit, then convert"
        )
    data = data.for_model(model)
    folder = make_folder(output)
    run = _Run(model, data, recipe, folder, quick, progress)
    run.open(restart)
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
        self.folder = folder
        self.quick = quick
        self.progress = progress
        self.pattern = _pattern(recipe.sparsity.pattern if recipe.sparsity else "unstructured")
        self.rows: list[Row] = []
        self.stages: list[dict[str, Any]] = []
        self.identity = {
            "edgeprune": __version__,
            "model": fingerprint(model),
            "data": data.fingerprint(),
            "recipe": recipe.to_toml(),
        }

    def open(self, restart: bool) -> None:
        """Take up what an earlier, identical run finished; refuse to touch another's files."""
        record = self.folder / RUN_FILE
        if not record.exists():
            if taken := [name for name in self._files() if (self.folder / name).exists()]:
                raise InputError(
                    f"{self.folder} holds {taken[0]}, which no run of compress left there and "
                    "this one would replace; choose another folder"
                )
            self._write_record()
            return
        try:
            earlier = json.loads(record.read_text(encoding="utf-8"))
            identity, stages = earlier["identity"], list(earlier["stages"])
            rows = [Row(**row) for row in earlier["rows"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{record} is not a record of edgeprune; choose another folder, or delete it"
            ) from error
        if restart or not stages:
            self._remove(rows)
            self._write_record()
            return
        changed = [key for key, value in self.identity.items() if identity.get(key) != value]
        if changed:
            raise InputError(
                f"{self.folder} holds another run: its {' and '.join(changed)} "
                f"{'differs' if len(changed) == 1 else 'differ'}; choose another folder, or "
                "--restart to replace it"
            )
        self.rows, self.stages = rows, stages

    def _remove(self, rows: list[Row]) -> None:
        """Remove what an earlier run left, its record first: half a run is no run."""
        # Names alone: a record that was tampered with must not reach out of its folder.
        models = [self.folder / Path(row.file).name for row in rows]
        own = [self.folder / RUN_FILE, self.folder / _BENCHMARK_FILE]
        for path in [*own, *models, *map(record_path, models)]:
            path.unlink(missing_ok=True)

    def _files(self) -> list[str]:
        """Name the models that this run will write."""
        quantize = self.recipe.export.quantize
        files = ["baseline.keras", "baseline.tflite", f"baseline-{quantize}.tflite"]
        return [*files, "sparse.keras", "quantized.keras", "model.tflite"]

    def finish(self) -> CompressionReport:
        steps: list[tuple[str, Callable[[], list[Row]]]] = [("baseline", self._baseline)]
        if self.recipe.sparsity is not None:
            steps.append(("sparsity", self._sparsity))
        if self.recipe.quantization is not None:
            steps.append(("quantization", self._quantization))
        steps += [("export", self._export), ("benchmark", self._benchmark)]
        finished = {stage["stage"] for stage in self.stages}
        if len(finished) == len(steps):
            self._tell("finished before", 1.0, f"{self.folder} shows that run; see --restart")
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
                self.rows = rows
            else:
                self.rows += rows
                summary |= {
                    key: getattr(rows[0], key) for key in ("score_name", "score", "sparsity")
                }
            self.stages.append(summary)
            self._write_record()
            self._tell(name, 1.0, "" if name == "benchmark" else _in_words(rows[0]))
        return CompressionReport(self.folder, tuple(self.rows), tuple(self.stages))

    def _baseline(self) -> list[Row]:
        """The model as it came: in Keras, as float .tflite, and quantized without training."""
        save_model(plain_copy(self.model), self.folder / "baseline.keras")
        rows = [self._keras_row("Keras baseline", self.model, "baseline.keras")]
        rows.append(self._tflite_row("float baseline", self.model, "baseline.tflite", "none"))
        quantize = self.recipe.export.quantize
        trained = self.recipe.sparsity is not None or self.recipe.quantization is not None
        if quantize != "none" and trained:
            rows.append(
                self._tflite_row(
                    f"{quantize} baseline", self.model, f"baseline-{quantize}.tflite", quantize
                )
            )
        return rows

    def _sparsity(self) -> list[Row]:
        from edgeprune.sparsity.callbacks import MagnitudePruning
        from edgeprune.sparsity.schedules import PolynomialDecay

        spec = self.recipe.sparsity
        assert spec is not None
        model = load_model(self.folder / "baseline.keras", unsafe=True)
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
        save_model(plain_copy(model), self.folder / "sparse.keras")
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
        save_model(model, self.folder / "quantized.keras")
        return [self._keras_row("int8 grid (Keras)", model, "quantized.keras")]

    def _export(self) -> list[Row]:
        words: list[str] = (
            [self.recipe.export.quantize] if self.recipe.export.quantize != "none" else []
        )
        if self.recipe.sparsity is not None:
            words.insert(0, "pruned")
        name = " ".join(words) or "float"
        return [self._tflite_row(name, self._latest(), "model.tflite", self.recipe.export.quantize)]

    def _benchmark(self) -> list[Row]:
        from edgeprune.devices.local import benchmark

        runnable = [row for row in self.rows if row.file.endswith(".tflite")]
        measured = benchmark([self.folder / row.file for row in runnable], quick=self.quick)
        with atomic_path(self.folder / _BENCHMARK_FILE) as path:
            path.write_text(measured.to_json(), encoding="utf-8")
        results = dict(zip((row.file for row in runnable), measured, strict=True))
        return [
            _with_latency(row, results[row.file]) if row.file in results else row
            for row in self.rows
        ]

    def _latest(self) -> Any:
        """The newest Keras model of the run, read back from its file as a resumed run would."""
        newest = [row.file for row in self.rows if row.file.endswith(".keras")][-1]
        return load_model(self.folder / newest, unsafe=True)

    def _keras_row(self, name: str, model: Any, file: str) -> Row:
        figure = score(self.data.y_val, predict(model, self.data.x_val))
        path = self.folder / file
        return Row(
            name=name,
            file=file,
            score_name=figure.name,
            score=figure.value,
            bytes=path.stat().st_size,
            gzip_bytes=len(gzip.compress(path.read_bytes(), 9)),
            sparsity=_sparsity_of(model),
        )

    def _tflite_row(self, name: str, model: Any, file: str, quantize: str) -> Row:
        from edgeprune.export.convert import convert
        from edgeprune.export.verify import run_tflite

        spec = self.recipe.export
        artifact = convert(
            model,
            self.folder / file,
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
        )

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

    def _write_record(self) -> None:
        record = {
            "identity": self.identity,
            "stages": self.stages,
            "rows": [asdict(row) for row in self.rows],
        }
        with atomic_path(self.folder / RUN_FILE) as path:
            path.write_text(json.dumps(record, indent=2), encoding="utf-8")


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
