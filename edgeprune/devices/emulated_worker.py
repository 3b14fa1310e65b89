"""Run models where the emulated device's Python, or this machine's own, runs: a script.

`python emulated_worker.py BENCH_ON_DEVICE JOB` prints JSON objects, one a line: one for each model
whose outputs it computed, or one for their times; `edgeprune.devices.emulated` starts it.

It has no edgeprune, only NumPy and a TFLite runtime, with what bench_on_device.py has to load and
time models. No time leaves it, only ratios of times.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def compute(bench: Any, runtime: Any, model: dict[str, str], job: dict[str, Any]) -> dict[str, Any]:
    """Run one model on several inputs, and save its outputs.

    The inputs are made up where there are none yet, for both machines to have the same bits.
    """
    path, inputs = Path(model["path"]), Path(model["inputs"])
    bench.check_file(path)
    loaded = runtime.load(path, job["threads"], job["seed"])
    interpreter = loaded.interpreter
    details = interpreter.get_input_details()
    if not inputs.exists():
        made = {
            f"{sample}-{place}": bench.random_input(detail, job["seed"] + sample, path)
            for sample in range(job["samples"])
            for place, detail in enumerate(details)
        }
        np.savez(inputs, **made)
    found = {}
    end = time.monotonic() + job["seconds"]
    done = 0
    with np.load(inputs) as values:
        while done < job["samples"] and (done == 0 or time.monotonic() < end):
            for place, detail in enumerate(details):
                interpreter.set_tensor(detail["index"], values[f"{done}-{place}"])
            try:
                interpreter.invoke()
            except (RuntimeError, ValueError) as error:
                raise bench.BenchError(f"the model fails when it runs ({error})") from None
            for place, detail in enumerate(interpreter.get_output_details()):
                found[f"{done}-{place}"] = interpreter.get_tensor(detail["index"])
            done += 1
    np.savez(model["outputs"], **found)
    return {"samples": done, "outputs": len(interpreter.get_output_details())}


def compare_times(bench: Any, runtime: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Time all models, interleaved, and return their ratios to the first."""
    before = bench.state()
    paths = [Path(model["path"]) for model in job["models"]]
    asked = {key: job[key] for key in bench.TOGETHER}
    _, rounds = bench.measure_together(runtime, paths, **asked)
    ratios = [bench.ratios_to(rounds[0], own) for own in rounds]
    of_first = [*bench.chain.from_iterable(rounds[0])]
    return {
        "relative": [bench.statistics.median(own) for own in ratios],
        "intervals": [bench.median_interval(own) for own in ratios],
        "intervals_975": [bench.median_interval(own, bench.WITHIN_975) for own in ratios],
        "rounds": len(of_first),
        "warnings": bench.doubts(before, bench.state(), of_first),
    }


def time_operators(
    bench: Any, runtime: Any, model: dict[str, str], job: dict[str, Any]
) -> dict[str, Any]:
    """Time each operator of one model; return their shares, and their sum by the whole's time."""
    loaded = runtime.load(Path(model["path"]), job["threads"], job["seed"])
    typical = bench.warm_up([loaded], 0.0)[0]
    runs = max(bench.PASS_RUNS, round(job["seconds"] * 1e9 / bench.PASSES / typical))
    whole = bench.statistics.median(loaded.run() for _ in range(runs))
    inputs = [value for _, value in loaded.inputs]
    found = bench.time_operators(runtime, inputs, model["parts"], job["threads"], job["seconds"])
    call = found["call_ns"]
    times = [None if "reason" in part else max(part["ns"] - call, 0.0) for part in found["parts"]]
    total = sum(own for own in times if own is not None) or 1.0
    return {
        "parts": [
            part if own is None else {"share": own / total}
            for part, own in zip(found["parts"], times, strict=True)
        ],
        "sum_by_whole": total / whole,
    }


def main(arguments: Sequence[str]) -> int:
    """Do the job; return the exit code."""
    spec = importlib.util.spec_from_file_location("bench_on_device", arguments[0])
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    job = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    # Whatever the runtimes print, to fd 1 even, must not reach the JSON.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout:
        os.dup2(2, 1)
        for found in _results(bench, job):
            stdout.write(json.dumps(found) + "\n")
            stdout.flush()  # a crash is to take along no more than the model that it is of
    return 0


def _results(bench: Any, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        runtime = bench.Runtime(job["runtime"])
        if job["plain"]:
            kinds = sys.modules[bench.RUNTIMES[runtime.name]].OpResolverType
            runtime.interpreter = partial(
                runtime.interpreter,
                experimental_op_resolver_type=kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
        if job["timed"]:
            yield compare_times(bench, runtime, job)
            return
        if "parts" in job["models"][0]:
            for model in job["models"]:
                yield time_operators(bench, runtime, model, job)
            return
    except bench.BenchError as error:
        yield from [{"error": str(error)}] * len(job["models"])
        return
    for model in job["models"]:
        try:
            yield compute(bench, runtime, model, job)
        except bench.BenchError as error:
            yield {"error": str(error)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
