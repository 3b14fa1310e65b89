"""Time the discovery of pruning groups: against the number of layers, and on a large real model.

    python tools/bench/structure_scaling.py [--layers 5000] [--model NASNetLarge] [--json]

Chains of Dense layers, plain and with a residual addition after every second one, from an eighth
of `--layers` to all of it. Linear growth means that the time a layer is the same at every length:
the ratio is that of the longest chain by that of the shortest, each the least of several rounds.
Keras's own time to build the model, in the same run, is the bound that nobody can go below.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from edgeprune.models import import_keras
from edgeprune.structure.graph import channel_graph

ROUNDS = 5
# Keras builds a Functional model by recursion, a few frames a layer.
sys.setrecursionlimit(1_000_000)


def chain(layers: int, residual: bool) -> Any:
    keras = import_keras()
    keras.backend.clear_session()
    inputs = keras.Input((8,))
    x = keras.layers.Dense(8)(inputs)
    made = 1
    while made < layers:
        y = keras.layers.Dense(8)(x)
        made += 1
        if residual and made % 3 == 0:
            y = keras.layers.Add()([x, y])
            made += 1
        x = y
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def least(action: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_chains(longest: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for residual in (False, True):
        per_layer = []
        for layers in (longest // 8, longest // 4, longest // 2, longest):
            start = time.perf_counter()
            model = chain(layers, residual)
            built = time.perf_counter() - start
            found = least(lambda model=model: channel_graph(model), rounds)
            per_layer.append(found / layers)
            rows.append(
                {
                    "model": "residual chain" if residual else "chain",
                    "layers": layers,
                    "keras_build_s": built,
                    "discovery_s": found,
                    "discovery_us_per_layer": 1e6 * found / layers,
                    "ratio_to_shortest": per_layer[-1] / per_layer[0],
                }
            )
            print(f"{rows[-1]['model']}, {layers} layers: {found:.3f} s", file=sys.stderr)
    return rows


def measure_model(name: str, rounds: int) -> dict[str, Any]:
    keras = import_keras()
    start = time.perf_counter()
    model = getattr(keras.applications, name)(weights=None)
    built = time.perf_counter() - start
    found = least(lambda: channel_graph(model), rounds)
    return {
        "model": name,
        "layers": len(model.operations),
        "keras_build_s": built,
        "discovery_s": found,
        "discovery_us_per_layer": 1e6 * found / len(model.operations),
        "ratio_to_shortest": None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=5000, help="of the longest chain")
    parser.add_argument("--model", default="NASNetLarge", help="of keras.applications")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    rows = measure_chains(options.layers, options.rounds)
    rows.append(measure_model(options.model, options.rounds))
    if options.json:
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        print(json.dumps({"rows": rows, **machine}, indent=2))
        return
    heads = ("Keras builds", "discovery", "us/layer", "ratio")
    print(f"{'model':16}{'layers':>8}" + "".join(f"{head:>14}" for head in heads))
    for row in rows:
        ratio = row["ratio_to_shortest"]
        print(
            f"{row['model']:16}{row['layers']:8}{row['keras_build_s']:12.2f} s"
            f"{row['discovery_s']:12.3f} s{row['discovery_us_per_layer']:14.1f}"
            + (f"{ratio:14.2f}" if ratio else f"{'-':>14}")
        )


if __name__ == "__main__":
    main()
