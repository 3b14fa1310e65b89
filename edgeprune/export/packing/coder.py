"""Write and read symbols: two coders with one interface.

What a file holds is described once, by functions that hand each value to a coder and go on with
the value that it returns. An `Encoder` takes the values down, a `Decoder` is handed none and
returns what was written.
"""

import math
from functools import cache
from typing import Any, Protocol

import constriction
import numpy as np
import numpy.typing as npt

from edgeprune.errors import InputError

Array = npt.NDArray[Any]

# Symbols are 32-bit integers inside the coder; so many at a time keep the memory that takes small.
_CHUNK = 1 << 20
_WORD = np.dtype("<u4")


class Coder(Protocol):
    """What the format is written and read with; `values` is left out when reading."""

    def symbols(self, weights: Array, count: int, values: Array | None = None) -> Array:
        """Code `count` symbols, each an index into `weights`, as rare as its weight says."""

    def uniform(self, size: int, count: int, values: Array | None = None) -> Array:
        """Code `count` integers in [0, size), all equally likely; size at most 2**16."""

    def integer(self, size: int, value: int | None = None) -> int:
        """Code one integer in [0, size), all equally likely."""

    def raw(self, count: int, values: Array | None = None) -> Array:
        """Store bytes that no model makes smaller."""


class Encoder:
    """Takes symbols down in the order in which a decoder reads them.

    Attributes:
      bits: what they take so far, so that ways to say the same can be compared.
      steps: symbols and their weights, or how many there are of equally likely ones.
    """

    def __init__(self) -> None:
        self.bits = 0.0
        self.steps: list[tuple[Array | int, Array]] = []
        self._raw: list[Array] = []

    def symbols(self, weights: Array, count: int, values: Array | None = None) -> Array:
        values = _given(values, count)
        if count:
            self.bits += cost(histogram(values, weights.size), weights)
            self.steps.append((weights, values))
        return values

    def uniform(self, size: int, count: int, values: Array | None = None) -> Array:
        values = _given(values, count)
        if count and size > 1:
            self.bits += count * math.log2(size)
            self.steps.append((size, values))
        return values

    def integer(self, size: int, value: int | None = None) -> int:
        self.uniform(size, 1, None if value is None else np.array([value]))
        return int(value or 0)

    def raw(self, count: int, values: Array | None = None) -> Array:
        values = _given(values, count)
        self.bits += 8 * count
        self._raw.append(values)
        return values

    def append(self, other: "Encoder") -> None:
        """Take down all that another encoder has."""
        self.bits += other.bits
        self.steps += other.steps
        self._raw += other._raw

    def finish(self) -> tuple[bytes, bytes]:
        """Return the coded symbols and the raw bytes."""
        coder = constriction.stream.stack.AnsCoder()
        # The coder is a stack: what is read first goes on last.
        for weights, values in reversed(self.steps):
            model = _uniform(weights) if isinstance(weights, int) else _categorical(weights)
            for start in reversed(range(0, values.size, _CHUNK)):
                chunk = values[start : start + _CHUNK].astype(np.int32)
                coder.encode_reverse(chunk, model)
        coded = coder.get_compressed().astype(_WORD).tobytes()
        return coded, b"".join(part.tobytes() for part in self._raw)


class Decoder:
    """Reads what an `Encoder` has written; anything else gives wrong values or an `InputError`."""

    def __init__(self, coded: bytes | memoryview, raw: bytes | memoryview) -> None:
        try:
            words = np.frombuffer(coded, _WORD).astype(np.uint32)
            # The coder copies them, and ends the process where memory is short: fail here instead.
            np.empty(2 * words.size + _CHUNK, np.uint32)
            self._coder = constriction.stream.stack.AnsCoder(words)
        except ValueError as error:  # not whole words, or a last word that no encoder leaves
            raise InputError("its coded weights are damaged") from error
        self._raw = np.frombuffer(raw, np.uint8)

    def symbols(self, weights: Array, count: int, values: Array | None = None) -> Array:
        return self._decode(_categorical(weights), count, weights.size)

    def uniform(self, size: int, count: int, values: Array | None = None) -> Array:
        if size == 1:
            return np.zeros(count, np.uint8)
        return self._decode(_uniform(size), count, size)

    def integer(self, size: int, value: int | None = None) -> int:
        return int(self._coder.decode(_uniform(size))) if size > 1 else 0

    def _decode(self, model: Any, count: int, size: int) -> Array:
        found = np.empty(count, np.uint8 if size <= 256 else np.uint16)
        for start in range(0, count, _CHUNK):
            part = found[start : start + _CHUNK]
            part[:] = self._coder.decode(model, part.size)
        return found

    def raw(self, count: int, values: Array | None = None) -> Array:
        if count > self._raw.size:
            raise InputError("it ends before its weights do")
        taken, self._raw = self._raw[:count], self._raw[count:]
        return taken

    def check_end(self) -> None:
        """Raise `InputError` unless everything has been read."""
        if self._raw.size or not self._coder.is_empty():
            raise InputError("its coded weights are damaged")


def _given(values: Array | None, count: int) -> Array:
    assert values is not None
    assert values.size == count
    return values


def histogram(values: Array, size: int) -> Array:
    """Count how often each integer in [0, size) occurs."""
    # NumPy makes 64-bit integers of all that it counts at once.
    counts = np.zeros(size, np.int64)
    for start in range(0, values.size, _CHUNK):
        counts += np.bincount(values[start : start + _CHUNK], minlength=size)
    return counts


def cost(counts: Array, weights: Array) -> float:
    """Return the bits that symbols take which occur `counts` times and are coded by `weights`."""
    used = counts > 0
    return float((counts[used] * (math.log2(weights.sum()) - np.log2(weights[used]))).sum())


def count(coder: Coder, value: int | None = None) -> int:
    """Code one integer in [0, 2**31), in 5 bits and as many as it has."""
    length = coder.integer(32, None if value is None else value.bit_length())
    found = 0
    for shift in range(0, length, 8):
        width = min(8, length - shift)
        part = None if value is None else value >> shift & (1 << width) - 1
        found |= coder.integer(1 << width, part) << shift
    return found


def small(coder: Coder, number: int, values: Array | None = None) -> Array:
    """Code integers in [0, 256) that are small more often than not, with the best of 8 slopes."""
    if number == 0:
        return np.zeros(0, np.uint8)
    slope = None
    if values is not None:
        counts = histogram(values, 256)
        slope = min(range(8), key=lambda index: cost(counts, _SLOPES[index]))
    return coder.symbols(_SLOPES[coder.integer(8, slope)], number, values)


def _falling(numerator: int) -> Array:
    # Products of a fraction of small integers: the same on every machine, unlike powers.
    return np.multiply.accumulate(np.array([2.0**40] + [numerator / 32] * 255)) + 1


_SLOPES: tuple[Array, ...] = tuple(
    _falling(numerator) for numerator in (2, 8, 13, 18, 22, 26, 29, 31)
)


def _categorical(weights: Array) -> Any:
    return constriction.stream.model.Categorical(weights.astype(np.float64), perfect=False)


@cache
def _uniform(size: int) -> Any:
    return constriction.stream.model.Uniform(size)
