"""Quantize a float .tflite file operator by operator: int4 weights, and a mode for each layer.

TensorFlow's converter quantizes whole models. What it cannot do is left to ai-edge-quantizer,
which rewrites a finished float file by a recipe of (regular expression on an operator's outputs,
what to do). Here that expression always names one mode's operators in full.
"""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy.typing as npt

from edgeprune import models
from edgeprune.errors import ArgumentError, EdgepruneError, InputError, UnsupportedError
from edgeprune.export import tflite
from edgeprune.export.graph import KERNEL_INPUTS, Operator, Subgraph
from edgeprune.export.layer_names import layer_of
from edgeprune.export.native import captured_stderr
from edgeprune.export.program import Program
from edgeprune.modelfiles import first_line
from edgeprune.samples import batches

Array = npt.NDArray[Any]
Quantize = str | Mapping[str, str]

MODES = ("none", "float16", "dynamic", "int8", "int16x8", "int4")
CALIBRATED = ("int8", "int16x8")
# ai_edge_quantizer/default_policy.py, "weightonly_wi4_afp32"; the others that hold kernels have
# "weightonly_wi8_afp32" only, so int4 stores them as int8.
_INT4_OPERATORS = ("CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "EMBEDDING_LOOKUP")
_EVERY_LAYER = "*"
_SIGNATURE = "serving_default"


def modes_of(quantize: Quantize) -> tuple[str, ...]:
    """List the modes that a conversion uses, each once.

    Raises:
      InputError: one of them is unknown, or a mapping is empty or has other keys than patterns.
    """
    if isinstance(quantize, str):
        modes: tuple[str, ...] = (quantize,)
    elif isinstance(quantize, Mapping) and quantize and all(isinstance(k, str) for k in quantize):
        modes = tuple(dict.fromkeys(quantize.values()))
    else:
        raise ArgumentError(
            f"`quantize` is a mode or a mapping from layers to modes such as "
            f"{{'conv1': 'int8', '*': 'int4'}}; got {quantize!r}"
        )
    for mode in modes:
        if mode not in MODES:
            raise ArgumentError(f"unknown quantization {mode!r}; supported: {', '.join(MODES)}")
    return modes


def is_by_operator(quantize: Quantize) -> bool:
    """Tell whether a conversion is made here, from a float file, and not by the converter."""
    return quantize == "int4" or not isinstance(quantize, str)


def quantize_operators(
    content: bytes, quantize: Quantize, program: Program, calibration: Sequence[Array] | None
) -> bytes:
    """Quantize a float file operator by operator.

    A mode means for an operator what it means for a whole file: ``none`` and ``float16`` and
    ``int4`` compute in float32, from weights that a DEQUANTIZE operator unpacks; ``dynamic`` from
    int8 weights; ``int8`` and ``int16x8`` in integers, over ranges that are calibrated. Weights
    are symmetric and have a scale an output channel (float16 has none), so zeros stay zeros.
    Operators for which a mode has no kernel stay in float, except that ``int4`` stores the
    weights of depthwise and transposed convolutions as int8. Inputs and outputs stay float32.

    Args:
      content: a float32 .tflite file.
      quantize: ``int4``, or modes by layer. Keys are names, paths or class names of layers, with
        ``*`` and ``?``; the first that matches counts, ``*`` alone last. Layers that none
        matches stay in float. An operator without a layer of its own goes with the one before.
      program: that the file was made from.
      calibration: one array (n, ...) an input; needed by int8 and int16x8.

    Raises:
      InputError: a key matches no layer, or none that has an operator in the file.
      UnsupportedError: ai-edge-quantizer is missing or fails, or int4 fits no layer.
    """
    graph = tflite.read(content).subgraphs[0]
    chosen = _modes_by_operator(
        graph, {_EVERY_LAYER: quantize} if isinstance(quantize, str) else quantize, program
    )
    if "int4" in chosen:
        _check_int4(graph, chosen)
    if set(chosen) & set(CALIBRATED) and any(op.name == "WHILE" for op in graph.operators):
        raise UnsupportedError(
            "the model has a loop, as LSTM, GRU and other recurrent layers do, whose ranges cannot "
            "be calibrated; build these layers with unroll=True and load the same weights, or use "
            "other modes than int8 and int16x8"
        )
    try:
        # Its progress bar goes to Python's stream, its interpreter's messages past that.
        with captured_stderr(), contextlib.redirect_stderr(io.StringIO()):
            return _quantized(content, graph, chosen, program, calibration)
    except EdgepruneError:
        raise
    except Exception as error:  # it raises whatever its algorithms run into
        raise UnsupportedError(
            f"ai-edge-quantizer cannot quantize this model so ({first_line(error)}); choose "
            "another mode, or leave the layer that it names at 'none'"
        ) from error


def _modes_by_operator(graph: Subgraph, modes: Mapping[str, str], program: Program) -> list[str]:
    """Choose each operator's mode."""
    listed = list(models.layers(program.owner)) if hasattr(program.owner, "layers") else []
    known = {layer.name for _, layer in listed}
    names_of: dict[str, set[str]] = {}
    for path, layer in listed:
        names_of.setdefault(layer.name, {layer.name}).update({path, type(layer).__name__})
    patterns = [pattern for pattern in modes if pattern != _EVERY_LAYER]
    chosen: dict[Operator, str] = {}
    used: set[str] = set()
    found: dict[str, None] = {}
    for operator in graph.operators:
        name = layer_of(graph, operator, known)
        if known and name not in known and operator.name not in KERNEL_INPUTS:
            # Such as a dense layer's softmax, whose output is named after the whole model.
            before = (graph.producers.get(index) for index in operator.inputs)
            earlier = (chosen[producer] for producer in before if producer is not None)
            chosen[operator] = next(earlier, modes.get(_EVERY_LAYER, "none"))
            continue
        found[name] = None
        first = next((one for one in patterns if _matches(name, one, names_of)), _EVERY_LAYER)
        used.add(first)
        chosen[operator] = modes.get(first, "none")
    for pattern in patterns:
        if pattern not in used:
            raise InputError(_unused(pattern, found, names_of))
    return list(chosen.values())


def _unused(pattern: str, found: Mapping[str, None], names_of: Mapping[str, set[str]]) -> str:
    """Say why a pattern decides no operator's mode."""
    if any(_matches(name, pattern, names_of) for name in found):
        why = "only layers that others before it match; put it first"
    elif any(_matches(name, pattern, names_of) for name in names_of):
        why = "only layers that are no operator of their own in the file"
    else:
        why = "no layer"
    shown = [name for name in found if name in names_of] or list(found)
    listed = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
    return f"{pattern!r} in the modes by layer matches {why}; the layers in the file are {listed}"


def _matches(name: str, pattern: str, names_of: Mapping[str, set[str]]) -> bool:
    return any(fnmatchcase(one, pattern) for one in names_of.get(name, {name}))


def _check_int4(graph: Subgraph, chosen: Sequence[str]) -> None:
    pairs = [
        operator
        for operator, mode in zip(graph.operators, chosen, strict=True)
        if mode == "int4" and graph.kernels(operator)
    ]
    if not any(operator.name in _INT4_OPERATORS for operator in pairs):
        found = ", ".join(sorted({operator.name for operator in pairs})) or "no weights"
        raise UnsupportedError(
            f"int4 has no layer to act on: found {found}; supported are dense layers and "
            f"convolutions that are not depthwise ({', '.join(_INT4_OPERATORS)})"
        )


def _quantized(
    content: bytes,
    graph: Subgraph,
    chosen: Sequence[str],
    program: Program,
    calibration: Sequence[Array] | None,
) -> bytes:
    try:
        from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
        from ai_edge_quantizer.utils import qsv_utils, tfl_flatbuffer_utils
    except ImportError as error:
        raise UnsupportedError(
            "int4 and modes by layer need ai-edge-quantizer; install it with "
            "pip install 'edgeprune[int4]'"
        ) from error
    # Their own names of operators, which recipes are matched with.
    theirs = tfl_flatbuffer_utils.read_model(bytearray(content)).subgraphs[0]
    scopes = [tfl_flatbuffer_utils.get_op_scope(op, theirs.tensors) for op in theirs.operators]
    groups: dict[str, list[str]] = {}
    for operator, mode, scope in zip(graph.operators, chosen, scopes, strict=True):
        int8_weights = mode == "int4" and operator.name not in _INT4_OPERATORS
        groups.setdefault("int8 weights" if int8_weights else mode, []).append(scope)
    work = quantizer.Quantizer(bytearray(content))
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    tensorwise = qtyping.QuantGranularity.TENSORWISE
    for mode, names in groups.items():
        regex = f"^(?:{'|'.join(map(re.escape, dict.fromkeys(names)))})$"
        if mode == "int4":
            work.add_weight_only_config(regex, every, 4)
        elif mode == "int8 weights":
            work.add_weight_only_config(regex, every, 8)
        elif mode == "float16":
            work.add_weight_only_config(regex, every, 16, tensorwise, "float_casting")
        elif mode == "dynamic":
            work.add_dynamic_config(regex, every, 8)
        elif mode in CALIBRATED:
            work.add_static_config(regex, every, 8 if mode == "int8" else 16, 8)
    # The model's inputs and outputs count as operators of their own, by the same names.
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        work.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
    ranges = None
    if work.need_calibration:
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(work.get_quantization_recipe())
        # The whole range of all samples, as TensorFlow takes it: their own moving average of each
        # sample's range cuts off what lies beyond the average sample's.
        watched = calibrator.Calibrator(
            bytearray(content), num_threads=1, qsv_update_func=qsv_utils.min_max_update
        )
        watched.calibrate({_SIGNATURE: _batches(program, calibration)}, manager)
        ranges = watched.get_model_qsvs()
    return bytes(work.quantize(ranges, enable_progress_report=False).quantized_model)


def _batches(program: Program, calibration: Sequence[Array] | None) -> list[dict[str, Array]]:
    if calibration is None:
        raise InputError("int8 and int16x8 layers need calibration data")
    names = [spec.name for spec in program.inputs]
    size = program.inputs[0].shape[0] if program.inputs[0].shape else 1
    return [dict(zip(names, batch, strict=True)) for batch in batches(calibration, size or 1)]
