"""Arm Ethos-U: have Vela compile models for the accelerator, and take what it predicts.

Its cycles are a compiler's estimate, of the accelerator alone: what stays on the CPU is named, but
has no time in them.
"""

import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path
from typing import Any

from edgeprune.devices import process
from edgeprune.devices.measurement import ModelBenchmark
from edgeprune.devices.options import RunOptions, names_for
from edgeprune.devices.profile import DeviceProfile
from edgeprune.devices.profiling_vela import vela_profile
from edgeprune.devices.reach import VelaReach
from edgeprune.devices.rows import Fit, ending, refusal_of_sparse, row
from edgeprune.devices.vela_report import (
    NPU_OPERATOR,
    Estimate,
    LayerEstimate,
    failure_text,
    read_report,
)
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError
from edgeprune.export.tflite import read

TIMEOUT_SECONDS = 600.0
SHIPPED_CONFIG = "Arm/vela.ini"

# At the ends of a model with float inputs and outputs; cheap, and left to the CPU always.
_ENDS = ("QUANTIZE", "DEQUANTIZE")
_FAMILY = re.compile(r"ethos_u\d+", re.IGNORECASE)
_PREDICTED = ("inference_ms", "cycles", "sram_bytes", "encoded_weight_bytes")
_NO_RUNS = "one predicted time and no distribution of runs: see details.inference_ms"
_UNAVAILABLE = {
    "init_ms": "Vela predicts an inference, not the start",
    "first_ms": "Vela predicts an inference, not the start",
    "latency_ms": _NO_RUNS,
    "relative_latency_interval": "a prediction does not vary",
    "peak_memory_bytes": "see details.sram_bytes",
    "peak_memory_how": "peak_memory_bytes is not there",
    "arena_bytes": "Vela predicts the accelerator's part of it: see details.sram_bytes",
    "rounds": "nothing is timed",
}


def run(models: Sequence[str], profile: DeviceProfile, options: RunOptions) -> list[ModelBenchmark]:
    """Predict what models take on an Ethos-U.

    A model that Vela refuses has a row without figures, as long as it takes another one.

    Args:
      models: paths of .tflite files; the first is what the others' time is relative to.
      profile: of a device with backend ``vela``.
      options: `timeout_seconds` for one model.

    Returns:
      A row for each model. Its ``details``: ``inference_ms``, ``cycles``, ``sram_bytes``,
      ``flash_bytes`` (the compiled model) and ``encoded_weight_bytes``; ``weights`` in
      ``original_bytes`` and ``encoded_bytes`` as Vela counts them, with tables that it makes
      itself; ``cycles_by_part``, which overlap; ``memory_bytes`` by memory; ``fits``;
      ``room``, by memory, with ``limit_bytes`` and ``spare_bytes`` where the profile sets a
      limit; ``operators``: their ``total``, ``npu_macs``, and ``on_cpu`` each with name and reason;
      ``failure``, a line or None.

    Raises:
      InputError: a file is missing or no whole .tflite model, or the profile names what Vela's
        configuration does not have.
      UnsupportedError: Vela takes no model, or is not installed.
    """
    reach = _reach(profile)
    installed = version()
    seconds = _timeout(options)
    check_reach(reach)
    found: list[Estimate | UnsupportedError] = []
    names = names_for(models, options)
    for name, model in zip(names, models, strict=True):
        options.say(f"compiling {name} with Vela")
        try:
            found.append(estimate(model, reach, timeout_seconds=seconds))
        except UnsupportedError as error:
            found.append(error)
    if all(isinstance(outcome, UnsupportedError) for outcome in found):
        raise UnsupportedError(f"{names[0]}: {found[0]}")
    protocol = {**vars(reach), "timeout_seconds": seconds}
    rows = [
        _row(name, Path(model), profile, installed, outcome, found[0], protocol)
        for name, model, outcome in zip(names, models, found, strict=True)
    ]
    if not options.per_operator:
        return rows
    return [_profiled(row, outcome) for row, outcome in zip(rows, found, strict=True)]


def layers(
    model: str | os.PathLike[str], profile: DeviceProfile, options: RunOptions | None = None
) -> tuple[LayerEstimate, ...]:
    """Return what Vela predicts for each of the operations that it makes of a model.

    Raises:
      InputError, UnsupportedError: as `run`.
    """
    seconds = _timeout(options or RunOptions())
    return estimate(model, _reach(profile), timeout_seconds=seconds).layers


