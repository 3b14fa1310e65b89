"""Profiles as tables and plots, read back out of what they are."""

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from svg import SVG, texts, widths

from edgeprune.devices.measurement import ModelBenchmark
from edgeprune.devices.profiling import OperatorTime, profile_of
from edgeprune.errors import InputError
from edgeprune.report.profile import layer_bars, plot_profiles, profile_notes, profile_tables
from edgeprune.report.table import render

BLUE, ORANGE, GREY = "#0072b2", "#e69f00", "#9aa2ab"


def drawn(path, colour):
    """Widths of the bars of a colour, without those that have none."""
    return [width for width in widths(path, colour) if width > 0]


class Names:
    """Where the layers' names would be from."""

    source = "record"


def profile(*operators, whole=None, by_whole=None):
    """A profile of (kind, layer, ms) or, with `by_whole`, (kind, layer, share)."""
    times = [
        OperatorTime((number,), op, layer, None, value)
        if by_whole
        else OperatorTime((number,), op, layer, value, reason=None if value else "x")
        for number, (op, layer, value) in enumerate(operators)
    ]
    return profile_of(times, "how it was", whole, Names, by_whole)


def row(found, **changes):
    one = ModelBenchmark(
        model="net.tflite",
        device="board",
        kind="measured",
        runtime="ai-edge-litert",
        runtime_version="2",
        threads=1,
        init_ms=None,
        first_ms=None,
        latency_ms=None,
        relative_latency=None,
        relative_latency_interval=None,
        peak_memory_bytes=None,
        peak_memory_how=None,
        arena_bytes=None,
        path="net.tflite",
        bytes=1,
        sha256="",
        rounds=None,
        per_operator=found,
    )
    return replace(one, **changes)


SMALL = profile(
    ("CONV_2D", "a", 6.0),
    ("ADD", "a", 2.0),
    ("WHILE", "b", None),
    ("CONV_2D", "c", 12.0),
    whole=25.0,
)


def test_the_table_has_each_operator_the_sum_and_the_whole():
    ((title, columns, rows),) = profile_tables([row(SMALL), row({})])
    assert title == "net.tflite by operator, board: measured with ai-edge-litert 2, 1 thread"
    assert [column.title for column in columns] == [
        "operator",
        "layer",
        "measured ms",
        "share of sum",
    ]
    assert rows == [
        ("CONV_2D", "a", 6.0, pytest.approx(0.3)),
        ("ADD", "a", 2.0, 0.1),
        ("WHILE", "b", None, None),
        ("CONV_2D", "c", 12.0, 0.6),
        ("sum", None, 20.0, 1.0),
        ("whole model", None, 25.0, 1.25),
    ]
    assert "CONV_2D" in render(columns, rows, title)


def test_shares_without_times_have_no_column_of_times():
    shares = profile(("CONV_2D", "a", 0.75), ("ADD", "b", 0.25), by_whole=0.8)
    ((_, columns, rows),) = profile_tables([row(shares, kind="simulated")])
    assert [column.title for column in columns] == ["operator", "layer", "simulated share"]
    assert rows[-2:] == [("sum", None, 1.0), ("whole model", None, 1.25)]


def test_where_an_operator_runs_is_told_if_it_may_differ():
    found = profile_of(
        [
            OperatorTime((0,), "CONV_2D", "a", 1.0, runs_on="NPU"),
            OperatorTime((1,), "SOFTMAX", "b", None, runs_on="CPU", reason="x"),
        ],
        "how",
        1.0,
        Names,
    )
    ((_, columns, rows),) = profile_tables([row(found, kind="predicted")])
    assert [column.title for column in columns][2:] == ["on", "predicted ms", "share of sum"]
    assert rows[1] == ("SOFTMAX", "b", "CPU", None, None)


def test_notes_say_how_once_and_why_not():
    rows = [
        row(SMALL),
        row(SMALL, model="other"),
        row({}, device="mcu", unavailable={"per_operator": "no profiler"}),
        row(SMALL | {"layer_names_from": "file"}, model="bare"),
    ]
    first, why, names = profile_notes(rows)
    assert first == "board: how it was"
    assert why == "mcu: no times of operators: no profiler"
    assert names.startswith("bare: no record of its conversion")


