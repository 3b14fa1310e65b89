"""Patterns: the shapes in which zeros fall, and the exact masks that make them.

`Block` and `NM` see a kernel as a matrix (inputs, outputs): the axes of `output_axes` are moved
last and flattened into columns, all others, in their order, into rows. For a Conv2D kernel
(kh, kw, c_in, c_out) a column is one filter and consecutive rows are consecutive input channels.

Everywhere: the score is the weight's magnitude, the smallest go, among equals the lower flat
index goes first, and at least one weight is kept.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError

# Up to this fraction of zeros, partitioning them costs less than leaving them out.
_FEW_ZEROS = 0.02

Scores = NDArray[Any]
Mask = NDArray[np.bool_]


class Pattern(Protocol):
    """What ranking asks of a pattern; add a new one by writing these three."""

    def check(self, target: float) -> None:
        """Raise InputError if the pattern cannot end at this sparsity."""

    def mask(self, scores: Scores, sparsity: float, output_axes: tuple[int, ...] = (-1,)) -> Mask:
        """Return a bool array of the scores' shape, True where a weight is kept."""


class GlobalPattern(Pattern, Protocol):
    """A pattern whose units (weights or blocks) can be ranked across layers."""

    def units(self, scores: Scores, output_axes: tuple[int, ...] = (-1,)) -> Scores:
        """Return one score a unit, one-dimensional."""

    def spread(self, kept: Mask, shape: tuple[int, ...], output_axes: tuple[int, ...]) -> Mask:
        """Turn the units that are kept into a mask over weights."""


@dataclass(frozen=True)
class Unstructured:
    """Single weights, wherever they are: the most accurate pattern at a given sparsity."""

    def check(self, target: float) -> None:
        """Any sparsity will do."""

    def mask(self, scores: Scores, sparsity: float, output_axes: tuple[int, ...] = (-1,)) -> Mask:
        """Return a mask with exactly ``round(sparsity * size)`` False entries (one stays True).

        Args:
          scores: magnitudes, of any shape.
          sparsity: fraction of zeros, in [0, 1).
          output_axes: not used; every weight is ranked alone.
        """
        return keep_largest(scores.reshape(-1), sparsity).reshape(scores.shape)

    def units(self, scores: Scores, output_axes: tuple[int, ...] = (-1,)) -> Scores:
        """Return the scores, flat."""
        return scores.reshape(-1)

    def spread(self, kept: Mask, shape: tuple[int, ...], output_axes: tuple[int, ...]) -> Mask:
        """Give a flat mask the kernel's shape."""
        return kept.reshape(shape)


