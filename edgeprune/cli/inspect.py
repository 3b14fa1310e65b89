"""`edgeprune inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune.cli.options import PATH, json_option, unsafe_option

if TYPE_CHECKING:
    from edgeprune.sensitivity.measure import Sensitivity


@click.command()
@click.argument("model", type=PATH)
@click.option(
    "--sensitivity",
    is_flag=True,
    help="Measure what quantizing, pruning or clustering one layer at a time costs.",
)
@click.option(
    "--data",
    metavar="DATA",
    help="With --sensitivity: samples to measure on: .npz (x, or x and y), .npy or "
    "module:function.",
)
@click.option(
    "--plot",
    metavar="FILE",
    type=PATH,
    help="With --sensitivity: draw it as a .png or .svg file.",
)
@unsafe_option
@json_option
def inspect(
    model: Path, sensitivity: bool, data: str | None, plot: Path | None, unsafe: bool, as_json: bool
) -> None:
    """Show what a MODEL (.tflite, .keras, .h5) is made of, layer by layer.

    With --sensitivity, show instead how much each layer of a Keras model matters: the accuracy
    that is lost when that layer alone is quantized, pruned or clustered; where the data have no
    targets, the samples whose arg max changes, or how far the outputs move. The file stays as it
    is.
    """
    if not sensitivity:
        for name, value in (("--data", data), ("--plot", plot)):
            if value is not None:
                raise click.UsageError(f"{name} is for --sensitivity; give that, too")
        _print_layers(model, unsafe, as_json)
        return
    from edgeprune.report.plots import check_plot
    from edgeprune.report.progress import stage_progress
    from edgeprune.sensitivity.measure import measure_sensitivity

    if plot is not None:
        check_plot(plot)
    with stage_progress() as progress:
        found = measure_sensitivity(model, data, unsafe=unsafe, progress=progress)
    if plot is not None:
        from edgeprune.report.sensitivity import plot_sensitivity

        plot_sensitivity(found, plot)
    _print_sensitivity(found, as_json)


def _print_layers(model: Path, unsafe: bool, as_json: bool) -> None:
    from edgeprune.export.inspect import inspect as run
    from edgeprune.export.inspection import LAYER_COLUMNS
    from edgeprune.report.table import print_table
    from edgeprune.report.text import print_text

    inspection = run(model, unsafe=unsafe)
    if as_json:
        click.echo(inspection.to_json(), nl=False)
        return
    print_table(LAYER_COLUMNS, inspection.rows())
    click.echo()
    print_text(inspection.summary())


def _print_sensitivity(found: "Sensitivity", as_json: bool) -> None:
    from edgeprune.report.table import print_table
    from edgeprune.report.text import print_text

    if as_json:
        click.echo(found.to_json(), nl=False)
        return
    print_table(found.columns, found.rows())
    click.echo()
    print_text(found.summary())
