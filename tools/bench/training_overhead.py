"""Time a training step with pruning or clustering against a dense one: edgeprune and TFMOT.

    python tools/bench/training_overhead.py [--model resnet8|mlp] [--optimizer adam|sgd] [--json]

Pairs train the same model on the same batch of 64, dense and in another way: with
`MagnitudePruning` and with `WeightClustering` in either flavour of Keras; wrapped by
`tfmot.sparsity.keras.prune_low_magnitude`, by the same schedule, and by
`tfmot.clustering.keras.cluster_weights`, of as many clusters. They take turns of a few steps each
in one process, in an order shuffled each round. `ratio` is the median over the rounds of the
model's time over the dense one's, beside its quartiles, for steps that choose no masks and let no
weight change its cluster (TFMOT does so in every step); `update ms` is what a step that does takes
longer; `in all` adds a hundredth of that, as at the default frequency of 100. A second dense model
in each flavour shows the noise: its ratio is 1.00.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from edgeprune.quantization.clustering import WeightClustering
from edgeprune.sparsity.callbacks import MagnitudePruning
from edgeprune.sparsity.schedules import PolynomialDecay

BATCH = 64
RAMP = {"initial_sparsity": 0.5, "final_sparsity": 0.9, "begin_step": 0, "end_step": 1 << 20}
TURNS_PER_UPDATE = 4
FREQUENCY = 100
CLUSTERS = 16
TARGETS = {"resnet8": 1.03, "mlp": 1.10}


def resnet8(k: Any) -> Any:
    """The CIFAR-10 ResNet of MLPerf Tiny: 78k parameters, 12.5 M multiply-accumulates."""

    def conv(x: Any, filters: int, size: int, strides: int) -> Any:
        x = k.layers.Conv2D(filters, size, strides=strides, padding="same")(x)
        return k.layers.BatchNormalization()(x)

    inputs = k.Input((32, 32, 3))
    x = k.layers.ReLU()(conv(inputs, 16, 3, 1))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = k.layers.ReLU()(conv(x, filters, 3, strides))
        y = conv(y, filters, 3, 1)
        if strides > 1:
            x = k.layers.Conv2D(filters, 1, strides=strides, padding="same")(x)
        x = k.layers.ReLU()(k.layers.add([x, y]))
    x = k.layers.GlobalAveragePooling2D()(x)
    return k.Model(inputs, k.layers.Dense(10)(x))


def mlp(k: Any) -> Any:
    """Three hidden layers of 1024: 2.9 M parameters, a step bound by memory."""
    hidden = [k.layers.Dense(1024, activation="relu") for _ in range(3)]
    return k.Sequential([k.Input((784,)), *hidden, k.layers.Dense(10)])


MODELS = {"resnet8": resnet8, "mlp": mlp}


class Contender:
    """A model in training, a few steps at a time, outside of `fit` and its own costs."""

    def __init__(self, k: Any, name: str, optimizer: str, method: str, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self.every = steps * TURNS_PER_UPDATE
        self.model = MODELS[name](k)
        self.callback: Any = None
        if method == "edgeprune":
            self.callback = MagnitudePruning(PolynomialDecay(**RAMP, frequency=self.every))
            self.callback.set_params({"epochs": 1, "steps": 1 << 21})
        elif method == "clustering":
            self.callback = WeightClustering(
                CLUSTERS, begin_step=0, frequency=self.every, end_step=1 << 20
            )
            self.callback.set_params({"epochs": 1, "steps": 1 << 21})
        elif method == "tfmot clusters":
            import tensorflow_model_optimization as tfmot

            self.model = tfmot.clustering.keras.cluster_weights(
                self.model,
                number_of_clusters=CLUSTERS,
                cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.LINEAR,
            )
        elif method == "tfmot":
            import tensorflow_model_optimization as tfmot

            schedule = tfmot.sparsity.keras.PolynomialDecay(**RAMP, frequency=self.every)
            self.model = tfmot.sparsity.keras.prune_low_magnitude(
                self.model, pruning_schedule=schedule
            )
            self.callback = tfmot.sparsity.keras.UpdatePruningStep()
        self.model.compile(optimizer, k.losses.SparseCategoricalCrossentropy(from_logits=True))
        rng = np.random.default_rng(0)
        x = rng.normal(size=(BATCH, *self.model.input_shape[1:])).astype("float32")
        batch = (x, rng.integers(0, 10, BATCH))
        self.batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
        self.model.make_train_function()
        if self.callback:
            self.callback.set_model(self.model)
            self.callback.on_train_begin()
        for _ in range(TURNS_PER_UPDATE):  # with an update, which may be compiled the first time
            self.run()

    def updates_next(self) -> bool:
        """Tell whether a step of the next turn chooses masks."""
        if self.callback is None:
            return False
        return (self.done + self.steps) % self.every == 0

    def run(self) -> float:
        """Run a turn; return the milliseconds a step took."""
        start = time.perf_counter()
        for step in range(self.steps):
            # What fit does of a step, without the other callbacks.
            if self.callback:
                self.callback.on_train_batch_begin(step)
            self.model.train_function(self.batches)
            if self.callback:
                self.callback.on_train_batch_end(step)
        self.done += self.steps
        return (time.perf_counter() - start) / self.steps * 1e3


def measure(name: str, optimizer: str, seconds: float, steps: int) -> dict[str, Any]:
    pairs = [
        (keras, "dense again"),
        (keras, "edgeprune"),
        (keras, "clustering"),
        (tf_keras, "dense again"),
        (tf_keras, "edgeprune"),
        (tf_keras, "clustering"),
        (tf_keras, "tfmot"),
        (tf_keras, "tfmot clusters"),
    ]
    contenders = {
        (k.__name__, label): Contender(k, name, optimizer, label, steps)
        for k, label in [(keras, "dense"), (tf_keras, "dense"), *pairs]
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
    updates: dict[tuple[str, str], list[bool]] = {key: [] for key in contenders}
    order = list(contenders)
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times[order[0]]) < 3 * TURNS_PER_UPDATE:
        random.shuffle(order)
        for key in order:
            updates[key].append(contenders[key].updates_next())
            times[key].append(contenders[key].run())
    rows = []
    for k, label in pairs:
        dense, own = times[k.__name__, "dense"], times[k.__name__, label]
        chose = updates[k.__name__, label]
        plain = [(mine, base) for mine, base, did in zip(own, dense, chose, strict=True) if not did]
        ratios = [mine / base for mine, base in plain]
        low, median, high = statistics.quantiles(ratios, n=4)
        step_ms = statistics.median(mine for mine, _ in plain)
        dense_ms = statistics.median(base for _, base in plain)
        update_ms, in_all = None, None
        if any(chose):
            turns = [mine for mine, did in zip(own, chose, strict=True) if did]
            update_ms = steps * max(0.0, statistics.fmean(turns) - step_ms)
            in_all = median + update_ms / FREQUENCY / dense_ms
        rows.append(
            {
                "keras": k.__name__,
                "method": label,
                "dense_ms": dense_ms,
                "step_ms": step_ms,
                "ratio": median,
                "ratio_quartiles": [low, high],
                "update_ms": update_ms,
                "ratio_in_all": in_all,
            }
        )
    return {"model": name, "optimizer": optimizer, "rounds": len(times[order[0]]), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, help="default: both, one after the other")
    parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam")
    parser.add_argument("--seconds", type=float, default=60, help="for each model")
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    names = [arguments.model] if arguments.model else list(MODELS)
    results = []
    for name in names:
        results.append(measure(name, arguments.optimizer, arguments.seconds, arguments.steps))
        tf.keras.backend.clear_session()
    if arguments.json:
        packages = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")
        environment = {package: version(package) for package in packages}
        environment |= {"python": platform.python_version(), "machine": platform.machine()}
        environment |= {"cpus": str(os.cpu_count())}
        json.dump(
            {"batch": BATCH, "results": results, "environment": environment}, sys.stdout, indent=2
        )
        print()
        return
    for result in results:
        print(f"{result['model']}, {result['optimizer']}, batch {BATCH}, {result['rounds']} rounds")
        print(
            f"{'':26}{'dense ms':>9}{'step ms':>9}{'ratio':>8}{'quartiles':>16}"
            f"{'update ms':>11}{'in all':>8}"
        )
        for row in result["rows"]:
            quartiles = "{:.3f} to {:.3f}".format(*row["ratio_quartiles"])
            updates = ""
            if row["update_ms"] is not None:
                updates = f"{row['update_ms']:11.1f}{row['ratio_in_all']:8.3f}"
            print(
                f"{row['keras']:10}{row['method']:16}{row['dense_ms']:9.2f}{row['step_ms']:9.2f}"
                f"{row['ratio']:8.3f}{quartiles:>16}{updates}"
            )
        print(f"edgeprune's pruning is to stay within {TARGETS[result['model']]:.2f} of dense\n")


if __name__ == "__main__":
    main()
