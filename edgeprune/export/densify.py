"""Decode the tensors of a .tflite file: packed integers, bfloat16, and the sparse encoding."""

import math
from dataclasses import dataclass

import numpy as np

from edgeprune.errors import InputError, UnsupportedError

# A dense tensor inside a .tflite file, a 2 GiB flatbuffer, is never larger than this.
_MAX_DENSE_BYTES = 2**31

_PACKED_BITS = {"int2": 2, "int4": 4, "uint4": 4}


@dataclass(frozen=True, eq=False)
class Dimension:
    """One level of a sparse tensor's storage, in traversal order.

    Attributes:
      size: entries of a dense level; 0 for a compressed (CSR) one.
      segments: of a compressed level, where each parent's entries begin; None for dense.
      indices: of a compressed level, the coordinate of each entry; None for dense.
      index_bytes: as stored in the file, segments and indices together.
    """

    size: int
    segments: np.ndarray | None
    indices: np.ndarray | None

    @property
    def index_bytes(self) -> int:
        if self.segments is None or self.indices is None:
            return 0
        return self.segments.nbytes + self.indices.nbytes


@dataclass(frozen=True, eq=False)
class SparseEncoding:
    """How a tensor's non-zero blocks are laid out (`SparsityParameters` of the schema).

    Attributes:
      traversal_order: tensor axes, then block axes (numbered from the rank), outermost first.
      block_map: the tensor axis that each block axis divides.
      dimensions: one for each entry of `traversal_order`.
    """

    traversal_order: tuple[int, ...]
    block_map: tuple[int, ...]
    dimensions: tuple[Dimension, ...]


def entry_bytes(dtype: str, entries: int) -> int:
    """Return the bytes that `entries` values of a dtype take; packed ones share bytes."""
    if bits := _PACKED_BITS.get(dtype):
        return -(-entries * bits // 8)
    if dtype == "bfloat16":
        return 2 * entries
    if dtype.startswith("float8"):
        return entries
    return entries * np.dtype(dtype).itemsize


def unpack(data: np.ndarray, dtype: str, entries: int) -> np.ndarray:
    """Turn a buffer's bytes into `entries` values, without copying where NumPy has the dtype.

    int2, int4 and uint4 become int8 or uint8, one value each, the low bits first; bfloat16
    becomes float32.

    Raises:
      UnsupportedError: NumPy has no such dtype.
    """
    if bits := _PACKED_BITS.get(dtype):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        values: np.ndarray = ((data[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:entries]
        if dtype.startswith("u"):
            return values
        sign = np.uint8(1 << (bits - 1))
        extended: np.ndarray = (values ^ sign) - sign
        return extended.view(np.int8)
    if dtype == "bfloat16":
        high_half: np.ndarray = data.view("<u2").astype(np.uint32) << 16
        return high_half.view(np.float32)
    if dtype.startswith("float8"):
        raise UnsupportedError(f"tensors of {dtype} cannot be decoded; supported: int2 to float64")
    return data.view(np.dtype(dtype).newbyteorder("<"))


def densify(values: np.ndarray, encoding: SparseEncoding, shape: tuple[int, ...]) -> np.ndarray:
    """Spread the stored values of a sparse tensor over its dense shape, zeros elsewhere.

    Args:
      values: stored entries, in storage order, one-dimensional.
      encoding: where they belong.
      shape: of the dense tensor.

    Raises:
      InputError: the encoding contradicts itself, the shape or the number of values.
    """
    _check_size(shape, values.itemsize)
    positions = stored_positions(values.size, encoding, shape)
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[positions] = values
    return dense.reshape(shape)


def stored_positions(stored: int, encoding: SparseEncoding, shape: tuple[int, ...]) -> np.ndarray:
    """Return the flat index, in the dense tensor, of each of the `stored` entries.

    Every step works on a whole level: its entries are its parents', each repeated for its
    children. Memory stays in proportion to what is stored, whatever shape a file claims.

    Source: tensorflow/lite/kernels/internal/utils/sparsity_format_converter.cc and the
    notes on `SparsityParameters` in tensorflow/lite/schema/schema.fbs.

    Raises:
      InputError: the encoding contradicts itself, the shape or the number of values.
    """
    strides, sizes = _levels(encoding, shape)
    # Each entry of a level is stored itself, or has a segment in some compressed level below.
    most = max(1, stored, *(level.index_bytes for level in encoding.dimensions))
    positions = np.zeros(1, np.int64)
    for level, stride, size in zip(encoding.dimensions, strides, sizes, strict=True):
        if level.segments is None or level.indices is None:
            if level.size != size or positions.size * size > most:
                raise _contradiction(shape)
            positions = (positions[:, None] + np.arange(size) * stride).reshape(-1)
            continue
        segments = level.segments.astype(np.int64)
        indices = level.indices.astype(np.int64)
        counts = np.diff(segments)
        if (
            segments.size != positions.size + 1
            or segments[0] != 0
            or segments[-1] != indices.size
            or (counts < 0).any()
            or (indices < 0).any()
            or (indices >= size).any()
        ):
            raise _contradiction(shape)
        positions = np.repeat(positions, counts) + indices * stride
    if positions.size != stored:
        raise _contradiction(shape)
    return positions


def _levels(encoding: SparseEncoding, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return, for each level, its stride in the dense tensor and its number of coordinates."""
    rank, blocks = len(shape), len(encoding.block_map)
    order = encoding.traversal_order
    if (
        sorted(order) != list(range(rank + blocks))
        or len(encoding.dimensions) != len(order)
        or any(not 0 <= axis < rank for axis in encoding.block_map)
        or len(set(encoding.block_map)) != blocks
    ):
        raise _contradiction(shape)
    block_of = dict.fromkeys(range(rank), 1)
    for axis, dimension in zip(order, encoding.dimensions, strict=True):
        if axis >= rank:
            # A block axis is always dense: blocks are stored whole.
            if dimension.segments is not None or dimension.size < 1:
                raise _contradiction(shape)
            block_of[encoding.block_map[axis - rank]] = dimension.size
    if any(shape[axis] % block for axis, block in block_of.items()):
        raise _contradiction(shape)
    _check_size(shape, 1)
    strides, sizes = [], []
    for axis in order:
        tensor_axis = axis if axis < rank else encoding.block_map[axis - rank]
        stride = math.prod(shape[tensor_axis + 1 :])
        block = block_of[tensor_axis]
        strides.append(stride * block if axis < rank else stride)
        sizes.append(shape[tensor_axis] // block if axis < rank else block)
    return strides, sizes


def _check_size(shape: tuple[int, ...], itemsize: int) -> None:
    if math.prod(shape) * itemsize > _MAX_DENSE_BYTES:
        raise InputError(f"a sparse tensor of shape {list(shape)} is larger than a .tflite holds")


def _contradiction(shape: tuple[int, ...]) -> InputError:
    return InputError(
        f"the sparse encoding of a tensor of shape {list(shape)} contradicts itself; "
        "the file is damaged"
    )
