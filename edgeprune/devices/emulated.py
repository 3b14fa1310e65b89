"""64-bit Arm without such a machine: the TFLite runtime and its Arm kernels under qemu-user.

What that tells: the outputs, to the bit, and which of several models is less work. What it does
not: how long anything takes on a real processor, so no time is shown. Instructions are not
counted: qemu does that with a plug-in, which Debian's static build cannot load.
"""

import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.devices import crashes, emulated_worker, process, script
from edgeprune.devices.measurement import ModelBenchmark
from edgeprune.devices.options import RunOptions, names_for
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.profiling_parts import write_parts
from edgeprune.devices.profiling_script import ALONE, with_profile
from edgeprune.devices.reach import EmulatedReach
from edgeprune.devices.rows import ending, row
from edgeprune.devices.sandbox import CPU, MAKE, QEMU, RUNTIMES, Sandbox, find_sandbox
from edgeprune.devices.tflm import Comparison
from edgeprune.devices.tflm_worker import Difference, quanta
from edgeprune.errors import EdgepruneError, UnsupportedError
from edgeprune.export.tflite import TfliteModel, read
from edgeprune.files import sha256

SAMPLES = 4
_TIMING = ("loads", "min_seconds", "min_runs", "warmup_seconds")
_SAMPLE_SECONDS = 10  # after which no further one is begun
# Of the largest output: what sums of floats in another order may differ by, and much more.
_ROUNDING = 1e-3
_HOST_RUNTIME = "ai-edge-litert"

_NO_TIMES = "an emulator's time says nothing about a processor's"
_UNAVAILABLE = {
    "init_ms": _NO_TIMES,
    "first_ms": _NO_TIMES,
    "latency_ms": f"{_NO_TIMES}; relative_latency compares models in the same run",
    "peak_memory_bytes": "the emulator's own memory is in it",
    "peak_memory_how": "peak_memory_bytes is not there",
    "arena_bytes": "this runtime does not report its arena",
    "instructions": "qemu counts them with a plug-in, which its static build cannot load",
}


