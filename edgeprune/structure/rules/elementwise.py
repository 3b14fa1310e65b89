"""Layers that compute each entry from the same entry of their input."""

from typing import Any

import numpy as np

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.registry import rule_for

# Of `keras.activations`, and of `tf.nn` where it has them: those that work entry by entry.
_POINTWISE = frozenset(
    (
        *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish"),
        *("hard_silu", "mish", "sigmoid", "hard_sigmoid", "log_sigmoid", "sparse_sigmoid"),
        *("tanh", "hard_tanh", "tanh_shrink", "soft_shrink", "hard_shrink", "threshold"),
        *("softplus", "softsign", "squareplus", "sparse_plus", "exponential"),
    )
)
_OVER_LAST_AXIS = frozenset({"softmax", "log_softmax", "sparsemax"})
_OPERATIONS = (
    *("Absolute", "Abs", "Fabs", "Negative", "Sign", "Signbit", "Square", "Sqrt", "Rsqrt"),
    *("Cbrt", "Reciprocal", "Exp", "Exp2", "Expm1", "Log", "Log10", "Log1p", "Log2", "Erf"),
    *("Erfc", "Erfinv", "I0", "Sinc", "Ceil", "Floor", "Round", "Trunc", "Real", "Conjugate"),
    *("Conj", "Copy", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh", "Arcsin", "Arccos"),
    *("Arctan", "Arcsinh", "Arccosh", "Arctanh", "Deg2rad", "Rad2deg", "Isfinite", "Isinf"),
    *("Isnan", "Isneginf", "Isposinf", "LogicalNot", "NanToNum", "OnesLike", "ZerosLike"),
    *("StopGradient", "Cast", "SaturateCast", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu"),
    *("Celu", "Gelu", "Silu", "HardSilu", "Sigmoid", "HardSigmoid", "LogSigmoid"),
    *("SparseSigmoid", "HardTanh", "TanhShrink", "SoftShrink", "HardShrink", "Threshold"),
    *("Softplus", "Softsign", "Squareplus", "SparsePlus"),
)


@rule(
    *("ReLU", "LeakyReLU", "ELU", "Identity", "ActivityRegularization"),
    *("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    *("GaussianNoise", "GaussianDropout", "applications.StochasticDepth"),
    *(f"ops.{name}" for name in _OPERATIONS),
)
def unary(call: Call) -> list[Axes]:
    """Hand every axis on."""
    return [call.inputs[0]]


@rule("Dropout", "AlphaDropout")
def dropout(call: Call) -> list[Axes]:
    """Hand every axis on; the shape of the noise may name their sizes."""
    for axis, size in enumerate(getattr(call.layer, "noise_shape", None) or ()):
        if size is not None and size != 1:
            call.counts("noise_shape", call.inputs[0][axis], axis)
    return [call.inputs[0]]


def activated(call: Call, activation: Any, axes: Axes) -> Axes:
    """Return the axes of an activation function's result, frozen where it looks across them."""
    if activation is None or rule_for(activation) is unary:  # a layer, such as LeakyReLU(0.1)
        return axes
    name = getattr(activation, "__name__", type(activation).__name__)
    module = getattr(activation, "__module__", None) or ""
    own = module.startswith(("keras.src.", "tensorflow.python."))
    if own and name in _POINTWISE:
        return axes
    if own and name in _OVER_LAST_AXIS:
        call.freeze(axes[-1], f"is a {name} over these channels")
        return axes
    for ids in axes:
        call.freeze(ids, f"has an activation ({name}) that may look across channels")
    return axes


@rule("Activation")
def activation(call: Call) -> list[Axes]:
    """Hand every axis on, except the one that a softmax sums over."""
    return [activated(call, call.layer.activation, call.inputs[0])]


@rule("Softmax", "ops.Softmax", "ops.LogSoftmax", "ops.Sparsemax")
def softmax(call: Call) -> list[Axes]:
    """Hand the other axes on: over channels, one that leaves would change all the others."""
    axes = call.layer.axis
    rank = len(call.inputs[0])
    for axis in range(rank) if axes is None else np.atleast_1d(axes):
        call.freeze(call.inputs[0][axis], "is a softmax over these channels")
    return [call.inputs[0]]


@rule("PReLU")
def prelu(call: Call) -> list[Axes]:
    """Take the slopes along, where they are not shared."""
    alpha = call.layer.alpha
    for axis, ids in enumerate(call.inputs[0][1:]):
        if alpha.shape[axis] != 1:
            call.carries(alpha, axis, ids)
    return [call.inputs[0]]


@rule("ops.Clip")
def clip(call: Call) -> list[Axes]:
    """Hand every axis on, unless the bounds are arrays."""
    if np.ndim(call.layer.x_min) or np.ndim(call.layer.x_max):
        return list(call.freeze_all("clips to bounds that are arrays"))
    return [call.inputs[0]]


@rule("Rescaling")
def rescaling(call: Call) -> list[Axes]:
    """Hand every axis on, if one scale and one offset serve them all."""
    if np.ndim(call.layer.scale) or np.ndim(call.layer.offset):
        return list(call.freeze_all("has a scale or an offset for each channel in its config"))
    return [call.inputs[0]]


@rule("Masking")
def masking(call: Call) -> list[Axes]:
    """Hand every axis on; a step is masked where all of its channels are `mask_value`."""
    if call.layer.mask_value != 0:
        call.freeze(call.inputs[0][-1], "compares these channels with a value other than 0")
    call.sees(0, -1)
    return [call.inputs[0]]


@rule("applications.LayerScale")
def layer_scale(call: Call) -> list[Axes]:
    """Take the scale along (ConvNeXt)."""
    ids = call.inputs[0][-1]
    call.carries(call.layer.gamma, 0, ids, "scale")
    call.counts("projection_dim", ids)
    return [call.inputs[0]]
