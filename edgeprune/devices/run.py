"""Run models on any devices, at the same time, and bring their results together."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import edgeprune
from edgeprune.devices.lookup import load_profile
from edgeprune.devices.measurement import Benchmark, ModelBenchmark
from edgeprune.devices.options import RunOptions, names_for
from edgeprune.devices.profile import RUNTIMES, DeviceProfile
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.files import sha256
from edgeprune.toml_data import shown

_NOT_PER_OPERATOR = {
    "tflm": "TFLite Micro's Python interpreter has no profiler, and this machine's time says "
    "nothing about a microcontroller's",
    "emulated": "no model ran",
    "vela": "Vela refuses this model",
}

ModelPath = str | os.PathLike[str]


def benchmark(
    models: ModelPath | Iterable[ModelPath],
    *,
    device: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = "local",
    threads: int | None = None,
    quick: bool = False,
    min_seconds: float | None = None,
    min_runs: int | None = None,
    warmup_seconds: float | None = None,
    starts: int | None = None,
    loads: int | None = None,
    cpus: Sequence[int] | None = None,
    runtime: str | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
    profile: bool = False,
    timeout_seconds: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Benchmark:
    """Run .tflite models on devices, interleaved, and compare them with the first.

    Several devices run at the same time. If one fails, its entries have its `error` and no
    figures; the others' results are not lost.

    Args:
      models: paths of .tflite files, or what `edgeprune.convert` gave.
      device: name or .toml file of a profile, or several; `edgeprune devices` lists the names.
      threads: of one inference; the profile's if left out.
      quick: one start, 12 loads, 0.1 s of warm-up, 20 rounds and 1 s per model, instead of 3
        starts, 20 loads, 0.5 s, 50 rounds and 10 s.
      min_seconds: time in inference per model, at least.
      min_runs: rounds, at least; each model runs once or more in each.
      warmup_seconds: per model.
      starts: fresh processes in which each model's start-up and memory are measured.
      loads: how often all models are loaded anew for the ratio to the first, as where they lie
        in memory changes it; its interval is over the loads. Android has ten, each in a process.
      cpus: numbers of the CPUs to run on, where that can be chosen; the profile's if left out.
      runtime: ``ai-edge-litert``, ``tflite-runtime`` or ``tensorflow``, on devices with Python;
        the profile's if left out, or the first that is installed there.
      names: what to call the models, one each; by default their file names, with as many
        folders as tell them apart.
      seed: of the random inputs.
      profile: time each operator, too, where the device can: see `ModelBenchmark.per_operator`;
        `edgeprune.report.profile` shows and draws it.
      timeout_seconds: after which a device is given up; if left out, it follows from the time
        asked for.
      progress: called with a line of text as the work proceeds, from several threads if there
        are several devices.

    Returns:
      A list-like `Benchmark`; `print` shows it as tables.

    Raises:
      InputError: a file is missing or is no usable .tflite model, or an argument or a profile is
        wrong.
      UnsupportedError: a model needs operators that the runtime lacks, or there is no runtime.
      EdgepruneError: no device gave figures.
    """
    paths = _paths(models)
    profiles = load_profiles(device)
    options = RunOptions(
        threads=threads,
        quick=quick,
        min_seconds=min_seconds,
        min_runs=min_runs,
        warmup_seconds=warmup_seconds,
        starts=starts,
        loads=loads,
        cpus=None if cpus is None else tuple(cpus),
        runtime=_checked_runtime(runtime, profiles),
        names=None if names is None else tuple(names),
        seed=seed,
        per_operator=profile,
        timeout_seconds=timeout_seconds,
        progress=progress,
    )
    names_for(paths, options)
    outcomes = _run_all(paths, profiles, options)
    errors = {
        one.name: outcome
        for one, outcome in zip(profiles, outcomes, strict=True)
        if isinstance(outcome, Exception)
    }
    if len(errors) == len(profiles):
        if len(errors) == 1:
            raise next(iter(errors.values()))
        told = "; ".join(f"{name}: {error}" for name, error in errors.items())
        raise EdgepruneError(f"no device gave figures: {told}")
    rows: list[ModelBenchmark] = []
    for one, outcome in zip(profiles, outcomes, strict=True):
        if isinstance(outcome, Exception):
            rows += _failed(paths, one, options, str(outcome))
        else:
            rows += [_with_origin(_explained(row, one, options), one) for row in outcome]
    return Benchmark(rows)


def _run_all(
    paths: list[str], profiles: list[DeviceProfile], options: RunOptions
) -> list[list[ModelBenchmark] | Exception]:
    """Run the backends at the same time; the outcomes are in the profiles' order."""
    if len(profiles) == 1:
        # Without threads, Ctrl-C ends the run where it is.
        return [_run_one(paths, profiles[0], options)]
    with ThreadPoolExecutor(max_workers=len(profiles)) as pool:
        futures = [
            pool.submit(_run_one, paths, profile, _named_progress(profile, options))
            for profile in profiles
        ]
        try:
            return [future.result() for future in futures]
        except BaseException:
            options.stop.set()
            raise


