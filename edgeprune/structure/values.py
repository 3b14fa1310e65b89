"""The values that each entry of a tensor can take, whatever the model's input: interval arithmetic.

Bounds take float rounding in, so that a bound of zero is one for the computed value too. Where
the least and the greatest value are the same, the entry is a constant.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_CHUNK = 2**22  # entries of a kernel that are held in float64 at a time
_STEPS = 127  # of the symmetric int8 grid, from zero to the largest weight
_OFF_GRID = 1e-3  # steps; float32 keeps a trained weight far closer than this
ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
"""Largest relative error of one operation."""


@dataclass(frozen=True, eq=False)
class Value:
    """Least and greatest value of each entry of a tensor.

    Attributes:
      low: float64, of the tensor's rank; an axis of size 1 stands for every entry along it, and
        the batch's always is. May be -inf.
      high: of the same shape; may be inf.
    """

    low: Array
    high: Array

    @property
    def constant(self) -> Array:
        """Where the value is always the same, a bool array."""
        same: Array = (self.low == self.high) & np.isfinite(self.low)
        return same

    @property
    def shape(self) -> tuple[int, ...]:
        """Of both arrays."""
        return self.low.shape

    def collapsed(self, axes: tuple[int, ...]) -> "Value":
        """Return one range for all entries along some axes, which stay with size 1."""
        return Value(self.low.min(axes, keepdims=True), self.high.max(axes, keepdims=True))

    def along(self, axis: int, size: int) -> "Value":
        """Return one range for each of the `size` indices of an axis, as vectors."""
        others = tuple(i for i in range(self.low.ndim) if i != axis % self.low.ndim)
        only = self.collapsed(others)
        return Value(
            np.broadcast_to(only.low.ravel(), size), np.broadcast_to(only.high.ravel(), size)
        )

    def joined(self, other: "Value") -> "Value":
        """Return the least range that holds both."""
        return Value(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def widened(self, relative: float, magnitude: Array | float | None = None) -> "Value":
        """Make room for rounding on both sides; constants stay constants.

        Args:
          relative: largest error, as a fraction of the `magnitude`.
          magnitude: of the terms that were summed; by default each bound's own.
        """
        same = self.low == self.high
        below = np.abs(self.low) if magnitude is None else magnitude
        above = np.abs(self.high) if magnitude is None else magnitude
        return Value(
            np.where(same, self.low, self.low - relative * below),
            np.where(same, self.high, self.high + relative * above),
        )


def anything(rank: int) -> Value:
    """Return the range of a tensor of which nothing is known."""
    return Value(np.full((1,) * rank, -np.inf), np.full((1,) * rank, np.inf))


def exactly(array: Any) -> Value:
    """Return the range of a known array."""
    known = np.asarray(array, np.float64)
    return Value(known, known)


def product(a: Value, b: Value) -> Value:
    """Multiply; zero times infinity is zero, for it stands for something finite."""
    corners = np.stack(
        np.broadcast_arrays(
            *(_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)),
        )
    )
    return Value(corners.min(0), corners.max(0))


def _times(x: Array, y: Array) -> Array:
    with np.errstate(invalid="ignore"):
        exact = x * y
    return np.where(np.isnan(exact) & ~np.isnan(x) & ~np.isnan(y), 0.0, exact)


class Weights:
    """A kernel as a matrix that is applied at every tap of a window.

    Args:
      taps: (taps, inputs, outputs); a dense layer has one tap.
      rounding: largest relative error of one operation.
    """

    def __init__(self, taps: Array, rounding: float) -> None:
        self._taps = taps
        self._rounding = rounding
        most, least = (taps[0], taps[0]) if len(taps) == 1 else (taps.max(0), taps.min(0))
        self._up, self._down = most > 0, least < 0
        self._sound = np.isfinite(taps.sum((0, 1), dtype=np.float64))
        self.used: Array = (most != 0) | (least != 0)
        """(inputs, outputs) bool: where not every tap is zero."""
        self.largest: Array = np.maximum(np.abs(most), np.abs(least))
        """(inputs, outputs): the greatest magnitude of any tap."""

    def on_grid(self) -> bool:
        """Tell whether each output's weights are whole multiples of 1/127 of its largest."""
        peaks = self.largest.max(0, initial=0)
        steps = self._taps * (_STEPS / np.where(peaks > 0, peaks, 1))
        return bool((np.abs(steps - np.round(steps)) < _OFF_GRID).all())

    def applied(self, given: Value, bias: Array, padded: bool) -> Value:
        """Return the range of each output.

        Args:
          given: vectors over the inputs.
          bias: (outputs,) float64.
          padded: whether some taps may fall beside the input and count as zero.
        """
        if padded:
            given = given.joined(exactly(0.0))
        low, high = given.low, given.high
        unknown = ~(self._sound & np.isfinite(bias))
        no_least = unknown | _any(self._up, low == -np.inf) | _any(self._down, high == np.inf)
        no_greatest = unknown | _any(self._up, high == np.inf) | _any(self._down, low == -np.inf)
        finite = Value(np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 0.0))
        bounded = np.flatnonzero(~(no_least & no_greatest))
        least, greatest = np.full(bias.shape, -np.inf), np.full(bias.shape, np.inf)
        step = max(1, _CHUNK // max(1, self._taps[..., 0].size))
        for start in range(0, len(bounded), step):
            columns = bounded[start : start + step]
            sums = self._sums(finite, bias[columns], columns)
            least[columns], greatest[columns] = sums.low, sums.high
        # Rounding keeps the sign of a sum whose terms all have that sign.
        never_above = (
            ~unknown & ~_any(self._up, high > 0) & ~_any(self._down, low < 0) & (bias <= 0)
        )
        never_below = (
            ~unknown & ~_any(self._up, low < 0) & ~_any(self._down, high > 0) & (bias >= 0)
        )
        least = np.where(no_least, -np.inf, least)
        greatest = np.where(no_greatest, np.inf, greatest)
        # Otherwise the sum of what never changes, computed twice, might differ in its last bit.
        settled = ~unknown & ~_any(self.used, ~given.constant)
        greatest = np.where(settled, least, greatest)
        return Value(
            np.where(never_below & ~settled, np.maximum(least, 0.0), least),
            np.where(never_above & ~settled, np.minimum(greatest, 0.0), greatest),
        )

    def product(self, rows: Array, values: Array) -> Array:
        """Return what constant inputs add to each output: the sum over all taps and `rows`."""
        added: Array = values @ self._taps[:, rows].sum(0, dtype=np.float64)
        return added

    def _sums(self, given: Value, bias: Array, columns: Array) -> Value:
        taps = self._taps if len(columns) == self._taps.shape[2] else self._taps[:, :, columns]
        positive = np.maximum(taps, 0).sum(0, dtype=np.float64)
        negative = np.minimum(taps, 0).sum(0, dtype=np.float64)
        largest = np.maximum(np.abs(given.low), np.abs(given.high))
        magnitude = largest @ (positive - negative) + np.abs(bias)
        terms = taps.shape[0] * taps.shape[1] + 1
        return Value(
            given.low @ positive + given.high @ negative + bias,
            given.high @ positive + given.low @ negative + bias,
        ).widened(terms * self._rounding, magnitude)


def _any(matrix: Array, rows: Array) -> Array:
    """Tell for each column of a bool matrix whether any of the marked rows is True."""
    if rows.all():
        return np.asarray(matrix.any(0))
    if not rows.any():
        return np.zeros(matrix.shape[1], bool)
    return np.asarray(matrix[rows].any(0))
