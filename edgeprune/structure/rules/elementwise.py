"""Layers that compute each entry from the same entry of their input."""

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes
from edgeprune.structure.registry import register_pruning_rule as rule


@rule(
    *("ReLU", "LeakyReLU", "ELU"),
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    *("GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization", "Identity"),
    *("ops.Relu", "ops.Relu6", "ops.Sigmoid", "ops.Silu", "ops.Tanh", "ops.Gelu"),
)
def unary(call: Call) -> list[Axes]:
    """Hand every axis on."""
    return [call.inputs[0]]


@rule("Activation")
def activation(call: Call) -> list[Axes]:
    """Hand every axis on, except the one that a softmax sums over."""
    if getattr(call.layer.activation, "__name__", "") in ("softmax", "log_softmax"):
        call.freeze(call.inputs[0][-1], "is a softmax over these channels")
    return [call.inputs[0]]


@rule("Softmax")
def softmax(call: Call) -> list[Axes]:
    """Hand the other axes on: over channels, one that leaves would change all the others."""
    axes = call.layer.axis
    for axis in axes if isinstance(axes, list | tuple) else (axes,):
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
