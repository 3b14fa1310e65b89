"""Tell what a model file is, and refuse what must not be loaded, before Keras opens it."""

import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgeprune.errors import InputError

_SUPPORTED = "supported: .keras and .h5 files of Keras 3 or tf_keras"
# .keras files are stored uncompressed; what unpacks to far more than this is a trap.
_MAX_EXPANSION = 200
_MAX_CONFIG_BYTES = 256 * 2**20
# Where a config may name classes and functions. tf_keras would import any module it names.
_PACKAGES = ("keras", "tf_keras", "tensorflow_model_optimization", "edgeprune")
_FUNCTION_HOMES = (
    "activations",
    "constraints",
    "initializers",
    "losses",
    "metrics",
    "ops",
    "random",
    "regularizers",
)


def identify(path: Path, *, unsafe: bool) -> Literal["keras", "tf_keras"]:
    """Tell which Keras flavour wrote a model file.

    Args:
      path: a .keras or HDF5 file.
      unsafe: do not look for code in it.

    Raises:
      InputError: it is missing, damaged, something else, or carries code and `unsafe` is False.
    """
    version, config = _read(path)
    flavour: Literal["keras", "tf_keras"] = "keras" if version.startswith("3.") else "tf_keras"
    if not unsafe:
        for entry in _entries(config):
            _refuse_code(entry, flavour, path)
    return flavour


def _read(path: Path) -> tuple[str, Any]:
    """Return the Keras version that wrote a file, and the model's configuration."""
    if path.is_dir():
        raise InputError(
            f"{path} is a directory; a SavedModel holds a graph and no Keras layers: `convert` "
            f"takes it, everything else needs the Keras model; {_SUPPORTED}"
            if (path / "saved_model.pb").is_file()
            else f"{path} is a directory without a saved_model.pb; {_SUPPORTED}, "
            "and to convert also SavedModel directories"
        )
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
    except FileNotFoundError:
        raise InputError(f"model file {path} does not exist; {_SUPPORTED}") from None
    except OSError as error:
        raise InputError(f"model file {path} cannot be read: {error.strerror}") from error
    if not start:
        raise InputError(f"model file {path} is empty; save the model again")
    if start[4:8] == b"TFL3":
        raise InputError(f"{path} is already a .tflite file; give the Keras model it came from")
    if start.startswith(b"PK"):
        _check_suffix(path, (".keras",), "a zip archive")
        return _read_keras(path)
    if start == b"\x89HDF\r\n\x1a\n":
        _check_suffix(path, (".h5", ".hdf5"), "an HDF5 file")
        return _read_hdf5(path)
    raise InputError(
        f"{path} is not a Keras model file: its content is of no known kind; {_SUPPORTED}"
    )


def _check_suffix(path: Path, suffixes: tuple[str, ...], what: str) -> None:
    # Keras picks its reader by the suffix.
    if path.suffix not in suffixes:
        raise InputError(
            f"{path} is {what}, but is not named {' or '.join(suffixes)}; "
            f"if it is a Keras model, rename it to end in {suffixes[0]}"
        )


def _read_keras(path: Path) -> tuple[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                name = PurePosixPath(member.filename.replace("\\", "/"))
                if name.is_absolute() or ".." in name.parts or ":" in member.filename:
                    raise InputError(
                        f"{path} holds a file named '{member.filename}', which points outside "
                        "the archive; do not trust it"
                    )
            unpacked = sum(member.file_size for member in members)
            if unpacked > _MAX_EXPANSION * max(path.stat().st_size, 2**20):
                raise InputError(
                    f"{path} would unpack to {unpacked} bytes, far more than a model saved by "
                    "Keras; do not trust it"
                )
            names = {member.filename: member.file_size for member in members}
            if "config.json" not in names or "metadata.json" not in names:
                raise InputError(
                    f"{path} is a zip archive, but not a Keras model: it has no config.json and "
                    f"metadata.json; {_SUPPORTED}"
                )
            if names["config.json"] + names["metadata.json"] > _MAX_CONFIG_BYTES:
                raise InputError(f"{path} has a config.json too large for any model")
            metadata = json.loads(archive.read("metadata.json"))
            config = json.loads(archive.read("config.json"))
            return str(metadata["keras_version"]), config
    except InputError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,  # an exotic compression
        RuntimeError,  # an encrypted archive
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise _damaged(path, error) from error


def _read_hdf5(path: Path) -> tuple[str, Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "model_config" not in file.attrs:
                raise InputError(
                    f"{path} holds weights or other data, but no model; "
                    "save the whole model with model.save()"
                )
            config = file.attrs["model_config"]
            version = file.attrs.get("keras_version", "2")
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    try:
        return _text(version), json.loads(_text(config))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"model file {path} is damaged or truncated ({first_line(error)}); save or copy it again"
    )


def first_line(error: BaseException, limit: int = 160) -> str:
    """Return an error's message as one short line."""
    line = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _entries(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every dict inside a configuration."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _refuse_code(entry: dict[str, Any], flavour: str, path: Path) -> None:
    name = entry.get("class_name")
    config = entry.get("config")
    if name == "__lambda__" or entry.get("function_type") == "lambda":
        layer = entry.get("name")
        raise InputError(
            f"{path} has a Lambda layer{f' {layer!r}' if layer else ''}, which carries Python "
            "code that would be run; if you trust the file, pass `unsafe=True`, "
            "or replace the layer with a Keras one"
        )
    # Keras 3 restricts what it imports itself; tf_keras does not.
    module = entry.get("module")
    if flavour == "tf_keras" and isinstance(name, str) and isinstance(module, str):
        named = str(config) if name == "function" else name
        if not _may_import(module, named, name == "function", entry.get("registered_name")):
            raise InputError(
                f"{path} names '{module}.{named}', code that is not part of Keras and would be "
                "run; if you trust the file, pass `unsafe=True`"
            )


def _may_import(module: str, name: str, function: bool, registered: Any) -> bool:
    import tf_keras

    # What the user's own program has registered is not imported, and is trusted already.
    known = tf_keras.saving.get_custom_objects()
    if registered in known or name in known:
        return True
    if module == "builtins":
        homes = (getattr(tf_keras, home, None) for home in _FUNCTION_HOMES)
        return any(hasattr(home, name) for home in homes)
    parts = module.split(".")
    if parts[0] not in _PACKAGES or "." in name:
        return False
    return not function or any(part in _FUNCTION_HOMES for part in parts[1:])
