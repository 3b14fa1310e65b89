"""Microcontrollers: run models in TFLite Micro's interpreter on this machine, with its kernels.

What that tells: the arena, to the byte; the operators that the runtime lacks; whether the outputs
are LiteRT's. What it does not: any time, since this machine is not the device.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from edgeprune.devices import process
from edgeprune.devices.measurement import ModelBenchmark
from edgeprune.devices.options import RunOptions, names_for
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.rows import Fit, ending, refusal_of_sparse, row
from edgeprune.errors import EdgepruneError, UnsupportedError
from edgeprune.export.micro import dtype_notes, unsupported_operators
from edgeprune.export.tflite import read

SAMPLES = 8
TIMEOUT_SECONDS = 300.0

_NO_TIMES = "this machine's time says nothing about a microcontroller's"
_UNAVAILABLE = {
    "init_ms": _NO_TIMES,
    "first_ms": _NO_TIMES,
    "latency_ms": _NO_TIMES,
    "relative_latency": _NO_TIMES,
    "relative_latency_interval": _NO_TIMES,
    "peak_memory_bytes": "the tensor arena is what a model takes of the RAM: see arena_bytes",
    "peak_memory_how": "peak_memory_bytes is not there",
    "rounds": "nothing is timed",
    "code_bytes": "depends on the device's compiler and on which kernels are linked",
}
_ARENA_HOW = (
    "the smallest that TFLite Micro runs in on this machine, with its reference kernels. What is "
    "in the tail has pointers, larger here than on a 32-bit core; optimized kernels, such as "
    "CMSIS-NN's, may ask for scratch memory that these do not"
)
_NARROW = {
    "flash": "the program's own code comes on top",
    "arena": "the device's optimized kernels may ask for more scratch memory",
}


@dataclass(frozen=True)
class Arena:
    """How much of the tensor arena is used.

    Attributes:
      smallest_bytes: the smallest arena that the model runs in, on this machine.
      used_bytes: of that, once the model is ready; preparing it may take more for a while.
      head_bytes: of these for activations and scratch memory, which share their places.
      tail_bytes: of these for what stays: the interpreter's structures and the kernels' own.
    """

    smallest_bytes: int
    used_bytes: int
    head_bytes: int
    tail_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Outputs beside those of LiteRT's reference kernels, for the same random inputs.

    Attributes:
      samples: that were run.
      values: in all outputs of all samples.
      differing: of these, not equal bit for bit.
      max_difference: the largest absolute one; None where it is not finite.
      max_difference_quanta: in steps of the output's scale; None for outputs that are float.
    """

    samples: int
    values: int
    differing: int
    max_difference: float | None
    max_difference_quanta: int | None

    @property
    def equal(self) -> bool:
        """Whether all values are equal, bit for bit."""
        return self.differing == 0


@dataclass(frozen=True)
class Simulation:
    """What TFLite Micro made of a model.

    Attributes:
      lacking: operators that it has no kernel for, by name.
      arena: None if it did not get that far.
      comparison: None if the model did not run.
      failure: why the model does not run at all, in a line; None if it does.
      incomparable: why there is no comparison, where the arena is known all the same.
      has_loop: whether it has a WHILE.
    """

    lacking: tuple[str, ...] = ()
    arena: Arena | None = None
    comparison: Comparison | None = None
    failure: str | None = None
    incomparable: str | None = None
    has_loop: bool = False


