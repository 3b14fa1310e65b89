"""Convolutions of two kernels, and those that go backwards."""

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.rules.convolution import channel_axis, only
from edgeprune.structure.rules.elementwise import activated


@rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def transposed(call: Call) -> list[Axes]:
    """Read the last axis of the kernel, make the last but one: the reverse of a convolution."""
    layer, axis = call.layer, channel_axis(call)
    call.reads(layer.kernel, -1, input_axis=axis)
    made = call.new(layer.filters)
    call.makes(layer.kernel, -2, made)
    call.makes(layer.bias, 0, made, "bias")
    call.counts("filters", made)
    return [activated(call, layer.activation, only(call, axis, made)[0])]


@rule("SeparableConv1D", "SeparableConv2D")
def separable(call: Call) -> list[Axes]:
    """Read each channel with its own kernel, then all of their results; make the filters."""
    layer, axis = call.layer, channel_axis(call)
    read = call.reads(layer.depthwise_kernel, -2, input_axis=axis)
    between = None if read is None else read.repeat(layer.depth_multiplier)
    call.carries(layer.pointwise_kernel, -2, between, "in")
    made = call.new(layer.filters)
    call.makes(layer.pointwise_kernel, -1, made)
    call.makes(layer.bias, 0, made, "bias")
    call.counts("filters", made)
    return [activated(call, layer.activation, only(call, axis, made)[0])]
