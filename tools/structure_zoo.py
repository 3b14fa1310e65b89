"""Prune every architecture of `keras.applications`, and hold each result to the law of surgery.

    python tools/structure_zoo.py [NAME ...] [--again]

For each architecture (weights=None, randomized; the smallest input that it takes; its classifier
with 10 logits), at ratio 0.25 by l1 in multiples of 8 and at 0.5 at random: plan, cut, compare the
smaller model's output with that of the original with the removed channels masked to zero (within
1e-5 of the largest output; where rounding alone takes more, within 1e-10 in float64), convert with
`edgeprune.convert`, which runs the .tflite file and compares it with Keras. Each runs in a process
of its own; results are kept one by one in tools/results/structure_zoo.json, and a run that was
stopped goes on where it was.
"""

import argparse
import importlib.metadata
import inspect
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # for the law
RESULTS = ROOT / "tools" / "results" / "structure_zoo.json"
# (ratio, channels are kept in multiples of this, criterion)
VARIANTS = ((0.25, 8, "l1"), (0.5, 1, "random"))
INPUT_SIZES = (32, 48, 64, 71, 75, 96, 128, 160, 192, 224, 331)
CLASSES = 10
# Samples whose statistics the normalizations take: more where there are over `MANY` of them one
# after the other, since at 1x1 pixels a change in the last bit otherwise grows a thousandfold.
SAMPLES, SAMPLES_OF_MANY, MANY = 16, 128, 200
TOLERANCE = 1e-5
# Hundreds of layers may round to more than that in float32. A wrong cut would show in float64.
TOLERANCE_FLOAT64 = 1e-10


def architectures() -> list[str]:
    """Return the names of all models of `keras.applications`."""
    import keras

    return sorted(
        name
        for name, value in vars(keras.applications).items()
        if inspect.isfunction(value) and "weights" in inspect.signature(value).parameters
    )


def build(name: str) -> Any:
    """Build an architecture for the smallest input that it takes, with logits for output."""
    import keras

    make = getattr(keras.applications, name)
    for size in INPUT_SIZES:
        try:
            return make(
                weights=None,
                input_shape=(size, size, 3),
                classes=CLASSES,
                classifier_activation=None,
            )
        except ValueError as error:
            reason = error
    raise ValueError(f"{name} takes no input up to {INPUT_SIZES[-1]}: {reason}")


def outcome(name: str) -> dict[str, Any]:
    """Prune one architecture and return what came of it."""
    from edgeprune.structure.graph import channel_graph

    model = build(name)
    started = time.perf_counter()
    graph = channel_graph(model)
    seconds = time.perf_counter() - started
    ends = "is an output of the model"
    refused = [
        {"layer": refusal.layer, "reason": refusal.reason}
        for refusal in graph.refused
        if ends not in refusal.reason
    ]
    settle(model)
    return {
        "name": name,
        "input_shape": list(model.input_shape[1:]),
        "operations": sum(1 for _ in _operations(model)),
        "parameters": model.count_params(),
        "discovery_seconds": round(seconds, 3),
        "groups": len(graph.groups),
        "channels": int(sum(group.size for group in graph.groups)),
        "refused": refused,
        "fully_followed": not refused,
        "runs": [_run(name, model, *variant) for variant in VARIANTS],
    }


