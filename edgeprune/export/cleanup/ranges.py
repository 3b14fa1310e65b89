"""The values that each channel of each tensor can take, whatever the input.

Interval arithmetic: for quantized tensors on the stored integers, for float tensors on the
values. A channel whose interval is a single value is constant.

Runtimes requantize a sum with different roundings (in one step or two, ties up, away from zero
or to even), so an interval takes in what any of them could give, and no channel counts as
constant on the strength of one kernel's rounding. Zero is exempt: every kernel maps the zero
point to the zero point.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.export.cleanup.weighted import Weighted
from edgeprune.export.graph import Quantization, Tensor

Array = npt.NDArray[Any]

_LIMITS = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
}
# ActivationFunctionType of the schema: NONE, RELU, RELU_N1_TO_1, RELU6.
_ACTIVATIONS: dict[int, tuple[float, float]] = {
    0: (-np.inf, np.inf),
    1: (0.0, np.inf),
    2: (-1.0, 1.0),
    3: (0.0, 6.0),
}
_ACCUMULATOR = 2.0**31
# int16 kernels scale with 16 bits of the multiplier, the others with 31 or a float's 24.
_RELATIVE = {"int8": 2.0**-20, "uint8": 2.0**-20, "int16": 2.0**-13}
_FLOAT = 2.0**-23


@dataclass(frozen=True, eq=False)
class Range:
    """Bounds of each channel's values: float64 arrays (channels,)."""

    low: Array
    high: Array

    @property
    def constant(self) -> Array:
        """Bool (channels,): where the value is always the same."""
        same: Array = self.low == self.high
        return same

    def tiled(self, times: int) -> "Range":
        """Repeat the channels, as flattening does."""
        return Range(np.tile(self.low, times), np.tile(self.high, times))

    def joined(self, other: "Range") -> "Range":
        """Return the least range that holds both."""
        return Range(np.minimum(self.low, other.low), np.maximum(self.high, other.high))


def anything(tensor: Tensor) -> Range:
    """Return what the type of a tensor allows, for each index of its last axis."""
    channels = tensor.shape[-1] if tensor.shape else 1
    low, high = _LIMITS.get(tensor.dtype, (-np.inf, np.inf))
    return Range(np.full(channels, float(low)), np.full(channels, float(high)))


def of_constant(tensor: Tensor) -> Range:
    """Return the range of a constant along its last axis."""
    values = tensor.values().astype(np.float64)
    if not np.isfinite(values).all():
        return anything(tensor)
    values = values.reshape(-1, tensor.shape[-1] if tensor.shape else 1)
    return Range(values.min(axis=0), values.max(axis=0))


def scale_of(tensor: Tensor) -> tuple[float, int] | None:
    """Return a quantized activation's scale and zero point; None for float or if it has several."""
    quantization = tensor.quantization
    if quantization is None or tensor.dtype not in _LIMITS or quantization.scale.size != 1:
        return None
    scale = float(quantization.scale[0])
    return (scale, int(quantization.zero_point[0])) if 0 < scale < np.inf else None


