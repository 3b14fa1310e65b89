"""Layers that move, merge or drop axes, or work along axes that are no channels."""

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.rules.convolution import channel_axis, only


@rule(
    *(f"{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
    *(f"{kind}{n}D" for kind in ("ZeroPadding", "Cropping", "UpSampling") for n in (1, 2, 3)),
)
def spatial(call: Call) -> list[Axes]:
    """Hand the channels on."""
    # One-dimensional padding, cropping and upsampling know only channels last.
    axis = channel_axis(call) if hasattr(call.layer, "data_format") else -1
    return only(call, axis, call.inputs[0][axis])


@rule(*(f"Global{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)))
def global_pooling(call: Call) -> list[Axes]:
    """Hand the channels on."""
    axis = channel_axis(call)
    return only(call, axis if call.layer.keepdims else -1, call.inputs[0][axis])
