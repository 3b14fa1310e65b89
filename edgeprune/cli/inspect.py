"""`edgeprune inspect`."""

import shutil
import sys
import textwrap
from pathlib import Path

import click

from edgeprune.cli.options import PATH, json_option, unsafe_option


@click.command()
@click.argument("model", type=PATH)
@unsafe_option
@json_option
def inspect(model: Path, unsafe: bool, as_json: bool) -> None:
    """Show what a MODEL (.tflite, .keras, .h5) is made of, layer by layer."""
    from edgeprune.export.inspect import inspect as run
    from edgeprune.export.inspection import LAYER_COLUMNS
    from edgeprune.report.table import print_table

    inspection = run(model, unsafe=unsafe)
    if as_json:
        click.echo(inspection.to_json(), nl=False)
        return
    print_table(LAYER_COLUMNS, inspection.rows())
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    click.echo()
    for line in inspection.summary().splitlines():
        click.echo("\n".join(textwrap.wrap(line, width, subsequent_indent="  ")))