@dataclass(frozen=True)
class Block:
    """Blocks of rows x cols weights of the matrix (inputs, outputs), kept or zeroed together.

    A block's score is the mean magnitude of its weights. Blocks at the lower and right edge may
    be smaller; each counts as one block. Exactly ``round(sparsity * blocks)`` are zeroed, so with
    smaller edge blocks the fraction of zero weights may differ a little from `sparsity`.

    Args:
      rows: block height, in inputs.
      cols: block width, in outputs.

    Raises:
      InputError: a size below 1.
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise InputError(f"a block has at least 1 row and 1 column; got {self}")

    def check(self, target: float) -> None:
        """Any sparsity will do."""

    def mask(self, scores: Scores, sparsity: float, output_axes: tuple[int, ...] = (-1,)) -> Mask:
        """Return a mask with exactly ``round(sparsity * blocks)`` blocks False (one stays True).

        Args:
          scores: magnitudes, of the kernel's shape.
          sparsity: fraction of zero blocks, in [0, 1).
          output_axes: the kernel's axes that index output channels.
        """
        kept = keep_largest(self.units(scores, output_axes), sparsity)
        return self.spread(kept, scores.shape, output_axes)

    def units(self, scores: Scores, output_axes: tuple[int, ...] = (-1,)) -> Scores:
        """Return the mean score of each block, row of blocks by row of blocks."""
        matrix = _matrix(scores, output_axes)
        inputs, outputs = matrix.shape
        high, wide = math.ceil(inputs / self.rows), math.ceil(outputs / self.cols)
        if (high * self.rows, wide * self.cols) != matrix.shape:
            padding = ((0, high * self.rows - inputs), (0, wide * self.cols - outputs))
            matrix = np.pad(matrix, padding)
        # Whole rows at a time, then columns: many times as fast as np.add.reduceat.
        sums = matrix[:: self.rows].copy()
        for row in range(1, self.rows):
            sums += matrix[row :: self.rows]
        sums = sum(
            (sums[:, col :: self.cols] for col in range(1, self.cols)), sums[:, :: self.cols]
        )
        if matrix.shape == (inputs, outputs):
            sums /= self.rows * self.cols
        else:
            heights = np.minimum(self.rows, inputs - np.arange(high) * self.rows)
            widths = np.minimum(self.cols, outputs - np.arange(wide) * self.cols)
            sums /= np.outer(heights, widths).astype(sums.dtype)
        means: Scores = sums
        return means.reshape(-1)

    def spread(self, kept: Mask, shape: tuple[int, ...], output_axes: tuple[int, ...]) -> Mask:
        """Widen one entry a block to all of its weights."""
        inputs, outputs = _matrix_shape(shape, output_axes)
        grid = kept.reshape(math.ceil(inputs / self.rows), math.ceil(outputs / self.cols))
        tall = np.repeat(grid, self.rows, axis=0)[:inputs]
        return _from_matrix(np.repeat(tall, self.cols, axis=1)[:, :outputs], shape, output_axes)


@dataclass(frozen=True)
class NM:
    """At most `keep` non-zero weights of every `of` consecutive inputs of one output.

    Groups follow each other down a column of the matrix (inputs, outputs); a last group that is
    short is treated as if it were filled up with zeros, so it keeps ``min(keep, length)``.
    The sparsity it ends with is ``1 - keep / of``; on the way there every group has
    ``floor(sparsity * of)`` zeros.

    Args:
      keep: non-zero weights of a group, at least 1.
      of: group length, above `keep`.

    Raises:
      InputError: not ``1 <= keep < of``.

    Source: Mishra et al. 2021, arXiv:2104.08378 (2 of 4).
    """

    keep: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.keep < self.of:
            raise InputError(f"NM keeps at least 1 weight and less than all of a group; got {self}")

    def check(self, target: float) -> None:
        """Raise InputError unless the target is ``1 - keep / of``."""
        fixed = 1 - self.keep / self.of
        if not math.isclose(target, fixed, abs_tol=1e-6):
            raise InputError(
                f"NM(keep={self.keep}, of={self.of}) ends at a sparsity of {fixed:g}; got a target "
                f"of {target:g}. Set the target to {fixed:g} or choose another keep and of"
            )

    def mask(self, scores: Scores, sparsity: float, output_axes: tuple[int, ...] = (-1,)) -> Mask:
        """Return a mask with ``floor(sparsity * of)`` False entries in every whole group.

        Args:
          scores: magnitudes, of the kernel's shape.
          sparsity: fraction of zeros, in [0, 1); above ``1 - keep / of`` as if it were that.
          output_axes: the kernel's axes that index output channels.
        """
        # The small term undoes the rounding of 1 - keep / of.
        zeros = min(math.floor(sparsity * self.of + 1e-6), self.of - self.keep)
        matrix = _matrix(scores, output_axes)
        inputs, outputs = matrix.shape
        filled = math.ceil(inputs / self.of) * self.of
        padded = np.full((filled, outputs), -1, matrix.dtype)
        padded[:inputs] = matrix
        groups = padded.reshape(-1, self.of, outputs)
        # A weight's rank in its group is the number of members that go before it.
        rank = np.zeros(groups.shape, np.uint8 if self.of <= 256 else np.uint16)
        for first in range(self.of):
            for second in range(first + 1, self.of):
                goes = groups[:, first] <= groups[:, second]
                rank[:, second] += goes
                rank[:, first] += ~goes
        kept = (rank >= zeros).reshape(filled, outputs)[:inputs]
        return _from_matrix(kept, scores.shape, output_axes)


def keep_largest(scores: Scores, sparsity: float) -> Mask:
    """Mark all but the smallest ``round(sparsity * size)`` of a flat array.

    Args:
      scores: magnitudes, one-dimensional.
      sparsity: fraction to mark False, in [0, 1).

    Returns:
      Bool array; among equals the lower index is False first, and one entry is always True.
    """
    zeros = min(round(sparsity * scores.size), scores.size - 1)
    if zeros <= 0:
        return np.ones(scores.shape, np.bool_)
    scores = sortable(scores)
    threshold = kth_smallest(scores, zeros - 1)
    kept: Mask = np.greater(scores, threshold)
    surplus = scores.size - int(np.count_nonzero(kept)) - zeros
    if surplus > 0:  # several equal the threshold: the last of them stay
        kept[np.flatnonzero(scores == threshold)[-surplus:]] = True
    return kept


def sortable(magnitudes: Scores) -> Scores:
    """View floats, none below zero, as the integers of their bits, which sort alike, but faster."""
    if magnitudes.dtype.kind != "f":
        return magnitudes
    return magnitudes.view(f"i{magnitudes.dtype.itemsize}")


def kth_smallest(magnitudes: Scores, k: int) -> Any:
    """Return the element that stands at `k` (from 0) once sorted; none is below zero.

    The zeros that earlier pruning left are counted, not partitioned: on many equal values
    `np.partition` takes up to forty times as long.
    """
    zeros = magnitudes.size - int(np.count_nonzero(magnitudes))
    if k < zeros:
        return magnitudes.dtype.type(0)
    if zeros > _FEW_ZEROS * magnitudes.size:
        magnitudes, k = np.compress(magnitudes != 0, magnitudes), k - zeros
    return np.partition(magnitudes, k)[k]


def _order(rank: int, output_axes: tuple[int, ...]) -> list[int]:
    outputs = [axis % rank for axis in output_axes]
    return [axis for axis in range(rank) if axis not in outputs] + outputs


def _matrix_shape(shape: tuple[int, ...], output_axes: tuple[int, ...]) -> tuple[int, int]:
    outputs = math.prod(shape[axis] for axis in output_axes)
    return math.prod(shape) // outputs, outputs


def _matrix(array: Scores, output_axes: tuple[int, ...]) -> Scores:
    order = _order(array.ndim, output_axes)
    return array.transpose(order).reshape(_matrix_shape(array.shape, output_axes))


def _from_matrix(matrix: Mask, shape: tuple[int, ...], output_axes: tuple[int, ...]) -> Mask:
    order = _order(len(shape), output_axes)
    moved = matrix.reshape([shape[axis] for axis in order])
    mask: Mask = np.ascontiguousarray(moved.transpose(np.argsort(order)))
    return mask


def pattern_of(text: str) -> Pattern:
    """Return the pattern that a recipe's ``sparsity.pattern`` names.

    Raises:
      InputError: it names none.
    """
    if text == "unstructured":
        return Unstructured()
    if found := re.fullmatch(r"block (\d+)x(\d+)", text):
        return Block(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        return NM(keep=int(found[1]), of=int(found[2]))
    raise InputError(
        f"recipe: sparsity.pattern is '{text}'; supported: unstructured, block ROWSxCOLUMNS, "
        "such as 'block 4x1', and KEEP:OF, such as '2:4'"
    )
