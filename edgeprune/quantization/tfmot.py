"""tf_keras models: quantization-aware training by TensorFlow Model Optimization (TFMOT).

Kernels that are clustered as a whole get its cluster-preserving scheme, all others its
prune-preserving one; see `tfmot_clusters`.

TFMOT's grid differs from the converter's in two places: it has one scale for a whole Dense or
DepthwiseConv2D kernel, where the converter has one an output channel. The converter's is finer,
so zeros stay zeros there and other weights move by less than half a step of TFMOT's grid.
"""

import logging
from typing import Any

from edgeprune import models
from edgeprune.errors import InputError, UnsupportedError, listed
from edgeprune.models import import_tfmot, remade
from edgeprune.quantization import grid
from edgeprune.quantization.kernel_values import KernelValues
from edgeprune.quantization.names import skipped_layers
from edgeprune.quantization.tfmot_clusters import (
    clusters_to_keep,
    expect_no_gradients,
    kernels_kept,
    quantize_config,
    trained_kernel,
)

log = logging.getLogger(__name__)

_QUANTIZERS = "tensorflow_model_optimization.python.core.quantization.keras"
_CLUSTERERS = "tensorflow_model_optimization.python.core.clustering.keras"
# Its transform puts Lambda layers around these, which no longer load in safe mode.
_REFUSED = frozenset({"SeparableConv1D", "Lambda"})


def quantize_aware(model: Any, skip: tuple[str, ...]) -> Any:
    """Quantize a tf_keras model with TFMOT's combined schemes; see `qat.quantize_aware`.

    Layers that TFMOT refuses, and models inside the model, stay in float and are logged.
    """
    import tf_keras

    _check(model)
    skipped = skipped_layers(model, skip)
    candidates = [
        layer.name
        for layer in model.layers
        if id(layer) not in skipped
        and not isinstance(layer, tf_keras.Model | tf_keras.layers.InputLayer)
        and type(layer).__name__ not in _REFUSED
    ]
    attempt = _Attempt(model)
    attempt.keep(candidates)
    if attempt.aware is None or not any(
        _is_trained_on_grid(layer) for layer in attempt.aware.layers
    ):
        raise UnsupportedError(
            f"model '{model.name}' has no layer that TensorFlow Model Optimization can quantize; "
            "supported: Dense, Conv2D, DepthwiseConv2D. Keras 3 models have more: build it there"
        )
    left = float_layers(attempt.aware)
    if left:
        log.warning("These layers are left in float: %s", ", ".join(left))
    kept = kernels_kept(attempt.aware)
    if kept:
        expect_no_gradients(attempt.aware)
        names = [k.layer.name for k in models.kernels(attempt.aware) if id(k.variable) in kept]
        log.warning(
            "TensorFlow Model Optimization keeps the clusters of %s; those of any others are kept "
            "by PreserveClusters()",
            listed(names),
        )
    return attempt.aware


def float_layers(model: Any) -> tuple[str, ...]:
    """List the layers of an aware tf_keras model that compute in float, as ``name (Class)``."""
    import tf_keras

    return tuple(
        f"{layer.name} ({type(layer).__name__})"
        for layer in model.layers
        if not _is_quantizer(layer) and not isinstance(layer, tf_keras.layers.InputLayer)
    )


def strip(model: Any) -> Any:
    """Return the plain tf_keras model inside one that TFMOT wrapped; see `export.strip.strip`."""
    if not any(_is_wrapper(layer) for _, layer in models.layers(model)):
        return model
    if not _has_graph(model):
        raise UnsupportedError(
            f"model '{model.name}' is a subclassed model ({type(model).__name__}) around layers "
            "of TensorFlow Model Optimization; strip the Functional or Sequential model inside it"
        )
    return _Strip().container(model)


def is_clusterer(layer: Any) -> bool:
    """Tell whether a layer is the wrapper of TFMOT's `cluster_weights`."""
    return type(layer).__module__.startswith(_CLUSTERERS)


def _has_graph(model: Any) -> bool:
    import tf_keras

    return isinstance(model, tf_keras.Sequential) or model._is_graph_network