@dataclass(frozen=True)
class _Outcome:
    """What became of a model: its outputs compared, or why they were not, or why it failed."""

    comparison: Comparison | None = None
    largest: float = 0.0  # absolute value of this machine's outputs
    incomparable: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class _Work:
    """What a run shares between its processes."""

    sandbox: Sandbox
    runtime: str
    scratch: Path
    threads: int
    options: RunOptions
    deadline: float
    limit: float

    def emulate(self, **job: Any) -> list[dict[str, Any]]:
        """Do a job in the sandbox; see `_run`."""
        return self._run(self.sandbox.command, {**job, "runtime": self.runtime, "plain": False})

    def on_host(self, **job: Any) -> list[dict[str, Any]]:
        """Do a job on this machine; see `_run`."""

        def python(*arguments: str) -> list[str]:
            # -P: what lies beside the script must not be imported in place of what is installed.
            return [sys.executable, "-P", *arguments]

        return self._run(python, {**job, "runtime": _HOST_RUNTIME, "plain": _old(self.runtime)})

    def _run(
        self, python: Callable[..., list[str]], job: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return what the worker said, an object each; the last has ``died`` if it did."""
        options = self.options
        shared = {"threads": self.threads, "seed": options.seed}
        file = self.scratch / "job.json"
        file.write_text(json.dumps({**job, **shared}), encoding="utf-8")
        command = python(str(emulated_worker.__file__), str(script.bench_script()), str(file))
        ended = process.run(
            command,
            max(self.deadline - time.monotonic(), 0.0),
            stop=options.stop,
            on_line=partial(script.take_progress, options),
        )
        if ended.late:
            raise EdgepruneError(script.too_late(self.limit))
        said: list[dict[str, Any]] = []
        with contextlib.suppress(ValueError):  # a crash cuts its last line short
            said += map(json.loads, ended.output.splitlines())
        if ended.code != 0:
            said.append({"died": f"{ending(ended)}: {ended.said or 'no message'}"})
        return said


def run(models: Sequence[str], profile: DeviceProfile, options: RunOptions) -> list[ModelBenchmark]:
    """Emulate models on 64-bit Arm: compare their outputs with this machine's, and their work.

    A model that does not run has a row without figures, as long as another one runs.

    Args:
      models: paths of .tflite files; the first is what the others are compared with.
      profile: of a device with backend ``emulated``.
      options: `seed` of the random inputs, and as for real devices the loads, and the least
        seconds and rounds, in which the models take turns.

    Returns:
      A row for each model, with `relative_latency`: its time by the first model's in the same
      rounds, of which both are emulated. Its ``details``: ``outputs_equal``, to the bit,
      to LiteRT's on this machine; ``largest_difference`` of them;
      ``comparison``, a `Comparison` and with what; ``failure``, a line or None.

    Raises:
      InputError: a file is missing or no whole .tflite model.
      UnsupportedError: no model runs, or qemu or the sandbox are missing.
      EdgepruneError: it did not end in time, or was interrupted.
    """
    sandbox = _sandbox(profile)
    runtime = _runtime(sandbox, profile, options)
    graphs = [read(path) for path in models]
    names = names_for(models, options)
    limit = options.limit_seconds(len(models))
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as scratch:
        work = _Work(
            sandbox,
            runtime,
            Path(scratch),
            options.threads_on(profile),
            options,
            time.monotonic() + limit,
            limit,
        )
        options.say("comparing outputs with this machine's")
        outcomes = _outcomes(work, models, graphs)
        failed = [found.failure for found in outcomes]
        if None not in failed:
            raise UnsupportedError(f"{names[0]}: {failed[0]}")
        running = [place for place, failure in enumerate(failed) if failure is None]
        times = _times(work, [models[place] for place in running])
        profiles = {
            place: _operators(work, models[place]) for place in running if options.per_operator
        }
    emulator = process.run([QEMU, "--version"], 60).output.partition("\n")[0]
    about: dict[str, Any] = {
        "environment": {"emulator": emulator, "cpu": CPU, "sandbox": sandbox.record},
        "protocol": {
            **{key: options.value(key) for key in _TIMING},
            "samples": SAMPLES,
            "seed": options.seed,
            "threads": work.threads,
            "timeout_seconds": limit,
            "script_sha256": sha256(script.bench_script()),
        },
    }
    rows = []
    for place, (name, path) in enumerate(zip(names, models, strict=True)):
        own = row(
            name,
            Path(path),
            profile,
            sandbox.version(runtime),
            **_described(name, outcomes[place], _old(runtime)),
            **about,
        )
        own = _with_times(own, times, running, place, names[0])
        if place in profiles:
            own = _with_operators(own, profiles[place])
        rows.append(dataclasses.replace(own, runtime=runtime, threads=work.threads))
    return rows


def _sandbox(profile: DeviceProfile) -> Sandbox:
    """Return the profile's sandbox.

    Raises:
      UnsupportedError: it or qemu is missing.
    """
    reach = profile.reach
    assert isinstance(reach, EmulatedReach)
    if shutil.which(QEMU) is None:
        raise UnsupportedError(
            f"{QEMU} is not on the PATH; on Debian or Ubuntu: apt-get install qemu-user-static"
        )
    sandbox = find_sandbox(reach.folder)
    if sandbox is None:
        raise UnsupportedError(
            f"no whole sandbox of this version is in {reach.folder}; make it with "
            f"{MAKE} {profile.name}"
        )
    return sandbox


def _runtime(sandbox: Sandbox, profile: DeviceProfile, options: RunOptions) -> str:
    """Return the runtime that is asked for, or the preferred one.

    Raises:
      UnsupportedError: the sandbox does not have it, or not in the version that is asked for.
    """
    reach = profile.reach
    assert isinstance(reach, EmulatedReach)
    runtime = options.runtime_on(profile) or next(iter(RUNTIMES))
    if runtime not in RUNTIMES:
        raise UnsupportedError(
            f"the sandbox has {' and '.join(RUNTIMES)}, not {runtime}; take one of these or 'any' "
            "as the runtime"
        )
    version = sandbox.version(runtime)
    if reach.runtime_version not in (None, version):
        raise UnsupportedError(
            f"the sandbox has {runtime} {version}, not {reach.runtime_version}; "
            "leave reach.runtime_version out of the profile"
        )
    return runtime


def _old(runtime: str) -> bool:
    """Tell whether a runtime is compared with this machine's kernels without XNNPACK.

    ai-edge-litert's XNNPACK rounds integers alike on x86 and Arm. tflite-runtime 2.14's, on Arm,
    rounds as the runtime's own kernels do.
    """
    return runtime == "tflite-runtime"


def _outcomes(work: _Work, models: Sequence[str], graphs: Sequence[TfliteModel]) -> list[_Outcome]:
    """Run each model here and there, on the same inputs, and compare."""
    own, other = (
        [
            {
                "path": str(Path(path).absolute()),
                "inputs": str(work.scratch / f"inputs{number}.npz"),
                "outputs": str(work.scratch / f"{side}{number}.npz"),
            }
            for number, path in enumerate(models)
        ]
        for side in ("own", "other")
    )
    theirs = _computed(work.on_host, other, "LiteRT on this machine")
    # Where this machine makes no inputs, as it cannot run the model, the emulated one does.
    ours = _computed(work.emulate, own, "the emulated runtime")
    if _old(work.runtime):
        ours = [_explained(graph, found) for graph, found in zip(graphs, ours, strict=True)]
    return [
        _compared(graph, Path(mine["outputs"]), Path(yours["outputs"]), found, reference)
        for graph, mine, yours, found, reference in zip(
            graphs, own, other, ours, theirs, strict=True
        )
    ]


def _computed(
    machine: Callable[..., list[dict[str, Any]]], models: list[dict[str, str]], what: str
) -> list[dict[str, Any]]:
    """Have a machine run all models, again from the next one on where one kills the process."""
    found: list[dict[str, Any]] = []
    while len(found) < len(models):
        rest = models[len(found) :]
        said = machine(models=rest, samples=SAMPLES, seconds=_SAMPLE_SECONDS, timed=False)
        found += [line for line in said if "died" not in line]
        if len(found) < len(models):
            died = said[-1].get("died") if said else None
            found.append({"error": f"{what} {died or 'ended without a word'}"})
    return found


def _explained(graph: TfliteModel, found: dict[str, Any]) -> dict[str, Any]:
    """Say what is known of a crash."""
    why = crashes.told_of(graph) if "error" in found else None
    return found if why is None else {"error": f"{found['error']}; {why}"}


def _compared(
    graph: TfliteModel,
    own: Path,
    other: Path,
    found: Mapping[str, Any],
    reference: Mapping[str, Any],
) -> _Outcome:
    """Compare one model's outputs, where both machines have some."""
    if "error" in found:
        return _Outcome(failure=str(found["error"]))
    if "error" in reference:
        return _Outcome(incomparable=str(reference["error"]))
    difference = Difference(quanta(graph))
    largest = 0.0
    # One machine may have had time for more of them than the other.
    samples = min(found["samples"], reference["samples"])
    with np.load(own) as ours, np.load(other) as theirs:
        for sample in range(samples):
            pair = [
                [values[f"{sample}-{place}"] for place in range(found["outputs"])]
                for values in (ours, theirs)
            ]
            shapes = [[(value.shape, value.dtype) for value in values] for values in pair]
            if shapes[0] != shapes[1]:
                return _Outcome(incomparable="the outputs have other shapes on this machine")
            difference.add(pair[0], pair[1])
            largest = max([largest, *(float(np.abs(value).max(initial=0)) for value in pair[1])])
    return _Outcome(comparison=Comparison(**difference.record(samples)), largest=largest)


def _times(work: _Work, models: Sequence[str]) -> dict[str, Any]:
    """Let the models that run take turns in one process, which loads them several times."""
    asked = {key: work.options.value(key) for key in _TIMING}
    paths = [{"path": str(Path(path).absolute())} for path in models]
    said = work.emulate(models=paths, timed=True, **asked)
    if not said or "relative" not in said[0]:
        told = said[0].get("error") or said[0].get("died") if said else "nothing came back"
        raise EdgepruneError(f"each model runs alone, but not all of them together: {told}")
    return said[0]


def _operators(work: _Work, model: str) -> Mapping[str, Any]:
    """Time each operator of a model that runs; ``parts``, or ``error`` or ``died`` say why not."""
    work.options.say(f"timing each operator of {Path(model).name} alone")
    parts = work.scratch / "parts.zip"
    write_parts(read(model), parts)
    job = {"path": str(Path(model).absolute()), "parts": str(parts)}
    seconds = work.options.value("min_seconds")
    said = work.emulate(models=[job], timed=False, seconds=seconds)
    return said[0] if said else {"died": "ended without a word"}


def _with_operators(own: ModelBenchmark, said: Mapping[str, Any]) -> ModelBenchmark:
    if "parts" in said:
        return with_profile(own, said, f"{ALONE}; emulated, so that shares are all that it tells")
    reason = str(said.get("error") or said["died"])
    return dataclasses.replace(own, unavailable={**own.unavailable, "per_operator": reason})


def _described(name: str, found: _Outcome, plain: bool) -> dict[str, Any]:
    """Return the parts of a row that tell of the outputs."""
    unavailable, warnings = dict(_UNAVAILABLE), []
    compared = found.comparison
    missing = found.failure or found.incomparable
    if missing is not None:
        warnings.append(f"{name}: {missing}")
        unavailable["outputs_equal"] = missing
    elif compared is not None and not compared.equal:
        told = _differences(compared, found.largest)
        if told is not None:
            warnings.append(f"{name}: {told}")
    largest = None if compared is None else compared.max_difference
    version = metadata.version(_HOST_RUNTIME)
    host = f"{_HOST_RUNTIME} {version} on this machine{', without XNNPACK' if plain else ''}"
    return {
        "unavailable": unavailable,
        "warnings": warnings,
        "details": {
            "outputs_equal": None if compared is None else compared.equal,
            "largest_difference": None if largest is None else float(f"{largest:.3g}"),
            "comparison": None if compared is None else {**vars(compared), "compared_with": host},
            "failure": found.failure,
        },
    }


def _differences(compared: Comparison, largest: float) -> str | None:
    """Say what differs, unless that is the order in which floats were summed."""
    part = f"{compared.differing} of {compared.values} outputs differ from this machine's"
    if compared.max_difference is None:
        return f"{part}, by what is not finite"
    if compared.max_difference_quanta is None:
        if compared.max_difference <= _ROUNDING * largest:
            return None
        return f"{part}, by up to {compared.max_difference:.3g}; the largest is {largest:.3g}"
    steps = "step" if compared.max_difference_quanta == 1 else "steps"
    return f"{part}, by up to {compared.max_difference_quanta} {steps} of the output's scale"


def _with_times(
    own: ModelBenchmark, times: dict[str, Any], running: list[int], place: int, first: str
) -> ModelBenchmark:
    """Add the ratio to the first model, where both ran."""
    reason = own.details["failure"]
    if reason is None and running[0] != 0:
        reason = f"{first}, with which it would be compared, does not run"
    if reason is not None:
        keys = ("relative_latency", "relative_latency_interval", "rounds")
        missing = {**own.unavailable, **dict.fromkeys(keys, reason)}
        return dataclasses.replace(own, unavailable=missing)
    at = running.index(place)
    interval = times["intervals"][at]
    missing = dict(own.unavailable)
    if interval is None:
        missing["relative_latency_interval"] = "fewer than 6 loads"
    return dataclasses.replace(
        own,
        relative_latency=times["relative"][at],
        relative_latency_interval=None if interval is None else (interval[0], interval[1]),
        rounds=times["rounds"],
        warnings=(*own.warnings, *times["warnings"]),
        unavailable=missing,
        details={**own.details, "relative_interval_975": times["intervals_975"][at]},
    )
