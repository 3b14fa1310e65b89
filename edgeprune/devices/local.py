"""Benchmark on this machine, with the same script that runs on every other device."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from edgeprune.devices.measurement import Benchmark
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError

_ERRORS: dict[str, type[EdgepruneError]] = {"input": InputError, "unsupported": UnsupportedError}
_PROGRESS = "[bench] "


def benchmark(
    models: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    threads: int = 1,
    quick: bool = False,
    min_seconds: float | None = None,
    min_runs: int | None = None,
    warmup_seconds: float | None = None,
    starts: int | None = None,
    cpus: Sequence[int] | None = None,
    runtime: str | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Benchmark:
    """Time .tflite models on this machine, interleaved, and compare them with the first.

    Args:
      models: paths of .tflite files, or what `edgeprune.convert` gave.
      threads: of one inference.
      quick: one start, 0.1 s of warm-up, 20 rounds and 1 s per model, instead of 3 starts, 0.5 s,
        50 rounds and 10 s.
      min_seconds: time in inference per model, at least.
      min_runs: rounds, at least; each model runs once or more in each.
      warmup_seconds: per model.
      starts: fresh processes in which each model's start-up and memory are measured.
      cpus: numbers of the CPUs to run on; Linux only.
      runtime: ``ai-edge-litert``, ``tflite-runtime`` or ``tensorflow``; the first installed
        one if left out.
      names: what to call the models, one each; by default their file names, with as many
        folders as tell them apart.
      seed: of the random inputs.
      progress: called with a line of text as the work proceeds.

    Returns:
      A list-like `Benchmark`; `print` shows it as a table.

    Raises:
      InputError: a file is missing or is no usable .tflite model, or an argument is wrong.
      UnsupportedError: a model needs operators that the runtime lacks, or there is no runtime.
      EdgepruneError: the runtime crashed.
    """
    command = [sys.executable, str(bench_script()), "--errors-as-json", "--device", "local"]
    command += ["--threads", str(threads), "--seed", str(seed)]
    command += ["--quick"] if quick else []
    for option, value in {
        "--min-seconds": min_seconds,
        "--min-runs": min_runs,
        "--warmup-seconds": warmup_seconds,
        "--starts": starts,
        "--cpu": ",".join(map(str, cpus)) if cpus is not None else None,
        "--runtime": runtime,
    }.items():
        command += [f"{option}={value}"] if value is not None else []
    command += [f"--name={name}" for name in names or ()]
    command += ["--", *_paths(models)]
    return Benchmark.from_json(_run(command, progress))


def bench_script() -> Path:
    """Return tools/bench_on_device.py: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_shipped" / "bench_on_device.py"
    return installed if installed.exists() else package.parent / "tools" / "bench_on_device.py"


def _paths(models: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    given: list[Any] = [models]
    if isinstance(models, Iterable) and not isinstance(models, str | os.PathLike):
        given = list(models)
    if not given:
        raise InputError("got no model to benchmark; name at least one .tflite file")
    for model in given:
        if not isinstance(model, str | os.PathLike):
            raise InputError(
                f"got {type(model).__name__}; supported: paths of .tflite files and what "
                "edgeprune.convert returns; convert the model first"
            )
    return [os.fspath(model) for model in given]


def _run(command: list[str], progress: Callable[[str], None] | None) -> str:
    """Run the script to its end and return its JSON; it never outlives this call."""
    last: deque[str] = deque(maxlen=1)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        try:
            assert process.stderr is not None
            for line in process.stderr:
                # The rest is the runtimes' chatter, of use only if all fails.
                if not line.startswith(_PROGRESS):
                    last.append(line.strip())
                elif progress is not None:
                    progress(line.removeprefix(_PROGRESS).rstrip())
            code = process.wait()
        finally:
            _end(process)
        output.seek(0)
        text = output.read().decode()
    if code == 0:
        return text
    failure: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        failure = json.loads(text)
    if failure:
        raise _ERRORS.get(failure["kind"], EdgepruneError)(failure["error"])
    said = last[0] if last else "no message"
    if code == 2:  # the script's argument parser: "bench_on_device.py: error: argument ..."
        raise InputError(said.partition(": error: ")[2] or said)
    raise EdgepruneError(f"the benchmark ended with exit code {code}: {said}")


def _end(process: "subprocess.Popen[str]") -> None:
    if process.stderr is not None:
        process.stderr.close()
    if process.poll() is None:
        process.terminate()  # lets it end its own child process first
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
