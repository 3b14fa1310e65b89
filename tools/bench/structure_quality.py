"""What structured pruning costs in accuracy, and what it gains in time, on tasks made offline.

    python tools/bench/structure_quality.py [--part resnet8 heads layers latency] [--seeds 3]

Each part trains from new initial weights with every seed, so that a difference can be held against
the spread. Pruned models are trained again for as many epochs as the dense one, by the same
schedule (learning-rate rewinding; Renda et al. 2020, arXiv:2003.02389), and the dense model is
trained on for as long beside them. Compute is counted in training samples x multiply-accumulates,
dense training as 1.

- resnet8: ResNet-8 on 32x32 glyphs at 2.5x fewer multiply-accumulates: trained, pruned, fine-tuned;
  against the dense model, and against the pruned architecture trained from scratch for the same
  epochs (scratch-E) and the same compute (scratch-B; Liu 2019, arXiv:1810.05270).
- heads, layers: a keyword transformer on spoken words, without 7 of its 16 attention heads or half
  of its encoder layers, fine-tuned.
- latency: ResNet-8 and MobileNetV1 with half the multiply-accumulates, in multiples of what this
  machine's kernels compute at once, against the dense models: float32, one thread, interleaved.
  MobileNetV1 keeps that many in every layer, since narrower ones are no faster; ResNet-8 has too
  few wide layers for it.

Results go to tools/results/structure_quality.json, part by part; other parts there are kept.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kept_results import keep
from tasks import (
    Task,
    build_keyword_transformer,
    build_mobilenet_v1,
    build_resnet8,
    glyphs,
    keywords,
    train,
)

import edgeprune as ep
from edgeprune.devices.lookup import load_profile
from edgeprune.keras_macs import keras_macs
from edgeprune.models import import_keras
from edgeprune.training import plain_copy

RESULTS = Path(__file__).resolve().parents[1] / "results" / "structure_quality.json"
RATE = 3e-3  # of ResNet-8, in every arm
Run = dict[str, Any]


def macs(model: Any) -> int:
    total = keras_macs(model).total
    assert total is not None
    return total


def fresh(build: Callable[[], Any], seed: int) -> Any:
    import_keras().utils.set_random_seed(seed)
    return build()


def reinitialized(model: Any, seed: int) -> Any:
    """Return the same architecture with new initial weights."""
    return fresh(lambda: type(model).from_config(model.get_config()), seed)


class Log:
    """Accuracy of each way, seed by seed, with the compute it took."""

    def __init__(self, task: Task, dense_macs: int, epochs: int) -> None:
        self.task = task
        self._unit = dense_macs * epochs
        self.runs: list[Run] = []

    def add(self, way: str, seed: int, model: Any, accuracy: float, spent: float) -> None:
        self.runs.append(
            {
                "way": way,
                "seed": seed,
                "test_accuracy": accuracy,
                "macs": macs(model),
                "parameters": model.count_params(),
                "compute": spent / self._unit,
            }
        )
        print(f"seed {seed}, {way}: {accuracy:.4f}", file=sys.stderr, flush=True)

    def summary(self) -> list[Run]:
        """Return mean and standard deviation of each way over the seeds, in order of appearance."""
        rows = []
        for way in dict.fromkeys(run["way"] for run in self.runs):
            own = [run for run in self.runs if run["way"] == way]
            scores = [run["test_accuracy"] for run in own]
            rows.append(
                {
                    "way": way,
                    "mean": statistics.mean(scores),
                    "std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
                    "macs": own[0]["macs"],
                    "parameters": own[0]["parameters"],
                    "compute": statistics.mean(run["compute"] for run in own),
                }
            )
        return rows


def resnet8(task: Task, seeds: int, epochs: int) -> dict[str, Any]:
    log = Log(task, macs(build_resnet8()), epochs)
    for seed in range(seeds):
        dense = fresh(build_resnet8, seed)
        cost = macs(dense)
        accuracy = train(dense, task, epochs, seed, learning_rate=RATE)
        log.add("dense", seed, dense, accuracy, cost * epochs)
        pruned = ep.prune_channels(
            dense,
            target_macs=0.4,
            criterion="taylor",
            ranking="global",
            data=(task.x_train, task.y_train),
        )
        small = macs(pruned)
        longer = plain_copy(dense)
        accuracy = train(longer, task, epochs, seed, learning_rate=RATE)
        log.add("dense, trained on", seed, longer, accuracy, cost * 2 * epochs)
        accuracy = train(pruned, task, epochs, seed, learning_rate=RATE)
        log.add("pruned, fine-tuned", seed, pruned, accuracy, (cost + small) * epochs)
        scratch = reinitialized(pruned, seed)
        accuracy = train(scratch, task, epochs, seed, learning_rate=RATE)
        log.add("scratch-E", seed, scratch, accuracy, small * epochs)
        scratch = reinitialized(pruned, seed)
        same_compute = round(epochs * cost / small)
        accuracy = train(scratch, task, same_compute, seed, learning_rate=RATE)
        log.add("scratch-B", seed, scratch, accuracy, small * same_compute)
    return {"task": task.name, "epochs": epochs, "summary": log.summary(), "runs": log.runs}


def transformer(
    task: Task,
    trained: Callable[[int], tuple[Any, float, float]],
    seeds: int,
    epochs: int,
    way: str,
    prune: Callable[[Any, Task], Any],
) -> dict[str, Any]:
    log = Log(task, macs(build_keyword_transformer()), epochs)
    for seed in range(seeds):
        dense, accuracy, longer_accuracy = trained(seed)
        cost = macs(dense)
        log.add("dense", seed, dense, accuracy, cost * epochs)
        log.add("dense, trained on", seed, dense, longer_accuracy, cost * 2 * epochs)
        pruned = prune(dense, task)
        accuracy = train(pruned, task, epochs, seed)
        spent = (cost + macs(pruned)) * epochs
        log.add(f"{way}, fine-tuned", seed, pruned, accuracy, spent)
    return {"task": task.name, "epochs": epochs, "summary": log.summary(), "runs": log.runs}


def without_heads(model: Any, task: Task) -> Any:
    data = (task.x_train, task.y_train)
    return ep.prune_heads(
        model, pruning_ratio=7 / 16, criterion="gate", ranking="global", data=data
    )


def without_layers(model: Any, task: Task) -> Any:
    return ep.prune_layers(
        model, pruning_ratio=0.5, criterion="loss", data=(task.x_train, task.y_train)
    )


def latency(min_seconds: float) -> dict[str, Any]:
    rows = []
    multiple = load_profile("local").channel_multiple
    for name, build, floor in (
        ("ResNet-8", build_resnet8, 1),
        ("MobileNetV1-0.25", build_mobilenet_v1, multiple),
    ):
        dense = fresh(build, 0)
        pruned = ep.prune_channels(dense, target_macs=0.5, round_to=multiple, min_channels=floor)
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for label, model in (("dense", dense), ("dense again", dense), ("pruned", pruned)):
                file = Path(folder) / f"{label.replace(' ', '_')}.tflite"
                ep.convert(model, file)
                files.append(file)
            result = ep.benchmark(files, threads=1, min_seconds=min_seconds)
        print(result, file=sys.stderr)
        _, control, after = result
        assert after.relative_latency is not None
        rows.append(
            {
                "model": name,
                "round_to": multiple,
                "min_channels": floor,
                "macs_before": macs(dense),
                "macs_after": macs(pruned),
                "macs_ratio": macs(pruned) / macs(dense),
                "latency_ratio": after.relative_latency,
                "latency_ratio_interval": after.relative_latency_interval,
                "speedup": 1 / after.relative_latency,
                "control_ratio": control.relative_latency,
                "runtime": f"{after.runtime} {after.runtime_version}",
                "rounds": after.rounds,
            }
        )
    return {"rows": rows}


def table(part: str, result: dict[str, Any]) -> str:
    lines = [part]
    for row in result.get("summary", ()):
        lines.append(
            f"  {row['way']:24} {100 * row['mean']:6.2f} % +- {100 * row['std']:.2f}"
            f"  {row['macs']:>11,} MACs {row['parameters']:>9,} parameters"
            f"  compute {row['compute']:.2f}"
        )
    for row in result.get("rows", ()):
        low, high = row["latency_ratio_interval"]
        lines.append(
            f"  {row['model']:24} {row['macs_ratio']:.3f}x MACs, {row['latency_ratio']:.3f}x time "
            f"({low:.3f}-{high:.3f}; control {row['control_ratio']:.3f}): "
            f"{row['speedup']:.2f}x as fast"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("resnet8", "heads", "layers", "latency")
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="of dense training")
    parser.add_argument("--glyphs", type=int, default=6000, help="to train on")
    parser.add_argument("--words", type=int, default=7200, help="to train on")
    parser.add_argument("--min-seconds", type=float, default=10, help="of each model's inference")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args()
    spoken = cache(lambda: keywords(n_train=given.words))  # minutes to speak

    @cache
    def trained(seed: int) -> tuple[Any, float, float]:
        model = fresh(build_keyword_transformer, seed)
        accuracy = train(model, spoken(), given.epochs, seed)
        return model, accuracy, train(plain_copy(model), spoken(), given.epochs, seed)

    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "resnet8": lambda: resnet8(glyphs(32, n_train=given.glyphs), given.seeds, given.epochs),
        "heads": lambda: transformer(
            spoken(), trained, given.seeds, given.epochs, "7 of 16 heads fewer", without_heads
        ),
        "layers": lambda: transformer(
            spoken(), trained, given.seeds, given.epochs, "half the layers", without_layers
        ),
        "latency": lambda: latency(given.min_seconds),
    }
    document = {}
    for part in given.part:
        document[part] = runs[part]()
        keep(given.results, part, document[part])
        if not given.json:
            print(table(part, document[part]), flush=True)
    if given.json:
        print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
