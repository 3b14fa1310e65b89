"""Benchmark on an Android device: TFLite's benchmark_model and the models go there by adb.

Written after the documentation and the sources of adb, Android and benchmark_model, and tested
with stand-ins that print what these print; no phone was at hand.
"""

import contextlib
import math
import re
import secrets
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeprune.devices import benchmark_model, process, script
from edgeprune.devices.benchmark_model import ROUNDS, Node, Run
from edgeprune.devices.measurement import ModelBenchmark
from edgeprune.devices.options import RunOptions, names_for
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.profiling import doubts
from edgeprune.devices.profiling_xnnpack import nodes_profile
from edgeprune.devices.reach import AdbReach
from edgeprune.devices.reachable import probe
from edgeprune.devices.remote import remote_command, shell_script
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError
from edgeprune.files import sha256

_CALL_SECONDS = 60
_START_SECONDS = 2  # of a process by adb
_MOST_BYTES = 1 << 22
_KILLED = 128

# Old devices do not hand exit codes on, so the shell there prints it; errors join the output.
_WRAP = '"$@" 2>&1; printf "\\n%s %s\\n" "$0" "$?"'
_ENVIRONMENT = (
    "getprop; for f in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor; do "
    'printf "governor %s\\n" "$(cat "$f")"; done; '
    'for f in /sys/devices/system/cpu/cpu[0-9]*; do printf "core %s\\n" "$f"; done'
)
_PROPERTY = re.compile(r"^\[([^\]]*)\]: \[([^\]]*)\]$", re.MULTILINE)
_STATUS = re.compile(r"^Thermal Status: (\d+)", re.MULTILINE)
_TEMPERATURE = re.compile(r"Temperature\{mValue=(-?[0-9]+(?:\.[0-9]+)?), mType=0,")
_CURRENT = "Current temperatures from HAL:"
# android.os.PowerManager.THERMAL_STATUS_*
_STATES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
_NO_ROOM = ("No space left", "Disk quota exceeded", "Read-only file system")

_NO_P90 = "benchmark_model prints no times of single inferences, from which it could be had"
_NO_MEDIAN = "this benchmark_model prints no median; a newer one does"


@dataclass
class _Device:
    """An Android device with a folder on it."""

    reach: AdbReach
    options: RunOptions
    deadline: float
    folder: str = field(default="", init=False)

    def adb(self, *words: str, seconds: float = _CALL_SECONDS, stops: bool = True) -> process.Ended:
        serial = ["-s", self.reach.serial] if self.reach.serial else []
        stop = self.options.stop if stops else None
        return process.run(["adb", *serial, *words], seconds, stop=stop, most_bytes=_MOST_BYTES)

    def shell(
        self, words: Sequence[str], seconds: float = _CALL_SECONDS, *, stops: bool = True
    ) -> tuple[str, int]:
        """Run a program there; return what it printed, errors included, and its exit code."""
        mark = secrets.token_hex(8)
        # The first word after the script is the shell's $0: here the mark.
        line = remote_command(["sh", "-c", _WRAP, mark, *words])
        ended = self.adb("shell", line, seconds=seconds, stops=stops)
        text = ended.output.replace("\r\n", "\n")
        framed = re.search(rf"^(.*)\n{mark} (\d+)\s*$", text, re.DOTALL)
        if ended.late:
            raise EdgepruneError(f"the device did not answer within {seconds:g} s")
        if ended.endless:
            raise EdgepruneError("the device sent text without end; run it again")
        if framed is None:
            raise EdgepruneError(
                f"adb lost the device ({ended.said or ended.ending}); check the cable and "
                "`adb devices`, then run again"
            )
        return framed[1], int(framed[2])

    def push(self, source: Path, name: str) -> str:
        """Copy a file into the folder there, and return its path."""
        target = f"{self.folder}/{name}"
        seconds = _CALL_SECONDS + source.stat().st_size / 1_000_000
        ended = self.adb("push", str(source.absolute()), target, seconds=seconds)
        said = _reason(f"{ended.output}\n{ended.said}")
        if any(words in said for words in _NO_ROOM):
            raise EdgepruneError(
                f"no room for {source.name} in {self.folder} ({said}); make some, or set "
                "reach.folder"
            )
        if ended.code != 0 or ended.late:
            what = "it took too long" if ended.late else said or ended.ending
            raise EdgepruneError(f"adb push of {source.name} failed: {what}")
        return target

    def left(self) -> float:
        """Return the seconds until the run is given up."""
        return max(self.deadline - time.monotonic(), 0.1)


