"""Convolutions: they read one axis of channels and make another."""

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes, Ids
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.rules.dense import refused
from edgeprune.structure.rules.elementwise import activated


def channel_axis(call: Call) -> int:
    """Return the axis of the channels."""
    return -1 if call.layer.data_format == "channels_last" else 1


def only(call: Call, axis: int, ids: Ids | None) -> list[Axes]:
    """Return one output of which a single axis is followed; the input's others must stay."""
    given = call.inputs[0]
    for other, along in enumerate(given):
        if other != axis % len(given):
            call.freeze(along, "works along these channels as if they were positions")
    axes: list[Ids | None] = [None] * len(call.output_shapes[0])
    axes[axis] = ids
    return [tuple(axes)]


@rule("Conv1D", "Conv2D", "Conv3D")
def convolution(call: Call) -> list[Axes]:
    """Read the inputs' channels along the kernel's last axis but one, make the filters."""
    layer, axis = call.layer, channel_axis(call)
    if reason := refused(layer):
        return list(call.freeze_all(reason))
    made = call.new(layer.filters)
    if layer.groups == 1:
        call.reads(layer.kernel, -2, input_axis=axis)
        call.counts("filters", made)
    else:
        _grouped(call, axis, made)
    call.makes(layer.kernel, -1, made)
    call.makes(layer.bias, 0, made, "bias")
    return [activated(call, layer.activation, only(call, axis, made)[0])]


def _grouped(call: Call, axis: int, made: Ids) -> None:
    """Tie the channels of a grouped convolution so that it stays one.

    Either whole groups leave, or the same channels of every group; whichever is finer.
    """
    layer = call.layer
    groups = layer.groups
    read = call.inputs[0][axis]
    call.sees(0, axis)
    call.counts("filters", made)
    width_in, width_out = layer.kernel.shape[-2], layer.filters // groups
    if read is None or groups < width_in:
        for row in made.reshape(groups, width_out)[1:]:
            call.tie(row, made[:width_out])
        if read is not None:
            for row in read.reshape(groups, width_in)[1:]:
                call.tie(row, read[:width_in])
        call.carries(layer.kernel, -2, None if read is None else read[:width_in], "in")
        return
    first = read.reshape(groups, width_in)[:, 0]
    for column in read.reshape(groups, width_in).T[1:]:
        call.tie(column, first)
    for column in made.reshape(groups, width_out).T:
        call.tie(column, first)
    call.carries(layer.kernel, -2, None)
    call.counts("groups", first)


@rule("DepthwiseConv1D", "DepthwiseConv2D")
def depthwise(call: Call) -> list[Axes]:
    """Hand each channel on, `depth_multiplier` times."""
    layer, axis = call.layer, channel_axis(call)
    ids = call.inputs[0][axis]
    made = None if ids is None else ids.repeat(layer.depth_multiplier)
    call.makes(layer.kernel, -2, ids)
    call.makes(layer.bias, 0, made, "bias")
    return [activated(call, layer.activation, only(call, axis, made)[0])]
