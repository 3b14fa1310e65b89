"""TFMOT's cluster-preserving quantization: which kernels get it, and what they hold at the end.

It keeps the clusters of a whole kernel of a Conv2D or Dense layer. (Of a Conv2D in whose channels
there are equally many values it keeps those of each channel.) Weights move to the nearest centroid
on every step, so clusters may die out, and none are added. It falls short in four ways, and what
it does not keep is left to `PreserveClusters`:

- depthwise kernels are not kept;
- where each channel has clusters of its own, and unequally many, it would pool those of all, and
  a channel could take values of another;
- its registry has one quantizer for all layers of a kind, and the first kernel without zeros ends
  the keeping of zeros in those that follow: so each layer here gets a registry of its own;
- the kernel itself is a step behind the centroids: `trained_kernel` takes the latest.
"""

import logging
from typing import Any

from edgeprune import models
from edgeprune.quantization.kernel_values import KernelValues, values_of

# Names of its own, which the state of its quantizers goes by.
_CENTROIDS = "cluster_centroids_tf"
_ORIGINAL = "ori_weights_vars_tf"
_IMPLEMENTATION = "clst_impl"
_CENTROIDS_MASK = "centroids_mask"

_CLASSES = frozenset({"Conv2D", "Dense"})
# Kernels trained on the int8 grid without clusters have more values, or more for their size.
_MOST_VALUES = 128
_LEAST_MEMBERS = 4


def clusters_to_keep(model: Any) -> dict[str, KernelValues]:
    """Return the layers of a plain tf_keras model whose clusters TFMOT is to keep.

    Kernels of a Conv2D or Dense layer that have at most 128 values, and four weights or more to
    each; not such as are clustered by channel.
    """
    own = {id(layer) for layer in model.layers}  # those of models inside stay in float
    found = {
        kernel.layer.name: values_of(kernel)
        for kernel in models.kernels(model)
        if id(kernel.layer) in own and type(kernel.layer).__name__ in _CLASSES
    }
    return {name: values for name, values in found.items() if _of_whole_kernel(values)}


def _of_whole_kernel(values: KernelValues) -> bool:
    return (
        1 < values.distinct <= _MOST_VALUES
        and values.distinct * _LEAST_MEMBERS <= values.size - values.zeros
        and values.distinct < 2 * values.distinct_in_channel
    )


def quantize_config(tfmot: Any, layer: Any, values: KernelValues) -> Any:
    """Return TFMOT's config that keeps the clusters of a layer, and its zeros if it has some."""
    combine = tfmot.experimental.combine
    scheme = combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=values.zeros > 0)
    return scheme.get_quantize_registry().get_quantize_config(layer)


class _ExpectedWarnings(logging.Filter):
    """Drops tf_keras's warning of kernels without gradients, where those are kept kernels.

    TFMOT trains their centroids and the weights that these stand for instead, so it is no sign of
    a loss that was forgotten, as it says.

    Attributes:
      kept: names of the kernels' variables, a set for each model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: set[frozenset[str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Gradients do not exist for variables %s"):
            return True
        names = record.args[0] if isinstance(record.args, tuple) and record.args else ()
        return not (isinstance(names, list) and any(kept.issuperset(names) for kept in self.kept))


_EXPECTED = _ExpectedWarnings()


def expect_no_gradients(model: Any) -> None:
    """Let tf_keras not warn that the kernels of a model whose clusters TFMOT keeps have none."""
    kept = kernels_kept(model)
    names = {k.variable.name for k in models.kernels(model) if id(k.variable) in kept}
    _EXPECTED.kept.add(frozenset(names))
    logging.getLogger("tensorflow").addFilter(_EXPECTED)  # once, however often it is called


def kernels_kept(model: Any) -> frozenset[int]:
    """Return the ids of the kernels' variables whose clusters TFMOT keeps; of Keras 3, none."""
    return frozenset(
        id(weight)
        for _, layer in models.layers(model)
        for weight, _, state in getattr(layer, "_weight_vars", ())
        if _CENTROIDS in state
    )


def trained_kernel(weight: Any, state: dict[str, Any]) -> Any:
    """Return the kernel that TFMOT's next step would compute with, before it is rounded.

    Args:
      weight: the kernel's variable.
      state: of its quantizer.
    """
    if _CENTROIDS not in state:
        return weight
    implementation, original = state[_IMPLEMENTATION], state[_ORIGINAL]
    original = original * state.get("sparsity_mask", 1.0)
    if state[_CENTROIDS_MASK] is not None:
        implementation.cluster_centroids.assign(
            implementation.cluster_centroids * state[_CENTROIDS_MASK]
        )
    indices = implementation.get_pulling_indices(original)
    return implementation.get_clustered_weight(indices, original)
