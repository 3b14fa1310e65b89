"""How to run a benchmark, whatever device it is for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeprune.devices.process import Stop
from edgeprune.devices.profile import MOST_THREADS, DeviceProfile
from edgeprune.errors import ArgumentError
from edgeprune.toml_data import shown

# As tools/bench_on_device.py has them, whose test compares the two.
DEFAULTS = {"starts": 3, "loads": 20, "warmup_seconds": 0.5, "min_runs": 50, "min_seconds": 10.0}
QUICK = {"starts": 1, "loads": 12, "warmup_seconds": 0.1, "min_runs": 20, "min_seconds": 1.0}

_START_SECONDS = 30  # for one start of one model on a slow board
_LOAD_SECONDS = 5  # likewise, of a process that runs already, with an inference
_MARGIN_SECONDS = 120
_PROFILE_SECONDS = 120  # to load some hundred operators, thrice


@dataclass(frozen=True)
class RunOptions:
    """What a user may ask of a run; what a backend has no use for, it leaves.

    Attributes:
      threads: of one inference; None takes the profile's.
      quick: little time for each model.
      min_seconds: in inference for each model; None as for the others takes what `quick` says.
      min_runs: rounds, at least.
      warmup_seconds: for each model.
      starts: fresh processes in which start-up and memory are measured.
      loads: of all models together, for each of which there is one ratio.
      cpus: numbers of the CPUs to run on; None takes the profile's.
      runtime: to run with, where the device has several; None takes the profile's.
      names: what to call the models; None takes their files' names.
      seed: of the random inputs.
      per_operator: time each operator, too.
      timeout_seconds: after which a device that does not answer is given up; None takes
        `limit_seconds`.
      progress: called with a line of text as the work proceeds.
      stop: ends the programs that a backend runs, from another thread.
    """

    threads: int | None = None
    quick: bool = False
    min_seconds: float | None = None
    min_runs: int | None = None
    warmup_seconds: float | None = None
    starts: int | None = None
    loads: int | None = None
    cpus: tuple[int, ...] | None = None
    runtime: str | None = None
    names: tuple[str, ...] | None = None
    seed: int = 0
    per_operator: bool = False
    timeout_seconds: float | None = None
    progress: Callable[[str], None] | None = None
    stop: Stop = field(default_factory=Stop, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_whole("threads", self.threads, MOST_THREADS)
        _check_whole("min_runs", self.min_runs)
        _check_whole("starts", self.starts)
        _check_whole("loads", self.loads)
        for key in ("min_seconds", "warmup_seconds", "timeout_seconds"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < math.inf:
                raise ArgumentError(f"`{key}` must be seconds, 0 or more; got {shown(value)}")
        if self.cpus is not None and not (self.cpus and min(self.cpus) >= 0):
            raise ArgumentError(
                f"`cpus` must be numbers from 0, at least one; got {shown(self.cpus)}"
            )

    def threads_on(self, profile: DeviceProfile) -> int:
        """Return the threads of one inference on a device."""
        return profile.threads if self.threads is None else self.threads

    def cpus_on(self, profile: DeviceProfile) -> tuple[int, ...] | None:
        """Return the CPUs to run on."""
        return profile.cpus if self.cpus is None else self.cpus

    def runtime_on(self, profile: DeviceProfile) -> str | None:
        """Return the runtime to run with, or None for the first that is there."""
        wanted = self.runtime or profile.runtime
        return None if wanted == "any" else wanted

    def value(self, key: str) -> float:
        """Return what was asked for under a key of `DEFAULTS`, or the default."""
        asked: float | None = getattr(self, key)
        return (QUICK if self.quick else DEFAULTS)[key] if asked is None else asked

    def limit_seconds(self, models: int) -> float:
        """Return how long a device may take in all before it counts as hung.

        Twice the time asked for, since the models differ in speed and each gets its minimum of
        rounds, with room for the starts and loads, and once more for a profile.
        """
        if self.timeout_seconds is not None:
            return self.timeout_seconds
        timed = 2 * (self.value("min_seconds") + self.value("warmup_seconds"))
        profiled = 2 * self.value("min_seconds") + _PROFILE_SECONDS if self.per_operator else 0.0
        started = self.value("starts") * _START_SECONDS + self.value("loads") * _LOAD_SECONDS
        return _MARGIN_SECONDS + models * (timed + profiled + started)

    def say(self, line: str) -> None:
        """Tell of progress, if anyone listens."""
        if self.progress is not None:
            self.progress(line)


def names_for(paths: Sequence[str], options: RunOptions) -> tuple[str, ...]:
    """Return what to call each model in the results.

    Raises:
      ArgumentError: not as many names as models were given.
    """
    if options.names is None:
        return unique_names(paths)
    if len(options.names) != len(paths):
        raise ArgumentError(
            f"got {len(options.names)} names for {len(paths)} models; give each model one"
        )
    return options.names


def unique_names(paths: Sequence[str]) -> tuple[str, ...]:
    """Name each path by as many of its last parts as tell it from the others; repeats by number.

    The same as in tools/bench_on_device.py, which must stand alone; a test compares the two.
    """
    whole = [Path(path).absolute().parts for path in paths]
    names: list[str] = []
    for parts in whole:
        others = [other for other in whole if other != parts]
        length = 1
        while length < len(parts) and any(o[-length:] == parts[-length:] for o in others):
            length += 1
        name = "/".join(parts[-length:])
        seen = whole[: len(names)].count(parts)
        names.append(f"{name} ({seen + 1})" if seen else name)
    return tuple(names)


def _check_whole(key: str, value: int | None, most: float = math.inf) -> None:
    if value is not None and not 1 <= value <= most:
        upto = f" to {most}" if most < math.inf else " on"
        raise ArgumentError(f"`{key}` must be a whole number from 1{upto}; got {shown(value)}")
