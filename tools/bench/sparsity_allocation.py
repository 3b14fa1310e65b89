"""What it brings to share sparsity out among layers by measured sensitivity.

    python tools/bench/sparsity_allocation.py [--task digits mnist1d lenet5] [--seeds 3]

With every seed a model is trained dense. Then copies of it are pruned to the same total sparsity
while they are trained on for a few epochs, all with the same schedule, data order and learning
rate; only the layers' shares differ:

- uniform: the same sparsity in each layer;
- global: the smallest weights of all layers together (`ranking="global"`);
- allocated: by `ep.allocate_sparsity`, measured on validation samples without their labels.

Zeros are counted in the models afterwards. Accuracy is of the test samples, which nothing else
sees. The ratio is of errors: allocated by uniform. Results go to
tools/results/sparsity_allocation.json, task by task.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from kept_results import keep
from tasks import Task, build_lenet5, build_mlp, digits, glyphs, mnist1d, train

import edgeprune as ep
from edgeprune import models
from edgeprune.training import plain_copy

RESULTS = Path(__file__).resolve().parents[1] / "results" / "sparsity_allocation.json"
# Name -> data, model, sparsity in all, epochs of dense training and of pruning.
TASKS: dict[str, tuple[Callable[[], Task], Callable[[], Any], float, int, int]] = {
    "digits": (digits, lambda: build_mlp((8, 8, 1), (300, 100)), 0.95, 12, 6),
    "mnist1d": (mnist1d, lambda: build_mlp((40, 1), (200, 100)), 0.9, 15, 8),
    "lenet5": (lambda: glyphs(28, n_train=4000), build_lenet5, 0.98, 4, 3),
}
WAYS = ("uniform", "global", "allocated")
RATE = 1e-3  # while pruning: half of dense training's
PRUNING_ENDS = 0.6  # of the epochs; the rest is training with all zeros in place


def pruned(dense: Any, task: Task, way: str, sparsity: float, epochs: int, seed: int) -> Any:
    """Prune a copy while it is trained on; return its accuracy, sparsity and layers' shares."""
    model = plain_copy(dense)
    layers = ep.allocate_sparsity(model, task.x_val, sparsity) if way == "allocated" else None
    pruning = ep.MagnitudePruning(
        ep.PolynomialDecay(final_sparsity=sparsity, end_step=PRUNING_ENDS),
        ranking="global" if way == "global" else "layer",
        layers=layers,
    )
    score = train(model, task, epochs, seed, learning_rate=RATE, callbacks=[pruning])
    counted = [np.asarray(kernel.variable) for kernel in models.kernels(model)]
    zeros = sum(int(np.sum(values == 0)) for values in counted)
    return {
        "way": way,
        "seed": seed,
        "test_accuracy": score,
        "sparsity": zeros / sum(values.size for values in counted),
        "layers": {
            kernel.name: float(np.mean(values == 0))
            for kernel, values in zip(models.kernels(model), counted, strict=True)
        },
    }


def compare(name: str, seeds: int, epochs: int | None, pruning_epochs: int | None) -> Any:
    load, build, sparsity, dense_epochs, fine_epochs = TASKS[name]
    task = load()
    runs = []
    for seed in range(seeds):
        models.import_keras().utils.set_random_seed(seed)
        dense = build()
        score = train(dense, task, epochs or dense_epochs, seed)
        runs.append({"way": "dense", "seed": seed, "test_accuracy": score, "sparsity": 0.0})
        for way in WAYS:
            runs.append(pruned(dense, task, way, sparsity, pruning_epochs or fine_epochs, seed))
        shown = ", ".join(f"{run['way']} {run['test_accuracy']:.4f}" for run in runs[-4:])
        print(f"{name}, seed {seed}: {shown}", file=sys.stderr, flush=True)
    scores = {
        way: [run["test_accuracy"] for run in runs if run["way"] == way] for way in ("dense", *WAYS)
    }
    means = {way: statistics.mean(values) for way, values in scores.items()}
    return {
        "task": task.name,
        "sparsity": sparsity,
        "mean": means,
        "std": {
            way: statistics.stdev(values) if len(values) > 1 else 0.0
            for way, values in scores.items()
        },
        "seeds_won": sum(
            ours > theirs
            for ours, theirs in zip(scores["allocated"], scores["uniform"], strict=True)
        ),
        "error_ratio": (1 - means["allocated"]) / max(1 - means["uniform"], 1e-9),
        "runs": runs,
    }


def line(name: str, result: Any) -> str:
    means, stds = result["mean"], result["std"]
    shown = ", ".join(f"{way} {means[way]:.4f} +- {stds[way]:.4f}" for way in ("dense", *WAYS))
    return (
        f"{name} at {result['sparsity']:g}: {shown}; error of allocated by uniform "
        f"{result['error_ratio']:.2f}, better with {result['seeds_won']} seeds"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of dense training, in place of the task's")
    parser.add_argument("--pruning-epochs", type=int, help="likewise")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args()
    document = {}
    for name in given.task:
        document[name] = compare(name, given.seeds, given.epochs, given.pruning_epochs)
        keep(given.results, name, document[name])
        if not given.json:
            print(line(name, document[name]), flush=True)
    if given.json:
        print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
