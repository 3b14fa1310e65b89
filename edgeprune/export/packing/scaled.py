"""Clustered floats whose channels each have a factor of their own.

Conversion folds batch normalization into the weights: what were a few values for the whole layer
become so many for each output channel, all the same up to the channel's factor. The values of
one channel are stored for all, with each channel's factor, and by how many units in the last place
a product of the two is off.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgeprune.export.packing.coder import Array
from edgeprune.export.packing.kinds import Channels, Kind

MOST_VALUES = 254
# Places for each value in each channel, by how many numbers there are: what unpacking takes.
MOST_ENTRIES = 4
_MOST_IN_CHANNEL = 128
_AT_ONCE = 1 << 20  # pairs
_TRIED_CHANNELS = 8
# How far products may be off, relative to what rounding makes of one number.
_TOLERANCE = 8


@dataclass(frozen=True, eq=False)
class Scaled:
    """Numbers as values times factors.

    Attributes:
      channels: how many.
      run: how many numbers of one channel follow each other.
      values: the floats that are shared, with 0.0 and -0.0 first.
      factors: a float for each channel.
      ranks: uint8, for each number the place of its value.
    """

    channels: int
    run: int
    values: Array
    factors: Array
    ranks: Array


class Pairs:
    """Which values occur in which channel, and the numbers that those pairs stand for.

    A few channels at a time are worked on: places take more memory than the numbers themselves.

    Attributes:
      occurring: (channels, values) of bool.
      number: how many pairs occur.
    """

    def __init__(self, ranks: Array, channels: int, run: int, values: int) -> None:
        self._ranks = ranks.reshape(-1, channels, run)
        self.occurring = np.zeros((channels, values), bool)
        for members in self._parts():
            self.occurring[members].reshape(-1)[self._places(members)] = True
        self.number = int(np.count_nonzero(self.occurring))

    def products(self, values: Array, factors: Array, kind: Kind) -> Array:
        """Return the bits of value times factor, for each pair that occurs."""
        found = np.empty(self.number, kind.bits)
        end = 0
        for members in self._parts():
            channel, value = np.nonzero(self.occurring[members])
            with np.errstate(all="ignore"):
                part = values[value] * factors[members][channel]
            found[end : end + part.size] = part.view(kind.bits)
            end += part.size
        return found

    def of_numbers(self, bits: Array) -> Array:
        """Return the bits that each pair stands for, given those of all numbers."""
        found = np.empty(self.number, bits.dtype)
        end = 0
        for members in self._parts():
            occurring = self.occurring[members]
            entries = np.zeros(occurring.size, bits.dtype)
            entries[self._places(members)] = bits.reshape(self._ranks.shape)[:, members]
            part = entries[occurring.reshape(-1)]
            found[end : end + part.size] = part
            end += part.size
        return found

    def numbers(self, bits: Array) -> Array:
        """Return the bits of all numbers, given those that each pair stands for."""
        found = np.empty(self._ranks.shape, bits.dtype)
        end = 0
        for members in self._parts():
            occurring = self.occurring[members]
            entries = np.zeros(occurring.size, bits.dtype)
            size = int(np.count_nonzero(occurring))
            entries[occurring.reshape(-1)] = bits[end : end + size]
            found[:, members] = entries[self._places(members)]
            end += size
        return found.reshape(-1)

    def _parts(self) -> Iterator[slice]:
        channels, values = self.occurring.shape
        at_once = max(1, _AT_ONCE // values)
        for start in range(0, channels, at_once):
            yield slice(start, min(start + at_once, channels))

    def _places(self, members: slice) -> Array:
        """Return each number's place among the pairs of its channels."""
        ranks = self._ranks[:, members]
        first = np.arange(ranks.shape[1], dtype=np.int32) * np.int32(self.occurring.shape[1])
        places: Array = ranks + first[:, None]
        return places


def find_scaled(bits: Array, kind: Kind, channels: Channels) -> Scaled | None:
    """Find values and factors, or return None where the numbers are no such products."""
    if kind.float is None:
        return None
    floats = bits.view(kind.float)
    if not np.isfinite(floats).all():
        return None
    for number, run in channels:
        found = _find(floats, number, run)
        if found is not None:
            return found
    return None


def _find(floats: Array, number: int, run: int) -> Scaled | None:
    size = floats.size // number
    most = min(_MOST_IN_CHANNEL, size // 2)
    rows = np.moveaxis(floats.reshape(-1, number, run), 1, 0).reshape(number, size)
    if number < 2 or np.median([_nonzero(row).size for row in rows[:_TRIED_CHANNELS]]) > most:
        return None
    distinct = [_nonzero(row).astype(np.float64) for row in rows]
    if max(map(len, distinct)) > _MOST_IN_CHANNEL:
        return None
    fitted = _fit(distinct, _TOLERANCE * float(np.finfo(floats.dtype).eps))
    if fitted is None:
        return None
    values, factors = fitted
    if number * (values.size + 2) > MOST_ENTRIES * floats.size:
        return None
    stored = np.concatenate([[0.0, -0.0], values]).astype(floats.dtype)
    stored_factors = factors.astype(floats.dtype)
    ranks = np.empty(rows.shape, np.uint8)
    for index, row in enumerate(rows):
        ranks[index] = _ranks(row, values, factors[index])
    order = np.moveaxis(ranks.reshape(number, -1, run), 0, 1).reshape(-1)
    return Scaled(number, run, stored, stored_factors, order)


def _nonzero(row: Array) -> Array:
    found: Array = np.unique(row[row != 0])
    return found


def _fit(distinct: list[Array], tolerance: float) -> tuple[Array, Array] | None:
    """Find values, ascending, and factors so that each channel's numbers are products of them."""
    factors = np.ones(len(distinct))
    order = sorted(range(len(distinct)), key=lambda index: -distinct[index].size)
    values = distinct[order[0]]
    for index in order[1:]:
        own = distinct[index]
        if not own.size:
            continue
        # The largest is some value times the factor: try them all.
        largest = own[np.abs(own).argmax()]
        tried = largest / values
        wanted = own / tried[:, None]
        near = values[_nearest(values, wanted)]
        fits = np.abs(wanted - near) <= tolerance * np.abs(wanted)
        best = int(fits.sum(axis=1).argmax())
        factors[index] = tried[best]
        new = wanted[best][~fits[best]]
        if new.size:
            if fits[best].sum() < 2 or values.size + new.size > MOST_VALUES:
                return None
            values = np.sort(np.concatenate([values, new]))
    return values, factors


def _nearest(values: Array, wanted: Array) -> Array:
    right = np.clip(np.searchsorted(values, wanted), 1, max(values.size - 1, 1))
    if values.size == 1:
        return np.zeros(wanted.shape, np.int64)
    left = right - 1
    return np.where(wanted - values[left] < values[right] - wanted, left, right)


def _ranks(row: Array, values: Array, factor: float) -> Array:
    if not values.size:
        return np.signbit(row).astype(np.uint8)
    ranks = 2 + _nearest(values, row / factor)
    zero = row == 0
    ranks[zero] = np.signbit(row[zero]) != (factor < 0)
    return ranks.astype(np.uint8)
