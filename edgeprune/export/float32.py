"""Give a model that was trained in half precision the float32 arithmetic that TFLite has."""

from typing import Any

import numpy as np

from edgeprune import models
from edgeprune.errors import UnsupportedError
from edgeprune.modelfiles import first_line

_HALF = ("float16", "bfloat16")


def in_float32(model: Any) -> Any:
    """Return a model that computes in float32, with the same weights and names.

    Kernels of half-precision operators do not exist in TFLite, so that a mixed_float16 model
    would need select operators for nearly everything.

    Args:
      model: a Keras 3 or tf_keras model.

    Returns:
      A new model, or `model` itself if it already computes in float32.

    Raises:
      UnsupportedError: the model cannot be rebuilt from its configuration.
    """
    layers = [model, *(layer for _, layer in models.layers(model))]
    if not any(getattr(layer, "compute_dtype", None) in _HALF for layer in layers):
        return model
    try:
        plain = type(model).from_config(_without_half(model.get_config()))
        plain.set_weights([np.asarray(weight, np.float32) for weight in model.get_weights()])
    except Exception as error:  # a layer of the user's own may raise anything
        raise UnsupportedError(
            f"model '{model.name}' computes in half precision and cannot be rebuilt in float32 "
            f"({first_line(error)}); build it under the float32 policy and load its weights"
        ) from error
    return plain


def _without_half(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            key: "float32" if key in ("dtype", "name") and _is_half(value) else _without_half(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_without_half(value) for value in config)
    return config


def _is_half(value: Any) -> bool:
    return isinstance(value, str) and value.removeprefix("mixed_") in _HALF
