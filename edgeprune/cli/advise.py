"""`edgeprune advise`."""

from pathlib import Path

import click

from edgeprune.cli.options import PATH, input_shape_option, json_option, unsafe_option


@click.command()
@click.argument("model", type=PATH)
@click.option(
    "--device",
    metavar="NAME",
    required=True,
    help="A name that `edgeprune devices` lists, or a profile's .toml file.",
)
@input_shape_option
@unsafe_option
@json_option
def advise(
    model: Path,
    device: str,
    input_shape: tuple[int, ...] | dict[str, tuple[int, ...]] | None,
    unsafe: bool,
    as_json: bool,
) -> None:
    """Say which techniques pay for a MODEL (.tflite, .keras, .h5) on a device, and why not.

    Nothing is run: bytes are counted from the model's weights, and what happens to latency is
    expected from what is known of the device's kernels.
    """
    from edgeprune.devices.advice import COLUMNS
    from edgeprune.devices.advise import advise as run
    from edgeprune.report.table import print_table
    from edgeprune.report.text import print_text

    advice = run(model, device, input_shape=input_shape, unsafe=unsafe)
    if as_json:
        click.echo(advice.to_json(), nl=False)
        return
    print_table(COLUMNS, advice.rows(), advice.title())
    print_text()
    for line in advice.lines():
        print_text(line)