def test_bars_are_as_long_as_the_layers_take(tmp_path):
    plot_profiles([row(SMALL)], tmp_path / "plot.svg")
    blue, orange = (drawn(tmp_path / "plot.svg", colour) for colour in (BLUE, ORANGE))
    # The longest on top; `a` is of both kinds. The legend's patches are below.
    assert blue[1] == pytest.approx(blue[0] * 6 / 12, abs=0.05)
    assert orange[0] == pytest.approx(blue[0] * 2 / 12, abs=0.05)
    shown = texts(tmp_path / "plot.svg")
    for text in ("net.tflite on board", "a", "c", "12 ms, 60.0%", "8 ms, 40.0%", "CONV_2D", "ADD"):
        assert text in shown
    assert "ms, measured: in sum 20 ms; the whole model 25 ms" in shown
    assert not any("WHILE" in text or text == "b" for text in shown)


def test_few_layers_are_all_shown_and_of_many_the_smallest_are_gathered():
    few = profile(*[("ADD", f"layer{number}", 1.0 + number) for number in range(5)])
    assert [bar.name for bar in layer_bars(few)] == [f"layer{n}" for n in (4, 3, 2, 1, 0)]
    many = profile(*[("ADD", f"layer{number:02}", 1.0 + number) for number in range(100)])
    bars = layer_bars(many)
    assert [bar.name for bar in bars[:2]] == ["layer99", "layer98"]
    assert (len(bars), bars[-1].name) == (24, "77 other layers")
    assert bars[-1].size == pytest.approx(sum(range(1, 78)))
    assert sum(bar.size for bar in bars) == pytest.approx(many["sum_ms"])
    edge = profile(*[("ADD", f"layer{number}", 1.0) for number in range(24)])
    assert all("other" not in bar.name for bar in layer_bars(edge))


def test_names_of_a_hundred_layers_do_not_cover_one_another(tmp_path):
    many = profile(*[("ADD", f"layer{number:02}", 1.0 + number) for number in range(100)])
    plot_profiles([row(many)], tmp_path / "plot.svg")
    places = []
    for element in ET.parse(tmp_path / "plot.svg").iter(f"{SVG}text"):
        if re.match(r"layer|77 other", "".join(element.itertext())):
            turned = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", element.get("transform", ""))
            places.append(float(turned[2] if turned else element.get("y")))
    assert len(places) == 24
    places.sort()
    assert min(b - a for a, b in itertools.pairwise(places)) > 8 * 1.2


def test_kinds_beyond_the_colours_share_one(tmp_path):
    kinds = profile(*[(f"OP{number}", f"layer{number}", 9.0 - number) for number in range(9)])
    plot_profiles([row(kinds)], tmp_path / "plot.svg")
    shown = texts(tmp_path / "plot.svg")
    assert "OP5" in shown
    assert "OP6" not in shown
    assert "other operators" in shown
    assert len(drawn(tmp_path / "plot.svg", GREY)) == 3 + 1  # and in the legend


def test_short_times_are_in_microseconds_and_kinds_do_not_share_axes(tmp_path):
    tiny = profile(("CONV_2D", "a", 0.002), whole=0.004)
    shares = profile(("CONV_2D", "a", 1.0), by_whole=1.0)
    rows = [row(tiny), row(shares, kind="simulated", device="emulated"), row({}, device="mcu")]
    plot_profiles(rows, tmp_path / "plot.svg")
    shown = texts(tmp_path / "plot.svg")
    assert "µs, measured: in sum 2 µs; the whole model 4 µs" in shown
    assert "share of the sum, simulated" in shown
    assert "2 µs, 100.0%" in shown
    assert not any("mcu" in text for text in shown)


def test_the_same_profile_gives_the_same_file(tmp_path):
    for name in ("one.svg", "two.svg", "one.png", "two.png"):
        plot_profiles([row(SMALL)], tmp_path / name)
    for suffix in ("svg", "png"):
        one, two = (tmp_path / f"{name}.{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there is no profile to draw: none was asked for"),
        ([row({})], "none was asked for"),
        ([row({}, unavailable={"per_operator": "no profiler"})], "to draw: no profiler"),
        ([row({}, error="it is off")], "to draw: it is off"),
        ([row(profile(("WHILE", "a", None)))], "no profile to draw"),
    ],
)
def test_nothing_to_draw(rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        plot_profiles(rows, tmp_path / "plot.svg")
    assert list(tmp_path.iterdir()) == []
