"""Bytes of a tensor in classes of channels, each class with a table of its own.

Channels of one layer differ: in scale, in sparsity, and after clustering in the very integers
that the layer's clusters become on each channel's scale. Those that are alike share a table.
"""

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.packing import coder as coding
from edgeprune.export.packing.coder import Array, Coder, Encoder, histogram
from edgeprune.export.packing.tables import Curve, Table, best_table, code_table, expand, table_bits

MAX_CLASSES = 32
_MAX_CHANNELS = 4096
_PATIENCE = 4
_COUNTED = 1 << 20  # bytes at a time
_EVEN = (2, 3, 4, 6, 8, 12, 16, 24)
_ITERATIONS = 5
_BINS = 20
# A first guess at what a table takes, to choose how many classes to have: a curve, each byte of a
# list, and a class's share of the table of classes.
_CURVE_BITS, _LIST_BITS, _ID_BITS = 68, 7, 5


def code_bytes(
    coder: Coder,
    number: int,
    values: Array | None = None,
    channels: tuple[tuple[int, int], ...] = (),
) -> Array:
    """Code bytes in the cheapest of a few ways.

    Args:
      coder: to write or read with.
      number: how many bytes; at least one.
      values: uint8, flat; left out when reading.
      channels: the ways in which they may fall into channels: for each, how many channels there
        are, and how many bytes of one channel follow each other. Not needed when reading.

    Returns:
      The bytes.

    Raises:
      InputError: what is read contradicts itself.
    """
    layout = None if values is None else _cheapest(values, channels)
    stored = coder.integer(2, None if layout is None else not layout.tables)
    if stored:
        return coder.raw(number, values)
    classes = coder.integer(MAX_CLASSES, None if layout is None else len(layout.tables) - 1) + 1
    if classes == 1:
        return _code_class(coder, number, values, None if layout is None else layout.tables[0])
    view = coding.count(coder, None if layout is None else layout.channels)
    run = coding.count(coder, None if layout is None else layout.run)
    if not 0 < view <= min(number, _MAX_CHANNELS) or not run or number % (view * run):
        raise InputError("the channels of its weights are damaged")
    ids = _code_ids(coder, view, classes, None if layout is None else layout.ids)
    shape = (number // (view * run), view, run)
    matrix = np.empty(shape, np.uint8) if values is None else values.reshape(shape)
    for index in range(classes):
        members = np.flatnonzero(ids == index)
        size = members.size * (number // view)
        if layout is None:
            found = _code_class(coder, size)
            matrix[:, members] = found.reshape(shape[0], members.size, run)
        else:
            _code_class(coder, size, matrix[:, members].reshape(-1), layout.tables[index])
    return matrix.reshape(-1)


def _code_class(
    coder: Coder, number: int, values: Array | None = None, table: Table | None = None
) -> Array:
    possible, weights = expand(code_table(coder, table))
    if possible.size == 1:
        return np.full(number, possible[0], np.uint8)
    ranks = None
    if values is not None:
        rank_of = np.zeros(256, np.uint8)
        rank_of[possible] = np.arange(possible.size)
        ranks = _translated(values, rank_of)
    return _translated(coder.symbols(weights, number, ranks), possible)


def _translated(values: Array, table: Array) -> Array:
    """Look bytes up in a table, as `table[values]` does, in a fifth of its time."""
    return np.frombuffer(values.tobytes().translate(table.tobytes().ljust(256, b"\0")), np.uint8)


def _code_ids(coder: Coder, number: int, classes: int, ids: Array | None) -> Array:
    table = None if ids is None else best_table(histogram(ids, 256))
    found = _code_class(coder, number, ids, table)
    if found.max() >= classes:
        raise InputError("the channels of its weights are damaged")
    return found


class _Layout:
    """How bytes are coded: the tables, and which channel has which; without tables, as they are."""

    def __init__(self, counts: Array, ids: Array, channels: int, run: int) -> None:
        self.ids, self.channels, self.run = ids, channels, run
        merged = [counts[ids == index].sum(axis=0) for index in range(int(ids.max()) + 1)]
        self.tables = [best_table(of_class) for of_class in merged]
        self.bits = sum(map(table_bits, merged, self.tables))
        if len(merged) > 1:
            meter = Encoder()
            _code_ids(meter, channels, len(merged), ids)
            coding.count(meter, channels)
            coding.count(meter, run)
            self.bits += meter.bits


def _cheapest(values: Array, channels: tuple[tuple[int, int], ...]) -> _Layout:
    together = histogram(values, 256)[None]
    one = np.zeros(1, np.uint8)
    found = [_Layout(together, one, 1, 1)]
    for number, run in channels:
        if 2 <= number <= _MAX_CHANNELS and values.size > number:
            counts = _channel_counts(values, number, run)
            ids = _classes(counts, found[0].tables[0])
            if ids.any():
                found.append(_Layout(counts, ids, number, run))
    best = min(found, key=lambda layout: layout.bits)
    if best.bits >= 8 * values.size:
        best.tables = []
    return best


def _channel_counts(values: Array, channels: int, run: int) -> Array:
    """Count each channel's bytes: (channels, 256)."""
    if values.size == channels * run:
        return np.stack([histogram(row, 256) for row in values.reshape(channels, run)])
    first = np.arange(channels, dtype=np.int64)[:, None] * 256
    counts = np.zeros(channels * 256, np.int64)
    slices = values.reshape(-1, channels, run)
    at_once = max(1, _COUNTED // (channels * run))
    for start in range(0, slices.shape[0], at_once):
        counts += histogram((slices[start : start + at_once] + first).reshape(-1), counts.size)
    return counts.reshape(channels, 256)


def _classes(counts: Array, like: Table) -> Array:
    """Divide channels into classes of like counts: k-means, by the bits that each takes.

    One class after the other is added, begun by the channel that is coded worst; beside it, as many
    classes of equally many channels, by entropy. The number that costs least is taken.
    """
    counts = _binned(counts, like).astype(np.float64)
    table_bits = _CURVE_BITS if isinstance(like, Curve) else _LIST_BITS * counts.shape[1]
    number = counts.shape[0]
    own = _entropy_bits(counts)
    ranked = np.argsort(np.argsort(own / counts.sum(axis=1), kind="stable"))
    best = ids = np.zeros(number, np.int64)
    best_bits, waited = float(_entropy_bits(counts.sum(axis=0)[None])[0]) + table_bits, 0
    for classes in range(2, min(MAX_CLASSES, number) + 1):
        ids, lengths = ids.copy(), _code_lengths(counts, ids)
        ids[((counts * lengths[ids]).sum(axis=1) - own).argmax()] = classes - 1
        grown = ids = _settled(counts, ids)
        found = [grown]
        if classes in _EVEN:
            found.append(_settled(counts, ranked * classes // number))
        waited += 1
        for candidate in found:
            merged = _merged(counts, candidate)
            sizes = np.bincount(candidate).astype(np.float64)
            bits = _entropy_bits(merged).sum() + len(merged) * (table_bits + _ID_BITS)
            bits += _entropy_bits(sizes[None])[0]
            if bits < best_bits:
                best, best_bits, waited = candidate, bits, 0
                ids = candidate
        if waited >= _PATIENCE:
            break
    return best.astype(np.uint8)


def _binned(counts: Array, like: Table) -> Array:
    """Merge the counts of bytes that one table would hardly tell apart."""
    if isinstance(like, Curve):
        distances = np.abs(np.arange(256) - like.centre)
        bins = 1 + (distances - like.low) * _BINS // max(like.high - like.low, 1)
        bins[distances == 0] = 0
        bins = np.clip(bins, 0, _BINS + 1)
    else:
        bins = np.zeros(256, np.int64)
        bins[like.bytes] = np.arange(like.bytes.size)
    return np.stack(
        [counts[:, bins == index].sum(axis=1) for index in range(int(bins.max()) + 1)], axis=1
    )


def _settled(counts: Array, ids: Array) -> Array:
    """Move each channel to the class by which it takes least, until none moves."""
    for _ in range(_ITERATIONS):
        previous, ids = ids, (counts @ _code_lengths(counts, ids).T).argmin(axis=1)
        if (previous == ids).all():
            break
    return np.unique(ids, return_inverse=True)[1]


def _merged(counts: Array, ids: Array) -> Array:
    members = np.arange(ids.max() + 1)[:, None] == ids
    merged: Array = members.astype(np.float64) @ counts
    return merged


def _code_lengths(counts: Array, ids: Array) -> Array:
    smoothed = _merged(counts, ids) + 0.03
    lengths: Array = np.log2(smoothed.sum(axis=1, keepdims=True)) - np.log2(smoothed)
    return lengths


def _entropy_bits(counts: Array) -> Array:
    totals = counts.sum(axis=1, keepdims=True)
    bits: Array = (counts * (np.log2(totals + 1e-9) - np.log2(counts + 1e-9))).sum(axis=1)
    return bits
