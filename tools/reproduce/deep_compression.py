"""Reproduce deep compression: prune, share weights, quantize, and code what is left.

    python tools/reproduce/deep_compression.py [--model lenet-300-100|lenet-5|both] [--seeds 3]

Han 2016 (arXiv:1510.00149) made LeNet-300-100 40 times and LeNet-5 39 times smaller on MNIST, with
no loss. Here the same shapes learn rendered glyphs of the same size, `tasks.glyphs(28)`: other data
than the paper's, so that errors cannot be compared with its own, only with those of the dense model
beside them. With every seed:

- dense: trained until it makes next to no error on its training samples, with a learning rate,
  dropout and L1 penalty of which its error on the validation samples is the lowest of all tried,
  or within 0.05 percentage points of that;
- dense, trained on: the same model after as many epochs more as the others get, with the same
  learning rates and penalties, so that it is not the epochs that make a difference;
- pruned: `MagnitudePruning` of the dense model, each layer to a sparsity of its own;
- shared: `WeightClustering` of that, its zeros held by `PreserveSparsity`;
- coded: converted to int8, with calibration on training samples, and packed.

How bytes are counted is told in `counting.py`; the last figure is the length of the packed file.
Each stage is converted to a .tflite file, packed, and unpacked; the file that was unpacked must be
the one that was packed, byte for byte, and its error on the test samples is the one reported. Other
modes of conversion are measured beside int8, which is what ships: it runs everywhere. int4 is left
out: its 15 steps a channel take the clusters apart, and `convert` refused such a file.

All settings below were chosen by the error on the validation samples (`--validation` reports on
them), of seed 0, those of LeNet-5's sharing by the mean of three seeds. Seeds are set; threads that
add in another order can still move a last digit, and training makes more of it. Results go to
tools/results/deep_compression.json, model by model.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from kept_results import keep
from reproduce.counting import FLOAT_BITS, coded_kernels, kernel_bits, pruned_bytes, shared_bytes
from reproduce.drawing import plot_stages
from reproduce.tables import show
from tasks import Task, build_lenet5, build_lenet300, glyphs, train

import edgeprune as ep
from edgeprune import models
from edgeprune.export.verify import run_tflite
from edgeprune.files import check_target
from edgeprune.report.plots import check_plot
from edgeprune.report.progress import stage_progress

RESULTS = Path(__file__).resolve().parents[1] / "results" / "deep_compression.json"
TARGET = 60.0
BATCH = 128
CALIBRATION = 500
PRUNING_ENDS = 0.6  # of its epochs; the rest is training with all zeros in place
STAGES = ("dense", "dense, trained on", "pruned", "shared", "coded")
MODES = {
    "int8": "phones, boards, microcontrollers, NPUs",
    "none": "phones, boards, microcontrollers with floats",
    "float16": "phones and boards",
    "dynamic": "phones and boards",
}
Tell = Callable[[str, float, str], None]


@dataclass(frozen=True)
class Phase:
    """A fit: Adam, the learning rate rising to `rate` and falling to 0.

    Attributes:
      epochs: over the training samples.
      rate: the highest learning rate.
      dropout: of hidden dense layers.
      l1: penalty of the hidden layers' kernels.
    """

    epochs: int
    rate: float
    dropout: float
    l1: float


@dataclass(frozen=True)
class Subject:
    """A model, and how it is trained and compressed.

    Attributes:
      build: makes it, given dropout and l1.
      paper: how many times smaller the paper made it, on its data.
      dense: how it is trained first.
      pruning: while it is pruned.
      sharing: while its weights share values.
      sparsity: of each kernel, in the order of the layers.
      clusters: of each kernel.
    """

    build: Callable[..., Any]
    paper: float
    dense: Phase
    pruning: Phase
    sharing: Phase
    sparsity: tuple[float, ...]
    clusters: tuple[int, ...]


SUBJECTS = {
    "lenet-300-100": Subject(
        build_lenet300,
        paper=40,
        dense=Phase(40, 5e-3, 0.2, 1e-4),
        pruning=Phase(30, 5e-3, 0.1, 5e-5),
        sharing=Phase(15, 1e-3, 0.2, 0.0),
        sparsity=(0.94, 0.87, 0.5),
        clusters=(8, 8, 8),
    ),
    "lenet-5": Subject(
        build_lenet5,
        paper=39,
        dense=Phase(20, 8e-3, 0.5, 3e-5),
        pruning=Phase(22, 5e-3, 0.3, 1e-5),
        sharing=Phase(20, 1e-3, 0.3, 0.0),
        sparsity=(0.2, 0.75, 0.95, 0.7),
        clusters=(8, 8, 8, 8),
    ),
}


def quick(subject: Subject) -> Subject:
    """Return the same with few epochs: to try the script, not the method."""
    phases = {name: getattr(subject, name) for name in ("dense", "pruning", "sharing")}
    return replace(subject, **{name: replace(phase, epochs=3) for name, phase in phases.items()})


class Training:
    """Fits one model after the other, each beginning with given weights."""

    def __init__(self, subject: Subject, task: Task, seed: int, tell: Tell) -> None:
        self.subject, self.task, self.seed, self.tell = subject, task, seed, tell

    def fit(
        self, stage: str, phase: Phase, start: Any = None, callbacks: Sequence[Any] = ()
    ) -> Any:
        """Train a model, from the weights of another where `start` is given."""
        keras = models.import_keras()
        keras.utils.set_random_seed(self.seed)
        model = self.subject.build(dropout=phase.dropout, l1=phase.l1)
        if start is not None:
            model.set_weights(start.get_weights())

        def ended(epoch: int, logs: Any) -> None:
            self.tell(stage, (epoch + 1) / phase.epochs, f"loss {logs['loss']:.4f}")

        shown = keras.callbacks.LambdaCallback(on_epoch_end=ended)
        self.tell(stage, 0.0, "")
        train(
            model,
            self.task,
            phase.epochs,
            self.seed,
            learning_rate=phase.rate,
            batch_size=BATCH,
            callbacks=[*callbacks, shown],
        )
        return model

    def stages(self) -> dict[str, Any]:
        """Return the Keras model of each stage that is trained."""
        subject = self.subject
        dense = self.fit("dense", subject.dense)
        further = self.fit("dense, trained on (1)", subject.pruning, dense)
        further = self.fit("dense, trained on (2)", subject.sharing, further)
        names = [kernel.name for kernel in models.kernels(dense)]
        pruning = ep.MagnitudePruning(
            ep.PolynomialDecay(final_sparsity=max(subject.sparsity), end_step=PRUNING_ENDS),
            layers=dict(zip(names, subject.sparsity, strict=True)),
        )
        pruned = self.fit("pruned", subject.pruning, dense, [pruning])
        clustering = ep.WeightClustering(layers=dict(zip(names, subject.clusters, strict=True)))
        shared = self.fit("shared", subject.sharing, pruned, [ep.PreserveSparsity(), clustering])
        return dict(zip(STAGES, (dense, further, pruned, shared), strict=False))


@dataclass(frozen=True)
class Shipped:
    """A model as a .tflite file, packed and unpacked again.

    Attributes:
      content: of the .tflite file.
      packed_bytes: length of the packed file.
      test_error: fraction of the test samples whose class the unpacked file gets wrong.
    """

    content: bytes
    packed_bytes: int
    test_error: float


def ship(model: Any, mode: str, task: Task, folder: Path) -> Shipped:
    """Convert a model, pack it, unpack it, and run what was unpacked."""
    tflite, packed, back = (folder / f"{mode}{end}" for end in (".tflite", ".epk", ".back.tflite"))
    samples = task.x_train[:CALIBRATION]
    # Sparse encoding, which fewer devices read, has nothing to add to coding.
    ep.convert(model, tflite, quantize=mode, calibration=samples, sparse="off")
    ep.pack(tflite, packed)
    ep.unpack(packed, back)
    content = back.read_bytes()
    if content != tflite.read_bytes():
        raise ep.VerificationError(f"{packed} did not unpack to what was packed")
    classes = run_tflite(back, task.x_test).argmax(axis=1)
    return Shipped(content, packed.stat().st_size, float(np.mean(classes != task.y_test)))


def run(subject: Subject, task: Task, seed: int, folder: Path, tell: Tell) -> dict[str, Any]:
    """Train, compress and measure with one seed; files stay in `folder`."""
    trained = Training(subject, task, seed, tell).stages()
    parameters = trained["dense"].count_params()
    shared = trained["shared"]
    shipped: dict[tuple[str, str], Shipped] = {}
    wanted = [(stage, "none") for stage in trained] + [("shared", mode) for mode in MODES]
    for done, (stage, mode) in enumerate(dict.fromkeys(wanted)):
        tell("measure", done / len(wanted), f"{stage}, {mode}")
        own = folder / stage.replace(", ", "-").replace(" ", "-")
        own.mkdir(parents=True, exist_ok=True)
        shipped[stage, mode] = ship(trained[stage], mode, task, own)
    tell("measure", 1.0, "")

    dense_bytes = parameters * FLOAT_BITS // 8
    counted = {
        "dense": dense_bytes,
        "dense, trained on": dense_bytes,
        "pruned": pruned_bytes(*_arrays(trained["pruned"])),
        "shared": shared_bytes(*_arrays(shared)),
        "coded": shipped["shared", "int8"].packed_bytes,
    }
    stages = []
    for stage, size in counted.items():
        file = shipped["shared", "int8"] if stage == "coded" else shipped[stage, "none"]
        stages.append(
            {
                "stage": stage,
                "bytes": size,
                "ratio": dense_bytes / size,
                "bits_per_weight": 8 * size / parameters,
                "test_error": file.test_error,
                "tflite_bytes": len(file.content),
                "packed_bytes": file.packed_bytes,
            }
        )
    return {
        "seed": seed,
        "stages": stages,
        "layers": layers(shared, shipped["shared", "int8"]),
        "modes": [
            {
                "mode": mode,
                "packed_bytes": shipped["shared", mode].packed_bytes,
                "test_error": shipped["shared", mode].test_error,
                "runs_on": devices,
            }
            for mode, devices in MODES.items()
        ],
    }


def _arrays(model: Any) -> tuple[list[Any], list[Any]]:
    """Return a model's kernels and biases."""
    weights = model.get_weights()
    return [one for one in weights if one.ndim > 1], [one for one in weights if one.ndim == 1]


