"""Draw the stages of deep compression: bytes, and the error beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.report.plots import FAINT, GRID, INK, bare, figure_of
from edgeprune.report.table import format_bytes

_BAR = "#0072b2"
_ROW_INCHES = 0.36


def plot_stages(document: Mapping[str, Any], path: Path) -> None:
    """Draw a row of plots a model: bytes of each stage, and the test error with every seed a dot.

    Args:
      document: results by model, as kept.
      path: the .png or .svg file to write.

    Raises:
      InputError, UnsupportedError: see `edgeprune.report.plots.check_plot`.
    """
    height = sum(_ROW_INCHES * len(result["stages"]) + 1.0 for result in document.values())
    with figure_of(9.0, height, path) as figure:
        grid = figure.subplots(len(document), 2, squeeze=False, width_ratios=(3, 2))
        for (sizes, errors), (name, result) in zip(grid, document.items(), strict=True):
            stages = result["stages"]
            rows = range(len(stages))
            sizes.barh(rows, [row["bytes"] / 1024 for row in stages], 0.7, color=_BAR)
            for place, row in enumerate(stages):
                sizes.text(
                    row["bytes"] / 1024,
                    place,
                    f" {format_bytes(row['bytes'])}, {row['ratio']:.3g}x",
                    va="center",
                    fontsize=8,
                    color=INK,
                )
            sizes.set_xlim(0, 1.4 * stages[0]["bytes"] / 1024)
            sizes.set_yticks(rows, [row["stage"] for row in stages])
            sizes.set_title(name, loc="left", fontsize=10.5, fontweight="bold")
            sizes.set_xlabel("KiB")
            for run in result["runs"]:
                own = [100 * row["test_error"] for row in run["stages"]]
                errors.plot(own, rows, "o", ms=4, mew=0, color=_BAR, alpha=0.4)
            means = [100 * row["test_error"] for row in stages]
            errors.plot(means, rows, "|", ms=15, mew=2, color=_BAR)
            errors.axvline(means[0], color=FAINT, lw=1, ls=(0, (4, 3)))
            errors.set_yticks([])
            errors.set_xlabel("test error, %: mean, and each seed a dot")
            for axes in (sizes, errors):
                axes.set_ylim(len(stages) - 0.4, -0.6)
                axes.grid(axis="x", color=GRID, lw=0.6)
                bare(axes)
