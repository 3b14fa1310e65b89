"""Time conversion with verification against TensorFlow's bare converter on MobileNetV2.

    python tools/bench/convert_overhead.py [--rounds N] [--json]

Both sides convert the same model (keras.applications.MobileNetV2, 224 x 224, random weights) and
calibrate int8 on the same samples, in turns, in one process. The bare side is what users write:
`TFLiteConverter.from_keras_model(model).convert()` and the file written; edgeprune's side strips,
converts, verifies, looks for zeros to encode, and writes the file and its record. The ratio is the
median over the rounds of the ratio of a round.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from edgeprune.export.convert import convert
from edgeprune.export.native import captured_stderr
from edgeprune.models import import_keras

MODES = ("none", "int8")
LIMIT = 1.25


def bare(model: Any, mode: str, samples: np.ndarray, output: Path) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if mode == "int8":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
    # Keras prints every variable, which would cost the bare side time on a terminal.
    with captured_stderr(), contextlib.redirect_stdout(io.StringIO()):
        output.write_bytes(converter.convert())


def ours(model: Any, mode: str, samples: np.ndarray, output: Path) -> None:
    convert(model, output, quantize=mode, calibration=samples if mode == "int8" else None)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(rounds: int, calibration: int) -> dict[str, object]:
    keras = import_keras()
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(weights=None)
    rng = np.random.default_rng(0)
    samples = rng.uniform(-1, 1, (calibration, 224, 224, 3)).astype(np.float32)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "model.tflite")
        for mode in MODES:
            bare(model, mode, samples, output)  # warms both: imports, kernels, caches
            ours(model, mode, samples, output)
            times: dict[str, list[float]] = {"bare": [], "edgeprune": []}
            for turn in range(rounds):
                sides = [("bare", bare), ("edgeprune", ours)]
                for name, side in sides if turn % 2 == 0 else reversed(sides):
                    times[name].append(
                        seconds(lambda side=side, mode=mode: side(model, mode, samples, output))
                    )
            ratios = [a / b for a, b in zip(times["edgeprune"], times["bare"], strict=True)]
            cases.append(
                {
                    "quantize": mode,
                    "bare_s": statistics.median(times["bare"]),
                    "edgeprune_s": statistics.median(times["edgeprune"]),
                    "ratio": statistics.median(ratios),
                    "ratios": ratios,
                }
            )
    return {
        "model": "MobileNetV2 224x224, random weights",
        "rounds": rounds,
        "calibration_samples": calibration,
        "limit": LIMIT,
        "cases": cases,
        "machine": {"processor": platform.processor(), "cores": os.cpu_count()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calibration", type=int, default=8, help="samples that calibrate int8")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.calibration)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for case in result["cases"]:  # type: ignore[attr-defined]
            print(
                f"{case['quantize']}: bare {case['bare_s']:.2f} s, edgeprune "
                f"{case['edgeprune_s']:.2f} s, ratio {case['ratio']:.3f} (at most {LIMIT})"
            )
    sys.exit(any(case["ratio"] > LIMIT for case in result["cases"]))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
