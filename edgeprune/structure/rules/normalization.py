"""Normalizations: weights that go along with the channels."""

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes
from edgeprune.structure.registry import register_pruning_rule as rule


@rule("BatchNormalization")
def batch(call: Call) -> list[Axes]:
    """Take scale, shift and statistics along."""
    layer = call.layer
    ids = call.inputs[0][layer.axis]
    call.carries(layer.gamma, 0, ids, "scale")
    call.carries(layer.beta, 0, ids, "shift")
    call.carries(layer.moving_mean, 0, ids, "statistic")
    call.carries(layer.moving_variance, 0, ids, "statistic")
    return [call.inputs[0]]
