"""Layers that compute each entry from the same entry of their inputs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune.models import import_keras
from edgeprune.structure.readings import Step, placed
from edgeprune.structure.readings import range_rule as rule
from edgeprune.structure.values import Value, exactly, product

keras: Any = import_keras()

# Activations

_RISING = (
    *("linear", "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "exponential", "sigmoid"),
    *("hard_sigmoid", "tanh", "hard_tanh", "softplus", "softsign", "log_sigmoid", "squareplus"),
)
# Elsewhere than at a constant, their range is not worth the search for a minimum.
_OTHERS = ("silu", "gelu", "mish", "hard_silu", "tanh_shrink", "soft_shrink")


def activated(function: Any, value: Value, rounding: float) -> Value | None:
    """Return the range after one of Keras's activation functions; None for any other."""
    name = getattr(function, "__name__", "")
    if name == "linear" and function is keras.activations.linear:
        return value
    # A function of the user's own may compute anything.
    if name not in (*_RISING, *_OTHERS) or getattr(keras.activations, name) is not function:
        return None
    return _mapped(function, value, rounding, rising=name in _RISING)


def _mapped(function: Callable[[Any], Any], value: Value, rounding: float, rising: bool) -> Value:
    """Apply a function to both ends: all there is to know if it never falls."""
    ends = np.stack([value.low, value.high]).astype(np.float32)
    low, high = (np.asarray(function(end), np.float64) for end in ends)
    found = Value(low, high).widened(8 * rounding)
    if rising:
        return found
    same = value.constant
    return Value(np.where(same, low, -np.inf), np.where(same, low, np.inf))


@rule("Activation")
def _activation(step: Step) -> Value | None:
    return activated(step.layer.activation, step.first, step.rounding)


@rule(
    *("ops.Relu", "ops.Relu6", "ops.Sigmoid", "ops.Tanh", "ops.Softplus", "ops.Softsign"),
    *("ops.HardSigmoid", "ops.HardTanh", "ops.LogSigmoid", "ops.Exp", "ops.Selu"),
)
def _rising(step: Step) -> Value | None:
    return _mapped(step.layer.call, step.first, step.rounding, rising=True)


@rule("ops.Silu", "ops.Gelu", "ops.HardSilu", "ops.Mish", "ops.Square", "ops.Absolute")
def _elementwise(step: Step) -> Value | None:
    return _mapped(step.layer.call, step.first, step.rounding, rising=False)


@rule("ReLU")
def _relu(step: Step) -> Value | None:
    layer = step.layer
    if layer.threshold != 0:  # it jumps there
        return None
    return _mapped(layer.call, step.first, step.rounding, rising=layer.negative_slope >= 0)


@rule("LeakyReLU")
def _leaky(step: Step) -> Value | None:
    return _mapped(step.layer.call, step.first, step.rounding, step.layer.negative_slope >= 0)


@rule("ELU")
def _elu(step: Step) -> Value | None:
    return _mapped(step.layer.call, step.first, step.rounding, bool(step.layer.alpha >= 0))


@rule("PReLU")
def _prelu(step: Step) -> Value | None:
    alpha = np.asarray(step.layer.alpha, np.float64)[None]
    if not (alpha >= 0).all():
        return None
    ends = [
        np.maximum(end, 0.0) + np.where(alpha == 0, 0.0, alpha * np.minimum(end, 0.0))
        for end in (step.first.low, step.first.high)
    ]
    return Value(*ends).widened(4 * step.rounding)


# Normalization


@rule("BatchNormalization")
def _normalized(step: Step) -> Value | None:
    layer = step.layer
    if step.training and layer.trainable:
        return None
    size = layer.moving_mean.shape[0]
    gamma = np.asarray(layer.gamma, np.float64) if layer.scale else np.ones(size)
    beta = np.asarray(layer.beta, np.float64) if layer.center else np.zeros(size)
    factor = gamma / np.sqrt(np.asarray(layer.moving_variance, np.float64) + layer.epsilon)
    drop = np.asarray(layer.moving_mean, np.float64) * factor
    given = step.first.along(layer.axis, size)
    scaled = product(given, exactly(factor))
    ends = (scaled.low, scaled.high)
    magnitude = sum(np.abs(np.where(np.isfinite(end), end, 0.0)) for end in ends)
    magnitude = magnitude + np.abs(drop) + np.abs(beta)
    shifted = Value(scaled.low + (beta - drop), scaled.high + (beta - drop))
    return placed(shifted.widened(8 * step.rounding, magnitude), step.first.low.ndim, layer.axis)


# Merging


def added(a: Value, b: Value) -> Value:
    """Return the range of the sum."""
    return Value(a.low + b.low, a.high + b.high)


def _negated(a: Value) -> Value:
    return Value(-a.high, -a.low)


def _operands(step: Step) -> list[Value]:
    return [
        given if isinstance(given, Value) else exactly(given)
        for given in step.arguments
        if given is not None
    ]


def _reduced(step: Step, merge: Callable[[Value, Value], Value]) -> Value:
    total, *others = _operands(step)
    for other in others:
        total = merge(total, other)
    return total.widened(4 * len(others) * step.rounding)


@rule("Add", "ops.Add")
def _add(step: Step) -> Value:
    return _reduced(step, added)


@rule("Average")
def _average(step: Step) -> Value:
    total = _reduced(step, added)
    return product(total, exactly(1 / len(step.shapes))).widened(4 * step.rounding)


@rule("Subtract", "ops.Subtract")
def _subtract(step: Step) -> Value:
    return _reduced(step, lambda a, b: added(a, _negated(b)))


@rule("Multiply", "ops.Multiply")
def _multiply(step: Step) -> Value:
    return _reduced(step, product)


@rule("Maximum", "ops.Maximum")
def _maximum(step: Step) -> Value:
    return _reduced(step, lambda a, b: Value(np.maximum(a.low, b.low), np.maximum(a.high, b.high)))


@rule("Minimum", "ops.Minimum")
def _minimum(step: Step) -> Value:
    return _reduced(step, lambda a, b: Value(np.minimum(a.low, b.low), np.minimum(a.high, b.high)))


@rule("Rescaling")
def _rescaling(step: Step) -> Value:
    scaled = product(step.first, exactly(step.layer.scale))
    return added(scaled, exactly(step.layer.offset)).widened(4 * step.rounding)


@rule("Concatenate", "ops.Concatenate")
def _concatenated(step: Step) -> Value | None:
    values = _operands(step)[: len(step.shapes)]
    axis = step.layer.axis % values[0].low.ndim
    wide = []
    for value, shape in zip(values, step.shapes, strict=True):
        size = shape[axis]
        if size is None:
            return None
        sizes = [max(given) for given in zip(*(other.shape for other in values), strict=True)]
        sizes[axis] = size
        wide.append([np.broadcast_to(end, sizes) for end in (value.low, value.high)])
    return Value(*(np.concatenate(ends, axis) for ends in zip(*wide, strict=True)))


# Layers that change nothing in inference


@rule(
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout"),
    *("GaussianNoise", "GaussianDropout"),
)
def _dropout(step: Step) -> Value | None:
    return None if step.training else step.first


@rule("Identity", "ActivityRegularization", "ops.Identity")
def _identity(step: Step) -> Value:
    return step.first
