"""`edgeprune convert`."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeprune.cli.options import (
    FRACTION,
    PATH,
    Number,
    input_shape_option,
    json_option,
    unsafe_option,
)

if TYPE_CHECKING:
    from edgeprune.devices.look_up_tables import LookUpTables
    from edgeprune.export.artifact import Artifact


def _batch(ctx: click.Context, param: click.Parameter, value: str) -> int | Literal["dynamic"]:
    if value == "dynamic":
        return "dynamic"
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise click.BadParameter(f"{value!r} is not a whole number above 0 or 'dynamic'")


_MODES = ("none", "float16", "dynamic", "int8", "int16x8", "int4")


def _layer_modes(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Read ``conv1=int8``, in the order in which they are given."""
    modes: dict[str, str] = {}
    for value in values:
        pattern, _, mode = value.rpartition("=")
        if not pattern or mode not in _MODES:
            raise click.BadParameter(
                f"{value!r} is not LAYER=MODE with a mode of {', '.join(_MODES)}"
            )
        if pattern in modes:
            raise click.BadParameter(f"two modes for '{pattern}'; give one")
        modes[pattern] = mode
    return modes


def _several_modes(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    if value is None:
        return None
    modes = tuple(value.split(","))
    if unknown := [mode for mode in modes if mode not in _MODES]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(_MODES)}")
    return modes


@click.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The .tflite file to write.")
@click.option(
    "--quantize",
    type=click.Choice([*_MODES, "auto"]),
    default="none",
    show_default=True,
    help="How weights and activations are stored; auto tries all and keeps the smallest file.",
)
@click.option(
    "--quantize-layer",
    "layers",
    metavar="LAYER=MODE",
    multiple=True,
    callback=_layer_modes,
    help="Another mode for some layers, by name or class, with * and ?. Can be given several "
    "times; the first that matches counts.",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="Typical inputs, needed by int8, int16x8 and auto: .npz, .npy or module:function. Of "
    "auto with targets y, if there are any.",
)
@click.option(
    "--max-drop",
    type=FRACTION,
    help="Of auto: how much accuracy may be lost, or agreement where there are no targets. "
    "[default: 0.01]",
)
@click.option(
    "--modes",
    metavar="MODE,...",
    callback=_several_modes,
    help="Of auto: choose among these alone, such as those that the device runs.",
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
    metavar="N|dynamic",
    callback=_batch,
    default="1",
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
    type=Number(min=0),
    help="Largest rms error of the verification, in standard deviations of the outputs; in place "
    "of the mode's own, which also lets mere rounding pass.",
)
@click.option(
    "--keep-dead",
    is_flag=True,
    help="Keep the channels that cannot change the output; they leave otherwise.",
)
@click.option(
    "--look-up-tables",
    "tables",
    is_flag=True,
    help="Also write OUTPUT.lut.tflite, for TFLite Micro alone: int8 weights of few distinct "
    "values as indices into look-up tables (tflite-micro's LUT compression).",
)
@click.option("--no-verify", is_flag=True, help="Keep the file even if it was not compared.")
@unsafe_option
@json_option
def convert(
    model: Path,
    output: Path,
    quantize: str,
    layers: dict[str, str],
    calibration: str | None,
    max_drop: float | None,
    modes: tuple[str, ...] | None,
    sparse: Literal["auto", "on", "off"],
    io: str,
    batch: int | Literal["dynamic"],
    input_shape: tuple[int, ...] | dict[str, tuple[int, ...]] | None,
    allow_select_ops: bool,
    tolerance: float | None,
    keep_dead: bool,
    tables: bool,
    no_verify: bool,
    unsafe: bool,
    as_json: bool,
) -> None:
    """Convert a Keras MODEL to a verified .tflite file.

    MODEL is a .keras or .h5 file of Keras 3 or tf_keras, or a SavedModel folder. Pruning
    wrappers and quantization-aware layers are stripped first, and channels that cannot change
    the output leave. The result is run beside the Keras model; a file that computes something
    else is not kept. Of a .tflite file only the dead channels leave; it takes no other options
    than --no-verify and --look-up-tables.
    """
    if layers and quantize == "auto":
        raise click.UsageError(
            "--quantize auto tries modes for the whole model; leave out --quantize-layer"
        )
    if tables:
        _check_tables(model, "mixed" if layers else quantize)
    from edgeprune.export.convert import convert as run
    from edgeprune.report.progress import step_status
    from edgeprune.report.text import print_text

    with step_status() as status:
        artifact = run(
            model,
            output,
            quantize={**layers, "*": quantize} if layers else quantize,
            calibration=calibration,
            max_drop=max_drop,
            modes=modes,
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
        made = _with_tables(artifact, status) if tables else None
    if as_json:
        document = _document(artifact)
        if made is not None:
            document["look_up_tables"] = json.loads(made.to_json()) | {"path": str(made.path)}
        click.echo(json.dumps(document, indent=2))
    else:
        _print_artifact(artifact)
        if made is not None:
            print_text(f"\n{made}")


def _print_artifact(artifact: "Artifact") -> None:
    from edgeprune.export.candidates import CANDIDATE_COLUMNS, candidate_notes, candidate_rows
    from edgeprune.report.table import print_table
    from edgeprune.report.text import print_text

    print_text("\n".join(artifact.summary()))
    if artifact.candidates:
        print_text()
        print_table(CANDIDATE_COLUMNS, candidate_rows(artifact.candidates))
        print_text("\n".join(["", *candidate_notes(artifact.candidates)]))


def _check_tables(model: Path, quantize: str) -> None:
    """Refuse look-up tables before any work is done for them."""
    from edgeprune.devices import tflm

    if model.suffix != ".tflite" and quantize != "int8":
        raise click.UsageError(
            f"--look-up-tables are for int8 weights, got --quantize {quantize}; set it to int8"
        )
    tflm.version()


def _with_tables(artifact: "Artifact", tell: Callable[[str], None]) -> "LookUpTables":
    from edgeprune.devices.look_up_tables import look_up_tables
    from edgeprune.errors import EdgepruneError

    tell("look-up tables")
    try:
        return look_up_tables(artifact)
    except EdgepruneError as error:
        raise type(error)(f"{error} ({artifact.path} is whole)") from error


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
            "random": verification.random,
            "max_abs_error": verification.max_abs_error,
            "argmax_agreement": verification.argmax_agreement,
            "passed": verification.passed,
            "notes": list(verification.notes),
        },
        "candidates": [asdict(candidate) for candidate in artifact.candidates],
    }
