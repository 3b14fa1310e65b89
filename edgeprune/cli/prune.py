"""`edgeprune prune`."""

import json
from pathlib import Path
from typing import Literal

import click

from edgeprune.cli.options import FRACTION, PATH, SHARE, Number, json_option, unsafe_option
from edgeprune.cli.outcome import plot_groups, print_pruned

# As many as NumPy and Keras take.
_MOST_SEED = 2**32 - 1


@click.command()
@click.argument("model", type=PATH)
@click.option(
    "--what",
    type=click.Choice(["channels", "heads", "layers"]),
    default="channels",
    show_default=True,
    help="What leaves: channels, attention heads, or whole residual blocks and encoder layers.",
)
@click.option("--ratio", "pruning_ratio", type=FRACTION, help="Fraction of them to remove.")
@click.option("--target-macs", type=SHARE, help="Fraction of the MACs that may stay.")
@click.option("--target-parameters", type=SHARE, help="Fraction of the parameters that may stay.")
@click.option(
    "--criterion",
    metavar="NAME",
    help="What decides. Channels: l2 (default), l1, bn_scale, fpgm, random; with --data taylor, "
    "taylor_activation, activation. Heads: l2 (default), l1, fpgm, random; with --data gate, "
    "taylor. Layers: position (default), last, magnitude; with --data loss.",
)
@click.option(
    "--ranking",
    type=click.Choice(["group", "global"]),
    default="group",
    show_default=True,
    help="Remove the same fraction of each group of layers, or compare channels over all.",
)
@click.option(
    "--round-to",
    type=click.IntRange(min=1),
    help="Channels that stay come in multiples of this: odd numbers run slower.  [default: 8, or "
    "the device's]",
)
@click.option("--device", metavar="NAME", help="Take the multiple from this device's profile.")
@click.option(
    "--min-channels",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many stay in each layer at least.",
)
@click.option(
    "--max-ratio", type=FRACTION, help="Largest fraction that a group may lose.  [default: 0.9]"
)
@click.option(
    "--skip",
    metavar="NAME",
    multiple=True,
    help="Layer to leave whole: a name, a pattern or a type. Repeat for several.",
)
@click.option(
    "--data",
    help="Data to choose by or to fine-tune on: an .npz with x and y, or module:function.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Fine-tune on --data for so long, in all rounds together.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Prune in so many rounds, with fine-tuning after each.",
)
@click.option(
    "--learning-rate",
    type=Number(min=0, min_open=True),
    help="Of fine-tuning.  [default: as compiled]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, _MOST_SEED),
    default=0,
    show_default=True,
    help="Of shuffling and 'random'.",
)
@click.option("-o", "--output", type=PATH, help="The .keras or .h5 file to write.")
@click.option("--dry-run", is_flag=True, help="Show the plan, and neither train nor save a model.")
@click.option("--plot", type=PATH, help="Draw what each group had and has, as a .png or .svg file.")
@unsafe_option
@json_option
@click.pass_context
def prune(
    ctx: click.Context,
    model: Path,
    pruning_ratio: float | None,
    target_macs: float | None,
    target_parameters: float | None,
    what: Literal["channels", "heads", "layers"],
    criterion: str | None,
    ranking: Literal["group", "global"],
    round_to: int | None,
    device: str | None,
    min_channels: int,
    max_ratio: float | None,
    skip: tuple[str, ...],
    data: str | None,
    epochs: int | None,
    rounds: int,
    learning_rate: float | None,
    seed: int,
    output: Path | None,
    dry_run: bool,
    plot: Path | None,
    unsafe: bool,
    as_json: bool,
) -> None:
    """Remove channels, heads or layers of a Keras MODEL: a smaller plain Keras model.

    MODEL is a .keras or .h5 file of a Keras 3 Functional or Sequential model. Exactly one of
    --ratio, --target-macs and --target-parameters says how much is to leave. What cannot be
    followed through the model is kept, and listed with the reason.
    """
    budgets = {
        "--ratio": pruning_ratio,
        "--target-macs": target_macs,
        "--target-parameters": target_parameters,
    }
    if sum(value is not None for value in budgets.values()) != 1:
        raise click.UsageError(f"give exactly one of {', '.join(budgets)}")
    _check_applies(ctx, what)
    if output is None and not dry_run:
        raise click.UsageError("name the file to write: -o OUT.keras; or take --dry-run")
    if device is not None and round_to is not None:
        raise click.UsageError("give --round-to or --device, whose multiple it would replace")
    if learning_rate is not None and epochs is None:
        raise click.UsageError(
            "--learning-rate is of fine-tuning; give --data and --epochs with it"
        )
    if epochs is not None and data is None:
        raise click.UsageError("--epochs trains the smaller model; give it --data")
    if rounds > 1 and (epochs or 0) < rounds:
        raise click.UsageError(
            f"--rounds {rounds} fine-tunes after each round; give --data and --epochs, at least "
            f"{rounds}"
        )
    if plot is not None:
        from edgeprune.report.plots import check_plot

        check_plot(plot)
    from edgeprune.devices.lookup import load_profile
    from edgeprune.recipe import StructureSpec, TrainingSpec
    from edgeprune.report.progress import stage_progress
    from edgeprune.structured import prune_file

    if device is not None:
        round_to = load_profile(device).channel_multiple
    with stage_progress() as progress:
        pruned = prune_file(
            model,
            None if dry_run else output,
            StructureSpec(
                pruning_ratio=pruning_ratio,
                target_macs=target_macs,
                target_parameters=target_parameters,
                ranking=ranking,
                round_to=StructureSpec.round_to if round_to is None else round_to,
                min_channels=min_channels,
                max_ratio=max_ratio,
                skip=skip,
                rounds=rounds,
                epochs=epochs or 0,
                learning_rate=learning_rate,
            ),
            what=what,
            criterion=criterion,
            data=data,
            training=TrainingSpec(seed=seed),
            unsafe=unsafe,
            progress=progress,
        )
    if plot is not None:
        plot_groups(pruned.figures, what, plot)
    if as_json:
        saved = None if dry_run else str(output)
        click.echo(json.dumps({"output": saved, **pruned.figures}, indent=2))
    else:
        print_pruned(pruned.figures, what, None if dry_run else output)


def _check_applies(ctx: click.Context, what: str) -> None:
    """Refuse options that would change nothing of what leaves."""
    of_channels = (
        "target_macs",
        "target_parameters",
        "round_to",
        "device",
        "min_channels",
        "max_ratio",
        "rounds",
    )
    useless: dict[str, tuple[str, ...]] = {
        "channels": (),
        "heads": of_channels,
        "layers": (*of_channels, "ranking"),
    }
    for name in useless[what]:
        if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning with --what {what}")
