"""TOML to frozen dataclasses and back; what does not fit is refused with its key named."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edgeprune.errors import InputError

_SHOWN = 60


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Parse a file.

    Args:
      path: of the file.
      what: it is, for the error's text.

    Raises:
      InputError: it does not exist, cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{what} {path} does not exist") from error
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise InputError(f"{what} {path} cannot be read: it is nested too deeply") from error
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise InputError(f"{what} {path} is not TOML: {error}") from error


def build(kind: type[Any], values: Any, where: str) -> Any:
    """Make a dataclass of what TOML gave.

    Args:
      kind: the dataclass; its fields are numbers, strings, booleans, literals, tuples or mappings
        of these, other dataclasses, or one of them or None.
      values: a table.
      where: what to put before the names of the keys in errors.

    Raises:
      InputError: a key is unknown or missing, or its value has the wrong type; both are named.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a table, got {shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    if unknown := [key for key in values if key not in fields]:
        raise InputError(
            f"{where}: unknown key {shown(unknown[0])}; the keys here are {', '.join(fields)}"
        )
    for name, field in fields.items():
        free = (field.default, field.default_factory) == (dataclasses.MISSING, dataclasses.MISSING)
        if free and name not in values:
            raise InputError(f"{where}: key '{name}' is missing")
    return kind(
        **{key: _value(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    )


def _value(hint: Any, value: Any, where: str) -> Any:
    options = get_args(hint)
    if NoneType in options:
        (hint,) = (option for option in options if option is not NoneType)
        return _value(hint, value, where)
    origin = get_origin(hint)
    if origin is Literal:
        if value not in options:
            raise InputError(f"{where} must be one of {', '.join(options)}; got {shown(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or not all(_is(options[0], item) for item in value):
            raise InputError(f"{where} must be a list of {_MANY[options[0]]}; got {shown(value)}")
        return tuple(value)
    if origin is Mapping:
        if not isinstance(value, dict) or not all(_is(options[1], item) for item in value.values()):
            raise InputError(f"{where} must be a table of {_MANY[options[1]]}; got {shown(value)}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]  # is_dataclass admits instances
    if hint is float and _is(int, value):
        return float(value)
    if not _is(hint, value):
        raise InputError(f"{where} must be {_ONE[hint]}; got {shown(value)}")
    return value


def _is(kind: type[Any], value: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


_ONE = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
_MANY = {int: "whole numbers", str: "strings"}


def shown(value: Any) -> str:
    """Return a value as an error may quote it: on one line, escaped, and not without end."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def format_value(value: Any) -> str:
    """Write a string, number, boolean, tuple or list as TOML."""
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    return repr(value)
