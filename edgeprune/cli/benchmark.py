"""`edgeprune benchmark`."""

import sys
from pathlib import Path

import click

from edgeprune.cli.options import PATH, Number, json_option


@click.command()
@click.argument("models", metavar="MODEL.tflite...", type=PATH, nargs=-1, required=True)
@click.option(
    "--device",
    "devices",
    metavar="NAME",
    multiple=True,
    help="Where to run: a name that `edgeprune devices` lists, or a profile's .toml file. Can be "
    "given several times; this machine if left out.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Of one inference; the device's if left out."
)
@click.option("--quick", is_flag=True, help="About a second a model instead of ten.")
@click.option(
    "--runtime",
    type=click.Choice(["ai-edge-litert", "tflite-runtime", "tensorflow"]),
    help="What to run on; the first that is installed if left out.",
)
@click.option(
    "--timeout",
    type=Number(min=0, min_open=True),
    metavar="SECONDS",
    help="When to give a device up; by default it follows from the time asked for.",
)
@click.option(
    "--compare",
    metavar="OLD.json",
    type=PATH,
    help="Compare each model with the one of its name in an earlier result of the same device.",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Show where the time goes, too: by operator and layer, where the device can tell.",
)
@click.option(
    "--plot",
    metavar="FILE.png",
    type=PATH,
    help="With --profile: draw the time of each layer as a .png or .svg file.",
)
@click.option(
    "-o", "--output", metavar="FILE.json", type=PATH, help="Write the results there as JSON."
)
@json_option
@click.pass_context
def benchmark(
    ctx: click.Context,
    models: tuple[Path, ...],
    devices: tuple[str, ...],
    threads: int | None,
    quick: bool,
    runtime: str | None,
    timeout: float | None,
    compare: Path | None,
    profile: bool,
    plot: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Run .tflite files on devices and measure them.

    Several models take turns, round by round, and are compared with the first, so that what
    slows the device down meanwhile slows them all. Several devices run at the same time. If one
    fails, or refuses a model, or a model does not fit there, all results are printed none the
    less, and the exit code is 1.
    """
    from edgeprune.devices.compare import compare_with, comparison_table
    from edgeprune.devices.measurement import Benchmark
    from edgeprune.devices.run import benchmark as run
    from edgeprune.files import atomic_path, check_target
    from edgeprune.report.plots import check_plot
    from edgeprune.report.profile import plot_profiles, profile_notes, profile_tables
    from edgeprune.report.table import print_table
    from edgeprune.report.text import print_text

    if plot is not None and not profile:
        raise click.UsageError("--plot draws the profile; give --profile, too")
    if profile and compare is not None:
        raise click.UsageError(
            "--profile and --compare do not go together: profiles have no intervals to judge by"
        )
    if plot is not None:
        check_plot(plot)
        if output is not None and plot.absolute() == output.absolute():
            raise click.UsageError("--plot and --output name the same file; give each its own")
    if output is not None and output.absolute() in {model.absolute() for model in models}:
        raise click.UsageError(f"--output {output} is one of the models; name another file")
    old = None if compare is None else Benchmark.load(compare)
    if output is not None:
        check_target(output)
    results = run(
        models,
        device=devices or "local",
        threads=threads,
        quick=quick,
        runtime=runtime,
        profile=profile,
        timeout_seconds=timeout,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if old is not None:
        results = compare_with(results, old)
    if output is not None:
        with atomic_path(output) as path:
            path.write_text(results.to_json(), encoding="utf-8")
    if as_json:
        click.echo(results.to_json(), nl=False)
    else:
        tables = [*results.tables()]
        if overview := results.overview():
            tables.append(overview)
        if old is not None:
            tables.append(comparison_table(results, f"compared with {compare}"))
        tables += profile_tables(results)
        for number, (title, columns, rows) in enumerate(tables):
            if number:
                click.echo()
            print_table(columns, rows, title)
        notes = [*results.notes, *(profile_notes(results) if profile else ())]
        notes = [one for one in notes if not any(why.endswith(one) for why in results.problems)]
        if notes:
            click.echo()
        for note in notes:
            print_text(f"note: {note}")
    for problem in results.problems:
        print_text(f"Error: {problem}", sys.stderr)
    if plot is not None:
        plot_profiles(results, plot)
    if results.problems:
        ctx.exit(1)
