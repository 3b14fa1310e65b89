"""Show where models' time goes: a table of operators, and a plot of layers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.devices.measurement import ModelBenchmark, Table
from edgeprune.errors import InputError
from edgeprune.report.plots import FAINT, GRID, INK, bare, check_plot, figure_of, short
from edgeprune.report.table import Cell, Column

_MOST_BARS = 24
_BAR_INCHES = 0.24
_FRAME_INCHES = 1.05
_WIDTH = 8.5
_FEW_MS = 0.1  # below which a scale is in microseconds
# Told apart by the colour-blind too (Okabe & Ito, Color Universal Design, 2008).
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
_REST = "#9aa2ab"


@dataclass(frozen=True)
class LayerBar:
    """One row of a plot of layers.

    Attributes:
      name: of the layer, or how many of them were gathered.
      parts: kind of operator -> its size, in the plot's unit.
    """

    name: str
    parts: Mapping[str, float]

    @property
    def size(self) -> float:
        """Of the whole bar."""
        return sum(self.parts.values())


def profile_tables(rows: Sequence[ModelBenchmark]) -> Iterator[Table]:
    """Yield (title, columns, rows) for each model with a profile: a row for each operator.

    The last two are the sum and the whole model, which differ.
    """
    for row in rows:
        if row.per_operator:
            yield _table(row)


def profile_notes(rows: Sequence[ModelBenchmark]) -> list[str]:
    """Return how the times came to be, and why others are missing, each a line, once."""
    lines = []
    for row in rows:
        if reason := row.unavailable.get("per_operator"):
            lines.append(f"{row.device}: no times of operators: {reason}")
        if not row.per_operator:
            continue
        lines.append(f"{row.device}: {row.per_operator['how']}")
        if row.per_operator["layer_names_from"] != "record":
            lines.append(
                f"{row.model}: no record of its conversion lies beside it, so layers have the "
                "names that are in the file, to which Keras may have added a number"
            )
    return list(dict.fromkeys(lines))


def plot_profiles(rows: Sequence[ModelBenchmark], path: Path) -> None:
    """Draw the time of each layer, the longest on top, coloured by the kind of operator.

    Each model on each device has axes of its own. Beyond 24 layers the smallest are gathered in
    one bar, which says how many they are.

    Args:
      rows: of a benchmark; those without a profile are left out.
      path: the .png or .svg file to write.

    Raises:
      InputError: no row has a profile, or see `report.plots.check_plot`.
      UnsupportedError: matplotlib is not installed.
    """
    check_plot(path)
    shown = [row for row in rows if row.per_operator.get("layers")]
    if not shown:
        reasons = [row.unavailable.get("per_operator") or row.error for row in rows]
        why = next((reason for reason in reasons if reason), "none was asked for")
        raise InputError(f"there is no profile to draw: {why}")
    bars = [layer_bars(row.per_operator) for row in shown]
    colours = _colours([bar for own in bars for bar in own])
    heights = [len(own) * _BAR_INCHES + _FRAME_INCHES for own in bars]
    with figure_of(_WIDTH, sum(heights) + 0.5, path) as figure:
        grid = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, row, own in zip(grid, shown, bars, strict=True):
            _draw(axes, row, own, colours)
        # The kinds that have a colour of their own, then all others together.
        named = {op: colour for op, colour in colours.items() if colour != _REST}
        if len(named) < len(colours):
            named["other operators"] = _REST
        patches = [_patch(grid[0], colour) for colour in named.values()]
        figure.legend(
            patches,
            list(named),
            loc="outside lower left",
            ncols=4,
            frameon=False,
            fontsize=8,
        )


def layer_bars(profile: Mapping[str, Any]) -> list[LayerBar]:
    """Return the bars of one profile, the longest first and those gathered last.

    Their unit is the millisecond, or the share where there are no times.
    """
    scale = 1.0 if profile["sum_ms"] is None else profile["sum_ms"]
    bars = [
        LayerBar(layer["layer"], {op: share * scale for op, share in layer["ops"].items()})
        for layer in profile["layers"]
    ]
    bars.sort(key=lambda bar: -bar.size)
    if len(bars) <= _MOST_BARS:
        return bars
    rest = bars[_MOST_BARS - 1 :]
    gathered: dict[str, float] = {}
    for bar in rest:
        for op, size in bar.parts.items():
            gathered[op] = gathered.get(op, 0.0) + size
    return [*bars[: _MOST_BARS - 1], LayerBar(f"{len(rest)} other layers", gathered)]


def _table(row: ModelBenchmark) -> Table:
    found = row.per_operator
    operators = found["operators"]
    timed = found["sum_ms"] is not None
    placed = any(one["runs_on"] for one in operators)
    columns = [Column("operator"), Column("layer")]
    columns += [Column("on")] if placed else []
    columns += [Column(f"{row.kind} ms", "ms")] if timed else []
    columns.append(Column("share of sum" if timed else f"{row.kind} share", "fraction"))
    lines: list[tuple[Cell, ...]] = []

    def add(name: str, layer: Cell, on: Cell, ms: float | None, share: float | None) -> None:
        lines.append((name, layer, *([on] if placed else []), *([ms] if timed else []), share))

    for one in operators:
        add(one["op"], one["layer"], one["runs_on"], one["ms"], one["share"])
    add("sum", None, None, found["sum_ms"], 1.0)
    ratio = found["sum_by_whole"]
    if ratio:
        add("whole model", None, None, found["whole_ms"], 1 / ratio)
    return f"{row.model} by operator, {row.setting}", tuple(columns), lines


def _colours(bars: Sequence[LayerBar]) -> dict[str, str]:
    """Give the kinds of operator that take most a colour each, and the others the same."""
    totals: dict[str, float] = {}
    for bar in bars:
        for op, size in bar.parts.items():
            totals[op] = totals.get(op, 0.0) + size
    ranked = sorted(totals, key=lambda op: (-totals[op], op))
    own = len(ranked) if len(ranked) <= len(_COLOURS) else len(_COLOURS) - 1
    return {op: _COLOURS[rank] if rank < own else _REST for rank, op in enumerate(ranked)}


def _draw(
    axes: Any, row: ModelBenchmark, bars: Sequence[LayerBar], colours: Mapping[str, str]
) -> None:
    scale, unit = _unit(row, bars)
    longest = max(bar.size for bar in bars) * scale or 1.0
    total = sum(bar.size for bar in bars) or 1.0
    for place, bar in enumerate(bars):
        left = 0.0
        for op, size in sorted(bar.parts.items(), key=lambda item: -item[1]):
            axes.barh(place, size * scale, 0.72, left=left, color=colours[op])
            left += size * scale
        share = f"{bar.size / total:.1%}"
        axes.text(
            left + longest * 0.012,
            place,
            f"{left:.3g} {unit}, {share}" if unit else share,
            va="center",
            fontsize=7.5,
            color=INK,
        )
    axes.set_yticks(range(len(bars)), [short(bar.name) for bar in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.25)
    axes.set_xlabel(_scale_words(row, scale, unit), color=FAINT)
    axes.set_title(
        f"{short(row.model)} on {short(row.device)}",
        loc="left",
        fontsize=10,
        fontweight="bold",
    )
    axes.grid(axis="x", color=GRID, lw=0.6)
    bare(axes)


def _unit(row: ModelBenchmark, bars: Sequence[LayerBar]) -> tuple[float, str]:
    """Return what to multiply sizes with, and their unit then; none for shares."""
    if row.per_operator["sum_ms"] is None:
        return 1.0, ""
    return (1.0, "ms") if max(bar.size for bar in bars) >= _FEW_MS else (1000.0, "µs")


def _scale_words(row: ModelBenchmark, scale: float, unit: str) -> str:
    found = row.per_operator
    if not unit:
        return f"share of the sum, {row.kind}"
    words = f"{unit}, {row.kind}: in sum {found['sum_ms'] * scale:.3g} {unit}"
    if found["whole_ms"]:
        words += f"; the whole model {found['whole_ms'] * scale:.3g} {unit}"
    return words


def _patch(axes: Any, colour: str) -> Any:
    """Return a bar of no length, for the legend."""
    return axes.barh(0, 0, color=colour)
