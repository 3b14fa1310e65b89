"""`edgeprune compress`."""

from pathlib import Path

import click

from edgeprune.cli.options import PATH, json_option, unsafe_option
from edgeprune.cli.outcome import print_outcome


@click.command()
@click.argument("model", type=PATH)
@click.option(
    "--data",
    required=True,
    help="Training data: an .npz with x and y (and x_val, y_val), or module:function.",
)
@click.option(
    "--recipe", required=True, help="A preset (prune, int8, pqat-int8) or the path of a .toml file."
)
@click.option("-o", "--output", required=True, type=PATH, help="Folder for all files of the run.")
@click.option("--restart", is_flag=True, help="Replace what another run left in the folder.")
@unsafe_option
@json_option
def compress(
    model: Path, data: str, recipe: str, output: Path, restart: bool, unsafe: bool, as_json: bool
) -> None:
    """Run the whole flow on a Keras MODEL: prune, quantize, convert, verify, measure.

    The model is trained further with its own compiled loss and optimizer where it has them.
    After a kill the same command goes on with the first unfinished stage.
    """
    from edgeprune.pipeline import compress as run
    from edgeprune.report.progress import stage_progress

    with stage_progress() as progress:
        report = run(model, data, recipe, output, restart=restart, unsafe=unsafe, progress=progress)
    print_outcome(report, as_json)
