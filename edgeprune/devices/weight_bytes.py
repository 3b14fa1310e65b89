"""What a .tflite file would take with its weights stored otherwise, counted from the weights.

The graph's own tables change a little with each technique; those parts are counted by what they
took in converted models, so that a figure is within a few percent of the file, or a few hundred
bytes of a tiny one.
"""

import math

import numpy as np
import numpy.typing as npt

from edgeprune.export.densify import entry_bytes
from edgeprune.export.graph import Tensor, TfliteModel
from edgeprune.export.sizes import sparse_bytes

# Operators whose kernel the converter can store sparse, and that pruning acts on.
_PRUNED = ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_FLOATS = ("float32", "float16")
# A float32 scale and an int64 zero point for each channel.
_CHANNEL_BYTES = 12
# A quantized tensor's table of these: 36 to 48 bytes in converted ResNet-8 and MobileNets.
_TABLE_BYTES = 44
# A constant's DEQUANTIZE operator and second tensor, beside that tensor's name.
_DEQUANTIZE_BYTES = 104
# As many values are what a 4-bit look-up table holds.
CLUSTERS = 16
# tflite-micro, compression/lut.py: indices into look-up tables have at most 7 bits.
MOST_VALUES = 128
# Two tensors more, an operator and the table's header: 224 to 240 bytes in converted models.
TABLE_OVERHEAD_BYTES = 240


def float_kernels(model: TfliteModel) -> list[Tensor]:
    """List the kernels that are stored as floats."""
    return [kernel for kernel in model.weights() if kernel.dtype in _FLOATS]


def integer_kernels(model: TfliteModel) -> list[Tensor]:
    """List the kernels that are stored as integers."""
    return [kernel for kernel in model.weights() if "int" in kernel.dtype]


def may_be_int8(kernel: Tensor) -> bool:
    """Tell whether a kernel is int8, or a float one that would be."""
    return kernel.dtype in ("int8", *_FLOATS)


def int8_bytes(model: TfliteModel) -> int:
    """Return the file's bytes in int8: a byte a weight, a scale and a zero point a channel."""
    size = len(model.content)
    for kernel in float_kernels(model):
        size -= _stored_bytes(kernel) - kernel.entries
    for graph in model.subgraphs:
        for operator in graph.operators:
            for kernel in graph.kernels(operator):
                # The kernel's and, for a bias, as many again.
                biased = len(operator.inputs) > 2 and operator.inputs[2] >= 0
                size += _channels(operator.name, kernel) * _CHANNEL_BYTES * (1 + biased)
                size += _TABLE_BYTES * (1 + biased)
        size += _TABLE_BYTES * sum(len(operator.outputs) for operator in graph.operators)
    return size


def float16_bytes(model: TfliteModel) -> int:
    """Return the file's bytes with every float32 constant in half precision."""
    size = len(model.content)
    counted: set[int] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.data is None or tensor.dtype != "float32" or tensor.buffer in counted:
                continue
            counted.add(tensor.buffer)
            size += 2 * tensor.entries + _DEQUANTIZE_BYTES + len(tensor.name)
            size -= _stored_bytes(tensor)
    return size


def pruned_bytes(model: TfliteModel, sparsity: float) -> int:
    """Return the file's bytes with the smallest weights of each kernel zero, sparse-encoded.

    Args:
      model: its kernels are dense or sparse-encoded already.
      sparsity: fraction of zeros in each kernel; where more are zero already, they stay.
    """
    size = len(model.content)
    for kernel in prunable(model):
        if kernel.sparsity is None:
            size -= _stored_bytes(kernel) - sparse_bytes(_pruned(kernel.values(), sparsity))
    return size


def prunable(model: TfliteModel) -> list[Tensor]:
    """List the float kernels that are pruned by default: not the depthwise ones."""
    found = {
        kernel.buffer: kernel
        for graph in model.subgraphs
        for operator in graph.operators
        if operator.name in _PRUNED
        for kernel in graph.kernels(operator)
        if kernel.dtype in _FLOATS
    }
    return list(found.values())


def table_bits(values: int) -> int:
    """Return the bits of an index into a look-up table of so many values."""
    return max(1, (values - 1).bit_length())


def clustered_bytes(model: TfliteModel, values: int = CLUSTERS) -> int:
    """Return the bytes of the int8 file with few values in each channel, in look-up tables.

    Args:
      model: as it is.
      values: in each channel, zero among them.
    """
    size = int8_bytes(model) if float_kernels(model) else len(model.content)
    counted: set[int] = set()
    for graph in model.subgraphs:
        for operator in graph.operators:
            for kernel in graph.kernels(operator):
                if kernel.buffer in counted or not may_be_int8(kernel):
                    continue
                counted.add(kernel.buffer)
                table = values * _channels(operator.name, kernel)
                packed = math.ceil(kernel.entries * table_bits(values) / 8) + table
                size -= max(0, kernel.entries - packed)
    return size


def _channels(operator: str, kernel: Tensor) -> int:
    """Return how many scales an int8 kernel has."""
    if not kernel.shape:
        return 1
    if operator == "DEPTHWISE_CONV_2D":
        return kernel.shape[-1]
    per_channel = ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
    return kernel.shape[0] if operator in per_channel else 1


def _stored_bytes(tensor: Tensor) -> int:
    if tensor.sparsity is None or tensor.data is None:
        return entry_bytes(tensor.dtype, tensor.entries)
    return tensor.data.nbytes + sum(level.index_bytes for level in tensor.sparsity.dimensions)


def _pruned(values: npt.NDArray[np.floating], sparsity: float) -> npt.NDArray[np.floating]:
    removed = round(sparsity * values.size)
    if not removed:
        return values
    pruned = np.array(values)
    flat = pruned.reshape(-1)
    flat[np.argpartition(np.abs(flat), removed - 1)[:removed]] = 0
    return pruned
