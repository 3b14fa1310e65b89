"""Plots, read back out of the files they are."""

import itertools
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from svg import SVG, texts, widths

from edgeprune.errors import InputError
from edgeprune.report.plots import ChannelBar, ScoreBar, check_plot, plot_channels, plot_scores

BEFORE, AFTER = "#d9dee4", "#0072b2"


def test_bars_are_as_long_as_there_are_channels(tmp_path):
    bars = [ChannelBar("stem", 16, 8), ChannelBar("block/conv", 64, 48), ChannelBar("head", 32, 32)]
    plot_channels(bars, tmp_path / "plot.svg", "1,000 → 600 parameters")
    # The legend's two patches come last, at the bottom, and are not of the scale.
    before = widths(tmp_path / "plot.svg", BEFORE)[:3]
    after = widths(tmp_path / "plot.svg", AFTER)[:3]
    assert [width / before[1] * 64 for width in before] == pytest.approx([16, 64, 32], abs=0.01)
    assert [width / before[1] * 64 for width in after] == pytest.approx([8, 48, 32], abs=0.01)
    shown = texts(tmp_path / "plot.svg")
    for text in ("stem", "block/conv", "head", "16 → 8", "64 → 48", "32", "before", "after"):
        assert text in shown
    assert "1,000 → 600 parameters" in shown


def test_every_name_of_a_deep_network_is_there_and_none_covers_another(tmp_path):
    bars = [ChannelBar(f"stage_{number}/conv", 64, 32) for number in range(150)]
    plot_channels(bars, tmp_path / "plot.svg", "150 groups")
    places = {}
    for element in ET.parse(tmp_path / "plot.svg").iter(f"{SVG}text"):
        text = "".join(element.itertext())
        if text.startswith("stage_"):
            assert "8px" in element.get("style")
            turned = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", element.get("transform", ""))
            x, y = turned.groups() if turned else (element.get("x"), element.get("y"))
            places[text] = float(x), float(y)
    assert sorted(places) == sorted(bar.name for bar in bars)
    columns = {}
    for x, y in places.values():
        columns.setdefault(next((c for c in columns if abs(c - x) < 90), x), []).append(y)
    assert [len(rows) for rows in columns.values()] == [38, 38, 38, 36]
    for rows in columns.values():
        rows.sort()
        assert min(low - high for high, low in itertools.pairwise(rows)) > 8 * 1.2


def test_long_paths_keep_the_layers_own_name(tmp_path):
    name = "encoder/" + "nested/" * 10 + "conv_final"
    plot_channels([ChannelBar(name, 8, 4)], tmp_path / "plot.svg", "")
    (shown,) = [text for text in texts(tmp_path / "plot.svg") if "…" in text]
    assert len(shown) == 34
    assert shown.startswith("encoder/")
    assert shown.endswith("nested/conv_final")


def test_scores_show_mean_spread_and_what_they_took(tmp_path):
    bars = [
        ScoreBar("unpruned", "30 epochs", (0.90, 0.92), 0.91, 0.01414),
        ScoreBar("scratch-B", "61 epochs", (0.93, 0.95), 0.94, 0.01414),
    ]
    plot_scores(bars, tmp_path / "plot.svg", "accuracy", "Ways")
    shown = texts(tmp_path / "plot.svg")
    for text in ("unpruned", "30 epochs", "scratch-B", "61 epochs", "0.91", "0.94", "Ways"):
        assert text in shown
    assert any(text.startswith("accuracy on the validation data") for text in shown)


def test_one_seed_has_no_spread(tmp_path):
    bars = [ScoreBar("unpruned", "", (0.9,), 0.9, None), ScoreBar("pruned", "", (0.9,), 0.9, None)]
    plot_scores(bars, tmp_path / "plot.svg", "accuracy", "Ways")
    assert any("one seed" in text for text in texts(tmp_path / "plot.svg"))
    assert "standard deviation" not in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_figures_give_the_same_file(tmp_path, suffix):
    for name in ("one", "two"):
        plot_channels([ChannelBar("conv", 8, 4)], tmp_path / f"{name}{suffix}", "title")
    one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one{suffix}", f"two{suffix}"]


def test_png_is_sharp_enough_for_a_report(tmp_path):
    plot_channels([ChannelBar("conv", 8, 4)], tmp_path / "plot.png", "title")
    head = (tmp_path / "plot.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, _ = struct.unpack(">II", head[16:])
    assert width == 6 * 160


def test_nothing_to_show_is_still_a_plot(tmp_path):
    plot_channels([], tmp_path / "plot.svg", "nothing left")
    assert "nothing left" in texts(tmp_path / "plot.svg")


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "plot.keras"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"cannot draw a plot as .*; supported: \.png, \.svg"):
        check_plot(tmp_path / name)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"folder .* does not exist"):
        check_plot(tmp_path / "absent" / "plot.png")


DRAW = """
import sys
from pathlib import Path
{before}
from edgeprune.errors import UnsupportedError
from edgeprune.report.plots import ChannelBar, plot_channels
try:
    plot_channels([ChannelBar("conv", 8, 4)], Path(sys.argv[1]), "title")
except UnsupportedError as error:
    print(error)
print("matplotlib.pyplot" in sys.modules, "tensorflow" in sys.modules)
"""


def drawn(path, before):
    command = [sys.executable, "-c", DRAW.format(before=before), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_no_display_and_no_tensorflow_is_needed(tmp_path):
    assert drawn(tmp_path / "plot.png", "import os; os.environ.pop('DISPLAY', None)") == [
        "False False"
    ]
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_without_matplotlib_the_extra_is_named(tmp_path):
    shown = drawn(tmp_path / "plot.png", "sys.modules['matplotlib'] = None  # as if not installed")
    assert shown == [
        "plots are drawn with matplotlib, which is not installed; pip install 'edgeprune[report]'",
        "False False",
    ]
    assert not list(tmp_path.iterdir())
