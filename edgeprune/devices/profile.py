"""What is known about a device: how to reach it, what its kernels reward, what fits on it.

Profiles are TOML, one file a device; `edgeprune.devices.lookup` finds and reads them.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from edgeprune.devices.measurement import Kind
from edgeprune.devices.reach import (
    AdbReach,
    EmulatedReach,
    LocalReach,
    Reach,
    SshReach,
    TflmReach,
    VelaReach,
    check_text,
)
from edgeprune.errors import InputError
from edgeprune.toml_data import build, shown

Backend = Literal["local", "ssh", "adb", "tflm", "vela", "emulated"]
Runtime = Literal[
    "any",
    "ai-edge-litert",
    "tflite-runtime",
    "tensorflow",
    "benchmark_model",
    "tflite-micro",
    "ethos-u-vela",
]
Reward = Literal["none", "size", "speed", "both"]
Technique = Literal[
    "float16", "int8", "sparse_float", "sparse_int8", "block_sparsity", "weight_clustering"
]

KINDS: dict[Backend, Kind] = {
    "local": "measured",
    "ssh": "measured",
    "adb": "measured",
    "tflm": "simulated",
    "vela": "predicted",
    "emulated": "simulated",
}
REACHES: dict[Backend, type[Reach]] = {
    "local": LocalReach,
    "ssh": SshReach,
    "adb": AdbReach,
    "tflm": TflmReach,
    "vela": VelaReach,
    "emulated": EmulatedReach,
}
_PYTHON: tuple[Runtime, ...] = ("any", "ai-edge-litert", "tflite-runtime", "tensorflow")
# The first is what a profile has that names none.
RUNTIMES: dict[Backend, tuple[Runtime, ...]] = {
    "local": _PYTHON,
    "ssh": _PYTHON,
    "adb": ("benchmark_model",),
    "tflm": ("tflite-micro",),
    "vela": ("ethos-u-vela",),
    "emulated": _PYTHON,
}
MOST_THREADS = 1024


@dataclass(frozen=True)
class Rewards:
    """What each technique brings on the device, as far as its kernels go.

    ``size``: what is stored there gets smaller. ``speed``: an inference gets faster. None: not
    known. What a particular model gets out of it is for advice to say.

    Attributes:
      float16: weights in half precision.
      int8: weights and activations in 8 bits.
      sparse_float: zeros in float weights, sparse-encoded.
      sparse_int8: zeros in 8-bit weights.
      block_sparsity: zeros that fall in blocks, over what they bring one by one.
      weight_clustering: few distinct weights: look-up tables, or encoded weights.
    """

    float16: Reward | None = None
    int8: Reward | None = None
    sparse_float: Reward | None = None
    sparse_int8: Reward | None = None
    block_sparsity: Reward | None = None
    weight_clustering: Reward | None = None

    def of(self, technique: Technique) -> Reward | None:
        """Return what a technique brings."""
        reward: Reward | None = getattr(self, technique)
        return reward

    @property
    def faster(self) -> frozenset[Technique]:
        """The techniques that bring speed."""
        return frozenset(name for name in get_args(Technique) if self.of(name) in ("speed", "both"))

    @property
    def smaller(self) -> frozenset[Technique]:
        """The techniques that save memory on the device."""
        return frozenset(name for name in get_args(Technique) if self.of(name) in ("size", "both"))


@dataclass(frozen=True)
class Limits:
    """The device's memory; None where it sets no limit worth the name, or none is known.

    Attributes:
      flash_bytes: for the model and the program.
      ram_bytes: in all.
      arena_bytes: the largest tensor arena, where less than all of the RAM is in one piece.
    """

    flash_bytes: int | None = None
    ram_bytes: int | None = None
    arena_bytes: int | None = None

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if value is not None and value < 1:
                raise InputError(f"limits.{key} must be at least 1, got {shown(value)}")

    @property
    def largest_arena_bytes(self) -> int | None:
        """The most that a tensor arena may take."""
        return self.ram_bytes if self.arena_bytes is None else self.arena_bytes


@dataclass(frozen=True)
class DeviceProfile:
    """A device, or a family of them.

    Attributes:
      name: as `--device` takes it.
      description: one line.
      backend: what runs models on it.
      runtime: what runs them there; ``any`` is the first found of ai-edge-litert, tflite-runtime
        and tensorflow.
      threads: of one inference, where the user asks for no other number.
      cpus: numbers of the CPUs to run on; None leaves it to the system.
      channel_multiple: channels in multiples of this fill its kernels.
      rewards: what each technique brings.
      limits: its memory.
      reach: how to reach it, of the class that `REACHES` has for the backend.
      sources: where each statement comes from: path of its key -> a line.
      unsourced: paths of the keys that no source is given for.
      file: it was read from.
    """

    name: str
    description: str
    backend: Backend
    runtime: Runtime
    threads: int = 1
    cpus: tuple[int, ...] | None = None
    channel_multiple: int = 8
    rewards: Rewards = Rewards()
    limits: Limits = Limits()
    reach: Reach = field(default_factory=LocalReach)
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    unsourced: tuple[str, ...] = ()
    file: Path | None = None

    def __post_init__(self) -> None:
        check_text("description", self.description)
        if self.runtime not in RUNTIMES[self.backend]:
            raise InputError(
                f"runtime {shown(self.runtime)} does not run on backend '{self.backend}'; "
                f"supported: {', '.join(RUNTIMES[self.backend])}"
            )
        if not 1 <= self.threads <= MOST_THREADS:
            raise InputError(f"threads must be 1 to {MOST_THREADS}, got {shown(self.threads)}")
        if self.channel_multiple < 1:
            raise InputError(
                f"channel_multiple must be at least 1, got {shown(self.channel_multiple)}"
            )
        if self.cpus is not None and not (self.cpus and min(self.cpus) >= 0):
            raise InputError(f"cpus must be numbers from 0, at least one; got {shown(self.cpus)}")
        if not isinstance(self.reach, REACHES[self.backend]):
            raise InputError(
                f"reach must be {REACHES[self.backend].__name__} for backend '{self.backend}'; "
                f"got {type(self.reach).__name__}"
            )

    @property
    def kind(self) -> Kind:
        """Whether its figures are measured, simulated or predicted."""
        return KINDS[self.backend]

    @classmethod
    def from_dict(
        cls, document: Mapping[str, Any], name: str, where: str, file: Path | None = None
    ) -> "DeviceProfile":
        """Build a profile from nested dicts as TOML gives them; nothing is left to extend.

        Args:
          document: the tables.
          name: of the device.
          where: what to put before the names of the keys in errors.
          file: the document's.

        Raises:
          InputError: a key is unknown or missing, its value has the wrong type or is out of
            range, or a source is given for what is not stated.
        """
        if unknown := [key for key in document if key not in KEYS]:
            raise InputError(
                f"{where}: unknown key {shown(unknown[0])}; the keys here are {', '.join(KEYS)}"
            )
        values = dict(document)
        sources = dict(flatten(values.pop("sources", {}), f"{where}: sources"))
        reach = values.pop("reach", {})
        try:
            head = build(_Head, values, where)
            return cls(
                **{
                    **{key.name: getattr(head, key.name) for key in dataclasses.fields(head)},
                    "runtime": head.runtime or RUNTIMES[head.backend][0],
                },
                name=name,
                reach=build(REACHES[head.backend], reach, f"{where}: reach"),
                sources=_checked_sources(sources, values, where),
                unsourced=tuple(key for key in statements(values) if key not in sources),
                file=file,
            )
        except InputError as error:
            if str(error).startswith(where):
                raise
            raise InputError(f"{where}: {error}") from error


@dataclass(frozen=True)
class _Head:
    """What a file says besides how to reach the device and where it has it all from."""

    description: str
    backend: Backend
    runtime: Runtime | None = None
    threads: int = 1
    cpus: tuple[int, ...] | None = None
    channel_multiple: int = 8
    rewards: Rewards = Rewards()
    limits: Limits = Limits()


KEYS = ("extends", *(key.name for key in dataclasses.fields(_Head)), "reach", "sources")
"""What a file may have at its top."""

_NO_STATEMENTS = ("extends", "description", "backend", "reach", "sources")


def statements(document: Mapping[str, Any]) -> list[str]:
    """Return the path of every key that needs a source: ``threads``, ``rewards.int8``, ..."""
    paths = []
    for key, value in document.items():
        if key not in _NO_STATEMENTS:
            paths += [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key]
    return paths


def flatten(sources: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield (path of a key, source): TOML makes tables of ``rewards.int8 = "..."``.

    Raises:
      InputError: a source is no line of text.
    """
    if not isinstance(sources, dict):
        raise InputError(f"{where} must be a table, got {shown(sources)}")
    for key, value in sources.items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        for last, line in inner:
            path = key if last is None else f"{key}.{last}"
            if not isinstance(line, str) or not line.strip() or not line.isprintable():
                raise InputError(f"{where}: {path} must be one line of text; got {shown(line)}")
            yield path, line


def _checked_sources(
    sources: dict[str, str], values: Mapping[str, Any], where: str
) -> dict[str, str]:
    stated = statements(values)
    if astray := [key for key in sources if key not in stated]:
        raise InputError(
            f"{where}: sources: {shown(astray[0])} is not stated in this profile; "
            f"stated: {', '.join(stated) or 'nothing'}"
        )
    return sources
