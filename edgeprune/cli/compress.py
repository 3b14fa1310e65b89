"""`edgeprune compress`."""

from pathlib import Path

import click

from edgeprune.cli.options import PATH, json_option, unsafe_option
from edgeprune.cli.outcome import plot_ways, print_outcome, print_ways
from edgeprune.recipe import PRESETS


@click.command()
@click.argument("model", type=PATH)
@click.option(
    "--data",
    required=True,
    help="Training data: an .npz with x and y (and x_val, y_val), or module:function.",
)
@click.option(
    "--recipe",
    required=True,
    help=f"A preset ({', '.join(PRESETS)}) or the path of a .toml file.",
)
@click.option(
    "--device",
    "devices",
    metavar="NAME",
    multiple=True,
    help="What the model is for: a name that `edgeprune devices` lists, or a profile's .toml file. "
    "It chooses what the recipe leaves open. Can be given several times.",
)
@click.option("-o", "--output", required=True, type=PATH, help="Folder for all files of the run.")
@click.option("--restart", is_flag=True, help="Replace what another run left in the folder.")
@click.option(
    "--compare-ways",
    is_flag=True,
    help="Instead, train from new initial weights in every way that leads to a structurally "
    "pruned model, and compare them with the unpruned model.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="With --compare-ways: how often to train everything.  [default: 3]",
)
@click.option(
    "--plot",
    type=PATH,
    help="With --compare-ways: draw the scores and their spread as a .png or .svg file.",
)
@unsafe_option
@json_option
def compress(
    model: Path,
    data: str,
    recipe: str,
    devices: tuple[str, ...],
    output: Path,
    restart: bool,
    compare_ways: bool,
    seeds: int | None,
    plot: Path | None,
    unsafe: bool,
    as_json: bool,
) -> None:
    """Run the whole flow on a Keras MODEL: prune, quantize, convert, verify, measure.

    The model is trained further with its own compiled loss and optimizer where it has them.
    After a kill the same command goes on with the first unfinished stage.

    A device named chooses the multiple of channels, the quantization and the encoding of zeros,
    unless the recipe states them; what it cannot run or hold is refused before any training. In
    the end the .tflite files are run on it, if it can be reached.
    """
    if compare_ways and devices:
        raise click.UsageError("--device has no meaning with --compare-ways; leave one out")
    if not compare_ways:
        for name, value in (("--seeds", seeds), ("--plot", plot)):
            if value is not None:
                raise click.UsageError(f"{name} is an option of --compare-ways; add that")
    if plot is not None:
        from edgeprune.report.plots import check_plot

        check_plot(plot)
    from edgeprune.report.progress import stage_progress

    with stage_progress() as progress:
        if compare_ways:
            from edgeprune.comparison import compare_ways as compare

            ways = compare(
                model,
                data,
                recipe,
                output,
                seeds=seeds or 3,
                restart=restart,
                unsafe=unsafe,
                progress=progress,
            )
        else:
            from edgeprune.pipeline import compress as run

            report = run(
                model,
                data,
                recipe,
                output,
                device=devices,
                restart=restart,
                unsafe=unsafe,
                progress=progress,
            )
    if not compare_ways:
        print_outcome(report, as_json)
        return
    if plot is not None:
        plot_ways(ways, plot)
    print_ways(ways, as_json)
