"""What weight tensors would take in other encodings, computed from the formats."""

import math

import numpy as np

# A sparse tensor's own tables, its DENSIFY operator and the dense tensor behind it: 280 to 340
# measured in converted ResNet-8, MobileNetV1 and dense models. The dense tensor repeats the
# float32 scales and int64 zero points.
_SPARSE_OVERHEAD_BYTES = 310
_SCALE_BYTES = 12
_NEGATIVE_ZERO = 0x8000  # as float16
# Blocks along a fully-connected weight's rows for which the converter has kernels.
_BLOCKS = {"float32": 4, "float16": 4, "int8": 16}


def histogram(stored: np.ndarray, implied_zeros: int) -> np.ndarray:
    """Count how often each distinct value occurs.

    Args:
      stored: values, flat, NaN-free or not (each bit pattern of a float is a value of its own).
      implied_zeros: zeros that a sparse encoding does not store.

    Returns:
      Counts, one for each distinct value, in no particular order.
    """
    if stored.dtype.itemsize <= 2:
        counts = np.bincount(stored.view(f"u{stored.dtype.itemsize}"))
        if stored.dtype.kind == "f" and counts.size > _NEGATIVE_ZERO:
            counts[0] += counts[_NEGATIVE_ZERO]
            counts[_NEGATIVE_ZERO] = 0
        found = np.flatnonzero(counts)
        values, counts = found, counts[found]
    else:
        # Adding zero turns -0.0 into 0.0; sorting integers is quicker than sorting floats.
        bits = (stored + stored.dtype.type(0)).view(f"u{stored.dtype.itemsize}")
        values, counts = np.unique(bits, return_counts=True)
    if implied_zeros and values.size and values[0] == 0:
        counts[0] += implied_zeros
    elif implied_zeros:
        counts = np.append(counts, implied_zeros)
    return counts


def most_distinct(rows: np.ndarray) -> int:
    """Count the distinct values of each row, and return the largest count.

    Args:
      rows: 2-D, of any stored dtype.
    """
    if not rows.size:
        return 0
    if rows.dtype.itemsize == 1:
        seen = np.zeros((len(rows), 256), dtype=bool)
        seen[np.arange(len(rows))[:, np.newaxis], rows.view(np.uint8)] = True
        return int(seen.sum(axis=1).max())
    ordered = np.sort(rows, axis=1)
    return 1 + int((ordered[:, 1:] != ordered[:, :-1]).sum(axis=1).max(initial=0))


def entropy_bytes(counts: np.ndarray, dense_bytes: int) -> int:
    """Return what an ideal coder with one histogram makes of a tensor, its table included.

    That is the order-0 entropy of the values, plus each distinct value once; never more than
    the values as they are.

    Args:
      counts: from `histogram`.
      dense_bytes: what the values take as they are.
    """
    entries = int(counts.sum())
    if not entries:
        return 0
    bits = float((counts * (math.log2(entries) - np.log2(counts))).sum())
    table = counts.size * dense_bytes / entries
    return min(math.ceil(bits / 8 + table), dense_bytes)


def sparse_bytes(weight: np.ndarray, scales: int = 0) -> int:
    """Return what a tensor takes in TFLite's sparse encoding, or densely if that is less.

    Rows are dense, the last axis is compressed: the non-zero values, an index for each, and
    where each row's begin; indices take 1, 2 or 4 bytes by their largest. Matrices may also be
    stored in blocks along their rows. Only tensors of rank 2 and 4 can be sparse.

    Source: tensorflow/compiler/mlir/lite/transforms/dense_to_sparse_pass.cc and the
    `SparsityParameters` of schema.fbs.

    Args:
      weight: as it lies in the file, output channels first.
      scales: quantization scales that it has; 0 for float.
    """
    dense = weight.nbytes
    if weight.ndim not in (2, 4) or weight.dtype.name not in _BLOCKS or not weight.size:
        return dense
    itemsize, overhead = weight.dtype.itemsize, _SPARSE_OVERHEAD_BYTES + scales * _SCALE_BYTES
    sizes = [_csr_bytes(weight != 0, weight.shape[-1], itemsize)]
    block = _BLOCKS[weight.dtype.name]
    if weight.ndim == 2 and weight.shape[1] % block == 0:
        blocks = (weight.reshape(-1, block) != 0).any(axis=1)
        sizes.append(_csr_bytes(blocks, weight.shape[1] // block, itemsize * block))
    return min(dense, min(sizes) + overhead)


def _csr_bytes(kept: np.ndarray, columns: int, item_bytes: int) -> int:
    stored, rows = int(np.count_nonzero(kept)), kept.size // columns
    indices = stored * _index_bytes(columns - 1)
    segments = (rows + 1) * _index_bytes(stored)
    return stored * item_bytes + indices + segments


def _index_bytes(largest: int) -> int:
    return 1 if largest < 2**8 else 2 if largest < 2**16 else 4
