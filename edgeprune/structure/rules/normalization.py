"""Normalizations: weights that go along with the channels."""

import numpy as np

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


@rule("LayerNormalization", "RMSNormalization")
def layer(call: Call) -> list[Axes]:
    """Take scale and shift along; mean and variance are then those of the kept channels."""
    normalization = call.layer
    if getattr(normalization, "rms_scaling", False):
        return list(call.freeze_all("has the deprecated rms_scaling"))
    axes = [axis % len(call.inputs[0]) for axis in normalization.axis]
    if axes != sorted(axes):  # Keras then reshapes the scale as if its axes were in order
        return list(call.freeze_all(f"normalizes over axes out of order, {normalization.axis}"))
    scale = getattr(normalization, "gamma", None)
    if scale is None:  # RMSNormalization calls it otherwise; without it, `scale` is a flag
        scale = normalization.scale if hasattr(normalization.scale, "shape") else None
    for position, axis in enumerate(axes):
        ids = call.inputs[0][axis]
        call.carries(scale, position, ids, "scale")
        call.carries(getattr(normalization, "beta", None), position, ids, "shift")
        call.sees(0, axis)
    return [call.inputs[0]]


@rule("GroupNormalization")
def group(call: Call) -> list[Axes]:
    """Let whole groups leave, so that the statistics of the others stay what they are."""
    normalization = call.layer
    axis = normalization.axis
    ids = call.inputs[0][axis]
    call.carries(normalization.gamma, 0, ids, "scale")
    call.carries(normalization.beta, 0, ids, "shift")
    if normalization.groups == 1:
        # Every axis but the batch's is averaged over.
        for other in range(1, len(call.inputs[0])):
            call.sees(0, other)
    else:
        for other, along in enumerate(call.inputs[0]):
            if other != axis % len(call.inputs[0]):
                call.freeze(along, "averages over these channels")
        if ids is not None:
            columns = ids.reshape(normalization.groups, -1).T
            for column in columns[1:]:
                call.tie(column, columns[0])
            call.counts("groups", columns[0])
    return [call.inputs[0]]


@rule("UnitNormalization")
def unit(call: Call) -> list[Axes]:
    """Divide by a norm to which a channel that leaves no longer adds."""
    for axis in np.atleast_1d(call.layer.axis):
        call.sees(0, int(axis))
    return [call.inputs[0]]


@rule("SpectralNormalization")
def spectral(call: Call) -> tuple[Axes, ...]:
    """Refuse: the kernel's norm changes with every channel that leaves."""
    return call.freeze_all("divides a kernel by its norm, which all of its channels make up")


@rule("Normalization")
def fixed(call: Call) -> list[Axes]:
    """Let channels stay that have a mean and a variance each."""
    for axis in call.layer.axis:
        call.freeze(call.inputs[0][axis], "has a mean and a variance for each of these channels")
    return [call.inputs[0]]