def _run_one(
    paths: list[str], profile: DeviceProfile, options: RunOptions
) -> list[ModelBenchmark] | Exception:
    try:
        backend = import_module(f"edgeprune.devices.{profile.backend}")
        rows: list[ModelBenchmark] = backend.run(paths, profile, options)
    except EdgepruneError as error:
        return error
    except Exception as error:  # a defect in one backend must not lose the others' results
        return EdgepruneError(f"unexpected {type(error).__name__}: {error}; please report it")
    return rows


def _named_progress(profile: DeviceProfile, options: RunOptions) -> RunOptions:
    say = options.progress
    if say is None:
        return options
    return dataclasses.replace(options, progress=lambda line: say(f"{profile.name}: {line}"))


def _failed(
    paths: list[str], profile: DeviceProfile, options: RunOptions, reason: str
) -> list[ModelBenchmark]:
    """Return an entry without figures for each model."""
    figures = [
        *("init_ms", "first_ms", "latency_ms", "relative_latency", "relative_latency_interval"),
        *("peak_memory_bytes", "peak_memory_how", "arena_bytes", "rounds"),
    ]
    nothing: dict[str, Any] = dict.fromkeys(figures)
    return [
        ModelBenchmark(
            model=name,
            device=profile.name,
            kind=profile.kind,
            runtime=profile.runtime,
            runtime_version="",
            threads=options.threads_on(profile),
            path=path,
            bytes=Path(path).stat().st_size,
            sha256=sha256(Path(path)),
            unavailable=dict.fromkeys(figures, "the device failed"),
            error=reason,
            **nothing,
        )
        for name, path in zip(names_for(paths, options), paths, strict=True)
    ]


def _explained(row: ModelBenchmark, profile: DeviceProfile, options: RunOptions) -> ModelBenchmark:
    """Say why a result has no times of operators, though they were asked for."""
    if not options.per_operator or row.per_operator or "per_operator" in row.unavailable:
        return row
    missing = {**row.unavailable, "per_operator": _NOT_PER_OPERATOR[profile.backend]}
    return dataclasses.replace(row, unavailable=missing)


def _with_origin(row: ModelBenchmark, profile: DeviceProfile) -> ModelBenchmark:
    """Add to a result which profile and which edgeprune it comes from."""
    origin = {
        "edgeprune": edgeprune.__version__,
        "backend": profile.backend,
        "profile": None if profile.file is None else str(profile.file),
        "profile_sha256": None if profile.file is None else sha256(profile.file),
    }
    return dataclasses.replace(row, protocol={**row.protocol, **origin})


def _paths(models: ModelPath | Iterable[ModelPath]) -> list[str]:
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
        if not Path(model).exists():
            raise InputError(f"{os.fspath(model)}: no such file; name a .tflite file")
        if not Path(model).is_file():
            raise InputError(f"{os.fspath(model)}: not a file; name a .tflite file")
    return [os.fspath(model) for model in given]


def load_profiles(
    device: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[DeviceProfile]:
    """Return the profiles of one or several devices, by name or file.

    Raises:
      InputError: none is named, one twice, or there is no such profile.
    """
    given = [device] if isinstance(device, str | os.PathLike) else list(device)
    if not given:
        raise InputError("got no device; leave `device` out to measure on this machine")
    profiles = [load_profile(os.fspath(name)) for name in given]
    names = [profile.name for profile in profiles]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"device {shown(repeated[0])} is named twice; name each once")
    return profiles


def _checked_runtime(runtime: str | None, profiles: list[DeviceProfile]) -> str | None:
    """Refuse a runtime that none of the devices could have."""
    known = [name for profile in profiles for name in RUNTIMES[profile.backend] if name != "any"]
    if runtime is not None and runtime not in known:
        raise InputError(
            f"runtime {shown(runtime)} does not run on {', '.join(p.name for p in profiles)}; "
            f"supported: {', '.join(dict.fromkeys(known))}"
        )
    return runtime
