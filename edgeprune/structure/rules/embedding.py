"""Tables of vectors."""

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.rules.dense import refused


@rule("Embedding")
def embedding(call: Call) -> list[Axes]:
    """Make the entries of the vectors; hand the axes of the indices on."""
    if reason := refused(call.layer):
        return list(call.freeze_all(reason))
    made = call.new(call.layer.output_dim)
    call.makes(call.layer.embeddings, 1, made)
    call.counts("output_dim", made)
    return [(*call.inputs[0], made)]
