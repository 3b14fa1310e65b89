"""The int8 weight grid: the values that an int8 .tflite file can hold for a kernel.

An output channel with scale ``s = max|w| / 127`` holds ``q * s`` for the integers -127..127
(symmetric, so zero is exactly zero; narrow range, so -128 is not used). The channel's largest
weight is always 127 or -127 and hands its scale on: the converter, which computes the same
formula, finds the same integers again, whatever batch normalization multiplies the channel by.
(Measured limit, TensorFlow 2.21: it widens the range of a channel that is folded to less than
0.5e-6, or whose bias would not fit its 32 bits, so such a channel becomes coarser. Zeros stay.)
"""

from typing import Any

import numpy as np
import tensorflow as tf

LARGEST = 127
"""Largest integer of the grid; the smallest is its negative."""


def scales(kernel: Any, axes: tuple[int, ...], largest: int = LARGEST) -> Any:
    """Return the scale of each channel, as a float32 tensor that broadcasts to the kernel.

    A channel of zeros alone gets the scale 1, so that nothing is divided by zero.

    Args:
      kernel: float32 tensor.
      axes: axes that index channels; all others are reduced to length 1.
      largest: integer of the grid; 7 for int4.
    """
    reduced = [axis for axis in range(len(kernel.shape)) if axis not in axes]
    highest = tf.reduce_max(tf.abs(kernel), axis=reduced, keepdims=True)
    return tf.where(highest > 0, highest / largest, tf.ones_like(highest))


def to_grid(kernel: Any, axes: tuple[int, ...], largest: int = LARGEST) -> Any:
    """Round a kernel to its int8 grid, or a coarser one; gradients pass straight through.

    Args:
      kernel: float tensor; it is computed in float32.
      axes: axes that index output channels, a kernel's `output_axes`.
      largest: integer of the grid; 7 for int4.

    Returns:
      float32 tensor of the same shape, at most 255 distinct values a channel (15 of int4). Zeros
      stay zeros.

    Source: Jacob et al. 2018, arXiv:1712.05877; straight-through estimator, Bengio et al. 2013,
    arXiv:1308.3432. `keras.quantizers.abs_max_quantize` adds an epsilon to the maximum, and
    `tf.quantization.fake_quant_with_min_max_vars_per_channel` stops the gradient of weights that
    rounding puts just outside of the range: neither gives this grid exactly.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]  # tensorflow has no types
    def straight_through(weights: Any) -> tuple[Any, Any]:
        scale = scales(weights, axes, largest)
        return tf.round(weights / scale) * scale, lambda upstream: upstream

    return straight_through(tf.cast(kernel, tf.float32))


def integers(kernel: np.ndarray[Any, Any], axes: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return the int8 integers that stand for a kernel, in the kernel's own layout."""
    weights = tf.constant(np.asarray(kernel, np.float32))
    return np.asarray(tf.round(weights / scales(weights, axes)), np.int8)
