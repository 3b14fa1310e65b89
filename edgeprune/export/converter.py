"""Drive TensorFlow's converter: a program in, the content of a .tflite file out."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgeprune.errors import InputError, UnsupportedError
from edgeprune.export.native import captured_stderr
from edgeprune.export.program import Program
from edgeprune.modelfiles import first_line
from edgeprune.samples import batches

Array = npt.NDArray[Any]


def to_tflite(
    program: Program,
    quantize: str,
    calibration: Sequence[Array] | None,
    *,
    integer_io: bool,
    allow_select_ops: bool,
) -> bytes:
    """Convert a program whose shapes are fixed.

    Args:
      program: what to convert.
      quantize: ``none``, ``float16``, ``dynamic``, ``int8`` or ``int16x8``.
      calibration: one array (n, ...) an input; needed by int8 and int16x8.
      integer_io: whether an int8 model takes and gives int8.
      allow_select_ops: whether operators that TFLite lacks may be run by TensorFlow's kernels.

    Raises:
      InputError: the calibration data hold indices that the model does not know.
      UnsupportedError: the model has operators that cannot be converted; they are named.
    """
    import tensorflow as tf

    converter: Any
    failure: Exception | None = None
    content = b""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder, captured_stderr() as log:
        try:
            program.save(Path(folder))
            if quantize in ("int8", "int16x8"):
                _refuse_loops(Path(folder), quantize)
            converter = tf.lite.TFLiteConverter.from_saved_model(
                folder, signature_keys=["serving_default"]
            )
            _configure(converter, program, quantize, calibration, integer_io, allow_select_ops)
            content = converter.convert()
        except Exception as error:  # the converter raises whatever its passes run into
            failure = error
    if failure is not None:
        raise _explained(failure, log.text, quantize) from failure
    return content


def _refuse_loops(folder: Path, quantize: str) -> None:
    """Refuse graphs with loops, which end the whole process in TensorFlow's calibrator."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    for function in saved.meta_graphs[0].graph_def.library.function:
        # The converter replaces tf_keras's LSTM functions as a whole by one operator.
        if function.attr["api_implements"].s.startswith(b"lstm_"):
            continue
        if any(node.op in ("While", "StatelessWhile") for node in function.node_def):
            raise UnsupportedError(
                f"the model has a loop, as LSTM, GRU and other recurrent layers do, on which "
                f"TensorFlow's {quantize} calibration crashes; build these layers with "
                "unroll=True and load the same weights, or use dynamic or float16"
            )


def _configure(
    converter: Any,
    program: Program,
    quantize: str,
    calibration: Sequence[Array] | None,
    integer_io: bool,
    allow_select_ops: bool,
) -> None:
    import tensorflow as tf

    ops = tf.lite.OpsSet
    supported = [ops.TFLITE_BUILTINS]
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize in ("int8", "int16x8"):
        if calibration is None:
            raise InputError(f"{quantize} needs calibration data")
        # The integer set goes first, the float one lets operators that have no integer kernel
        # stay in float, where the model would otherwise be refused as a whole.
        integer = (
            ops.TFLITE_BUILTINS_INT8
            if quantize == "int8"
            else ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        )
        supported = [integer, *supported]
        names = [spec.name for spec in program.inputs]
        size = program.inputs[0].shape[0] if program.inputs[0].shape else 1

        def representative() -> Iterator[dict[str, Array]]:
            for batch in batches(calibration, size or 1):
                yield dict(zip(names, batch, strict=True))

        converter.representative_dataset = representative
    if integer_io:
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    if allow_select_ops:
        supported = [*supported, ops.SELECT_TF_OPS]
    converter.target_spec.supported_ops = supported


def _explained(error: Exception, log: str, quantize: str) -> Exception:
    if isinstance(error, InputError | UnsupportedError):
        return error
    text = f"{error}\n{log}"
    select, custom = _operators(text, "TF Select ops"), _operators(text, "Custom ops")
    if custom:
        return UnsupportedError(
            f"the model has operators that no TFLite runtime runs: {', '.join(custom)}; replace "
            "the layers that use them"
        )
    if select:
        return UnsupportedError(
            f"the model has operators that TFLite lacks: {', '.join(select)}; replace them, or "
            "pass `allow_select_ops=True` if your runtime includes TensorFlow's (Flex) kernels"
        )
    if "gather index out of bounds" in text:
        return InputError(
            "calibration data: an index, such as a token id, lies outside the table that it picks "
            "from; ids of an embedding go from 0 to its input_dim - 1"
        )
    if "min and max" in text.lower() or "empty min/max" in text.lower():
        tensor = re.search(r"(?:Failed for tensor|min/max for tensor) (\S+)", text)
        return UnsupportedError(
            f"{quantize} quantization failed: tensor '{tensor.group(1) if tensor else '?'}' has "
            "no range, as integer inputs have none in int16x8, nor parts that no calibration "
            "sample reaches; use int8 or calibrate with other samples"
        )
    return UnsupportedError(
        f"TensorFlow's converter failed ({first_line(error)}); try `quantize='none'`, or report "
        "the layer that it names"
    )


def _operators(text: str, kind: str) -> list[str]:
    """Read the list after ``TF Select ops:`` or ``Custom ops:``."""
    found: dict[str, None] = {}
    for line in re.findall(rf"{kind}: ([^\n]+)", text):
        found.update(dict.fromkeys(name.strip() for name in line.split(",") if name.strip()))
    return list(found)
