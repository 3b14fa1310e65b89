"""What a .tflite file holds: tensors, operators and subgraphs, as plain frozen objects."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.densify import SparseEncoding, densify, stored_positions, unpack

# Operator -> the inputs that are kernels. Sources: the input lists at the top of each file of
# tensorflow/lite/kernels; for LSTM lstm_shared.h (gates, recurrent gates, projection).
KERNEL_INPUTS: dict[str, tuple[int, ...]] = {
    "CONV_2D": (1,),
    "DEPTHWISE_CONV_2D": (1,),
    "FULLY_CONNECTED": (1,),
    "TRANSPOSE_CONV": (1,),
    "CONV_3D": (1,),
    "CONV_3D_TRANSPOSE": (1,),
    "BATCH_MATMUL": (0, 1),
    "EMBEDDING_LOOKUP": (1,),
    "GATHER": (0,),
    "LSTM": (*range(1, 9), 16),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (*range(1, 9), 16),
    "BIDIRECTIONAL_SEQUENCE_LSTM": (*range(1, 9), 16, *range(18, 26), 33),
    "RNN": (1, 2),
    "UNIDIRECTIONAL_SEQUENCE_RNN": (1, 2),
    "BIDIRECTIONAL_SEQUENCE_RNN": (1, 2, 5, 6),
    "SVDF": (1, 2),
}

_DENSE_VIEWS = ("DEQUANTIZE", "DENSIFY")


@dataclass(frozen=True, eq=False)
class Quantization:
    """Real value = scale * (stored - zero_point), one of each, or one per index of `axis`.

    Attributes:
      scale: float32, shape (1,) or (size of the axis,).
      zero_point: int64, of the same shape.
      axis: the tensor's axis that the scales run along, if there are several.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a subgraph.

    Attributes:
      index: within its subgraph.
      name: as the converter wrote it, possibly empty.
      shape: static; dimensions that are free hold 1.
      signature: like `shape`, with -1 for free dimensions.
      dtype: NumPy's name, or `int4`, `int2`, `uint4`, `bfloat16`, `string`, `resource`, ...
      quantization: None for float and plain integers.
      sparsity: how the buffer is laid out; None when it is dense.
      buffer: index of its buffer; tensors of equal content may share one.
      data: the buffer's bytes, uint8, a view into the file; None unless constant.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    dtype: str
    quantization: Quantization | None
    sparsity: SparseEncoding | None
    buffer: int
    data: np.ndarray | None

    @property
    def entries(self) -> int:
        """Number of entries of the dense tensor."""
        return math.prod(self.shape)

    def values(self) -> np.ndarray:
        """Return a constant's stored values, dense, in `shape`: integers if quantized.

        A view into the file unless packed or sparse; then decoded anew at each call.

        Raises:
          InputError: not a constant, or its sparse encoding is damaged.
          UnsupportedError: NumPy has no such dtype.
        """
        if self.sparsity is None:
            return self.stored().reshape(self.shape)
        return densify(self.stored(), self.sparsity, self.shape)

    def stored(self) -> np.ndarray:
        """Return the values that a constant's buffer holds, flat: all, or a sparse one's blocks.

        What a sparse tensor does not store is zero.

        Raises:
          InputError: not a constant, or its sparse encoding is damaged.
          UnsupportedError: NumPy has no such dtype.
        """
        if self.data is None:
            raise InputError(f"tensor '{self.name}' is computed; only constants have values")
        if self.sparsity is None:
            return unpack(self.data, self.dtype, self.entries)
        values = unpack(self.data, self.dtype, self.data.size)
        stored_positions(values.size, self.sparsity, self.shape)
        return values

    def zeros(self) -> int:
        """Count a constant's entries whose real value is zero: those equal to the zero point.

        Raises:
          InputError, UnsupportedError: as `values`.
        """
        quantization = self.quantization
        if quantization is None or not quantization.zero_point.any():
            return self.entries - int(np.count_nonzero(self.stored()))
        zero_point = quantization.zero_point
        if zero_point.size > 1:
            axis = [1] * len(self.shape)
            axis[quantization.axis] = -1
            zero_point = zero_point.reshape(axis)
        return int(np.count_nonzero(self.values() == zero_point))


@dataclass(frozen=True, eq=False)
class Operator:
    """One step of a subgraph.

    Attributes:
      name: `CONV_2D`, ...; a custom operator's own code, such as `FlexErf`.
      custom: whether it is not one of the builtin operators.
      inputs: tensor indices, -1 where an optional one is left out.
      outputs: tensor indices.
      options: scalar options by the schema's names: `stride_h`, `padding`, `adj_x`, ...
    """

    name: str
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, int | float | bool]


@dataclass(frozen=True, eq=False)
class Subgraph:
    """Operators in execution order, over tensors."""

    name: str
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[Operator, ...]

    @cached_property
    def producers(self) -> dict[int, Operator]:
        """Tensor index -> the operator that computes it."""
        return {index: op for op in self.operators for index in op.outputs}

    @cached_property
    def consumers(self) -> dict[int, list[Operator]]:
        """Tensor index -> the operators that read it, each once."""
        found: dict[int, list[Operator]] = {}
        for operator in self.operators:
            for index in set(operator.inputs):
                found.setdefault(index, []).append(operator)
        return found

    def constant(self, index: int) -> Tensor | None:
        """Return the constant at a tensor index, looking through DEQUANTIZE and DENSIFY.

        float16 and sparse weights reach their operator through these; the constant behind them
        is the weight. None if the tensor is computed or left out.
        """
        for _ in range(3):
            if index < 0:
                return None
            tensor = self.tensors[index]
            if tensor.data is not None:
                return tensor
            producer = self.producers.get(index)
            if producer is None or producer.name not in _DENSE_VIEWS or not producer.inputs:
                return None
            index = producer.inputs[0]
        return None

    def kernels(self, operator: Operator) -> list[Tensor]:
        """List the constant kernels that an operator reads."""
        positions = KERNEL_INPUTS.get(operator.name, ())
        found = (
            self.constant(operator.inputs[position])
            for position in positions
            if position < len(operator.inputs)
        )
        # GATHER also picks from shapes and small tables; an embedding is a table of vectors.
        return [
            tensor
            for tensor in found
            if tensor is not None
            and (tensor.dtype.startswith(("float", "bfloat")) or tensor.quantization is not None)
            and (operator.name != "GATHER" or len(tensor.shape) == 2)
        ]


@dataclass(frozen=True, eq=False)
class TfliteModel:
    """A .tflite file's graph, its constants views into `content`."""

    content: bytes
    subgraphs: tuple[Subgraph, ...]

    @cached_property
    def _weights(self) -> tuple[Tensor, ...]:
        found: dict[int, Tensor] = {}
        for subgraph in self.subgraphs:
            for operator in subgraph.operators:
                for tensor in subgraph.kernels(operator):
                    found.setdefault(tensor.buffer, tensor)
        return tuple(found.values())

    def weights(self) -> tuple[Tensor, ...]:
        """List the constants that are kernels, each buffer once, in order of first use."""
        return self._weights

    @cached_property
    def sparsity(self) -> float:
        """Fraction of the weights' entries that are zero; 0.0 for a model without weights."""
        entries = sum(tensor.entries for tensor in self.weights())
        return sum(tensor.zeros() for tensor in self.weights()) / entries if entries else 0.0