def simulate(
    model: str | os.PathLike[str],
    *,
    samples: int = SAMPLES,
    seconds: float = 10.0,
    seed: int = 0,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Simulation:
    """Run one .tflite model in TFLite Micro, in a process of its own.

    Args:
      model: path of the file.
      samples: random inputs to compare the outputs for, at most.
      seconds: after which no further sample is begun.
      seed: of the inputs.
      timeout_seconds: for all of it.

    Raises:
      InputError: no such file, or no whole .tflite model.
      UnsupportedError: tflite-micro is not installed, or is broken.
    """
    version()
    path = Path(model).absolute()
    graph = read(path)
    if refusal := refusal_of_sparse(graph, "TFLite Micro"):
        return Simulation(lacking=tuple(unsupported_operators(graph)), failure=refusal)
    arguments = [str(path), str(samples), str(seconds), str(seed)]
    said, ended = ask("edgeprune.devices.tflm_worker", arguments, timeout_seconds)
    arena = said.get("arena")
    found = Simulation(
        lacking=tuple(said.get("lacking", ())),
        arena=None
        if arena is None
        else Arena(arena["smallest"], arena["total"], arena["head"], arena["tail"]),
        comparison=None if "comparison" not in said else Comparison(**said["comparison"]),
        incomparable=said.get("incomparable"),
        has_loop=any(op.name == "WHILE" for part in graph.subgraphs for op in part.operators),
    )
    failure: str | None = None
    if found.lacking:
        failure = f"TFLite Micro has no kernel for {', '.join(found.lacking)}; " + (
            "the model was compiled for an Ethos-U: give the one it was made from"
            if "ethos-u" in found.lacking
            else "replace the layers that need it"
        )
    elif "refused" in said:
        hints = dtype_notes(graph)
        failure = "; ".join([f"TFLite Micro refuses it: {said['refused']}", *hints])
    elif ended.code != 0:
        if "stage" not in said:  # it never began
            raise EdgepruneError(f"TFLite Micro's process {ending(ended)}: {ended.said}")
        failure = f"TFLite Micro {ending(ended)} while {said['stage']}"
    return Simulation(**{**vars(found), "failure": failure})


def ask(
    module: str, arguments: Sequence[str], timeout_seconds: float
) -> tuple[dict[str, Any], process.Ended]:
    """Run a worker in a process of its own; return what it said, and how it ended.

    Raises:
      UnsupportedError: tflite-micro is broken.
    """
    # -P: what lies in the folder must not be imported in place of what is installed.
    ended = process.run([sys.executable, "-P", "-m", module, *arguments], timeout_seconds)
    said = _said(ended.output)
    if "broken" in said:
        raise UnsupportedError(
            f"tflite-micro does not load ({said['broken']}); "
            "pip install --force-reinstall 'edgeprune[mcu]'"
        )
    return said, ended


def run(models: Sequence[str], profile: DeviceProfile, options: RunOptions) -> list[ModelBenchmark]:
    """Simulate models for a microcontroller, and check them against its memory.

    A model that does not run has a row without figures, as long as another one runs.

    Args:
      models: paths of .tflite files.
      profile: of a device with backend ``tflm``.
      options: `seed` of the random inputs for which outputs are compared, `min_seconds` after
        which no further one is begun, `timeout_seconds` for one model.

    Returns:
      A row for each model. Its ``details``: ``flash_bytes``, of the model's file (code comes on
      top); ``fits``; ``room``, by memory, with ``limit_bytes`` and ``spare_bytes`` where the
      profile sets a limit; ``arena``, an `Arena` and how it was found; ``unsupported_operators``;
      ``outputs_equal``; ``comparison``, a `Comparison` and with what; ``failure``, a line or
      None.

    Raises:
      InputError: a file is missing or no whole .tflite model.
      UnsupportedError: no model runs, or tflite-micro is not installed.
    """
    installed = version()
    limit = TIMEOUT_SECONDS if options.timeout_seconds is None else options.timeout_seconds
    protocol: dict[str, Any] = {
        "samples": SAMPLES,
        "seconds": options.value("min_seconds"),
        "seed": options.seed,
        "timeout_seconds": limit,
    }
    rows, failures = [], []
    for name, model in zip(names_for(models, options), models, strict=True):
        options.say(f"running {name} in TFLite Micro")
        found = simulate(model, **protocol)
        if found.failure is not None:
            failures.append(f"{name}: {found.failure}")
        rows.append(_row(name, Path(model), profile, installed, found, protocol))
    if failures and len(failures) == len(rows):
        raise UnsupportedError(failures[0])
    return rows


def _row(
    name: str,
    path: Path,
    profile: DeviceProfile,
    installed: str,
    found: Simulation,
    protocol: Mapping[str, Any],
) -> ModelBenchmark:
    unavailable, warnings = dict(_UNAVAILABLE), []
    if found.failure is not None:
        warnings.append(f"{name}: {found.failure}")
    arena = found.arena
    if arena is None:
        unavailable["arena_bytes"] = found.failure or "unknown"
    litert = f"LiteRT's reference kernels, ai-edge-litert {metadata.version('ai-edge-litert')}"
    fit = Fit(name)
    size, limits = path.stat().st_size, profile.limits
    fit.check("flash", size, limits.flash_bytes, _NARROW["flash"])
    needed = None if arena is None else arena.smallest_bytes
    fit.check("arena", needed, limits.largest_arena_bytes, _NARROW["arena"])
    compared = found.comparison
    if compared is None:
        unavailable["outputs_equal"] = found.incomparable or found.failure or "unknown"
    elif not compared.equal:
        # With 0.dev20261023182759: wrong for Keras 3's LSTM, GRU and SimpleRNN that return
        # sequences, in loops; equal to the bit for the same layers unrolled.
        mend = "; build its recurrent layers with unroll=True" if found.has_loop else ""
        warnings.append(f"{name}: {_differences(compared)}{mend}")
    details: dict[str, Any] = {
        "flash_bytes": size,
        "fits": fit.fits,
        "room": fit.room,
        "arena": None if arena is None else {**vars(arena), "how": _ARENA_HOW},
        "unsupported_operators": list(found.lacking),
        "outputs_equal": None if compared is None else compared.equal,
        "comparison": None if compared is None else {**vars(compared), "compared_with": litert},
        "failure": found.failure,
    }
    return row(
        name,
        path,
        profile,
        installed,
        unavailable=unavailable,
        details=details,
        warnings=[*warnings, *fit.warnings],
        protocol=protocol,
        arena_bytes=needed,
    )


def _differences(compared: Comparison) -> str:
    apart = "by what is not finite"
    if compared.max_difference_quanta is not None:
        steps = "step" if compared.max_difference_quanta == 1 else "steps"
        apart = f"by up to {compared.max_difference_quanta} {steps} of the output's scale"
    elif compared.max_difference is not None:
        apart = f"by up to {compared.max_difference:.3g}"
    return (
        f"{compared.differing} of {compared.values} outputs differ from LiteRT's reference "
        f"kernels, {apart}"
    )


def _said(output: str) -> dict[str, Any]:
    """Put together what the worker said, each line an object; the last of a key counts."""
    said: dict[str, Any] = {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError):  # a crash cuts its last line short
            value = json.loads(line)
            said |= value if isinstance(value, dict) else {}
    return said


def version() -> str:
    """Return the version of tflite-micro.

    Raises:
      UnsupportedError: it is not installed.
    """
    if util.find_spec("tflite_micro") is None:
        raise UnsupportedError(
            "TFLite Micro is not installed; pip install 'edgeprune[mcu]' (its releases are "
            "pre-releases: plain pip asks for tflite-micro>=0.dev0)"
        )
    try:
        return metadata.version("tflite-micro")
    except metadata.PackageNotFoundError:
        return "of unknown version"
