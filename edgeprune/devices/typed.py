"""JSON to frozen dataclasses, with every type checked: a device may send anything."""

import dataclasses
import json
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from edgeprune.errors import InputError
from edgeprune.toml_data import shown

_T = TypeVar("_T")
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def parse_json(text: str, where: str) -> Any:
    """Parse a JSON document; NaN and infinities, which JSON does not know, are refused.

    Raises:
      InputError: it is no JSON; `where` begins the line.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error


def from_record(kind: type[_T], record: Any, where: str) -> _T:
    """Make a dataclass of a JSON object.

    Args:
      kind: the dataclass; its fields are numbers, text, booleans, literals, tuples, mappings with
        any values, other dataclasses, or one of these or None.
      record: the object.
      where: what to put before the names of the keys in errors.

    Raises:
      InputError: a key is unknown or missing, or its value has the wrong type; it is named.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where} must be an object, got {shown(record)}")
    assert dataclasses.is_dataclass(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := [key for key in record if key not in fields]:
        raise InputError(f"{where}: unknown key {shown(unknown[0])}")
    for name, field in fields.items():
        needed = (field.default, field.default_factory) == (dataclasses.MISSING,) * 2
        if needed and name not in record:
            raise InputError(f"{where}: key '{name}' is missing")
    hints = get_type_hints(kind)
    return kind(
        **{key: _value(hints[key], value, f"{where}: {key}") for key, value in record.items()}
    )


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, UnionType):
        if value is None and NoneType in get_args(hint):
            return None
        (hint,) = (option for option in get_args(hint) if option is not NoneType)
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            raise InputError(
                f"{where} must be one of {', '.join(get_args(hint))}; got {shown(value)}"
            )
        return value
    if origin is tuple:
        return _tuple(get_args(hint), value, where)
    if origin is Mapping:
        _, of = get_args(hint)
        if not isinstance(value, dict) or not all(of is Any or _is(of, v) for v in value.values()):
            raise InputError(f"{where} must be an object; got {shown(value)}")
        return value
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return from_record(hint, value, where)
    if not _is(hint, value):
        raise InputError(f"{where} must be {_WORDS[hint]}; got {shown(value)}")
    return float(value) if hint is float else value


def _tuple(options: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """Check a list: of any length as in tuple[str, ...], or of one as in tuple[float, float]."""
    of = options[0]
    free = options[-1] is Ellipsis
    fits = isinstance(value, list) and (free or len(value) == len(options))
    if not fits or not all(_is(of, item) for item in value):
        count = "" if free else f"{len(options)} items, each "
        raise InputError(f"{where} must be a list of {count}{_WORDS[of]}; got {shown(value)}")
    return tuple(map(float, value)) if of is float else tuple(value)


def _is(kind: Any, value: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        try:
            return isinstance(value, int | float) and math.isfinite(value)
        except OverflowError:  # an integer beyond all floats
            return False
    return isinstance(value, kind)