def layers(model: Any, coded: Shipped) -> list[dict[str, Any]]:
    """Say what each kernel takes, before coding and in the packed file, and what all else does."""
    found: list[dict[str, Any]] = []
    left = coded.packed_bytes
    in_file = coded_kernels(coded.content)
    for kernel, packed in zip(models.kernels(model), in_file, strict=True):
        values = np.asarray(kernel.variable)
        bits = kernel_bits(values)
        left -= packed.bits / 8
        found.append(
            {
                "layer": kernel.name.rpartition("/")[0],
                "weights": bits.weights,
                "kept": bits.kept / bits.weights,
                "clusters": np.unique(values[values != 0]).size,
                "value_bits": bits.value_bits,
                "shared_bits_per_kept": bits.shared_bits / max(bits.kept, 1),
                "coded_bits_per_kept": packed.bits / max(packed.kept, 1),
                "coded_bits_per_weight": packed.bits / bits.weights,
                "coded_bytes": packed.bits / 8,
            }
        )
    return [*found, {"layer": "all else", "coded_bytes": left}]


def mean_rows(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row for those at the same place of every run: figures as their mean."""
    found = []
    for rows in zip(*runs, strict=True):
        found.append(
            {
                key: value if isinstance(value, str) else statistics.mean(row[key] for row in rows)
                for key, value in rows[0].items()
            }
        )
    return found


def summarize(name: str, subject: Subject, task: Task, runs: list[dict[str, Any]]) -> Any:
    stages = mean_rows([one["stages"] for one in runs])
    for place, row in enumerate(stages):
        errors = [one["stages"][place]["test_error"] for one in runs]
        row["test_error_std"] = statistics.stdev(errors) if len(errors) > 1 else 0.0
    least = min(one["stages"][-1]["ratio"] for one in runs)
    return {
        "task": f"{task.name}: {len(task.y_train)} samples to train on, {len(task.y_test)} to test",
        "note": f"not the paper's data (MNIST), with which it reached {subject.paper:g}x",
        "settings": {**asdict(replace(subject, build=name)), "batch_size": BATCH},
        "versions": {one: version(one) for one in ("tensorflow", "keras", "ai-edge-litert")},
        "stages": stages,
        "layers": mean_rows([one["layers"] for one in runs]),
        "modes": mean_rows([one["modes"] for one in runs]),
        "smallest_ratio": least,
        # Of the files as they are: the dense float32 .tflite by the packed one.
        "file_ratio": stages[0]["tflite_bytes"] / stages[-1]["packed_bytes"],
        "target_ratio": TARGET,
        "target_met": least >= TARGET and stages[-1]["test_error"] <= stages[0]["test_error"],
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=(*SUBJECTS, "both"), default="both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="little data, few epochs, one seed")
    parser.add_argument(
        "--validation", action="store_true", help="report on the validation samples instead"
    )
    parser.add_argument(
        "--results", type=Path, help=f"default: {RESULTS.name}; none with --quick or --validation"
    )
    parser.add_argument("--keep", type=Path, help="folder in which all files stay")
    parser.add_argument("--plot", type=Path, help="draw the stages as a .png or .svg file")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args()
    if given.seeds < 1:
        parser.error(f"--seeds is {given.seeds}; give 1 or more")
    results = given.results
    if results is None and not (given.quick or given.validation):
        results = RESULTS
    try:  # before hours of training, not after them
        if given.plot:
            check_plot(given.plot)
        if given.results:
            check_target(given.results)
    except ep.EdgepruneError as error:
        parser.error(str(error))
    # The default size to train on; more to choose by and to report on, for finer differences.
    task = (
        glyphs(28, n_train=1500, n_test=500)
        if given.quick
        else glyphs(28, n_val=10000, n_test=10000)
    )
    if given.validation:
        task = replace(task, x_test=task.x_val, y_test=task.y_val)
    document = {}
    for name in SUBJECTS if given.model == "both" else [given.model]:
        subject = quick(SUBJECTS[name]) if given.quick else SUBJECTS[name]
        runs = []
        for seed in range(1 if given.quick else given.seeds):
            with stage_progress() as tell, tempfile.TemporaryDirectory() as temporary:
                folder = (given.keep or Path(temporary)) / f"{name}-{seed}"
                print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
                runs.append(run(subject, task, seed, folder, tell))
        document[name] = summarize(name, subject, task, runs)
        if results is not None:
            keep(results, name, document[name])
        if not given.json:
            show(name, document[name])
    if given.plot:
        plot_stages(document, given.plot)
    if given.json:
        print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
