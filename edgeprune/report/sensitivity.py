"""Draw how much each layer matters, as a .png or .svg file."""

import importlib
from math import isfinite
from pathlib import Path

import numpy as np

from edgeprune.errors import counted
from edgeprune.report.plots import INK, check_plot, figure_of, short
from edgeprune.sensitivity.measure import Sensitivity

_ROW_INCHES = 0.24
_CELL_INCHES = 0.78
_LETTER_INCHES = 0.075
# Cells as dark as this have their figure in white.
_DARK = 0.55
_FAINTEST = 0.02
# Drops differ by orders of magnitude: their square roots are told apart more easily.
_GAMMA = 0.5


def plot_sensitivity(found: Sensitivity, path: Path) -> None:
    """Draw the drop of every layer and change: a row a layer, the darker the worse.

    Args:
      found: what was measured.
      path: the .png or .svg file to write.

    Raises:
      InputError, UnsupportedError: see `edgeprune.report.plots.check_plot`.
    """
    check_plot(path)
    colors = importlib.import_module("matplotlib.colors")
    drops = np.array([[point.drop for point in layer.points] for layer in found.layers])
    shown = np.where(np.isfinite(drops), np.maximum(drops, 0), np.nan)
    # Drops of a hundredth are not to look like the end of the world.
    most = max(float(np.nanmax(shown, initial=0.0)), _FAINTEST)
    shown = np.where(np.isfinite(shown), shown, most)
    names = [short(layer.name) for layer in found.layers]
    changes = [point.change for point in found.layers[0].points]
    width = max(map(len, names)) * _LETTER_INCHES + _CELL_INCHES * len(changes) + 0.4
    with figure_of(max(width, 6.0), _ROW_INCHES * len(names) + 1.3, path) as figure:
        figure.suptitle(
            f"{found.drop_of}: what changing one layer costs",
            x=0.02,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
        axes = figure.subplots()
        norm = colors.PowerNorm(_GAMMA, 0, most)
        axes.imshow(shown, cmap="Blues", norm=norm, aspect="auto")
        for row, line in enumerate(drops):
            for column, drop in enumerate(line):
                dark = norm(shown[row, column]) > _DARK
                axes.text(
                    column,
                    row,
                    f"{drop:.3f}" if isfinite(drop) else "NaN",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else INK,
                )
        axes.set_xticks(range(len(changes)), changes, fontsize=8.5)
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xticks(np.arange(1, len(changes)) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, len(names)) - 0.5, minor=True)
        axes.grid(which="minor", color="white", lw=1.5)
        axes.tick_params(which="both", length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xlabel(f"on {counted(found.samples, 'sample')}")
