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


@rule("ReversibleEmbedding")
def reversible_embedding(call: Call) -> list[Axes]:
    """Make the entries of the vectors or, called with `reverse`, read them."""
    layer = call.layer
    if reason := refused(layer):
        return list(call.freeze_all(reason))
    if reverse := call.named().get("reverse", False):
        call.sees(0, -1)
        outputs, ids = [(*call.inputs[0][:-1], None)], call.inputs[0][-1]
    else:
        ids = call.new(layer.output_dim)
        outputs = [(*call.inputs[0], ids)]
    call.carries(layer.embeddings, 1, ids, "in" if reverse else "out")
    if not layer.tie_weights:
        call.carries(layer.reverse_embeddings, 0, ids, "in")
    call.counts("output_dim", ids)
    return outputs