def _check(model: Any) -> None:
    if not model.built:
        raise InputError(
            f"model '{model.name}' has no weights yet; build it first, for example by calling "
            "it on one batch"
        )
    if not _has_graph(model):
        raise UnsupportedError(
            f"model '{model.name}' is a subclassed model ({type(model).__name__}), whose graph "
            "cannot be read; supported: Functional and Sequential models. Convert it with "
            "post-training int8 quantization, or build it as tf_keras.Model(inputs, outputs)"
        )
    for _, layer in models.layers(model):
        if _is_wrapper(layer):
            kind = type(layer).__name__
            raise InputError(
                f"model '{model.name}' is wrapped by TensorFlow Model Optimization already "
                f"(layer '{layer.name}' is a {kind}); strip it first"
            )


class _Attempt:
    """Finds by trial the layers that TFMOT can quantize together, as many as possible.

    Whether it can depends on a layer's neighbours, so asking for each class is not enough.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._clusters = clusters_to_keep(model)
        self._kept: list[str] = []
        self.aware: Any = None

    def keep(self, names: list[str]) -> None:
        """Add these layers, or those of them that can be.

        Most often the failure names the layer; when it does not, halving finds it.
        """
        while names:
            try:
                self.aware = _apply(self._model, {*self._kept, *names}, self._clusters)
            except _RefusedError as refused:
                log.debug("TFMOT refused %s: %s", names, refused)
                named = [name for name in names if f"Layer {name}:" in str(refused)]
                if not named and len(names) > 1:
                    self.keep(names[: len(names) // 2])
                    self.keep(names[len(names) // 2 :])
                names = [name for name in names if name not in named] if named else []
            else:
                self._kept += names
                return


class _RefusedError(Exception):
    """TFMOT failed to quantize a set of layers; the message is its own."""


def _apply(model: Any, names: set[str], clusters: dict[str, KernelValues]) -> Any:
    """Quantize the named layers of a copy of a model, or raise `_RefusedError`."""
    import tf_keras

    tfmot = import_tfmot()
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    # A copy, since annotating calls the very same layers again and leaves traces in them.
    copy = tf_keras.models.clone_model(model, clone_function=remade)
    copy.set_weights(model.get_weights())
    annotated = tf_keras.models.clone_model(
        copy, clone_function=lambda layer: annotate(layer) if layer.name in names else layer
    )
    # Its graph surgery makes every layer anew by class name, the user's own ones too.
    own = {type(layer).__name__: type(layer) for _, layer in models.layers(model)}
    try:
        with tf_keras.utils.custom_object_scope(own):
            scheme = _scheme(tfmot, clusters)
            return tfmot.quantization.keras.quantize_apply(annotated, scheme=scheme)
    # What it raises depends on where in its graph surgery a layer surprises it.
    except (
        AttributeError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as e:
        raise _RefusedError(str(e)) from e


def _scheme(tfmot: Any, clusters: dict[str, KernelValues]) -> Any:
    """Return TFMOT's prune-preserving scheme, but the cluster-preserving one for some layers.

    A mistake of its registry is mended: it says that it supports every layer without weights, then
    fails on those that it does not know; and quantize_apply asks it about the layers before the
    annotated ones, too.
    """
    plain = tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme()
    known = plain.get_quantize_registry()
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    registry = scheme.get_quantize_registry()
    claims = registry.supports
    registry.supports = lambda layer: claims(layer) and known.supports(layer)
    pruning = registry.get_quantize_config
    registry.get_quantize_config = lambda layer: (
        quantize_config(tfmot, layer, clusters[layer.name])
        if layer.name in clusters
        else pruning(layer)
    )
    scheme.get_quantize_registry = lambda: registry
    return scheme


def _is_wrapper(layer: Any) -> bool:
    return _is_quantizer(layer) or _is_pruner(layer) or is_clusterer(layer)


def _is_quantizer(layer: Any) -> bool:
    return type(layer).__module__.startswith(_QUANTIZERS)


def _is_pruner(layer: Any) -> bool:
    return type(layer).__name__ == "PruneLowMagnitude"


def _is_trained_on_grid(layer: Any) -> bool:
    return bool(getattr(layer, "_weight_vars", ()))


class _Strip:
    """Copies a tf_keras model without TFMOT's wrappers, node by node."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def container(self, old: Any) -> Any:
        import tf_keras

        if isinstance(old, tf_keras.Sequential):
            return self._sequential(old)
        return self._functional(old)

    def _sequential(self, old: Any) -> Any:
        import tf_keras

        source = tf_keras.Input(
            batch_shape=old.inputs[0].shape, dtype=old.inputs[0].dtype, name=old.input_names[0]
        )
        new = tf_keras.Sequential([source], name=old.name)
        for layer in old.layers:
            plain = self._layer(layer)
            if plain is not None:
                new.add(plain)
                _copy_weights(layer, plain)
        return new

    def _functional(self, old: Any) -> Any:
        import tensorflow as tf
        import tf_keras

        sources = tf.nest.map_structure(
            lambda tensor: tf_keras.Input(
                batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.node.layer.name
            ),
            old._nested_inputs,
        )
        known = {
            id(tensor): source
            for tensor, source in zip(old.inputs, tf.nest.flatten(sources), strict=True)
        }
        # Private, but the one record of the calls in the order in which tf_keras repeats them.
        for depth in sorted(old._nodes_by_depth, reverse=True):
            for node in old._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                args, kwargs = _replaced((node.call_args, node.call_kwargs), known)
                plain = self._layer(node.layer)
                made = args[0] if plain is None else plain(*args, **kwargs)
                ends = zip(tf.nest.flatten(node.outputs), tf.nest.flatten(made), strict=True)
                known |= {id(tensor): value for tensor, value in ends}
                if plain is not None:
                    _copy_weights(node.layer, plain)
        return tf_keras.Model(sources, _replaced(old._nested_outputs, known), name=old.name)

    def _layer(self, old: Any) -> Any:
        """Return the plain layer for an old one, made once; None for one to leave out."""
        import tf_keras

        if type(old).__name__ == "QuantizeLayer" and _is_quantizer(old):
            return None
        if id(old) not in self._made:
            if isinstance(old, tf_keras.Model):
                self._made[id(old)] = self.container(old)
            else:
                self._made[id(old)] = _plain(old.layer if _is_wrapper(old) else old)
        return self._made[id(old)]


