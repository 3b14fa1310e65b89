"""Numbers of several bytes, taken apart into what can be foreseen and what cannot.

A float is its exponent and the first bits of its mantissa, coded as bytes are, and its sign and the
rest of the mantissa, which are noise and stored as they are, less the zeros that all of them end
in; zeros are an exponent of their own. An integer is its length in bits, and the bits after the
first. Where few distinct numbers occur, as after clustering, a dictionary of them and the index of
each takes less; where they are so many in each channel, values and factors (`scaled.py`).
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.packing import coder as coding
from edgeprune.export.packing.classes import code_bytes
from edgeprune.export.packing.coder import Array, Coder, Encoder, histogram
from edgeprune.export.packing.kinds import SIGNED_BYTES, Channels, Kind
from edgeprune.export.packing.scaled import MOST_ENTRIES, Pairs, find_scaled
from edgeprune.export.packing.tables import best_table, table_bits

_DICTIONARY = 256
_MOST_MANTISSA = 3


def code_numbers(
    coder: Coder, kind: Kind, number: int, bits: Array | None = None, channels: Channels = ()
) -> Array:
    """Code numbers in the cheapest of a few ways.

    Args:
      coder: to write or read with.
      kind: of the numbers.
      number: how many; at least one.
      bits: the numbers' bits, `kind.bits`, flat; left out when reading.
      channels: as of `code_bytes`.

    Returns:
      The numbers' bits.

    Raises:
      InputError: what is read contradicts itself.
    """
    if kind.itemsize == 1:
        flipped = np.uint8(128 if kind is SIGNED_BYTES else 0)  # so that neighbours are neighbours
        return (
            code_bytes(coder, number, None if bits is None else bits ^ flipped, channels) ^ flipped
        )
    if bits is None:
        way = _WAYS[coder.integer(len(_WAYS))]
        return way(coder, kind, number, None, ())
    drafts = []
    for index, way in enumerate(_WAYS):
        draft = Encoder()
        draft.integer(len(_WAYS), index)
        with suppress(_NoWayError):
            way(draft, kind, number, bits, channels)
            drafts.append(draft)
    assert isinstance(coder, Encoder)
    coder.append(min(drafts, key=lambda draft: draft.bits))
    return bits


def _code_raw(
    coder: Coder, kind: Kind, number: int, bits: Array | None, channels: Channels
) -> Array:
    stored = coder.raw(number * kind.itemsize, None if bits is None else bits.view(np.uint8))
    return stored.view(kind.bits)


def _code_split(
    coder: Coder, kind: Kind, number: int, bits: Array | None, channels: Channels
) -> Array:
    split = _code_floats if kind.exponent else _code_integers
    return split(coder, kind, number, bits, channels)


def _code_dictionary(
    coder: Coder, kind: Kind, number: int, bits: Array | None, channels: Channels
) -> Array:
    entries = ranks = None
    if bits is not None:
        if not _few(bits):
            raise _NoWayError
        entries, inverse = np.unique(bits, return_inverse=True)
        order = np.argsort(_ordered(entries, kind), kind="stable")
        place = np.empty(order.size, np.uint8)
        place[order] = np.arange(order.size)
        entries, ranks = entries[order], place[inverse]
    size = coder.integer(_DICTIONARY, None if entries is None else entries.size - 1) + 1
    entries = _code_split(coder, kind, size, entries, ())
    found = code_bytes(coder, number, ranks, channels)
    if found.max() >= size:
        raise InputError("a dictionary of its weights is damaged")
    return entries[found]


def _code_scaled(
    coder: Coder, kind: Kind, number: int, bits: Array | None, channels: Channels
) -> Array:
    scaled = None if bits is None else find_scaled(bits, kind, channels)
    if bits is not None and scaled is None:
        raise _NoWayError
    rows = coding.count(coder, None if scaled is None else scaled.channels)
    run = coding.count(coder, None if scaled is None else scaled.run)
    size = coder.integer(_DICTIONARY, None if scaled is None else scaled.values.size - 1) + 1
    if (
        kind.float is None
        or not 0 < rows * run <= number
        or number % (rows * run)
        or rows * size > MOST_ENTRIES * number
    ):
        raise InputError("the channels of its weights are damaged")
    values = _code_split(
        coder, kind, size, None if scaled is None else scaled.values.view(kind.bits), ()
    )
    factors = _code_split(
        coder, kind, rows, None if scaled is None else scaled.factors.view(kind.bits), ()
    )
    ways = () if scaled is None else ((rows, run),)
    ranks = code_bytes(coder, number, None if scaled is None else scaled.ranks, ways)
    if ranks.max() >= size:
        raise InputError("a dictionary of its weights is damaged")
    pairs = Pairs(ranks, rows, run, size)
    found = pairs.products(values.view(kind.float), factors.view(kind.float), kind)
    del factors  # as many as numbers, at worst
    off = None
    if bits is not None:
        stood_for = pairs.of_numbers(bits)
        if (pairs.numbers(stood_for) != bits).any():  # two of a channel's numbers share a value
            raise _NoWayError
        off = stood_for - found
    found += _code_integers(coder, kind, pairs.number, off, ())
    return pairs.numbers(found)


class _NoWayError(Exception):
    """Numbers cannot be coded in this way."""


# The place in this list is part of the file format.
_WAYS = (_code_raw, _code_split, _code_dictionary, _code_scaled)


def _few(bits: Array) -> bool:
    """Tell whether so few distinct numbers occur that a dictionary may pay."""
    most = min(_DICTIONARY, bits.size // 2)
    if np.unique(bits[: 16 * _DICTIONARY]).size > most:  # sorting all of many would take long
        return False
    return np.unique(bits).size <= most


def _ordered(bits: Array, kind: Kind) -> Array:
    """Return integers that are ordered as the numbers are."""
    sign = bits.dtype.type(1 << 8 * kind.itemsize - 1)
    ordered: Array = np.where(bits & sign, ~bits, bits | sign) if kind.exponent else bits ^ sign
    return ordered


def _code_floats(
    coder: Coder, kind: Kind, number: int, bits: Array | None, channels: Channels
) -> Array:
    unsigned = kind.bits.type
    mantissa = 8 * kind.itemsize - 1 - kind.exponent
    head = None if bits is None else _head(bits & unsigned(_largest(kind)), kind, mantissa)
    taken = coder.integer(_MOST_MANTISSA + 1, None if head is None else head.taken)
    base = coding.count(coder, None if head is None else head.base)
    low = mantissa - taken
    tops = code_bytes(coder, number, None if head is None else head.tops, channels)
    zero = tops == 0
    found: Array = tops.astype(kind.bits)
    found += unsigned(base - 1 & _largest(kind))
    found <<= unsigned(low)
    found &= unsigned(_largest(kind))
    found[zero] = 0
    for members, width in ((zero, mantissa), (~zero, low)):
        size = int(np.count_nonzero(members))
        own = None if bits is None else bits[members] ^ found[members]
        if size:
            found[members] |= _code_rests(coder, kind, size, own, width)
    return found


def _largest(kind: Kind) -> int:
    """Return the largest bits of a float without its sign."""
    return (1 << 8 * kind.itemsize - 1) - 1


@dataclass(frozen=True, eq=False)
class _Head:
    """The bits that floats begin with, after their signs, as bytes.

    Attributes:
      taken: how many of the mantissa's bits are among them.
      base: what 1 stands for; what is above it follows.
      tops: uint8; 0 for zero and subnormal numbers.
    """

    taken: int
    base: int
    tops: Array


def _head(magnitudes: Array, kind: Kind, mantissa: int) -> _Head:
    """Take as many bits from the mantissa as pay for the larger table."""
    unsigned = kind.bits.type
    normal = magnitudes >= unsigned(1 << mantissa)
    best, best_bits = None, np.inf
    for taken in range(_MOST_MANTISSA + 1):
        tops = magnitudes >> unsigned(mantissa - taken)
        base = int(tops[normal].min()) if normal.any() else 1
        tops = np.where(normal, tops - unsigned(base - 1), unsigned(0))
        if tops.max() > 255:
            break
        tops = tops.astype(np.uint8)
        counts = histogram(tops, 256)
        bits = table_bits(counts, best_table(counts)) - taken * int(np.count_nonzero(normal))
        if bits < best_bits:
            best, best_bits = _Head(taken, base, tops), bits
    assert best is not None  # exponents alone always fit
    return best


def _code_rests(coder: Coder, kind: Kind, number: int, rests: Array | None, mantissa: int) -> Array:
    """Code what floats have beside their exponents: signs, and mantissas less common zeros."""
    unsigned = kind.bits.type
    top = unsigned(8 * kind.itemsize - 1)
    signs = common = None
    if rests is not None:
        signs = (rests >> top).astype(np.uint8)
        rests = rests & unsigned((1 << mantissa) - 1)
        together = int(np.bitwise_or.reduce(rests))
        common = (together & -together).bit_length() - 1 if together else mantissa
    common = coder.integer(mantissa + 1, common)
    found = code_bytes(coder, number, signs).astype(kind.bits)
    if np.any(found > 1):
        raise InputError("the signs of its weights are damaged")
    found <<= top
    shift = unsigned(common)
    width = mantissa - common
    if width:
        own = None if rests is None else rests >> shift
        mantissas = _code_bits(coder, kind, number, width, own)
        mantissas <<= shift
        found |= mantissas
    return found


def _code_integers(
    coder: Coder, kind: Kind, number: int, bits: Array | None, channels: Channels
) -> Array:
    width = 8 * kind.itemsize
    unsigned = kind.bits.type
    one = unsigned(1)
    folded = lengths = None
    if bits is not None:
        # 0, -1, 1, -2, 2, ... become 0, 1, 2, 3, 4, ...
        folded = (bits << one) ^ (unsigned(0) - (bits >> unsigned(width - 1)))
        lengths = _lengths(folded, width)
    lengths = code_bytes(coder, number, lengths, channels)
    if lengths.max() > width:
        raise InputError("the sizes of its integers are damaged")
    found = np.zeros(number, kind.bits)
    for length in range(1, int(lengths.max()) + 1):
        members = lengths == length
        first = unsigned(1 << length - 1)
        own = None if folded is None else folded[members] ^ first
        size = int(np.count_nonzero(members))
        part = _code_bits(coder, kind, size, length - 1, own)
        part |= first
        found[members] = part
    signs = found & one
    np.negative(signs, out=signs)
    found >>= one
    found ^= signs
    return found


def _lengths(numbers: Array, width: int) -> Array:
    lengths = np.zeros(numbers.size, np.uint8)
    rest = numbers.copy()
    step = width // 2
    while step:
        large = rest >= numbers.dtype.type(1 << step)
        lengths[large] += np.uint8(step)
        rest[large] >>= numbers.dtype.type(step)
        step //= 2
    return lengths + (rest > 0).astype(np.uint8)


def _code_bits(coder: Coder, kind: Kind, number: int, width: int, values: Array | None) -> Array:
    """Store integers of `width` bits: whole bytes as they are, the rest in the coder."""
    whole, remaining = divmod(width, 8)
    low = high = None
    if values is not None:
        low = values.view(np.uint8).reshape(number, kind.itemsize)[:, :whole].reshape(-1)
        high = values >> kind.bits.type(8 * whole) if remaining else None
    found = np.zeros((number, kind.itemsize), np.uint8)
    found[:, :whole] = coder.raw(number * whole, low).reshape(number, whole)
    if remaining:
        found[:, whole] = coder.uniform(1 << remaining, number, high)
    return found.view(kind.bits).reshape(-1)
