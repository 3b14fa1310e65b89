"""Rows of a benchmark for devices that are not timed: what TFLite Micro and Vela have in common."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.devices.measurement import ModelBenchmark
from edgeprune.devices.process import Ended
from edgeprune.devices.profile import DeviceProfile
from edgeprune.export.tflite import TfliteModel
from edgeprune.files import sha256

# Less than this share of a memory left over is worth a word.
_NARROW = 0.1


def row(
    name: str,
    path: Path,
    profile: DeviceProfile,
    version: str,
    *,
    unavailable: Mapping[str, str],
    details: Mapping[str, Any],
    warnings: Sequence[str] = (),
    protocol: Mapping[str, Any],
    arena_bytes: int | None = None,
    relative_latency: float | None = None,
    environment: Mapping[str, Any] | None = None,
) -> ModelBenchmark:
    """Return a row without any time of a run.

    Args:
      name: of the model.
      path: of its file.
      profile: of the device.
      version: of the profile's runtime.
      unavailable: missing figure -> why.
      details: figures that other devices do not have.
      warnings: what to know before trusting the figures.
      protocol: what repeats the run.
      arena_bytes: TFLite Micro's.
      relative_latency: predicted time by that of the first model.
      environment: of the device.
    """
    return ModelBenchmark(
        model=name,
        device=profile.name,
        kind=profile.kind,
        runtime=profile.runtime,
        runtime_version=version,
        threads=1,
        init_ms=None,
        first_ms=None,
        latency_ms=None,
        relative_latency=relative_latency,
        relative_latency_interval=None,
        peak_memory_bytes=None,
        peak_memory_how=None,
        arena_bytes=arena_bytes,
        path=str(path),
        bytes=path.stat().st_size,
        sha256=sha256(path),
        rounds=None,
        environment=dict(environment or {}),
        warnings=tuple(warnings),
        unavailable=dict(unavailable),
        details=dict(details),
        protocol=dict(protocol),
    )


def ending(ended: Ended) -> str:
    """Say how a program ended that should have ended well."""
    if ended.late:
        return "was stopped, since its time was up,"
    if ended.endless:
        return "was stopped, since it printed without end,"
    if ended.code >= 0:
        return f"ended with exit code {ended.code}"
    try:
        return f"crashed ({signal.Signals(-ended.code).name})"
    except ValueError:  # a signal without a name
        return f"crashed (signal {-ended.code})"


def refusal_of_sparse(model: TfliteModel, runtime: str) -> str | None:
    """Say why a model with sparse-encoded weights must not be given to a runtime; None for others.

    TFLite Micro and Vela take what is stored of such weights for all of them, and read on beyond.
    """
    if all(tensor.sparsity is None for graph in model.subgraphs for tensor in graph.tensors):
        return None
    return (
        f"its weights are sparse-encoded, which {runtime} does not read; convert with --sparse off"
    )


class Fit:
    """Compares what a model needs with what the device has, memory by memory.

    Attributes:
      room: memory -> ``limit_bytes``, and ``spare_bytes``, negative if the model needs more.
      warnings: of what is too much, or nearly.
    """

    def __init__(self, name: str) -> None:
        """Take the model's name, for the warnings."""
        self.name = name
        self.room: dict[str, dict[str, int | None]] = {}
        self.warnings: list[str] = []
        self._verdicts: list[bool | None] = []

    def check(self, memory: str, needed: int | None, limit: int | None, narrow: str) -> None:
        """Compare one memory, and add it to `room`.

        Args:
          memory: ``flash``, ``arena`` or ``sram``.
          needed: bytes; None where they are not known.
          limit: bytes; None where the device sets none.
          narrow: what may yet be needed beyond that.
        """
        if limit is None:
            return
        spare = None if needed is None else limit - needed
        self.room[memory] = {"limit_bytes": limit, "spare_bytes": spare}
        self._verdicts.append(None if spare is None else spare >= 0)
        if spare is None or needed is None:
            return
        if spare < 0:
            self.warnings.append(
                f"{self.name} does not fit: it needs {needed} bytes of {memory}, the device has "
                f"{limit}, {-spare} fewer"
            )
        elif spare < _NARROW * limit:
            self.warnings.append(
                f"{self.name} leaves {spare} of {limit} bytes of {memory}; {narrow}"
            )

    @property
    def fits(self) -> bool | None:
        """Whether it all fits; None where that is not known, or nothing limits it."""
        if False in self._verdicts:
            return False
        return True if self._verdicts and None not in self._verdicts else None
