"""What TensorFlow Lite Micro can run: its operators, and the dtypes that it lacks."""

from collections.abc import Iterator
from dataclasses import replace

from edgeprune.export.graph import KERNEL_INPUTS, Operator, Subgraph, Tensor, TfliteModel

# Every operator that TFLM has a kernel for, as its "all operators" resolver registers them:
# tensorflow/tflite-micro, python/tflite_micro/python_ops_resolver.cc. The names were checked
# one by one against that resolver in tflite_micro 0.dev20261023182759.
_OPERATORS = """
ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND
BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM
DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP
EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER
GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM
MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX
REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT
SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE
SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV
UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
CIRCULAR_BUFFER TFLite_Detection_PostProcess TFLM_DECODE ethos-u
SignalDelay SignalEnergy SignalFftAutoScale SignalFilterBank SignalFilterBankLog
SignalFilterBankSpectralSubtraction SignalFilterBankSquareRoot SignalFramer SignalIrfft
SignalOverlapAdd SignalPCAN SignalRfft SignalStacker SignalWindow
"""
SUPPORTED_OPERATORS = frozenset(_OPERATORS.split())
DECODE = "TFLM_DECODE"
"""Puts weights together out of look-up tables; only TFLM has it."""


def has_look_up_tables(model: TfliteModel) -> bool:
    """Tell whether weights are in look-up tables."""
    return any(op.name == DECODE for graph in model.subgraphs for op in graph.operators)


def kernels_in_tables(graph: Subgraph, operator: Operator) -> Iterator[Tensor]:
    """Yield the kernels of an operator that look-up tables hold, as they are once decoded.

    They have no data, and the buffer of their indices.
    """
    for position in KERNEL_INPUTS.get(operator.name, ()):
        index = operator.inputs[position] if position < len(operator.inputs) else -1
        decode = graph.producers.get(index)
        if decode is not None and decode.name == DECODE:
            # Two inputs an output: the indices, and how to read them with their tables.
            indices = 2 * decode.outputs.index(index)
            if indices < len(decode.inputs) and decode.inputs[indices] >= 0:
                packed = graph.tensors[decode.inputs[indices]]
                yield replace(graph.tensors[index], buffer=packed.buffer)


def all_in_tables(model: TfliteModel) -> dict[int, Tensor]:
    """Return the kernels of a model that look-up tables hold, by the buffer of their indices."""
    return {
        tensor.buffer: tensor
        for graph in model.subgraphs
        for operator in graph.operators
        for tensor in kernels_in_tables(graph, operator)
    }


def unsupported_operators(model: TfliteModel) -> list[str]:
    """List, sorted, the operators of a model that TFLM has no kernel for.

    Being listed nowhere does not mean that a microcontroller runs the model: its memory, and
    the dtypes that `dtype_notes` names, decide too. `ethos-u` needs that NPU.
    """
    used = {operator.name for graph in model.subgraphs for operator in graph.operators}
    return sorted(used - SUPPORTED_OPERATORS)


def dtype_notes(model: TfliteModel) -> list[str]:
    """Say which weights have a dtype that TFLM's kernels refuse, in one line each.

    Source: tensorflow/lite/micro/kernels: conv_common.cc and fully_connected_common.cc ("Hybrid
    models are not supported on TFLite Micro."), dequantize_common.cc (no float16 or
    int4 input).
    """
    notes: dict[str, None] = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            for kernel in graph.kernels(operator):
                given = graph.tensors[operator.inputs[0]].dtype if operator.inputs[0] >= 0 else ""
                refused = None
                if kernel.dtype == "float16":
                    refused = "float16 weights"
                elif kernel.dtype == "int4" and given == "float32":
                    refused = "int4 weights of float layers"
                elif kernel.dtype.startswith("int") and given == "float32":
                    refused = "integer weights with float inputs (dynamic range)"
                if refused:
                    notes[f"TFLite Micro does not run {refused}: convert with int8"] = None
    return list(notes)
