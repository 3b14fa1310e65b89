"""Make a model train on the int8 grid (QAT), with callbacks that keep zeros, clusters or both."""

import logging
from collections.abc import Iterable
from typing import Any

from edgeprune import models
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.quantization.names import skipped_layers

log = logging.getLogger(__name__)


def quantize_aware(model: Any, skip: Iterable[str] = ()) -> Any:
    """Return a copy of a model that computes as its int8 .tflite file will, and trains so.

    Kernels of Dense, EinsumDense, Conv1D/2D/3D, DepthwiseConv, SeparableConv and ConvTranspose
    layers are rounded to the int8 grid (symmetric, one scale an output channel) on every step,
    with straight-through gradients. Activations are rounded where TFLite rounds them, over a
    range learned in training. Layers of other kinds compute in float; they are logged once, and
    `float_layers` lists them. (TFLite computes Conv3D in float; its kernel keeps the grid.)

    Fit it as usual, with `PreserveSparsity` to keep a pruned model's zeros (PQAT), with
    `PreserveClusters` to keep a clustered model's few values (CQAT), or with both (PCQAT), then
    convert it: `edgeprune.convert` strips it first. A saved aware model loads with
    `edgeprune.load_model`, or with Keras once `edgeprune.quantization.layers` is imported.

    tf_keras models are quantized by TensorFlow Model Optimization (TFMOT): kernels of Conv2D and
    Dense layers that are clustered as a whole (at most 128 values, four weights or more to each)
    with its cluster-preserving scheme, which keeps their zeros too if they have some; others with
    its prune-preserving scheme. A warning in the log names the first. Fit with the same callbacks,
    which keep what TFMOT does not: clusters of depthwise kernels and of channels. TFMOT cannot load
    a model whose clusters it keeps: save what `strip` returns.

    Args:
      model: a built Functional or Sequential Keras 3 or tf_keras model, also with such models
        inside. It is not changed.
      skip: names (patterns such as ``"block1_*"``) or class names of layers to leave in float.

    Returns:
      A model of the same flavour, layer names, weights and trainable flags, not compiled.

    Raises:
      InputError: the model has no weights yet or is quantization-aware already, or a name in
        `skip` matches no layer.
      UnsupportedError: a subclassed model, whose graph cannot be read; or nothing in it can be
        quantized.

    Source: Jacob et al. 2018, arXiv:1712.05877.
    """
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    if models.flavour(model) == "tf_keras":
        from edgeprune.quantization import tfmot

        return tfmot.quantize_aware(model, skip)
    _check(model)
    return _quantize_aware(model, skipped_layers(model, skip))


def float_layers(model: Any) -> tuple[str, ...]:
    """List the layers of an aware model that compute in float, as ``name (Class)``.

    They are the layers that edgeprune has no int8 form for, and those that were skipped.
    """
    if models.flavour(model) == "tf_keras":
        from edgeprune.quantization import tfmot

        return tfmot.float_layers(model)
    from edgeprune.quantization.layers import ActivationRange, GridLayer
    from edgeprune.quantization.placement import kind
    from edgeprune.rebuild import is_container

    def walk(container: Any) -> list[str]:
        found = []
        for layer in container.layers:
            if is_container(layer):
                found += walk(layer)
            elif isinstance(layer, ActivationRange | GridLayer):
                continue
            elif kind(layer) in ("float", "grid"):
                found.append(f"{layer.name} ({type(layer).__name__})")
        return found

    return tuple(walk(model))


def _check(model: Any) -> None:
    from edgeprune.quantization.layers import ActivationRange, GridLayer
    from edgeprune.rebuild import is_container

    if not model.built:
        raise InputError(
            f"model '{model.name}' has no weights yet; build it first, for example by calling "
            "it on one batch"
        )
    if not is_container(model) or not model.inputs:
        raise UnsupportedError(
            f"model '{model.name}' is a subclassed model ({type(model).__name__}), whose graph "
            "cannot be read; supported: Functional and Sequential models. Convert it with "
            "post-training int8 quantization, or build it as keras.Model(inputs, outputs)"
        )
    if any(isinstance(layer, GridLayer | ActivationRange) for _, layer in models.layers(model)):
        raise InputError(
            f"model '{model.name}' is quantization-aware already; fit it as it is, or strip it "
            "first"
        )


def _quantize_aware(model: Any, skipped: frozenset[int]) -> Any:
    from edgeprune.quantization.layers import ActivationRange, GridLayer, on_grid
    from edgeprune.quantization.placement import kind, place
    from edgeprune.rebuild import copied, copy_weights, is_container, rebuild

    keras = models.import_keras()
    placement = place(model, skipped)
    pairs: list[tuple[Any, Any]] = []
    names = {layer.name for _, layer in models.layers(model)}

    def unique(name: str) -> str:
        candidate, count = f"{name}_range", 1
        while candidate in names:
            count += 1
            candidate = f"{name}_range_{count}"
        names.add(candidate)
        return candidate

    def replace(layer: Any) -> Any:
        new = copied(layer)
        pairs.append((layer, new))
        if kind(layer) == "grid" and id(layer) not in skipped:
            return on_grid(new)
        return new

    def after(container: Any, layer: Any, call: int, output: Any) -> Any:
        if is_container(layer) or not placement.rounds(container, layer, call):
            return None
        # A layer with several outputs is one of those left in float.
        if not isinstance(output, keras.KerasTensor) or "float" not in str(output.dtype):
            return None
        return ActivationRange(name=unique(layer.name), dtype=output.dtype)

    def first(tensor: Any) -> Any:
        if "float" not in str(tensor.dtype):
            return None
        return ActivationRange(
            name=unique(tensor._keras_history.operation.name), dtype=tensor.dtype
        )

    aware = rebuild(model, replace, after=after, first=first)
    if not any(isinstance(layer, GridLayer) for _, layer in models.layers(aware)):
        raise UnsupportedError(
            f"model '{model.name}' has no layer that can be trained on the int8 grid; supported: "
            "Dense, EinsumDense, Conv, DepthwiseConv, SeparableConv and ConvTranspose layers"
        )
    copy_weights(pairs)
    left = float_layers(aware)
    if left:
        log.warning("These layers are left in float: %s", ", ".join(left))
    return aware
