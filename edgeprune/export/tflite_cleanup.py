"""Leave the dead channels out of a .tflite file, and compare the two."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.errors import ArgumentError, InputError, UnsupportedError, VerificationError
from edgeprune.export.artifact import Verification
from edgeprune.export.dead_channels import remove_dead_channels_tflite
from edgeprune.export.micro import has_look_up_tables
from edgeprune.export.native import captured_stderr
from edgeprune.export.tflite import read
from edgeprune.modelfiles import first_line

Array = npt.NDArray[Any]
_SAMPLES = 32
_SEED = 0
# Float sums over fewer terms round differently.
_FLOAT = 1e-5


def is_tflite(model: Any) -> bool:
    """Tell whether a model is given as a .tflite file."""
    return isinstance(model, str | os.PathLike) and Path(model).suffix == ".tflite"


def check_options(path: Path, given: dict[str, bool]) -> None:
    """Refuse the options that a .tflite input cannot take.

    Args:
      path: the input.
      given: option -> whether it was given.

    Raises:
      ArgumentError: one was.
    """
    if names := [f"`{name}`" for name, was_given in given.items() if was_given]:
        raise ArgumentError(
            f"{path} is already a .tflite file, which takes no {', '.join(names)}; only its dead "
            "channels are removed. Give the Keras model it came from to convert it otherwise"
        )


def clean_file(path: Path) -> tuple[bytes, bytes, dict[str, Any]]:
    """Remove a file's dead channels.

    Returns:
      The content, the new content, and what the record says of it.

    Raises:
      InputError: it cannot be read, or is not a whole .tflite model.
      UnsupportedError: its weights are in look-up tables.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"model file {path} cannot be read: {error.strerror}") from error
    try:
        if has_look_up_tables(read(content)):
            raise UnsupportedError(
                f"{path} has look-up tables, in which no dead channels can be found, and which "
                "TFLite Micro alone runs; give the plain file"
            )
        cleaned, report = remove_dead_channels_tflite(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return content, cleaned, report.to_dict() | {"summary": str(report)}


def clean_converted(content: bytes, verify: bool) -> tuple[bytes, dict[str, Any]]:
    """Remove what only the integers of a converted int8 file show to be dead.

    Small weights are zeros there, and the types bound what a channel can be.

    Args:
      content: as it was converted.
      verify: compare it with the result.

    Returns:
      The new content, and what the record says of it.

    Raises:
      VerificationError: the result computes something else.
    """
    cleaned, report = remove_dead_channels_tflite(content)
    if verify and report.channels_removed:
        compare_files(content, cleaned)
    return cleaned, report.to_dict() | {"summary": str(report)}


def compare_files(original: bytes, cleaned: bytes) -> Verification:
    """Run two files on the same random inputs: integers must be equal, floats nearly.

    Raises:
      VerificationError: they differ, or the interpreter refuses one of them.
    """
    rng = np.random.default_rng(_SEED)
    interpreters = [_loaded(content) for content in (original, cleaned)]
    worst, passed = 0.0, True
    for _ in range(_SAMPLES):
        inputs = [_random(rng, detail) for detail in interpreters[0].get_input_details()]
        for want, got in zip(*(_run(each, inputs) for each in interpreters), strict=True):
            differ = (got != want) & ~(_is_nan(got) & _is_nan(want))
            error = float(np.abs(got[differ].astype(np.float64) - want[differ]).max(initial=0.0))
            scale = float(np.abs(want).max(initial=0.0)) if want.dtype.kind == "f" else 0.0
            # NaN fails every comparison.
            passed &= error <= _FLOAT * scale
            worst = error if not error <= worst else worst
    tolerance = f"integers equal, floats within {_FLOAT:g} of the largest output"
    if not passed:
        raise VerificationError(
            f"the file without dead channels computes something else: max abs error {worst:.3g} "
            f"({tolerance}); no file was written. Please report this"
        )
    return Verification(_SAMPLES, worst, None, tolerance, True, random=True)


def _is_nan(array: Array) -> Array:
    return np.asarray(array != array)  # integers have none


def _loaded(content: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    with captured_stderr():
        try:
            interpreter = Interpreter(model_content=content, num_threads=1)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise VerificationError(
                f"the interpreter refuses the file ({first_line(error)}), so that it cannot be "
                "compared here; pass `verify=False` to write it all the same"
            ) from error
    return interpreter


def _run(interpreter: Any, inputs: list[Array]) -> list[Array]:
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], values)
    try:
        interpreter.invoke()
    except RuntimeError as error:
        raise VerificationError(
            f"the interpreter fails on random inputs ({first_line(error)}); pass `verify=False` to "
            "write the file all the same"
        ) from error
    return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]


def _random(rng: np.random.Generator, detail: dict[str, Any]) -> Array:
    shape, dtype = detail["shape"], np.dtype(detail["dtype"])
    if dtype.kind == "f":
        values = rng.standard_normal(shape)
    elif dtype.kind != "b" and (detail["quantization"][0] or dtype.itemsize == 1):
        limits = np.iinfo(dtype)
        values = rng.integers(limits.min, limits.max + 1, shape)
    else:  # tokens, maybe, of a small vocabulary
        values = rng.integers(0, 2, shape)
    return np.asarray(values, dtype)
