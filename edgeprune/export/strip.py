"""Take away everything that only training needs, and leave a plain Keras model."""

from typing import Any

from edgeprune import models
from edgeprune.errors import UnsupportedError


def strip(model: Any) -> Any:
    """Return the plain Keras model inside one that holds layers for training only.

    Kernels that were trained on the int8 grid are left exactly on it, so that ordinary int8
    conversion finds the trained integers again; those that were clustered have exactly their
    centroids; every other weight is as it was trained. The plain model loads anywhere, without
    edgeprune or TensorFlow Model Optimization.

    Args:
      model: a Keras 3 or tf_keras model: of `quantize_aware` or `layer_drop`, wrapped by TFMOT's
        `prune_low_magnitude` or `cluster_weights`, quantized by TFMOT's `quantize_model` or
        `quantize_apply`, or plain.

    Returns:
      A new model of the same flavour with the original's layers, names and config, not compiled;
      or `model` itself if there is nothing to strip.

    Raises:
      InputError: it is no Keras model.
      UnsupportedError: a subclassed model with such a model inside.
    """
    if models.flavour(model) == "tf_keras":
        from edgeprune.quantization import tfmot

        return tfmot.strip(model)
    return _strip_keras(model)


def _strip_keras(model: Any) -> Any:
    from edgeprune.quantization.layers import ActivationRange, GridLayer
    from edgeprune.rebuild import copied, copy_weights, is_container, rebuild
    from edgeprune.structure.layerdrop import LayerDrop

    passing = ActivationRange | LayerDrop
    if not any(isinstance(layer, passing | GridLayer) for _, layer in models.layers(model)):
        return model
    if not is_container(model):
        raise UnsupportedError(
            f"model '{model.name}' is a subclassed model ({type(model).__name__}) around one that "
            "holds layers for training only; strip the Functional or Sequential model inside it"
        )
    pairs: list[tuple[Any, Any]] = []
    wrappers: list[tuple[Any, Any]] = []

    def replace(layer: Any) -> Any:
        if isinstance(layer, passing):
            return None
        inner = layer.layer if isinstance(layer, GridLayer) else layer
        plain = copied(inner)
        pairs.append((inner, plain))
        if inner is not layer:
            wrappers.append((layer, plain))
        return plain

    plain = rebuild(model, replace)
    copy_weights(pairs)
    for wrapper, layer in wrappers:
        pairs_of_weights = zip(wrapper.layer.weights, layer.weights, strict=True)
        targets = {id(trained): target for trained, target in pairs_of_weights}
        for variable, rounded in wrapper.rounded():
            targets[id(variable)].assign(rounded)
    return plain
