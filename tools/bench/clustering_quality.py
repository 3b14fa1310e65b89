"""Compare ways to train shared weights: mean or summed gradients, fixed clusters or not.

    python tools/bench/clustering_quality.py [--task digits|mnist1d] [--clusters 4] [--json]

A model is trained dense; then every kernel is clustered, and it is trained on from there in each
way, with several optimizers and learning rates (along a cosine to 0). The sum, the paper's way, is
that of the gradients of a cluster's members, which then all take the same step of the optimizer.
`drop` is the accuracy lost to the dense model on the test samples, the mean over the seeds.
Source of the sum: Han 2016, arXiv:1510.00149, section 3.3.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import tensorflow as tf
from tasks import accuracy, build_cnn1d, build_mlp, digits, mnist1d

from edgeprune.quantization.clustering import WeightClustering
from edgeprune.steps.variables import native

BATCH = 64
TASKS = {
    "digits": (digits, lambda: build_mlp((8, 8, 1), (64, 32))),
    "mnist1d": (mnist1d, build_cnn1d),
}
OPTIMIZERS = {
    "adam 5e-4": lambda rate: keras.optimizers.Adam(rate(5e-4)),
    "adam 3e-3": lambda rate: keras.optimizers.Adam(rate(3e-3)),
    "sgd 1e-3": lambda rate: keras.optimizers.SGD(rate(1e-3), momentum=0.9),
    "sgd 1e-2": lambda rate: keras.optimizers.SGD(rate(1e-2), momentum=0.9),
}


class SummedGradients(keras.callbacks.Callback):
    """Gives each weight the sum of the gradients of all weights that have its value."""

    def on_train_begin(self, logs: Any = None) -> None:
        optimizer = self.model.optimizer
        own = optimizer.apply

        def apply(gradients: Sequence[Any], variables: Sequence[Any]) -> Any:
            pairs = zip(gradients, variables, strict=True)
            return own([_summed(gradient, one) for gradient, one in pairs], variables)

        optimizer.apply = apply


def _summed(gradient: Any, variable: Any) -> Any:
    if len(variable.shape) < 2:
        return gradient
    values, index = tf.unique(tf.reshape(native(variable), [-1]))
    sums = tf.math.unsorted_segment_sum(tf.reshape(gradient, [-1]), index, tf.size(values))
    return tf.reshape(tf.gather(sums, index), gradient.shape)


WAYS = {
    "mean, fixed clusters": lambda k: [WeightClustering(k, frequency=None)],
    "sum, fixed clusters": lambda k: [WeightClustering(k, frequency=None), SummedGradients()],
    "mean, changed every step": lambda k: [WeightClustering(k, frequency=1)],
    "mean, changed every 2": lambda k: [WeightClustering(k)],
    "mean, changed every 5": lambda k: [WeightClustering(k, frequency=5)],
}


def fit(model: Any, task: Any, optimizer: Any, epochs: int, seed: int, callbacks: list[Any]) -> Any:
    """Train a model and return its accuracy on the test samples."""
    keras.utils.set_random_seed(seed)
    steps = epochs * -(-len(task.y_train) // BATCH)
    model.compile(
        optimizer(lambda rate: keras.optimizers.schedules.CosineDecay(rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(),
    )
    model.fit(task.x_train, task.y_train, BATCH, epochs=epochs, callbacks=callbacks, verbose=0)
    return accuracy(model, task.x_test, task.y_test)


def measure(name: str, clusters: int, seeds: int, dense_epochs: int, epochs: int) -> dict[str, Any]:
    make, build = TASKS[name]
    task = make()
    drops: dict[tuple[str, str], list[float]] = {}
    dense = []
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = build()
        dense.append(fit(model, task, OPTIMIZERS["adam 3e-3"], dense_epochs, seed, []))
        trained = model.get_weights()
        for way, callbacks in WAYS.items():
            for label, optimizer in OPTIMIZERS.items():
                model.set_weights(trained)
                reached = fit(model, task, optimizer, epochs, seed, callbacks(clusters))
                drops.setdefault((way, label), []).append(dense[-1] - reached)
    rows = [
        {"way": way, "optimizer": label, "drop": statistics.fmean(values), "drops": values}
        for (way, label), values in drops.items()
    ]
    return {"task": name, "clusters": clusters, "dense": statistics.fmean(dense), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=TASKS, help="default: both")
    parser.add_argument("--clusters", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dense-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=8, help="with clusters")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    names = [arguments.task] if arguments.task else list(TASKS)
    counts = (arguments.clusters, arguments.seeds, arguments.dense_epochs, arguments.epochs)
    results = [measure(name, *counts) for name in names]
    if arguments.json:
        json.dump({"results": results}, sys.stdout, indent=2)
        print()
        return
    for result in results:
        print(f"{result['task']}, {result['clusters']} clusters, dense {result['dense']:.4f}")
        print(f"{'drop':26}" + "".join(f"{label:>12}" for label in OPTIMIZERS))
        for way in WAYS:
            own = {row["optimizer"]: row["drop"] for row in result["rows"] if row["way"] == way}
            print(f"{way:26}" + "".join(f"{own[label]:12.4f}" for label in OPTIMIZERS))
        print()


if __name__ == "__main__":
    main()