def inputs_for(model: Any, count: int, seed: int) -> Any:
    """Return random images with values as those of pixels."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return rng.normal(128, 64, (count, *model.input_shape[1:])).astype(model.inputs[0].dtype)


def settle(model: Any) -> None:
    """Give every weight a random value with which the outputs still depend on the inputs."""
    import numpy as np
    from structure.law import randomize

    randomize(model)
    if not any("Normalization" in type(layer).__name__ for layer in model.layers):
        # Nothing else keeps the signal's size where half of each layer's inputs leave.
        for variable in model.weights:
            if len(variable.shape) >= 2:
                variable.assign(1.6 * np.asarray(variable))
    _observe(model)


def _observe(model: Any) -> None:
    """Let batch normalizations take the statistics of what they are given, as training would."""
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    count = SAMPLES if len(norms) <= MANY else SAMPLES_OF_MANY
    model(inputs_for(model, count, seed=1), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def compared(graph: Any, removed: Any) -> tuple[dict[str, Any], Any]:
    """Cut channels out of a model, and compare the result with the masked original.

    Before that, the smaller model gets statistics of its own, and the original takes them over:
    else little of the inputs would be left at the end of a deep model that has half of its
    channels, and a wrong cut might not show.

    Returns:
      The largest output, the spread over the samples, the error, and whether the law held; and
      the smaller model.
    """
    import numpy as np
    from structure.law import masked_output

    from edgeprune.structure.surgery import shrink

    _take_over(graph, graph.kept(removed), shrink(graph, removed))
    inputs = inputs_for(graph.model, 4, seed=2)
    want = np.asarray(masked_output(graph, removed, [inputs])[0])
    smaller = shrink(graph, removed)
    have = np.asarray(smaller(inputs, training=False))
    scale = float(np.abs(want).max())
    spread = float(want.std(axis=0).mean())
    error = float(np.abs(want - have).max()) / scale
    figures = {
        "output_max": scale,
        "output_std": spread,
        "relative_error": error,
        "law_held": bool(spread > 1e-3 * scale and error <= TOLERANCE),
    }
    return figures, smaller


def _take_over(graph: Any, kept: Any, smaller: Any) -> None:
    import numpy as np

    _observe(smaller)
    for old, new in zip(graph.model.layers, smaller.layers, strict=True):
        if type(old).__name__ == "BatchNormalization":
            for name in ("moving_mean", "moving_variance"):
                variable = getattr(old, name)
                value = np.array(variable)
                part = graph.record.parts.get(id(variable))
                ids = None if part is None else part.axes[0][0]
                value[... if ids is None else kept[ids]] = getattr(new, name)
                variable.assign(value)


def _operations(model: Any) -> Any:
    for operation in model.operations:
        yield operation
        if hasattr(operation, "operations"):
            yield from _operations(operation)


def _run(name: str, model: Any, ratio: float, round_to: int, criterion: str) -> dict[str, Any]:
    from edgeprune.structure.plan import plan_channels

    started = time.perf_counter()
    plan = plan_channels(model, pruning_ratio=ratio, round_to=round_to, criterion=criterion)
    figures, smaller = compared(plan.graph, plan.removed)
    if figures["relative_error"] > TOLERANCE:
        figures |= _in_float64(name, plan.removed)
    return {
        "pruning_ratio": ratio,
        "round_to": round_to,
        "criterion": criterion,
        "parameters_after": plan.parameters_after,
        "macs_before": plan.macs_before,
        "macs_after": plan.macs_after,
        **figures,
        "tflite": _tflite(smaller),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _in_float64(name: str, removed: Any) -> dict[str, Any]:
    """Cut the same channels out of the same model in double precision."""
    import keras

    from edgeprune.structure.graph import channel_graph

    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")  # of inputs
    keras.config.set_dtype_policy("float64")  # of layers
    try:
        model = build(name)
        settle(model)
        figures, _ = compared(channel_graph(model), removed)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)
    error = figures["relative_error"]
    depends = figures["output_std"] > 1e-3 * figures["output_max"]
    return {
        "relative_error_float64": error,
        "law_held": bool(depends and error <= TOLERANCE_FLOAT64),
    }


def _tflite(model: Any) -> dict[str, Any]:
    import edgeprune

    with tempfile.TemporaryDirectory() as folder:
        try:
            # Verified on inputs like those that the normalizations know: on others the random
            # weights of a deep model make so much of rounding that no two runtimes agree.
            artifact = edgeprune.convert(
                model,
                Path(folder) / "model.tflite",
                calibration=inputs_for(model, 16, seed=3),
                clean=False,
            )
        except edgeprune.EdgepruneError as error:
            return {"passed": False, "reason": str(error)}
    verification = artifact.verification
    return {
        "passed": verification.passed,
        "bytes": artifact.bytes,
        "max_abs_error": verification.max_abs_error,
        "tolerance": verification.tolerance,
    }


def failures(result: dict[str, Any]) -> list[str]:
    """Return what went wrong with one architecture."""
    if "failed" in result:
        return [result["failed"]]
    wrong = []
    for run in result["runs"]:
        which = f"ratio {run['pruning_ratio']}, round_to {run['round_to']}"
        if not run["law_held"]:
            wrong.append(
                f"{which}: relative error {run['relative_error']:.2e}, outputs up to "
                f"{run['output_max']:.2g} with a spread of {run['output_std']:.2g}"
            )
        if not run["tflite"]["passed"]:
            wrong.append(f"{which}: not converted: {run['tflite'].get('reason')}")
    return wrong


def _in_process(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", name], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"name": name, "failed": lines[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _save(results: dict[str, Any]) -> None:
    from edgeprune.files import atomic_path

    ordered = [results[name] for name in sorted(results)]
    document = {
        "command": "python tools/structure_zoo.py",
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("keras", "tensorflow", "ai-edge-litert", "numpy")
        },
        "tolerance": TOLERANCE,
        "architectures": len(ordered),
        "fully_followed": sum(bool(result.get("fully_followed")) for result in ordered),
        "law_held_on_every_run": sum(not failures(result) for result in ordered),
        "results": ordered,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with atomic_path(RESULTS) as path:
        path.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="architectures; all by default")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        result = outcome(given.child)
        print(json.dumps(result))
        return
    results: dict[str, Any] = {}
    if RESULTS.exists():
        results = {old["name"]: old for old in json.loads(RESULTS.read_text())["results"]}
    everything = architectures()
    results = {name: results[name] for name in everything if name in results}
    names = given.names or everything
    if unknown := sorted(set(names) - set(everything)):
        parser.error(f"no such architecture: {', '.join(unknown)}")
    for index, name in enumerate(names, 1):
        if name in results and "failed" not in results[name] and not given.again:
            continue
        started = time.perf_counter()
        results[name] = _in_process(name)
        _save(results)
        wrong = failures(results[name])
        verdict = "; ".join(wrong) or ("ok" if results[name]["fully_followed"] else "in part")
        print(
            f"[{index}/{len(names)}] {name}: {verdict}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    followed = sum(bool(result.get("fully_followed")) for result in results.values())
    print(f"{followed} of {len(results)} fully followed: {RESULTS}")
    if any(failures(result) for result in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
