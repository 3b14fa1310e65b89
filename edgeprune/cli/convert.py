"""`edgeprune convert`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeprune.cli.options import PATH, input_shape_option, json_option, unsafe_option

if TYPE_CHECKING:
    from edgeprune.export.artifact import Artifact


class _Batch(click.ParamType[object]):
    name = "N|dynamic"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if value == "dynamic" or isinstance(value, int):
            return value
        if isinstance(value, str) and value.isdecimal() and int(value) > 0:
            return int(value)
        return self.fail(f"{value!r} is not a whole number above 0 or 'dynamic'", param, ctx)


@click.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The .tflite file to write.")
@click.option(
    "--quantize",
    type=click.Choice(["none", "float16", "dynamic", "int8", "int16x8"]),
    default="none",
    show_default=True,
    help="How weights and activations are stored.",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="Typical inputs, needed by int8 and int16x8: .npz, .npy or module:function.",
)
@click.option(
    "--sparse",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Sparse encoding of the weights; auto keeps it when the file gets smaller.",
)
@click.option(
    "--io",
    type=click.Choice(["float", "int8"]),
    default="float",
    show_default=True,
    help="Type of inputs and outputs of an int8 model.",
)
@click.option(
    "--batch",
    type=_Batch(),
    default=1,
    show_default=True,
    help="Batch size to fix, or 'dynamic' to leave it free (slower).",
)
@input_shape_option
@click.option(
    "--allow-select-ops",
    is_flag=True,
    help="Allow TensorFlow operators that need the bigger Flex runtime.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Largest rms error of the verification, in standard deviations of the outputs; in place "
    "of the mode's own, which also lets mere rounding pass.",
)
@click.option(
    "--keep-dead",
    is_flag=True,
    help="Keep the channels that cannot change the output; they leave otherwise.",
)
@click.option("--no-verify", is_flag=True, help="Keep the file even if it was not compared.")
@unsafe_option
@json_option
def convert(
    model: Path,
    output: Path,
    quantize: str,
    calibration: str | None,
    sparse: Literal["auto", "on", "off"],
    io: str,
    batch: int | Literal["dynamic"],
    input_shape: tuple[int, ...] | dict[str, tuple[int, ...]] | None,
    allow_select_ops: bool,
    tolerance: float | None,
    keep_dead: bool,
    no_verify: bool,
    unsafe: bool,
    as_json: bool,
) -> None:
    """Convert a Keras MODEL to a verified .tflite file.

    MODEL is a .keras or .h5 file of Keras 3 or tf_keras, or a SavedModel folder. Pruning
    wrappers and quantization-aware layers are stripped first, and channels that cannot change
    the output leave. The result is run beside the Keras model; a file that computes something
    else is not kept. Of a .tflite file only the dead channels leave; it takes no other option
    than --no-verify.
    """
    from edgeprune.export.convert import convert as run
    from edgeprune.report.progress import step_status

    with step_status() as status:
        artifact = run(
            model,
            output,
            quantize=quantize,
            calibration=calibration,
            sparse=sparse,
            io=io,
            batch=batch,
            input_shape=input_shape,
            allow_select_ops=allow_select_ops,
            tolerance=tolerance,
            clean=not keep_dead,
            verify=not no_verify,
            unsafe=unsafe,
            progress=status,
        )
    if as_json:
        click.echo(json.dumps(_document(artifact), indent=2))
    else:
        click.echo(str(artifact))


def _document(artifact: "Artifact") -> dict[str, object]:
    verification = artifact.verification
    return {
        "output": str(artifact.path),
        "bytes": artifact.bytes,
        "gzip_bytes": artifact.gzip_bytes,
        "quantization": artifact.quantization,
        "sparsity": artifact.sparsity,
        "dead_channels": artifact.dead_channels,
        "verification": verification
        and {
            "samples": verification.samples,
            "max_abs_error": verification.max_abs_error,
            "argmax_agreement": verification.argmax_agreement,
            "passed": verification.passed,
            "notes": list(verification.notes),
        },
    }