@dataclass(frozen=True)
class _State:
    """What may change while it runs."""

    temperature_c: float | None
    thermal_status: int | None


def run(models: Sequence[str], profile: DeviceProfile, options: RunOptions) -> list[ModelBenchmark]:
    """Time .tflite models on an Android device, in turns, and compare them with the first.

    benchmark_model times one model a process. So each model has `starts` runs for start-up and
    memory, then ten rounds in an order that rotates and reverses, in each of which it has a tenth
    of its time. The relative latency is the median over the rounds of the model's typical time
    (the median if benchmark_model prints it, else the mean) by the first's in the same round. Each
    run of it loads the model anew, so that the interval over the rounds has in it what differs
    from load to load.

    Args:
      models: paths on this machine.
      profile: of a device with backend ``adb``.
      options: for the run; `seed` and `runtime` have no use here.

    Returns:
      A row for each model; ``details`` has ``peak_footprint_bytes``, of the whole process, and
      ``round_figure``, which of median and mean the relative latency is of.

    Raises:
      InputError: a model is not usable.
      UnsupportedError: benchmark_model lacks an operator, or is for another processor.
      EdgepruneError: the device cannot be reached, has no room, or did not end in time.
    """
    reach = profile.reach
    assert isinstance(reach, AdbReach)
    (found,) = probe([profile])
    if not found.reachable:
        raise EdgepruneError(found.reason)
    assert reach.benchmark_model is not None
    limit = options.limit_seconds(len(models))
    if options.timeout_seconds is None:
        limit += ROUNDS * len(models) * (_START_SECONDS + options.value("warmup_seconds"))
    device = _Device(reach, options, time.monotonic() + limit)
    said, code = device.shell(["mktemp", "-d", f"{reach.folder}/edgeprune-XXXXXXXX"])
    folder = said.strip()
    if code != 0 or not folder.startswith("/") or not folder.isprintable():
        raise EdgepruneError(
            f"no temporary folder can be made in {reach.folder} ({_reason(said)}); set reach.folder"
        )
    device.folder = folder
    try:
        return _measure(device, models, profile, Path(reach.benchmark_model))
    except EdgepruneError as error:
        if device.deadline <= time.monotonic():
            raise EdgepruneError(script.too_late(limit)) from error
        raise
    finally:
        with contextlib.suppress(EdgepruneError):  # the device is gone, which is told already
            device.shell(["rm", "-rf", "--", folder], stops=False)


