"""Time the choice of every mask of a 25M-parameter model against `np.partition` on its weights.

    python tools/bench/mask_update.py [--json]

The weights are those of ResNet-50's convolutions and classifier (random normal, the shapes of
arXiv:1512.03385). All run in turns in one process; the ratio is the median over the rounds of the
ratio of a round. The reference partitions kernel after kernel on one thread, as one would write
it; for global ranking, all weights at once.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.sparsity.patterns import NM, Block, Pattern, Unstructured
from edgeprune.sparsity.saliency import Ranked, Ranking, choose_masks

SPARSITY = 0.8
# (blocks, width, outputs) of the four stages.
STAGES = ((3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048))


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Kernel shapes, (kh, kw, c_in, c_out)."""
    shapes: list[tuple[int, ...]] = [(7, 7, 3, 64)]
    inputs = 64
    for blocks, width, outputs in STAGES:
        for block in range(blocks):
            if block == 0:
                shapes.append((1, 1, inputs, outputs))
            shapes += [(1, 1, inputs, width), (3, 3, width, width), (1, 1, width, outputs)]
            inputs = outputs
    return [*shapes, (2048, 1000)]


def partition_all(weights: list[NDArray[Any]]) -> None:
    """The reference: find each kernel's threshold, and no more."""
    for kernel in weights:
        np.partition(kernel.reshape(-1), round(SPARSITY * kernel.size) - 1)


def partition_flat(flat: NDArray[Any]) -> None:
    """The reference where all kernels are ranked together."""
    np.partition(flat, round(SPARSITY * flat.size) - 1)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape, np.float32) for shape in resnet50_shapes()]
    ranked = [Ranked(kernel, SPARSITY) for kernel in weights]
    # Weights amid a ramp: three quarters are zeros that earlier choices left.
    ramp = [
        kernel * mask
        for kernel, mask in zip(
            weights,
            choose_masks([Ranked(kernel, 0.75) for kernel in weights], Unstructured(), "layer"),
            strict=True,
        )
    ]
    ranked_half = [Ranked(kernel, 0.5) for kernel in weights]
    cases: dict[str, tuple[list[Ranked], Pattern, Ranking]] = {
        "unstructured, layer": (ranked, Unstructured(), "layer"),
        "the same, amid a ramp": (
            [Ranked(kernel, SPARSITY) for kernel in ramp],
            Unstructured(),
            "layer",
        ),
        "unstructured, global": (ranked, Unstructured(), "global"),
        "block 4 x 1, layer": (ranked, Block(4, 1), "layer"),
        "2 of 4": (ranked_half, NM(2, 4), "layer"),
    }
    flat = np.concatenate([kernel.reshape(-1) for kernel in weights])
    times: dict[str, list[float]] = {name: [] for name in cases}
    layer_reference: list[float] = []
    global_reference: list[float] = []
    for _ in range(rounds):
        layer_reference.append(seconds(lambda: partition_all(weights)))
        global_reference.append(seconds(lambda: partition_flat(flat)))
        for name, case in cases.items():
            times[name].append(seconds(lambda case=case: choose_masks(*case)))
    rows = []
    for name, taken in times.items():
        reference = global_reference if cases[name][2] == "global" else layer_reference
        ratios = [mine / theirs for mine, theirs in zip(taken, reference, strict=True)]
        rows.append(
            {
                "case": name,
                "ms": statistics.median(taken) * 1e3,
                "np_partition_ms": statistics.median(reference) * 1e3,
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
        )
    return {
        "weights": flat.size,
        "rounds": rounds,
        "cases": rows,
        "environment": {
            "numpy": np.__version__,
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"{result['weights']:,} weights, {result['rounds']} rounds")
    print(f"{'masks':24}{'ms':>8}{'np.partition ms':>18}{'ratio':>8}{'min':>8}{'max':>8}")
    for row in result["cases"]:
        print(
            f"{row['case']:24}{row['ms']:8.0f}{row['np_partition_ms']:18.0f}{row['ratio']:8.2f}"
            f"{row['ratio_min']:8.2f}{row['ratio_max']:8.2f}"
        )


if __name__ == "__main__":
    main()
