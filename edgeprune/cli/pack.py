"""`edgeprune pack` and `edgeprune unpack`."""

from pathlib import Path

import click

from edgeprune.cli.options import PATH, json_option
from edgeprune.report.text import print_text


@click.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The packed file to write.")
@click.option("--compare", is_flag=True, help="Show what gzip, xz and zstd make of the model.")
@json_option
def pack(model: Path, output: Path, compare: bool, as_json: bool) -> None:
    """Pack a .tflite MODEL for shipping over the air, losslessly.

    Weights are entropy-coded, the rest is compressed. `edgeprune unpack` gives the model back byte
    for byte.
    """
    from edgeprune.export.pack import pack as run

    packed = run(model, output, compare=compare)
    if as_json:
        click.echo(packed.to_json())
    else:
        print_text(str(packed))


@click.command()
@click.argument("packed", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The .tflite file to write.")
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=1 << 30,
    show_default=True,
    help="The longest model to make of a file from elsewhere.",
)
@json_option
def unpack(packed: Path, output: Path, max_bytes: int, as_json: bool) -> None:
    """Unpack a model that `edgeprune pack` has PACKED.

    A file that is damaged, cut off or made to mislead is refused, and nothing is written.
    """
    from edgeprune.export.pack import unpack as run

    unpacked = run(packed, output, max_bytes=max_bytes)
    if as_json:
        click.echo(unpacked.to_json())
    else:
        print_text(str(unpacked))