def _measure(
    device: _Device, models: Sequence[str], profile: DeviceProfile, binary: Path
) -> list[ModelBenchmark]:
    options = device.options
    names = names_for(models, options)
    program = device.push(binary, "benchmark_model")
    device.shell(["chmod", "755", program])
    files = []
    for number, model in enumerate(models):
        options.say(f"copying {names[number]}")
        files.append(device.push(Path(model), f"model-{number}.tflite"))
    environment, missing = _environment(device)
    command = _pinned(program, options.cpus_on(profile))
    threads = options.threads_on(profile)
    before = _state(device)

    def once(number: int, **asked: Any) -> Run:
        arguments = benchmark_model.flags(files[number], threads, **asked)
        return _once(device, [*command, *arguments], models[number])

    starts: list[list[Run]] = [[] for _ in models]
    for _ in range(round(options.value("starts"))):
        for number in range(len(models)):
            options.say(f"{names[number]}: start-up and memory, alone")
            starts[number].append(once(number, runs=1, seconds=0, warm_up_seconds=0, memory=True))
    share: dict[str, Any] = {
        "runs": math.ceil(options.value("min_runs") / ROUNDS),
        "seconds": options.value("min_seconds") / ROUNDS,
        "warm_up_seconds": options.value("warmup_seconds"),  # each run is a new process
    }
    rounds: list[list[Run]] = [[] for _ in models]
    plural = "s" if len(models) > 1 else ""
    for round_number in range(ROUNDS):
        done = round_number / ROUNDS
        options.say(f"measuring {len(models)} model{plural}, interleaved: {done:.0%}")
        for number in benchmark_model.order(round_number, len(models)):
            rounds[number].append(once(number, **share))
    after = _state(device)
    profiles = [
        _profile(device, [*command, *benchmark_model.flags(file, threads, **share)], model)
        for file, model in zip(files, models, strict=True)
        if options.per_operator
    ]
    environment |= _pairs(before, after, missing)
    warnings = _doubts(environment, after, [one.timed.typical for one in rounds[0]])
    common = {
        "device": profile.name,
        "kind": profile.kind,
        "runtime": profile.runtime,
        "runtime_version": f"sha256 {sha256(binary)[:12]}",
        "threads": threads,
        "environment": environment,
        "warnings": tuple(warnings),
        "protocol": {
            **{key: options.value(key) for key in ("starts", "min_runs", "min_seconds")},
            "warmup_seconds": options.value("warmup_seconds"),
            "threads": threads,
            "cpu": options.cpus_on(profile),
            "rounds": ROUNDS,
            "flags": benchmark_model.flags("MODEL", threads, **share),
            "binary_sha256": sha256(binary),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    rows = [
        _row(name, Path(model), starts[number], rounds[number], rounds[0], missing, common)
        for number, (name, model) in enumerate(zip(names, models, strict=True))
    ]
    if not options.per_operator:
        return rows
    return [_profiled(row, found) for row, found in zip(rows, profiles, strict=True)]


def _profile(device: _Device, command: Sequence[str], model: str) -> list[Node] | str:
    """Return what benchmark_model tells of a model's operators, or why it tells nothing."""
    device.options.say(f"timing each operator of {Path(model).name}")
    try:
        said = _said(device, [*command, benchmark_model.PER_OPERATOR], model)
        return benchmark_model.parse_nodes(said, model)
    except EdgepruneError as error:  # the times of the whole models are not to be lost for it
        return str(error)


def _profiled(row: ModelBenchmark, found: list[Node] | str) -> ModelBenchmark:
    if not isinstance(found, str):
        try:
            profile = nodes_profile(Path(row.path), found, row.typical_ms)
        except InputError as error:  # benchmark_model took the file
            found = str(error)
        else:
            notes = doubts(row.model, profile)
            return replace(row, per_operator=profile, warnings=(*row.warnings, *notes))
    return replace(row, unavailable={**row.unavailable, "per_operator": found})


def _row(
    name: str,
    model: Path,
    starts: list[Run],
    rounds: list[Run],
    first: list[Run],
    missing: dict[str, str],
    common: dict[str, Any],
) -> ModelBenchmark:
    latency = benchmark_model.pooled([one.timed for one in rounds])
    unavailable = {
        **missing,
        "arena_bytes": "this runtime does not report its arena",
        "latency_ms.p90": _NO_P90,
    }
    if latency.median is None:
        unavailable["latency_ms.median"] = _NO_MEDIAN
    times = [one.timed.typical for one in rounds]
    ratios = [
        one.timed.typical / max(base.timed.typical, 1e-6)
        for one, base in zip(rounds, first, strict=True)
    ]
    growth = [start.growth_bytes for start in starts if start.growth_bytes is not None]
    peaks = [start.peak_bytes for start in starts if start.peak_bytes is not None]
    if not growth:
        unavailable["peak_memory_bytes"] = "benchmark_model told no memory on this device"
    return ModelBenchmark(
        model=name,
        init_ms=statistics.median(start.init_ms for start in starts),
        first_ms=statistics.median(start.warm_up.first for start in starts),
        latency_ms=latency,
        relative_latency=statistics.median(ratios),
        relative_latency_interval=benchmark_model.median_interval(ratios),
        peak_memory_bytes=statistics.median_low(growth) if growth else None,
        peak_memory_how="ru_maxrss of a fresh process, growth from its start" if growth else None,
        arena_bytes=None,
        path=str(model),
        bytes=model.stat().st_size,
        sha256=sha256(model),
        rounds=len(rounds),
        unavailable=unavailable,
        details={
            "peak_footprint_bytes": statistics.median_low(peaks) if peaks else None,
            "round_figure": "mean" if latency.median is None else "median",
            "latency_interval_975_ms": benchmark_model.median_interval(
                times, benchmark_model.WITHIN_975
            ),
            "relative_interval_975": benchmark_model.median_interval(
                ratios, benchmark_model.WITHIN_975
            ),
        },
        **common,
    )


def _once(device: _Device, command: Sequence[str], model: str) -> Run:
    return benchmark_model.parse(_said(device, command, model), model)


def _said(device: _Device, command: Sequence[str], model: str) -> str:
    """Run benchmark_model once, and return what it printed."""
    said, code = device.shell(command, device.left())
    if "not executable" in said or "Exec format error" in said or "exec format error" in said:
        raise UnsupportedError(
            f"benchmark_model is not for this device's processor ({_reason(said)}); set "
            "reach.benchmark_model to the one that is"
        )
    if code > _KILLED:
        raise EdgepruneError(
            f"{model}: benchmark_model was ended by signal {code - _KILLED} on the device; its "
            "memory may be too small, or the file damaged"
        )
    if code != 0:
        benchmark_model.parse(said, model)  # which tells more, where the model is to blame
        raise EdgepruneError(f"{model}: benchmark_model ended with exit code {code}")
    return said


def _pinned(program: str, cpus: tuple[int, ...] | None) -> list[str]:
    """Return the words that start it, on these CPUs; Android's taskset takes a mask."""
    if cpus is None:
        return [program]
    return ["taskset", f"{sum(1 << cpu for cpu in set(cpus)):x}", program]


def _environment(device: _Device) -> tuple[dict[str, Any], dict[str, str]]:
    said, _ = device.shell(shell_script(_ENVIRONMENT))
    properties = dict(_PROPERTY.findall(said))

    def told(*names: str) -> str | None:
        return next((properties[name] for name in names if properties.get(name)), None)

    lines = [process.plain(line) for line in said.splitlines()]
    governors = {line.removeprefix("governor ") for line in lines if line.startswith("governor ")}
    release = told("ro.build.version.release")
    found = {
        "cpu": told("ro.soc.model", "ro.board.platform", "ro.hardware"),
        "machine": told("ro.product.cpu.abi"),
        "model": " ".join(filter(None, (told("ro.product.manufacturer"), told("ro.product.model"))))
        or None,
        "cores": sum(line.startswith("core ") for line in lines) or None,
        "governor": sorted(governors - {""}) or None,
        "platform": f"Android {release} (API {told('ro.build.version.sdk')})" if release else None,
        "build": told("ro.build.fingerprint"),
    }
    missing = {
        f"environment.{key}": "scaling_governor cannot be read there"
        if key == "governor"
        else "getprop does not tell"
        for key, value in found.items()
        if value is None
    }
    return found, missing


def _state(device: _Device) -> _State:
    """Ask Android's thermal service, which exists from Android 10 on and may refuse."""
    said, _ = device.shell(["dumpsys", "thermalservice"])
    status = _STATUS.search(said)
    # What stands before is cached and may be old.
    now = said.partition(_CURRENT)[2].partition("Current cooling devices")[0]
    degrees = [float(value) for value in _TEMPERATURE.findall(now)]
    return _State(max(degrees, default=None), int(status[1]) if status else None)


def _pairs(before: _State, after: _State, missing: dict[str, str]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for key in ("temperature_c", "thermal_status"):
        values = getattr(before, key), getattr(after, key)
        pairs[key] = None if None in values else dict(zip(("before", "after"), values, strict=True))
        if pairs[key] is None:
            missing[f"environment.{key}"] = "dumpsys thermalservice does not tell"
    return pairs


def _doubts(environment: dict[str, Any], after: _State, first: Sequence[float]) -> list[str]:
    found = []
    change = benchmark_model.drift(first)
    if change:
        found.append(
            f"the first model's own time {'rose' if change > 0 else 'fell'} by {abs(change):.0%} "
            "from the first third of the rounds to the last: the device throttles or warms up, "
            "or other work came and went; trust the ratios more than the milliseconds"
        )
    if after.thermal_status:
        state = _STATES[min(after.thermal_status, len(_STATES) - 1)]
        found.append(f"Android reports thermal status {after.thermal_status} ({state}): cool it")
    governors = environment["governor"] or []
    if any(governor != "performance" for governor in governors):
        found.append(f"governor {', '.join(governors)}: the clock moves")
    return found


def _reason(said: str) -> str:
    """Return the line that says most: adb's error, else the last."""
    lines = [line.strip() for line in process.plain(said).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no message"])[-1]
