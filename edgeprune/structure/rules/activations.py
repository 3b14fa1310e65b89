"""Activations that layers apply to what they make."""

from typing import Any

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes

# Of `keras.activations`, of `tf.nn`, and the layers that may stand in for them.
_ENTRYWISE = frozenset(
    "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu "
    "linear log_sigmoid mish relu relu6 selu sigmoid silu soft_shrink softplus softsign "
    "sparse_plus sparse_sigmoid squareplus swish tanh tanh_shrink threshold "
    "ReLU LeakyReLU ELU".split()
)
_OVER_LAST_AXIS = frozenset({"softmax", "log_softmax", "sparsemax"})


def activated(call: Call, activation: Any, outputs: list[Axes]) -> list[Axes]:
    """Return the outputs as they are, frozen along the axes that the activation may look across.

    Args:
      call: of the layer that applies it.
      activation: a function, a layer or None.
      outputs: axes of what it is applied to.
    """
    if activation is None:
        return outputs
    kind = activation if hasattr(activation, "__name__") else type(activation)
    name = kind.__name__
    own = (getattr(kind, "__module__", None) or "").partition(".")[0] in ("keras", "tensorflow")
    if own and name in _ENTRYWISE:
        return outputs
    for axes in outputs:
        if own and name in _OVER_LAST_AXIS:
            call.freeze(axes[-1], f"is a {name} over these channels")
            continue
        for ids in axes:
            call.freeze(ids, f"has an activation ({name}) that may look across channels")
    return outputs
