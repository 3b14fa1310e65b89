"""Plots for reports, as .png or .svg files: what pruning took from each layer, and what it cost.

No display is needed, and the same figures give the same file.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import ArgumentError, UnsupportedError
from edgeprune.files import atomic_path, check_target

SUFFIXES = (".png", ".svg")
INK, FAINT, GRID = "#22272e", "#6e7781", "#d9dee4"
_BEFORE, _AFTER = GRID, "#0072b2"
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: alike on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "edgeprune",
}
_ROWS_IN_COLUMN = 48
_ROW_INCHES = 0.215
_LETTER_INCHES = 0.072
_TITLE_LETTER_INCHES = 0.105
_LONGEST_NAME = 34
_DPI = 160


@dataclass(frozen=True)
class ChannelBar:
    """One row of the plot of channels: a group or layer, and its channels before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class ScoreBar:
    """One row of the plot of scores.

    Attributes:
      name: what was done.
      note: what it took, in a few words, shown small below the name.
      scores: one for each seed.
      mean: of the scores.
      spread: their standard deviation; None of a single one.
    """

    name: str
    note: str
    scores: tuple[float, ...]
    mean: float
    spread: float | None


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be drawn or written, before any work is done for it.

    Raises:
      ArgumentError: another suffix than .png or .svg.
      InputError: the folder cannot be written.
      UnsupportedError: matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ArgumentError(f"cannot draw a plot as {path}; supported: {', '.join(SUFFIXES)}")
    check_target(path)
    _matplotlib()


def plot_channels(
    bars: Sequence[ChannelBar], path: Path, title: str, unit: str = "channels"
) -> None:
    """Draw how many channels each group had and has, in the order of the network.

    Beyond 48 groups the rows go on in further columns, so that every name stays readable.

    Args:
      bars: a row each, the first on top.
      path: the .png or .svg file to write.
      title: a line above, such as the totals.
      unit: what is counted.

    Raises:
      InputError, UnsupportedError: see `check_plot`.
    """
    check_plot(path)
    columns = max(1, -(-len(bars) // _ROWS_IN_COLUMN))
    rows = max(1, -(-len(bars) // columns))
    labels = max((len(short(bar.name)) for bar in bars), default=1) * _LETTER_INCHES
    width = columns * (labels + 3.4)
    width = max(width, 6.0, len(title) * _TITLE_LETTER_INCHES)
    with figure_of(width, rows * _ROW_INCHES + 1.25, path) as figure:
        figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
        longest = max((bar.before for bar in bars), default=1)
        grid = figure.subplots(1, columns, squeeze=False)[0]
        for number, axes in enumerate(grid):
            _channel_rows(axes, bars[number * rows : (number + 1) * rows], rows, longest, unit)
        handles, names = grid[0].get_legend_handles_labels()
        if handles:
            figure.legend(
                handles, names, loc="outside lower left", ncols=2, frameon=False, fontsize=9
            )


def plot_scores(bars: Sequence[ScoreBar], path: Path, score_name: str, title: str) -> None:
    """Draw scores with their spread, each seed a dot; the first row is what others are held to.

    Args:
      bars: a row each, the first on top.
      path: the .png or .svg file to write.
      score_name: what the scores are.
      title: a line above.

    Raises:
      InputError, UnsupportedError: see `check_plot`.
    """
    check_plot(path)
    with figure_of(8.0, 0.62 * len(bars) + 1.45, path) as figure:
        figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
        axes = figure.subplots()
        first = bars[0]
        spread = first.spread or 0.0
        axes.axvspan(first.mean - spread, first.mean + spread, color=_BEFORE, alpha=0.55, lw=0)
        axes.axvline(first.mean, color=FAINT, lw=1, ls=(0, (4, 3)))
        for row, bar in enumerate(bars):
            colour = FAINT if row == 0 else _AFTER
            axes.plot(
                bar.scores, [row + 0.2] * len(bar.scores), "o", ms=4, mew=0, color=colour, alpha=0.4
            )
            axes.errorbar(
                bar.mean, row, xerr=bar.spread, fmt="o", ms=7, lw=1.8, capsize=4, color=colour
            )
            axes.annotate(
                f"{bar.mean:.4g}",
                (bar.mean, row),
                (0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
            )
            for text, up, size, ink in ((bar.name, -0.05, 9.5, INK), (bar.note, 0.24, 8, FAINT)):
                axes.text(
                    -0.015,
                    row + up,
                    text,
                    transform=axes.get_yaxis_transform(),
                    ha="right",
                    va="center",
                    fontsize=size,
                    color=ink,
                )
        axes.set_yticks([])
        axes.set_ylim(len(bars) - 0.4, -0.75)
        axes.margins(x=0.08)
        seeds = max(len(bar.scores) for bar in bars)
        spread_words = "mean ± standard deviation; each seed a dot" if seeds > 1 else "one seed"
        axes.set_xlabel(f"{score_name} on the validation data ({spread_words})")
        axes.grid(axis="x", color=GRID, lw=0.6)
        bare(axes)


def _channel_rows(
    axes: Any, bars: Sequence[ChannelBar], rows: int, longest: int, unit: str
) -> None:
    places = range(len(bars))
    axes.barh(places, [bar.before for bar in bars], 0.72, color=_BEFORE, label="before")
    axes.barh(places, [bar.after for bar in bars], 0.72, color=_AFTER, label="after")
    for row, bar in enumerate(bars):
        changed = bar.after != bar.before
        axes.text(
            bar.before + longest * 0.015,
            row,
            f"{bar.before} → {bar.after}" if changed else f"{bar.before}",
            va="center",
            fontsize=7.5,
            color=INK if changed else FAINT,
        )
    axes.set_yticks(places, [short(bar.name) for bar in bars], fontsize=8)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.22)
    axes.set_xlabel(unit)
    axes.grid(axis="x", color=GRID, lw=0.6)
    bare(axes)


def bare(axes: Any) -> None:
    """Take the frame away, and put what is drawn before the grid."""
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def short(name: str) -> str:
    """Shorten a path in its middle: its layer's own name, at the end, tells most."""
    if len(name) <= _LONGEST_NAME:
        return name
    head = _LONGEST_NAME // 3
    return f"{name[:head]}…{name[head + 1 - _LONGEST_NAME :]}"


@contextmanager
def figure_of(width: float, height: float, path: Path) -> Iterator[Any]:
    """Yield a figure of this many inches, which is written once the caller has drawn on it."""
    matplotlib = _matplotlib()
    figure_module = importlib.import_module("matplotlib.figure")
    with matplotlib.rc_context(_STYLE), atomic_path(path) as temporary:
        figure = figure_module.Figure(figsize=(width, height), layout="constrained")
        yield figure
        # No date: the same figures give the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(temporary, dpi=_DPI, facecolor="white", metadata=metadata)


def _matplotlib() -> Any:
    try:
        return importlib.import_module("matplotlib")
    except ImportError as error:
        raise UnsupportedError(
            "plots are drawn with matplotlib, which is not installed; "
            "pip install 'edgeprune[report]'"
        ) from error