def _replaced(values: Any, known: dict[int, Any]) -> Any:
    import tensorflow as tf

    return tf.nest.map_structure(lambda value: known.get(id(value), value), values)


def _plain(layer: Any) -> Any:
    """Make a layer anew from its config, with the activation it had before TFMOT came."""
    import tf_keras

    activation = getattr(layer, "activation", None)
    if activation is None or not type(activation).__module__.startswith(_QUANTIZERS):
        return remade(layer)
    plain = getattr(activation, "activation", activation)
    if type(plain).__module__.startswith(_QUANTIZERS):  # NoOpActivation, between conv and norm
        plain = tf_keras.activations.linear
    layer.activation = plain
    try:
        return remade(layer)
    finally:
        layer.activation = activation


def _copy_weights(old: Any, plain: Any) -> None:
    """Give a plain layer an old one's weights: on TFMOT's grid, pruned ones zero, clustered."""
    if not _is_wrapper(old):
        plain.set_weights(old.get_weights())
        return
    if is_clusterer(old):
        plain.set_weights(_clustered(old))
        return
    values = {_own_name(weight): weight for weight in old.layer.weights}
    for weight, quantizer, state in getattr(old, "_weight_vars", ()):
        values[_own_name(weight)] = _on_grid(weight, quantizer, state)
    for weight, mask, _ in getattr(old, "pruning_vars", ()):
        values[_own_name(weight)] = weight * mask
    for weight in plain.weights:
        weight.assign(values[_own_name(weight)])


def _clustered(wrapper: Any) -> list[Any]:
    """Return the weights of a wrapped layer, those that are clustered with the trained centroids.

    The wrapper, which is what the next step would do with it as well, takes the variables of
    these weights out of the layer and puts tensors in their places.
    """
    wrapper.update_clustered_weights_associations()
    weights: list[Any] = wrapper.layer.get_weights()
    for position, name in sorted(wrapper.position_original_weights.items()):
        weights.insert(position, wrapper.get_weight_from_layer(name).numpy())
    return weights


def _own_name(weight: Any) -> str:
    return str(weight.name).partition(":")[0].rpartition("/")[2]


def _on_grid(weight: Any, quantizer: Any, state: dict[str, Any]) -> Any:
    """Return a kernel rounded by its TFMOT quantizer.

    TFMOT's own state holds the range of the last step but one, so it is computed again.
    """
    import tensorflow as tf

    kernel = tf.convert_to_tensor(trained_kernel(weight, state))
    if not (getattr(quantizer, "symmetric", False) and getattr(quantizer, "narrow_range", False)):
        return quantizer(kernel, False, weights=state)
    kernel *= state.get("sparsity_mask", 1.0)
    return grid.to_grid(kernel, (len(kernel.shape) - 1,) if quantizer.per_axis else ())
