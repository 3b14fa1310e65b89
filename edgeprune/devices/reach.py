"""How a device is reached: settings, a kind for each backend.

They are data and stay data. A backend hands each to the program it starts (ssh, adb, vela) as an
argument of its own, without a shell on this machine; what a shell on the device has to see is
quoted there. A host or user that could be taken for an option, or that another program's
configuration could hand to a shell, is refused here.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeprune.errors import InputError
from edgeprune.toml_data import shown

Accelerator = Literal[
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-128",
    "ethos-u85-256",
    "ethos-u85-512",
    "ethos-u85-1024",
    "ethos-u85-2048",
]

# ssh puts hosts and users into the ProxyCommand of the user's configuration, which a shell runs.
_HOST = re.compile(r"[A-Za-z0-9_.:\[][A-Za-z0-9_.:%\[\]-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
_SERIAL = re.compile(r"[A-Za-z0-9_.:\[][A-Za-z0-9_.:%\[\]-]*")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class LocalReach:
    """This machine: nothing to set."""


@dataclass(frozen=True)
class SshReach:
    """By the system's ssh, with the user's own configuration, keys, agent and jump hosts.

    Attributes:
      host: name or address, or a Host of the user's ssh configuration; None until it is set.
      port: None takes ssh's.
      user: None takes ssh's.
      identity: private key file on this machine; None takes ssh's.
      known_hosts: file of known host keys on this machine; None takes ssh's.
      python: the interpreter there.
      folder: in which temporary directories are made there; None takes the system's.
    """

    host: str | None = None
    port: int | None = None
    user: str | None = None
    identity: str | None = None
    known_hosts: str | None = None
    python: str = "python3"
    folder: str | None = None

    def __post_init__(self) -> None:
        _check_pattern("reach.host", self.host, _HOST, "a host name or an address")
        _check_pattern("reach.user", self.user, _USER, "a user name")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise InputError(f"reach.port must be 1 to 65535, got {shown(self.port)}")
        for key in ("identity", "known_hosts", "python", "folder"):
            check_text(f"reach.{key}", getattr(self, key))


@dataclass(frozen=True)
class AdbReach:
    """An Android device by the adb on the PATH.

    Attributes:
      serial: of the device, as `adb devices` prints it; None takes the only one there is.
      folder: in which files are put there.
      benchmark_model: TFLite's benchmark_model for the device's processor, on this machine.
    """

    serial: str | None = None
    folder: str = "/data/local/tmp"
    benchmark_model: str | None = None

    def __post_init__(self) -> None:
        _check_pattern("reach.serial", self.serial, _SERIAL, "a serial as `adb devices` prints it")
        for key in ("folder", "benchmark_model"):
            check_text(f"reach.{key}", getattr(self, key))


@dataclass(frozen=True)
class TflmReach:
    """TFLite Micro's interpreter on this machine: nothing to set."""


@dataclass(frozen=True)
class VelaReach:
    """The Vela compiler's options.

    Attributes:
      accelerator: ``--accelerator-config``.
      system_config: ``--system-config``, a section of the configuration file.
      memory_mode: ``--memory-mode``, likewise.
      config: configuration file on this machine; None takes the ``Arm/vela.ini`` of Vela.
    """

    accelerator: Accelerator
    system_config: str
    memory_mode: str
    config: str | None = None

    def __post_init__(self) -> None:
        for key in ("system_config", "memory_mode"):
            what = "a name of Vela's configuration file"
            _check_pattern(f"reach.{key}", getattr(self, key), _WORD, what)
        check_text("reach.config", self.config)


@dataclass(frozen=True)
class EmulatedReach:
    """A 64-bit Arm user space under qemu on this machine.

    Attributes:
      sandbox: its folder; None takes `default_sandbox()`.
      runtime_version: of the runtime inside; None takes what the sandbox has.
    """

    sandbox: str | None = None
    runtime_version: str | None = None

    def __post_init__(self) -> None:
        check_text("reach.sandbox", self.sandbox)
        _check_pattern("reach.runtime_version", self.runtime_version, _WORD, "a version")

    @property
    def folder(self) -> Path:
        """Where the sandbox is, or would be."""
        return Path(self.sandbox) if self.sandbox else default_sandbox()


Reach = LocalReach | SshReach | AdbReach | TflmReach | VelaReach | EmulatedReach

ON_THIS_MACHINE = ("identity", "known_hosts", "benchmark_model", "config", "sandbox")
"""Settings that are paths here: in a file, relative to the file's folder, or from ``~``."""


def default_sandbox() -> Path:
    """Return the folder of the emulated device where a profile names none."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgeprune" / "arm64-sandbox"


def check_text(key: str, value: str | None) -> None:
    """Refuse text that cannot be a path or a line: empty, unprintable, or like an option.

    Raises:
      InputError: it is one of these.
    """
    if value is None:
        return
    if not value or not value.isprintable() or value.startswith("-"):
        raise InputError(
            f"{key} must be printable text that does not begin with '-'; got {shown(value)}"
        )


def _check_pattern(key: str, value: str | None, pattern: re.Pattern[str], what: str) -> None:
    if value is not None and not pattern.fullmatch(value):
        raise InputError(f"{key} must be {what}; got {shown(value)}")
