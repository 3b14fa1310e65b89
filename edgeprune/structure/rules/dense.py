"""Matrix products with a weight."""

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes
from edgeprune.structure.registry import register_pruning_rule as rule


@rule("Dense")
def dense(call: Call) -> list[Axes]:
    """Read the last axis, make the units, hand the other axes on."""
    layer = call.layer
    call.reads(layer.kernel, 0)
    made = call.new(layer.units)
    call.makes(layer.kernel, 1, made)
    call.makes(layer.bias, 0, made, "bias")
    call.counts("units", made)
    return [(*call.inputs[0][:-1], made)]
