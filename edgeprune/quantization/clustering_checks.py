"""What clusters cannot be made of, or kept in."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeprune import models
from edgeprune.errors import InputError, listed
from edgeprune.quantization.tfmot import is_clusterer
from edgeprune.quantization.tfmot_clusters import kernels_kept


def check_unwrapped(model: Any) -> None:
    """Refuse a model that TFMOT's `cluster_weights` has wrapped.

    Raises:
      InputError: it has.
    """
    for _, layer in models.layers(model):
        if is_clusterer(layer):
            raise InputError(
                f"model '{model.name}' is clustered by TensorFlow Model Optimization already "
                f"(layer '{layer.name}' is a {type(layer).__name__}); strip it first"
            )


def check_not_kept(model: Any) -> None:
    """Refuse to cluster a quantization-aware model whose clusters TFMOT keeps.

    Raises:
      InputError: it keeps some.
    """
    kept = kernels_kept(model)
    names = [kernel.name for kernel in models.kernels(model) if id(kernel.variable) in kept]
    if names:
        raise InputError(
            f"TensorFlow Model Optimization keeps the clusters of {listed(names)} already; fit "
            "with PreserveClusters() instead, or cluster the model before quantize_aware"
        )


def check_finite(kernels: Sequence[models.Kernel]) -> None:
    """Refuse weights that are no numbers.

    Raises:
      InputError: there are some; the first kernel that has them is named.
    """
    broken = not_finite(kernels)
    if broken:
        raise InputError(
            f"{broken} has NaN or infinite weights, which cannot be clustered; where training made "
            "them, train with a smaller learning rate"
        )


def not_finite(kernels: Sequence[models.Kernel]) -> str | None:
    """Return the name of the first kernel with weights that are no numbers, if there is one."""
    for kernel in kernels:
        if not np.isfinite(kernel.variable.numpy()).all():
            return kernel.name
    return None


def tell_if_diverged(kernels: Sequence[models.Kernel]) -> bool:
    """Warn, at the end of training, where it left weights that are no numbers; tell whether."""
    broken = not_finite(kernels)
    if broken:
        warnings.warn(
            f"training diverged: {broken} ended with NaN or infinite weights; train with a "
            "smaller learning rate",
            stacklevel=2,
        )
    return broken is not None
