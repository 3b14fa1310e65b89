"""`edgeprune benchmark`."""

import sys
from pathlib import Path

import click

from edgeprune.cli.options import PATH, json_option


@click.command()
@click.argument("models", metavar="MODEL.tflite...", type=PATH, nargs=-1, required=True)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of one inference."
)
@click.option("--quick", is_flag=True, help="About a second a model instead of ten.")
@click.option(
    "--runtime",
    type=click.Choice(["ai-edge-litert", "tflite-runtime", "tensorflow"]),
    help="What to run on; the first that is installed if left out.",
)
@json_option
def benchmark(
    models: tuple[Path, ...], threads: int, quick: bool, runtime: str | None, as_json: bool
) -> None:
    """Run .tflite files on this machine and measure them.

    Several models take turns, round by round, and are compared with the first, so that what
    slows the machine down meanwhile slows them all.
    """
    from edgeprune.devices.local import benchmark as run
    from edgeprune.devices.measurement import COLUMNS
    from edgeprune.report.table import print_table

    results = run(
        models,
        threads=threads,
        quick=quick,
        runtime=runtime,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if as_json:
        click.echo(results.to_json(), nl=False)
        return
    for title, rows in results.tables():
        print_table(COLUMNS, rows, title)
    for note in results.notes:
        click.echo(f"note: {note}")