def estimate(
    model: str | os.PathLike[str], reach: VelaReach, *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Estimate:
    """Have Vela compile one .tflite model in a temporary folder, and read its report.

    Args:
      model: path of the file.
      reach: the accelerator and its memories.
      timeout_seconds: after which Vela is ended.

    Raises:
      InputError: no such file, no whole .tflite model, or options that Vela does not know.
      UnsupportedError: Vela refuses the model or crashes on it, or is not installed.
    """
    version()
    check_reach(reach)
    original = read(model)
    if any(operator.name == NPU_OPERATOR for operator in original.subgraphs[0].operators):
        raise UnsupportedError(
            "the model was compiled for an Ethos-U already: give the one it was made from"
        )
    if refusal := refusal_of_sparse(original, "Vela"):
        raise UnsupportedError(f"{refusal}: Vela makes use of zeros by an encoding of its own")
    with tempfile.TemporaryDirectory(prefix="edgeprune-vela-") as name:
        folder = Path(name)
        # Vela names its files after the model's, so that one gets a plain name.
        plain = folder / "model.tflite"
        plain.write_bytes(original.content)
        words: list[str] = []
        # -P: what lies in this folder must not be imported in place of what is installed.
        command = [sys.executable, "-P", "-m", "ethosu.vela", str(plain)]
        command += [f"--output-dir={folder / 'out'}", "--verbose-performance"]
        command += [f"--accelerator-config={reach.accelerator}"]
        command += [f"--system-config={reach.system_config}", f"--memory-mode={reach.memory_mode}"]
        command += [f"--config={_config(reach)}"]

        def keep(line: str) -> bool:
            words.append(line)
            return True

        ended = process.run(command, timeout_seconds, on_line=keep)
        if ended.code != 0:
            raise _failure(ended, words)
        return read_report(folder / "out", original, ended.output.splitlines())


def _failure(ended: process.Ended, words: Sequence[str]) -> EdgepruneError:
    if ended.late:
        return UnsupportedError(
            f"Vela {ending(ended)} on this model; allow more with --timeout, or make it smaller"
        )
    if ended.code < 0:
        return UnsupportedError(
            f"Vela {ending(ended)} on this model: the file is damaged, or has what ethos-u-vela "
            f"{version()} does not survive; convert it again, with --quantize int8 and fixed "
            "shapes, or try another ethos-u-vela"
        )
    kind, text = failure_text(words)
    if kind in ("CliOptionError", "ConfigOptionError"):
        return InputError(f"Vela: {text}")
    return UnsupportedError(f"Vela refuses this model: {text}")


def check_reach(reach: VelaReach) -> None:
    """Look the names up in the configuration file, before any model is compiled.

    Raises:
      InputError: it cannot be read, has no such section, or the system is another accelerator's.
      UnsupportedError: Vela is not installed.
    """
    file = shipped_config() if reach.config is None else Path(reach.config)
    if file.suffix != ".ini":
        raise InputError(f"reach.config must be an .ini file, as Vela asks; got {file}")
    parser = ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Vela's configuration {file} cannot be read: {error.strerror}") from error
    except (ConfigError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"Vela's configuration {file} cannot be read: {line}") from error
    for key, prefix, wanted in (
        ("system_config", "System_Config.", reach.system_config),
        ("memory_mode", "Memory_Mode.", reach.memory_mode),
    ):
        if f"{prefix}{wanted}" not in parser:
            has = [part[len(prefix) :] for part in parser.sections() if part.startswith(prefix)]
            raise InputError(
                f"reach.{key} '{wanted}' is not in {reach.config or SHIPPED_CONFIG}; it has "
                f"{', '.join(has) or 'none'}"
            )
    # Vela itself takes any pair, and predicts with another accelerator's clock and memory.
    family = _FAMILY.match(reach.system_config)
    own = reach.accelerator.rpartition("-")[0].replace("-", "_")
    if family is not None and family[0].lower() != own:
        raise InputError(
            f"reach.system_config '{reach.system_config}' is for another accelerator than "
            f"'{reach.accelerator}'; choose one whose name begins with {own.title()}"
        )


def _config(reach: VelaReach) -> str:
    # Vela looks for a relative path of two parts among its own files.
    return SHIPPED_CONFIG if reach.config is None else str(Path(reach.config).absolute())


def shipped_config() -> Path:
    """Return the configuration file that comes with Vela.

    Raises:
      UnsupportedError: Vela is not installed.
    """
    spec = util.find_spec("ethosu")
    if spec is None or not spec.submodule_search_locations:
        raise UnsupportedError("ethos-u-vela is not installed; pip install 'edgeprune[npu]'")
    return Path(spec.submodule_search_locations[0]) / "config_files" / SHIPPED_CONFIG


def version() -> str:
    """Return the version of Vela.

    Raises:
      UnsupportedError: it is not installed.
    """
    shipped_config()
    try:
        return metadata.version("ethos-u-vela")
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _timeout(options: RunOptions) -> float:
    return TIMEOUT_SECONDS if options.timeout_seconds is None else options.timeout_seconds


def _reach(profile: DeviceProfile) -> VelaReach:
    if not isinstance(profile.reach, VelaReach):
        raise InputError(
            f"{profile.name} is a device with backend '{profile.backend}'; supported here: 'vela'"
        )
    return profile.reach


def _row(
    name: str,
    path: Path,
    profile: DeviceProfile,
    installed: str,
    found: Estimate | UnsupportedError,
    first: Estimate | UnsupportedError,
    protocol: Mapping[str, Any],
) -> ModelBenchmark:
    if isinstance(found, UnsupportedError):
        missing = (*_PREDICTED, "relative_latency")
        return row(
            name,
            path,
            profile,
            installed,
            unavailable={**_UNAVAILABLE, **dict.fromkeys(missing, str(found))},
            details={**dict.fromkeys(_PREDICTED), "fits": None, "failure": str(found)},
            warnings=[f"{name}: {found}"],
            protocol=protocol,
        )
    unavailable, warnings = dict(_UNAVAILABLE), []
    relative, reason = _relative(found, first)
    if reason is not None:
        unavailable["relative_latency"] = reason
    left = _counted([operator.op for operator in found.cpu_operators])
    if not found.cycles:
        unavailable |= dict.fromkeys(_PREDICTED, "no operator of the model runs on the Ethos-U")
        mend = "; convert with int8" if "Float" in found.main_reason else ""
        warnings.append(
            f"{name}: nothing runs on the Ethos-U, all stays on the CPU: {left} "
            f"({found.main_reason}){mend}"
        )
    elif found.cpu_operators:
        warnings.append(
            f"{name}: on the CPU stay {left}; cycles and SRAM are those of the Ethos-U alone"
        )
    fit = Fit(name)
    fit.check("flash", found.compiled_bytes, profile.limits.flash_bytes, "the program comes on top")
    sram = found.memory_bytes["sram"] if found.cycles else None
    fit.check(
        "sram",
        sram,
        profile.limits.largest_arena_bytes,
        "what TFLite Micro keeps in its arena comes on top",
    )
    return row(
        name,
        path,
        profile,
        installed,
        unavailable=unavailable,
        details={
            "inference_ms": found.inference_ms,
            "cycles": found.cycles or None,
            "sram_bytes": sram,
            "flash_bytes": found.compiled_bytes,
            "encoded_weight_bytes": found.encoded_weight_bytes if found.cycles else None,
            "weights": {
                "original_bytes": found.original_weight_bytes,
                "encoded_bytes": found.encoded_weight_bytes,
            },
            "cycles_by_part": dict(found.cycles_by_part),
            "memory_bytes": dict(found.memory_bytes),
            "fits": fit.fits,
            "room": fit.room,
            "operators": {
                "total": found.operators,
                "npu_macs": found.npu_macs,
                "on_cpu": [vars(operator) for operator in found.cpu_operators],
            },
            "failure": None,
        },
        environment={"clock_hz": found.clock_hz},
        warnings=[*warnings, *fit.warnings],
        protocol=protocol,
        relative_latency=relative,
    )


def _profiled(row: ModelBenchmark, found: Estimate | UnsupportedError) -> ModelBenchmark:
    """Add what the operators take, where any of them runs on the accelerator."""
    if isinstance(found, UnsupportedError) or not found.cycles:
        reason = row.unavailable["inference_ms"]
        return replace(row, unavailable={**row.unavailable, "per_operator": reason})
    return replace(row, per_operator=vela_profile(Path(row.path), found))


def _relative(
    found: Estimate, first: Estimate | UnsupportedError
) -> tuple[float | None, str | None]:
    """Return the time by the first model's, or why it would mislead."""
    if isinstance(first, UnsupportedError):
        return None, "Vela refuses the first model"
    if not found.cycles or not first.cycles:
        return None, "one of the two models does not run on the Ethos-U"
    ours, theirs = (
        Counter(operator.op for operator in side.cpu_operators if operator.op not in _ENDS)
        for side in (found, first)
    )
    if ours != theirs:
        apart = _counted(list(((ours - theirs) + (theirs - ours)).elements()))
        return None, f"{apart} on the CPU in one of the two models only; its time is not predicted"
    return found.cycles / first.cycles, None


def _counted(names: Sequence[str]) -> str:
    """Name operators, each once, with their number where there are several."""
    return ", ".join(
        name if count == 1 else f"{count} {name}" for name, count in Counter(names).items()
    )
