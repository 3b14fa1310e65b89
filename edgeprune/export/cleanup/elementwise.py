"""Value ranges through the operators that have no weights."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.export.cleanup.ranges import (
    Range,
    anything,
    requantized,
    rounded,
    same_scale,
    scale_of,
)
from edgeprune.export.graph import Tensor

Array = npt.NDArray[Any]

# Element-wise kernels round each input to a grid of 2**-20 or so before they combine them; this
# is far more.
_ERROR = 0.25
_FLOAT = 2.0**-22


def kept(source: Tensor, output: Tensor, given: Range) -> Range:
    """Return the range through an operator that moves stored values but never changes them."""
    return given if same_scale(source, output) else anything(output)


def padded(source: Tensor, output: Tensor, given: Range, value: float | None) -> Range:
    """Return the range after padding with a stored value; None pads with the output's zero."""
    if not same_scale(source, output):
        return anything(output)
    scale = scale_of(output)
    if value is None:
        value = 0.0 if scale is None else float(scale[1])
    edge = np.full(len(given.low), value)
    return given.joined(Range(edge, edge))


def rescaled(source: Tensor, output: Tensor, given: Range) -> Range:
    """Return the range through QUANTIZE, DEQUANTIZE or a lone activation, before its clamp."""
    incoming, outgoing = scale_of(source), scale_of(output)
    if same_scale(source, output):
        return given
    if incoming is None or source.dtype == "float32":
        return anything(output)
    low, high = given.low - incoming[1], given.high - incoming[1]
    if output.dtype == "float32":
        return Range(low * incoming[0], high * incoming[0])
    if outgoing is None:
        return anything(output)
    return requantized(output, low, high, incoming[0] / outgoing[0])


def averaged(source: Tensor, output: Tensor, given: Range, count: int) -> Range:
    """Return the range of MEAN over `count` positions."""
    if source.dtype == "float32":
        return given if output.dtype == "float32" else anything(output)
    incoming, outgoing = scale_of(source), scale_of(output)
    if incoming is None or outgoing is None or count < 1:
        return anything(output)
    if same_scale(source, output):
        # The mean of equal integers is that integer; others may round either way.
        varies = ~given.constant
        return Range(given.low - varies, given.high + varies)
    ratio = incoming[0] / outgoing[0]
    centred = requantized(
        output,
        (given.low - incoming[1]) * count,
        (given.high - incoming[1]) * count,
        ratio / count,
    )
    # TFLite's optimized kernel scales and rounds the sum of the stored values, then takes the
    # scaled and rounded zero point off; the others take the zero point off each value.
    apart = Range(
        _multiplied(given.low * count, ratio / count)[0],
        _multiplied(given.high * count, ratio / count)[1],
    )
    taken = rounded(np.array([incoming[1] * ratio]), abs(incoming[1] * ratio) * _FLOAT)
    offset = float(outgoing[1])
    return centred.joined(Range(apart.low - taken[1] + offset, apart.high - taken[0] + offset))


def _multiplied(sums: Array, multiplier: float) -> tuple[Array, Array]:
    """Return the least and greatest of what fixed-point multiplication makes of integers.

    Source: MultiplyByQuantizedMultiplier of tensorflow/lite/kernels/internal/common.cc, which
    rounds twice or, if built so, once. Ties go either way here, as vector units have them.
    """
    least, greatest = [], []
    for value in sums.astype(np.int64).tolist():
        found = []
        for inexact in (1 - _FLOAT, 1 + _FLOAT):  # the multiplier comes from float32 arithmetic
            mantissa, exponent = math.frexp(multiplier * inexact)
            factor = round(mantissa * 2**31)
            left, right = max(exponent, 0), max(-exponent, 0)
            product = (value << left) * factor
            found += _halves(product, 31 + right)
            for once in _halves(product, 31):
                found += _halves(once, right)
        least.append(min(found))
        greatest.append(max(found))
    return np.array(least, float), np.array(greatest, float)


def _halves(value: int, shift: int) -> list[int]:
    """Divide by 2**shift and round to nearest, a tie both ways."""
    if shift == 0:
        return [value]
    half = 1 << (shift - 1)
    return [(value + half) >> shift, -((half - value) >> shift)]


def combined(
    name: str, output: Tensor, operands: tuple[tuple[Tensor, Range], tuple[Tensor, Range]]
) -> Range:
    """Return the range of ADD, SUB or MUL, before the activation.

    Args:
      name: of the operator.
      output: its output.
      operands: both inputs with their ranges, of the output's channels or one.
    """
    (one, first), (other, second) = operands
    quantized = output.dtype != "float32"
    outgoing = scale_of(output)
    if quantized:
        scales = [scale_of(one), scale_of(other)]
        if outgoing is None or None in scales:
            return anything(output)
        first, second = (
            Range((given.low - scale[1]) * scale[0], (given.high - scale[1]) * scale[0])
            for given, scale in zip((first, second), scales, strict=True)
            if scale is not None
        )
    elif one.dtype != "float32" or other.dtype != "float32":
        return anything(output)
    result = _arithmetic(name, first, second)
    result = Range(*np.broadcast_arrays(result.low, result.high, anything(output).low)[:2])
    if not quantized:
        return result
    assert outgoing is not None
    exact = _at_zero(name, first, second)
    error = np.where(exact, 0.0, _ERROR)
    return Range(
        np.ceil(result.low / outgoing[0] - error - 0.5) + outgoing[1],
        np.floor(result.high / outgoing[0] + error + 0.5) + outgoing[1],
    )


def _arithmetic(name: str, first: Range, second: Range) -> Range:
    if name == "ADD":
        return Range(first.low + second.low, first.high + second.high)
    if name == "SUB":
        return Range(first.low - second.high, first.high - second.low)
    with np.errstate(invalid="ignore"):
        corners = np.stack(
            np.broadcast_arrays(
                *(one * other for one in (first.low, first.high) for other in _ends(second))
            )
        )
    corners = np.where(np.isnan(corners), 0.0, corners)  # 0 x inf: the other side stays finite
    return Range(corners.min(axis=0), corners.max(axis=0))


def _ends(given: Range) -> tuple[Array, Array]:
    return given.low, given.high


def _at_zero(name: str, first: Range, second: Range) -> Array:
    """Tell where the result is the sum of zeros, or a product with zero: no kernel rounds that."""
    zeros = [given.constant & (given.low == 0) for given in (first, second)]
    exact: Array = zeros[0] | zeros[1] if name == "MUL" else zeros[0] & zeros[1]
    return exact
