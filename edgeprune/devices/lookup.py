"""Find and read device profiles: the user's, then those that ship with edgeprune."""

import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.devices.profile import DeviceProfile, flatten, statements
from edgeprune.devices.reach import ON_THIS_MACHINE
from edgeprune.errors import InputError
from edgeprune.toml_data import read_toml, shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_WHAT = "device profile"
_TABLES = ("rewards", "limits", "reach", "sources")


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Return the profile of this name, or read a .toml file.

    A name is looked for in ``./devices``, in the user's configuration and among those that ship.
    ``extends = "NAME"`` in a file takes over all that NAME says and the file does not.

    Raises:
      InputError: no such profile or file, or the file is no profile; the key is named.
    """
    given = str(name_or_path)
    if given.endswith(".toml"):
        return _read(Path(given))
    file = _find(given, ())
    if file is None:
        known = ", ".join(_names())
        raise InputError(
            f"unknown device {shown(given)}; known: {known}; a device of your own is a .toml file "
            f"in ./devices or {user_folder()}, or its path"
        )
    return _read(file, given)


@dataclass(frozen=True)
class Listed:
    """A profile that a name leads to, or what is wrong with its file."""

    name: str
    file: Path
    profile: DeviceProfile | None
    error: str | None = None


def list_profiles() -> list[Listed]:
    """Return all that `load_profile` knows by name, the user's own first."""
    found = []
    for name in _names():
        file = _find(name, ())
        assert file is not None
        try:
            found.append(Listed(name, file, _read(file, name)))
        except InputError as error:
            found.append(Listed(name, file, None, str(error)))
    return found


def folders() -> tuple[Path, ...]:
    """Return where names are looked for, in this order."""
    return Path("devices"), user_folder(), shipped_folder()


def user_folder() -> Path:
    """Return the folder of the user's own profiles, which need not exist."""
    if sys.platform in ("win32", "darwin"):
        import click

        return Path(click.get_app_dir("edgeprune")) / "devices"
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "edgeprune" / "devices"


def shipped_folder() -> Path:
    """Return devices/: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_shipped" / "devices"
    return installed if installed.exists() else package.parent / "devices"


def _names() -> list[str]:
    names = [
        file.stem
        for folder in folders()
        for file in sorted(folder.glob("*.toml"))
        if _NAME.fullmatch(file.stem) and _is_file(file)
    ]
    return list(dict.fromkeys(names))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be looked into
        return False


def _find(name: str, besides: tuple[Path, ...]) -> Path | None:
    """Return the first file of this name: for this processor, if there is one for it."""
    if not _NAME.fullmatch(name):
        return None
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    for folder in folders():
        for file in (folder / f"{name}.{machine}.toml", folder / f"{name}.toml"):
            if _is_file(file) and file.resolve() not in besides:
                return file
    return None


def _read(file: Path, name: str | None = None) -> DeviceProfile:
    name = file.stem if name is None else name
    where = f"{_WHAT} {file}"
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{where}: its file's name is the device's, of letters, digits, '-' and '_'; rename it"
        )
    return DeviceProfile.from_dict(_document(file, ()), name, where, file)


def _document(file: Path, extended: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file, on top of those that it extends."""
    where = f"{_WHAT} {file}"
    if file.exists() and not file.is_file():  # reading a pipe might never end
        raise InputError(f"{where} is not a file")
    document = read_toml(file, _WHAT)
    if "sources" in document:
        document["sources"] = dict(flatten(document["sources"], f"{where}: sources"))
    _anchor(document.get("reach"), file.parent)
    if "extends" not in document:
        return document
    base = document.pop("extends")
    chain = (*extended, file.resolve())
    found = _find(base, chain) if isinstance(base, str) else None
    if found is None:
        raise InputError(
            f"{where}: extends must name another profile; got {shown(base)}; "
            f"known: {', '.join(_names())}"
        )
    merged = _merged(_document(found, chain), document)
    if "description" not in document and (own := _own(document)):
        # The other profile's words would be of a device that this one is not.
        merged["description"] = f"like {base}, but {', '.join(own)}"
    return merged


def _own(document: Mapping[str, Any]) -> list[str]:
    """Write what a file says of the device that differs from what it extends."""
    said = []
    for path in [*(["backend"] if "backend" in document else []), *statements(document)]:
        key, _, inner = path.partition(".")
        said.append(f"{path} = {shown(document[key][inner] if inner else document[key])}")
    return said


def _anchor(reach: Any, folder: Path) -> None:
    """Make paths on this machine absolute, while it is known which file they stand in."""
    if not isinstance(reach, dict):
        return
    for key in ON_THIS_MACHINE:
        value = reach.get(key)
        if isinstance(value, str) and value and value.isprintable():
            try:
                reach[key] = str(folder.absolute() / Path(value).expanduser())
            except RuntimeError as error:
                raise InputError(f"reach.{key}: {error}; got {shown(value)}") from error


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base, **over}
    for key in _TABLES:
        if isinstance(base.get(key), dict) and isinstance(over.get(key), dict):
            merged[key] = {**base[key], **over[key]}
    if over.get("backend", base.get("backend")) != base.get("backend"):
        # Another way to run models has other settings and runtimes.
        for key in {"reach", "runtime"} - set(over):
            merged.pop(key, None)
        if "reach" in over:
            merged["reach"] = over["reach"]
    # What is stated anew no longer comes from where the old statement did.
    renewed = set(statements(over)) - set(over.get("sources", {}))
    stated = set(statements(merged))
    merged["sources"] = {
        key: line
        for key, line in merged.get("sources", {}).items()
        if key in stated and (key not in renewed)
    }
    return merged
