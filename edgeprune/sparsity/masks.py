"""Masks on the device: hold zeros in place, in the graph of the training step."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from edgeprune import models
from edgeprune.sparsity.patterns import Mask
from edgeprune.steps.variables import across_replicas, moving_average, native, update

# From this size on, XLA's fused pass over weight and mask, which also writes in place, saves
# more than its launch costs (some 50 us); below, a plain select is quicker, and needs no compiling.
_XLA_MIN_SIZE = 1 << 17


class HeldMasks:
    """One bool mask a kernel, True where a weight is kept, beside the kernel on its device.

    A step moves 9 bytes a weight: it reads weight and mask and writes the weight.

    Args:
      kernels: the kernels to hold; masks start all True.
      optimizer: its moving averages of these kernels, if it keeps any, are held as well, since
        they replace the weights at the end of training.
      strategy: the model's `tf.distribute` strategy; a mask is mirrored as its kernel is.

    Attributes:
      kernels: as given.
      values: the masks, on the host.
      size: weights under masks.
      zeros: those that the masks keep at zero.
      sparsity: `zeros` as a fraction of `size`.
    """

    def __init__(self, kernels: Sequence[models.Kernel], optimizer: Any, strategy: Any) -> None:
        self.kernels = list(kernels)
        self._optimizer = optimizer
        self._strategy = strategy
        with strategy.scope(), tf.init_scope():
            self._masks = [
                tf.Variable(tf.ones(kernel.variable.shape, tf.bool), trainable=False)
                for kernel in self.kernels
            ]
        # XLA cannot reach the variables of other replicas. One function a kernel, and each around
        # an object of its own, since TensorFlow warns of many traces of the same code.
        alone = strategy.num_replicas_in_sync == 1
        self._zero = [
            tf.function(functools.partial(_select), jit_compile=True)
            if alone and mask.shape.num_elements() >= _XLA_MIN_SIZE
            else _select
            for mask in self._masks
        ]
        self.values: list[Mask] = [np.ones(mask.shape, np.bool_) for mask in self._masks]
        self._count()

    def _count(self) -> None:
        self.size = sum(mask.size for mask in self.values)
        self.zeros = self.size - sum(int(np.count_nonzero(mask)) for mask in self.values)
        self.sparsity = self.zeros / self.size if self.size else 0.0

    def weights(self) -> list[np.ndarray[Any, Any]]:
        """Copy the kernels to the host."""
        return [kernel.variable.numpy() for kernel in self.kernels]

    def set(self, masks: Sequence[Mask]) -> None:
        """Replace every mask, and zero the weights that the new ones drop."""
        for index, mask in enumerate(masks):
            if not np.array_equal(mask, self.values[index]):
                self._masks[index].assign(mask)
        self.values = list(masks)
        self._count()
        self.hold()

    def hold(self) -> None:
        """Zero what the masks drop; may be traced into the graph of a training step."""
        across_replicas(self._strategy, self._hold)

    def _hold(self, strategy: Any) -> None:
        for kernel, mask, zero in zip(self.kernels, self._masks, self._zero, strict=True):
            for variable in (
                native(kernel.variable),
                moving_average(self._optimizer, kernel.variable),
            ):
                if variable is not None:
                    update(strategy, variable, zero, mask)


def _select(variable: Any, mask: Any) -> None:
    # A select, not a product: a product would leave -0.0 behind, and NaN.
    variable.assign(tf.where(mask, variable, tf.zeros([], variable.dtype)))
