"""TOML written and read back, and what an error shows of a value."""

import tomllib
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.toml_data import build, format_value, read_toml, shown

SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(SCALARS | st.lists(SCALARS, max_size=4))
def test_what_is_written_reads_back(value):
    back = tomllib.loads(f"x = {format_value(value)}")["x"]
    assert back == value
    assert type(back) is type(value)


@given(st.text(max_size=200) | st.integers() | st.binary(max_size=80))
def test_what_an_error_shows_is_one_short_line(value):
    assert len(shown(value)) <= 63
    assert shown(value).isprintable()


def test_a_number_too_long_to_print():
    assert shown(1 << 40_000) == "a number too long to show"


@dataclass(frozen=True)
class Inner:
    counts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Outer:
    rate: float
    inner: Inner = Inner()


def test_build_goes_inside_and_turns_whole_numbers_into_rates():
    assert build(Outer, {"rate": 1, "inner": {"counts": [1, 2]}}, "file") == Outer(
        1.0, Inner((1, 2))
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "file: key 'rate' is missing"),
        ([], "file must be a table, got []"),
        ({"rate": "1"}, "file: rate must be a number; got '1'"),
        ({"rate": True}, "file: rate must be a number; got True"),
        (
            {"rate": 1, "inner": {"counts": [1.5]}},
            "file: inner: counts must be a list of whole numbers; got [1.5]",
        ),
        ({"rate": 1, "ratio": 1}, "file: unknown key 'ratio'; the keys here are rate, inner"),
    ],
)
def test_build_refuses_by_name(values, message):
    with pytest.raises(InputError) as raised:
        build(Outer, values, "file")
    assert str(raised.value) == message


def test_a_file_of_other_bytes(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"x = '\xff'")
    with pytest.raises(InputError, match=r"recipe .* is not TOML"):
        read_toml(path, "recipe")
    with pytest.raises(InputError, match=r"recipe .* does not exist"):
        read_toml(tmp_path / "no.toml", "recipe")