def same_scale(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors' stored values mean the same."""
    return one.dtype == other.dtype and _plain(one.quantization) == _plain(other.quantization)


def _plain(quantization: Quantization | None) -> tuple[list[float], list[int]] | None:
    if quantization is None:
        return None
    return quantization.scale.tolist(), quantization.zero_point.tolist()


def activated(tensor: Tensor, given: Range, activation: int) -> Range:
    """Clamp to a fused activation's range and to what the tensor can store."""
    if activation not in _ACTIVATIONS:
        return anything(tensor)
    low, high = _ACTIVATIONS[activation]
    scale = scale_of(tensor)
    if scale is None:
        return Range(np.clip(given.low, low, high), np.clip(given.high, low, high))
    least, greatest = (float(limit) for limit in _LIMITS[tensor.dtype])
    # The bounds are rounded to integers, ties up or to even: at a tie either may be.
    bottom, top = (
        np.clip(rounded(np.array([bound / scale[0]]), 1e-3) + scale[1], least, greatest)
        if np.isfinite(bound)
        else np.full((2, 1), least if bound < 0 else greatest)
        for bound in (low, high)
    )
    return Range(np.clip(given.low, bottom[0], top[0]), np.clip(given.high, bottom[1], top[1]))


def rounded(real: Array, error: float | Array) -> Array:
    """Return (least, greatest) integer that rounding `real`, itself off by `error`, may give."""
    slack = np.where(real == 0, 0.0, error)
    return np.stack([np.ceil(real - slack - 0.5), np.floor(real + slack + 0.5)])


def requantized(tensor: Tensor, low: Array, high: Array, multiplier: Array | float) -> Range:
    """Scale sums to a tensor's own integers, as any runtime may round them.

    A kernel rounds the scaled sum to an integer, some after rounding it once before, at a
    resolution of at most two units of the sum.

    Args:
      tensor: quantized, with one scale.
      low: least sums (channels,), integers.
      high: greatest sums.
      multiplier: real value of a unit of the sum, in units of the tensor.
    """
    scale = scale_of(tensor)
    assert scale is not None
    relative = _RELATIVE[tensor.dtype]
    step = np.minimum(2.0 * np.asarray(multiplier), 1.0)
    least = rounded(low * multiplier, step + relative * np.abs(low * multiplier))[0]
    greatest = rounded(high * multiplier, step + relative * np.abs(high * multiplier))[1]
    return Range(least + scale[1], greatest + scale[1])


def of_weighted(layer: Weighted, source: Tensor, output: Tensor, given: Range) -> Range:
    """Return the sums of a convolution or matrix product, requantized; before its activation.

    Args:
      layer: the operator.
      source: its input.
      output: its output.
      given: the input's range along `layer`'s columns.
    """
    if layer.hybrid:
        silent = ~_any(layer.positive - layer.negative)
        return Range(
            np.where(silent, layer.biases, -np.inf), np.where(silent, layer.biases, np.inf)
        )
    incoming, outgoing = scale_of(source), scale_of(output)
    if source.dtype == "float32":
        return _float_sums(layer, _with_padding(layer, given))
    if incoming is None or outgoing is None or layer.kernel.quantization is None:
        return anything(output)
    centred = Range(given.low - incoming[1], given.high - incoming[1])
    sums = _sums(layer, _with_padding(layer, centred))
    multiplier = incoming[0] * layer.kernel.quantization.scale.astype(np.float64) / outgoing[0]
    bounded = requantized(output, sums.low, sums.high, multiplier)
    # A sum that leaves the accumulator wraps around.
    limit = _ACCUMULATOR if source.dtype != "int16" else _ACCUMULATOR * 2**16
    wraps = np.maximum(np.abs(sums.low), np.abs(sums.high)) >= limit
    free = anything(output)
    return Range(np.where(wraps, free.low, bounded.low), np.where(wraps, free.high, bounded.high))


def _any(weights: Array) -> Array:
    found: Array = (weights != 0).reshape(len(weights), -1).any(axis=1)
    return found


def _with_padding(layer: Weighted, given: Range) -> Range:
    if not layer.padded:
        return given
    return Range(np.minimum(given.low, 0.0), np.maximum(given.high, 0.0))


def _sums(layer: Weighted, given: Range) -> Range:
    return Range(
        _weigh(layer, layer.positive, given.low)
        + _weigh(layer, layer.negative, given.high)
        + layer.biases,
        _weigh(layer, layer.positive, given.high)
        + _weigh(layer, layer.negative, given.low)
        + layer.biases,
    )


def _weigh(layer: Weighted, weights: Array, values: Array) -> Array:
    if layer.mixing:
        product: Array = weights @ values
        return product
    scaled: Array = weights * np.repeat(values, layer.channels // len(values))
    return scaled


def _float_sums(layer: Weighted, given: Range) -> Range:
    """Bound float sums, roundings included. A zero weight meets finite values: 0 x inf is 0."""
    low, high = given.low, given.high
    finite = Range(np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 0.0))
    sums = _sums(layer, finite)
    up, down = (layer.positive > 0).astype(float), (layer.negative < 0).astype(float)
    no_least = _weigh(layer, up, low == -np.inf) + _weigh(layer, down, high == np.inf) > 0
    no_greatest = _weigh(layer, up, high == np.inf) + _weigh(layer, down, low == -np.inf) > 0
    # Rounding keeps the sign of a sum whose terms all have that sign.
    never_positive = _weigh(layer, up, high > 0) + _weigh(layer, down, low < 0) == 0
    never_negative = _weigh(layer, up, low < 0) + _weigh(layer, down, high > 0) == 0
    never_positive &= layer.biases <= 0
    never_negative &= layer.biases >= 0
    largest = np.maximum(np.abs(finite.low), np.abs(finite.high))
    magnitude = _weigh(layer, layer.positive - layer.negative, largest)
    terms = layer.kernel.entries // layer.channels + 1
    some = _any(layer.positive - layer.negative)
    slack = np.where(some, (magnitude + np.abs(layer.biases)) * terms * _FLOAT, 0.0)
    least = np.where(never_negative, np.maximum(sums.low - slack, 0.0), sums.low - slack)
    greatest = np.where(never_positive, np.minimum(sums.high + slack, 0.0), sums.high + slack)
    return Range(
        np.where(no_least, np.where(never_negative, 0.0, -np.inf), least),
        np.where(no_greatest, np.where(never_positive, 0.0, np.inf), greatest),
    )
