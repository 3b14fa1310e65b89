"""Matrix products with a weight."""

from typing import Any

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.rules.elementwise import activated


def refused(layer: Any) -> str | None:
    """Return why a layer's kernel cannot be sliced: it is not one plain weight."""
    if getattr(layer, "lora_enabled", False):
        return "has a LoRA adapter beside its kernel; merge it first"
    if getattr(layer, "quantization_mode", None) is not None:
        return "has an integer kernel; prune the float model, then quantize"
    return None


@rule("Dense")
def dense(call: Call) -> list[Axes]:
    """Read the last axis, make the units, hand the other axes on."""
    layer = call.layer
    if reason := refused(layer):
        return list(call.freeze_all(reason))
    call.reads(layer.kernel, 0)
    made = call.new(layer.units)
    call.makes(layer.kernel, 1, made)
    call.makes(layer.bias, 0, made, "bias")
    call.counts("units", made)
    return [activated(call, layer.activation, (*call.inputs[0][:-1], made))]
