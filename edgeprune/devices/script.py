"""tools/bench_on_device.py from the outside: its arguments, and what comes back from it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeprune.devices.measurement import Benchmark, ModelBenchmark
from edgeprune.devices.options import RunOptions, names_for
from edgeprune.devices.process import plain
from edgeprune.devices.profile import DeviceProfile
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError

PROGRESS = "[bench] "
_ERRORS: dict[str, type[EdgepruneError]] = {"input": InputError, "unsupported": UnsupportedError}
_WRONG_USAGE = 2


def bench_script() -> Path:
    """Return tools/bench_on_device.py: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_shipped" / "bench_on_device.py"
    return installed if installed.exists() else package.parent / "tools" / "bench_on_device.py"


def arguments(
    models: Sequence[str],
    files: Sequence[str],
    archives: Sequence[str],
    profile: DeviceProfile,
    options: RunOptions,
) -> list[str]:
    """Return the script's arguments.

    Args:
      models: paths on this machine, from which the models have their names.
      files: the same models' paths where the script runs.
      archives: paths there of the models' operators, for a profile; none if there is to be none.
      profile: of the device.
      options: what the user asked for.
    """
    words = ["--errors-as-json", f"--device={profile.name}", f"--seed={options.seed}"]
    words += [f"--threads={options.threads_on(profile)}"]
    words += ["--quick"] if options.quick else []
    cpus = options.cpus_on(profile)
    for option, value in {
        "--min-seconds": options.min_seconds,
        "--min-runs": options.min_runs,
        "--warmup-seconds": options.warmup_seconds,
        "--starts": options.starts,
        "--loads": options.loads,
        "--cpu": None if cpus is None else ",".join(map(str, cpus)),
        "--runtime": options.runtime_on(profile),
    }.items():
        words += [] if value is None else [f"{option}={value}"]
    words += [f"--name={name}" for name in names_for(models, options)]
    words += [f"--operators={archive}" for archive in archives]
    return [*words, "--", *files]


def results(
    text: str,
    code: int,
    said: str,
    models: Sequence[str],
    profile: DeviceProfile,
    options: RunOptions,
    where: str = "this machine",
) -> list[ModelBenchmark]:
    """Return what the script found, or raise what it said.

    A device may say anything, so what is known here is taken from here: the models' names and
    paths, the device, the kind. What cannot be printed is left out of the rest.

    Args:
      text: its standard output.
      code: its exit code.
      said: the last line on its standard error that is no progress.
      models: paths of the models on this machine.
      profile: of the device.
      options: for the run.
      where: it ran, for errors.

    Raises:
      InputError: a model or an argument is wrong.
      UnsupportedError: the runtime is missing or lacks an operator.
      EdgepruneError: the script died, or what came back is no result.
    """
    if code != 0:
        raise _failure(text, code, said)
    try:
        found = Benchmark.parse(text, f"what came back from {where}")
    except InputError as error:
        raise EdgepruneError(f"{error}; run it again") from error
    if len(found) != len(models):
        raise EdgepruneError(
            f"{where} sent results of {len(found)} models, not of {len(models)}; run it again"
        )
    return [
        replace(
            row,
            model=name,
            path=model,
            device=profile.name,
            kind=profile.kind,
            runtime=one_line(row.runtime),
            runtime_version=one_line(row.runtime_version),
            warnings=tuple(map(one_line, row.warnings)),
            compared={},
            error=None,
        )
        for name, model, row in zip(names_for(models, options), models, found, strict=True)
    ]


def one_line(text: str) -> str:
    """Return text on one line without what could move a terminal's cursor."""
    return " ".join(plain(text).split())


def take_progress(options: RunOptions, line: str) -> bool:
    """Pass a line of the script's standard error on if it tells of progress; say if so."""
    if not line.startswith(PROGRESS):
        return False  # the runtimes' chatter, of use only if all fails
    options.say(line.removeprefix(PROGRESS))
    return True


def too_late(limit: float) -> str:
    """Return what to say of a run that was ended because its time was up."""
    return (
        f"the benchmark did not end within {limit:g} s; measure fewer models or for a shorter "
        "time, or allow more with --timeout"
    )


def _failure(text: str, code: int, said: str) -> EdgepruneError:
    try:
        failure = json.loads(text)
        return _ERRORS.get(failure["kind"], EdgepruneError)(one_line(str(failure["error"])))
    except (ValueError, TypeError, KeyError, RecursionError):
        said = said or "no message"
    if code == _WRONG_USAGE:  # its argument parser: "bench_on_device.py: error: argument ..."
        return InputError(said.partition(": error: ")[2] or said)
    return EdgepruneError(f"the benchmark ended with exit code {code}: {said}")
