"""What it brings to keep clusters while training on the int8 grid: CQAT, and with zeros PCQAT.

    python tools/bench/clustered_quantization.py [--clusters 8 4] [--sparsity 0 0.8] [--seeds 3]

With every seed a small convolutional network is trained dense on UCI's digits, pruned where zeros
are asked for, and clustered. Then each way goes on from the same clustered model, with the same
epochs, data order and learning rate, and ends in an int8 .tflite file:

- post-training: converted as it is, no more training;
- float: trained on in float, clusters kept, and converted;
- QAT: trained on the int8 grid, clusters not kept (zeros are);
- kept: trained on the int8 grid, clusters kept: CQAT, with zeros PCQAT.

Accuracy is that of the .tflite file on the test samples, which nothing else sees. `values` are the
distinct int8 weights other than zero, counted in the file, of the output channel that has most;
`lost_zeros` the pruned weights that are no longer zero in the stripped model. `packed` is the size
of `edgeprune pack`; `ratio` is that of kept by QAT. Results go to
tools/results/clustered_quantization.json.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from kept_results import keep
from tasks import Task, digits, train

import edgeprune as ep
from edgeprune import models
from edgeprune.export import tflite
from edgeprune.export.verify import run_tflite
from edgeprune.training import plain_copy

RESULTS = Path(__file__).resolve().parents[1] / "results" / "clustered_quantization.json"
WAYS = ("post-training", "float", "QAT", "kept")
RATE = 1e-3  # from clustering on: half of dense training's
CALIBRATION = 256


def build() -> Any:
    """Three convolutions with batch normalization, which is folded into them, and a dense layer."""
    keras = models.import_keras()
    layers = keras.layers
    x = inputs = keras.Input((8, 8, 1))
    for place, (filters, strides) in enumerate(((16, 1), (32, 2), (32, 1)), start=1):
        x = layers.Conv2D(filters, 3, strides, "same", use_bias=False, name=f"conv{place}")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="classes")(x))


def most_values(path: Path) -> int:
    """Count the int8 weights other than zero of the channel that has most, in the file."""
    graph = tflite.read(path).subgraphs[0]
    kernels = [kernel for operator in graph.operators for kernel in graph.kernels(operator)]
    # Of both operators here the first axis is that of the output channels.
    channels = [channel for kernel in kernels for channel in kernel.data.reshape(kernel.shape)]
    return max(np.unique(channel[channel != 0]).size for channel in channels)


def file_of(model: Any, task: Task, folder: Path) -> dict[str, Any]:
    path = folder / "model.tflite"
    artifact = ep.convert(model, path, quantize="int8", calibration=task.x_train[:CALIBRATION])
    predicted = run_tflite(path, task.x_test).argmax(-1)
    return {
        "test_accuracy": float(np.mean(predicted == task.y_test)),
        "values": most_values(path),
        "bytes": artifact.bytes,
        "packed_bytes": ep.pack(path, folder / "model.epk").bytes_after,
    }


def zeros_of(model: Any) -> list[Any]:
    return [np.asarray(kernel.variable) == 0 for kernel in models.kernels(model)]


def run(clustered: Any, way: str, task: Task, epochs: int, seed: int, folder: Path) -> Any:
    """Go on from a clustered model in one way; return what the file is and does."""
    model = plain_copy(clustered)
    zeros = zeros_of(model)
    callbacks: list[Any] = [ep.PreserveSparsity()] if any(map(np.any, zeros)) else []
    if way in ("QAT", "kept"):
        model = ep.quantize_aware(model)
    if way in ("float", "kept"):
        callbacks.append(ep.PreserveClusters())
    if way != "post-training":
        train(model, task, epochs, seed, learning_rate=RATE, callbacks=callbacks)
    plain = ep.strip(model)
    lost = [np.sum(old & ~new) for old, new in zip(zeros, zeros_of(plain), strict=True)]
    return {**file_of(plain, task, folder), "lost_zeros": int(sum(lost))}


def compare(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    task = digits()
    runs, dense_scores = [], []
    for seed in range(given.seeds):
        models.import_keras().utils.set_random_seed(seed)
        dense = build()
        dense_scores.append(train(dense, task, given.epochs, seed))
        for sparsity in given.sparsity:
            pruned = plain_copy(dense)
            if sparsity:
                pruning = ep.MagnitudePruning(ep.PolynomialDecay(final_sparsity=sparsity))
                train(pruned, task, given.fine_epochs, seed, callbacks=[pruning])
            for clusters in given.clusters:
                clustered = plain_copy(pruned)
                clustering = ep.WeightClustering(clusters)
                train(
                    clustered,
                    task,
                    given.fine_epochs,
                    seed,
                    learning_rate=RATE,
                    callbacks=[clustering],
                )
                for way in WAYS:
                    found = run(clustered, way, task, given.fine_epochs, seed, folder)
                    of = {"sparsity": sparsity, "clusters": clusters, "way": way, "seed": seed}
                    runs.append({**of, **found})
                    print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    return {
        "task": task.name,
        "dense": statistics.mean(dense_scores),
        "rows": summary(runs),
        "runs": runs,
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over the seeds; of values and lost zeros take the most."""
    rows = []
    for sparsity, clusters, way in dict.fromkeys(
        (run["sparsity"], run["clusters"], run["way"]) for run in runs
    ):
        own = [
            run
            for run in runs
            if (run["sparsity"], run["clusters"], run["way"]) == (sparsity, clusters, way)
        ]
        scores = [run["test_accuracy"] for run in own]
        rows.append(
            {
                "sparsity": sparsity,
                "clusters": clusters,
                "way": way,
                "test_accuracy": statistics.mean(scores),
                "std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
                "values": max(run["values"] for run in own),
                "lost_zeros": max(run["lost_zeros"] for run in own),
                "bytes": statistics.mean(run["bytes"] for run in own),
                "packed_bytes": statistics.mean(run["packed_bytes"] for run in own),
            }
        )
    qat = {(r["sparsity"], r["clusters"]): r["packed_bytes"] for r in rows if r["way"] == "QAT"}
    for row in rows:
        row["ratio"] = row["packed_bytes"] / qat[row["sparsity"], row["clusters"]]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clusters", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of dense training")
    parser.add_argument("--fine-epochs", type=int, default=8, help="of each stage after it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(given, Path(folder))
    keep(given.results, "digits", result)
    if given.json:
        print(json.dumps(result, indent=2))
        return
    print(f"dense float32: {result['dense']:.4f}")
    for row in result["rows"]:
        print(
            f"sparsity {row['sparsity']:g}, {row['clusters']} clusters, {row['way']:13} "
            f"{row['test_accuracy']:.4f} +- {row['std']:.4f}, {row['values']:3} values, "
            f"{row['bytes']:.0f} bytes, packed {row['packed_bytes']:.0f} ({row['ratio']:.2f})"
        )


if __name__ == "__main__":
    main()
