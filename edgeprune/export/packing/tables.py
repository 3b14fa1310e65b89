"""How often each byte occurs, in few bytes: tables of weights for the coder.

A table is kept in one of two forms, whichever costs less together with the symbols that it codes:

* a list of the bytes that occur, each with its own weight: few distinct values, such as clusters;
* a curve over the distance from a centre: the weights of a trained layer. Distance 0 and the
  largest distance have weights of their own (zeros are many after pruning, and every output channel
  has one weight at the end of its scale); between them the logarithm of the weight runs
  straight from knot to knot. A gap around the centre, as pruning by magnitude leaves it, is the
  distance at which the curve begins.

Weights are powers of 2 in fixed steps, made of integers, so that every machine decodes alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.packing.coder import Array, Coder, Encoder, cost, small

_OCTAVE = 64  # depths are in 64ths of a factor of 2 below the largest weight
_DEEPEST = 30 * _OCTAVE
_LIST_STEPS = (16, 32, 64)
_CURVE_STEP = 16
_ABSENT = 255
_KNOTS = (2, 3, 4, 5, 6, 8, 10, 12)
_TRIED_KNOTS = (3, 5, 8, 12)
_MIDDLE = 128


def _root(number: int) -> int:
    """Return the 64th root, rounded down."""
    for _ in range(6):
        number = isqrt(number)
    return number


# 2 ** (16 + i / 64), rounded to integers by integers.
_POWERS = np.array([(_root(1 << 1024 + 64 + i) + 1) // 2 for i in range(_OCTAVE)], np.float64)
_WEIGHTS = np.ldexp(
    _POWERS[-np.arange(_DEEPEST + 1) % _OCTAVE],
    _DEEPEST // _OCTAVE + -np.arange(_DEEPEST + 1) // _OCTAVE,
)


@dataclass(frozen=True, eq=False)
class Listed:
    """Bytes that occur, ascending, and how far the weight of each is below the largest.

    Attributes:
      bytes: uint8, ascending, without repetition.
      depths: in steps, below 256.
      step: index of the step's size.
    """

    bytes: Array
    depths: Array
    step: int


@dataclass(frozen=True, eq=False)
class Curve:
    """Weights by distance from a centre, `low` to `high`, and of the centre itself.

    Attributes:
      centre: a byte.
      low: smallest distance that occurs, at least 1.
      high: largest distance that occurs.
      sides: 1 if both sides of the centre share the knots, else 2.
      knots: on a side.
      depths: of the centre (`_ABSENT` if it does not occur) and the ends, then of the knots, the
        side below the centre first.
    """

    centre: int
    low: int
    high: int
    sides: int
    knots: int
    depths: Array


Table = Listed | Curve


def code_table(coder: Coder, table: Table | None = None) -> Table:
    """Code a table; `table` is left out when reading."""
    curved = coder.integer(2, None if table is None else isinstance(table, Curve))
    if curved:
        assert table is None or isinstance(table, Curve)
        return _code_curve(coder, table)
    assert table is None or isinstance(table, Listed)
    return _code_list(coder, table)


def _code_list(coder: Coder, table: Listed | None) -> Listed:
    number = coder.integer(256, None if table is None else table.bytes.size - 1) + 1
    first = coder.integer(256, None if table is None else int(table.bytes[0]))
    gaps = small(coder, number - 1, None if table is None else np.diff(table.bytes) - 1)
    values = np.cumsum(np.concatenate([[first], gaps.astype(np.int64) + 1]))
    if values[-1] > 255:
        raise InputError("a table of its weights is damaged")
    if number == 1:
        return Listed(values.astype(np.uint8), np.zeros(1, np.int64), 0)
    step = coder.integer(len(_LIST_STEPS), None if table is None else table.step)
    depths = _code_depths(coder, number, None if table is None else table.depths)
    return Listed(values.astype(np.uint8), depths, step)


def _code_curve(coder: Coder, table: Curve | None) -> Curve:
    form = reach = centre = None
    if table is not None:
        centre, reach = table.centre, table.low << 8 | table.high
        form = 2 * _KNOTS.index(table.knots) + table.sides - 1
    form = coder.integer(2 * len(_KNOTS), form)
    centre = coder.integer(1 << 8, centre)
    low, high = divmod(coder.integer(1 << 16, reach), 1 << 8)
    if not 1 <= low <= high or high > max(centre, 255 - centre):
        raise InputError("a table of its weights is damaged")
    knots, sides = _KNOTS[form // 2], 1 + form % 2
    depths = _code_depths(coder, 2 + sides * knots, None if table is None else table.depths)
    return Curve(centre, low, high, sides, knots, depths)


def _code_depths(coder: Coder, number: int, depths: Array | None) -> Array:
    """Code depths as they are, or as differences from one to the next, whichever is less."""
    turned = None
    if depths is not None:
        turned = _differences(depths)
        plain, steps = Encoder(), Encoder()
        small(plain, number, depths)
        small(steps, number, turned)
    smooth = coder.integer(2, None if depths is None else steps.bits < plain.bits)
    if not smooth:
        return small(coder, number, depths).astype(np.int64)
    found = small(coder, number, turned).astype(np.int64)
    return np.cumsum(np.where(found % 2, -(found + 1) // 2, found // 2)) & 255


def _differences(depths: Array) -> Array:
    """Turn depths into differences modulo 256, as small integers: 0, -1, 1, -2, 2, ..."""
    steps = np.diff(depths, prepend=0)
    steps = (steps + 128) % 256 - 128
    return np.where(steps < 0, -2 * steps - 1, 2 * steps)


def expand(table: Table) -> tuple[Array, Array]:
    """Return the bytes that can occur (uint8) and the weight of each (float64, above 0)."""
    if isinstance(table, Listed):
        return table.bytes, _weights(table.depths * _LIST_STEPS[table.step])
    values, left, right, along, width = _shape(
        table.centre, table.low, table.high, table.sides, table.knots
    )
    depths = table.depths * _CURVE_STEP
    weights = _weights((depths[left] * (width - along) + depths[right] * along) // width)
    if table.depths[0] == _ABSENT:
        occurring = left > 0
        return values[occurring], weights[occurring]
    return values, weights


def _weights(depths: Array) -> Array:
    weights: Array = _WEIGHTS[np.minimum(depths, _DEEPEST)]
    return weights


@lru_cache(maxsize=256)
def _shape(centre: int, low: int, high: int, sides: int, knots: int) -> tuple[Array, ...]:
    """Return the bytes of a curve, and between which depths each lies.

    Returns:
      Bytes; for each the places of two depths in `Curve.depths`, and how far along it is from the
      first to the second, of how much.
    """
    places = _places(low, high, knots)
    offsets = np.arange(-high, high + 1)
    offsets = offsets[(np.abs(offsets) >= low) | (offsets == 0)]
    offsets = offsets[(offsets >= -centre) & (offsets <= 255 - centre)]
    distances = np.abs(offsets)
    left, right, along, width = _between(distances, places)
    first = np.where(offsets < 0, 2, 2 + (sides - 1) * knots)
    left, right = left + first, right + first
    for distance, place in ((high, 1), (0, 0)):
        alone = distances == distance
        left[alone] = right[alone] = place
        along[alone], width[alone] = 0, 1
    return (offsets + centre).astype(np.uint8), left, right, along, width


def _places(low: int, high: int, knots: int) -> Array:
    """Return the distances of the knots from `low` to `high` - 1, closer together near `low`."""
    last = max(high - 1 - low, 0)
    shares = np.arange(knots, dtype=np.int64)
    places: Array = low + last * shares * (shares + knots - 1) // (2 * (knots - 1) ** 2)
    return places


def _between(distances: Array, places: Array) -> tuple[Array, Array, Array, Array]:
    """Return the knots that distances lie between, how far along they are, and of how much."""
    right = np.searchsorted(places[1:-1], distances, side="right") + 1
    width = np.maximum(places[right] - places[right - 1], 1)
    return right - 1, right, np.clip(distances - places[right - 1], 0, width), width


def table_bits(counts: Array, table: Table) -> float:
    """Return the bits of a table and of the bytes that it codes."""
    meter = Encoder()
    code_table(meter, table)
    values, weights = expand(table)
    return meter.bits + cost(counts[values], weights)


def best_table(counts: Array) -> Table:
    """Return the table by which bytes that occur `counts` times (256 integers) cost least."""
    return min(_candidates(counts), key=lambda table: table_bits(counts, table))


def _candidates(counts: Array) -> Iterator[Table]:
    occurring = np.flatnonzero(counts)
    for step in range(len(_LIST_STEPS) if occurring.size > 1 else 1):
        yield Listed(
            occurring.astype(np.uint8), _depths(counts[occurring], _LIST_STEPS[step]), step
        )
    if occurring.size <= 6:
        return
    centres = {_MIDDLE, int(counts.argmax())}
    if len(centres) > 1:
        tried = [_fitted(counts, centre, 1, 5) for centre in sorted(centres)]
        centres = {min(tried, key=lambda table: table_bits(counts, table)).centre}
    for centre in centres:
        for knots in _TRIED_KNOTS:
            for sides in (1, 2):
                yield _fitted(counts, centre, sides, knots)


def _depths(weights: Array, step: int) -> Array:
    """Turn weights into steps below the largest of them."""
    with np.errstate(divide="ignore"):
        below = np.log2(weights.max()) - np.log2(weights)
    depths: Array = np.minimum(np.round(below * _OCTAVE / step), _ABSENT - 1).astype(np.int64)
    return depths


def _fitted(counts: Array, centre: int, sides: int, knots: int) -> Curve:
    """Fit a curve to counts: the likeliest, up to rounding."""
    occurring = np.abs(np.flatnonzero(counts) - centre)
    low, high = int(occurring[occurring > 0].min()), int(occurring.max())
    distances = np.arange(low, high)
    below = np.where(distances <= centre, counts[centre - np.minimum(distances, centre)], 0)
    above = np.where(
        distances <= 255 - centre, counts[centre + np.minimum(distances, 255 - centre)], 0
    )
    ends = sum(counts[byte] for byte in (centre - high, centre + high) if 0 <= byte <= 255)
    hats = _hats(distances, _places(low, high, knots))
    if sides == 1:
        # Both sides share the weights, so each byte has half of what its distance has.
        weights = [_fit(hats, below + above) / 2]
    else:
        weights = [_fit(hats, below), _fit(hats, above)]
    flat = np.concatenate([[counts[centre], ends / 2], *weights])
    depths = _depths(np.maximum(flat, 1e-9), _CURVE_STEP)
    if not counts[centre]:
        depths[0] = _ABSENT
    return Curve(centre, low, high, sides, knots, depths)


def _hats(distances: Array, places: Array) -> Array:
    """Return how much each knot counts at each distance: rows that add up to 1."""
    left, right, along, width = _between(distances, places)
    hats = np.zeros((distances.size, places.size))
    rows = np.arange(distances.size)
    hats[rows, left] = 1 - along / width
    hats[rows, right] += along / width
    return hats


def _fit(hats: Array, counts: Array) -> Array:
    """Return the weights at the knots that make `counts` likeliest, by Newton's method."""
    total = counts.sum()
    if not hats.size or not total:
        return np.full(hats.shape[1], 1e-9)
    logs = np.log((hats.T @ counts + 0.1) / (hats.sum(axis=0) + 0.1))
    for _ in range(12):
        expected = np.exp(hats @ logs)
        expected *= total / expected.sum()
        slope = hats.T @ (counts - expected)
        curvature = (hats.T * expected) @ hats + 0.02 * np.eye(logs.size)
        logs = logs + np.clip(np.linalg.solve(curvature, slope), -2, 2)
    expected = np.exp(hats @ logs)
    return np.asarray(np.exp(logs) * (total / expected.sum()))
