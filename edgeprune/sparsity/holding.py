"""The callback that holds masks; its subclasses choose them."""

import warnings
from collections.abc import Mapping

import numpy as np

from edgeprune.sparsity.masks import HeldMasks
from edgeprune.steps.callback import HoldingCallback


class MaskingCallback(HoldingCallback[HeldMasks]):
    """Keeps the weights that masks drop at zero, and logs the sparsity that they give."""

    def step(self) -> float:
        """Zero the masked weights after an update of the optimizer; call it outside tf.function.

        Returns:
          The sparsity that the masks give.

        Raises:
          InputError: `start` was not called, or this was called inside a tf.function.
        """
        return self._step_alone()["sparsity"]

    def _logs(self, held: HeldMasks) -> Mapping[str, float]:
        return {"sparsity": held.sparsity}

    def _first_full_epoch(self) -> int | None:
        """Return the first epoch of this fit that ends with every zero; None if not known."""
        return None

    def _mend(self, held: HeldMasks) -> None:
        weights = held.weights()
        lost = sum(
            int(np.count_nonzero(kernel[~mask]))
            for kernel, mask in zip(weights, held.values, strict=True)
        )
        held.hold()
        if lost == 0:
            return
        zeros = sum(int(np.count_nonzero(kernel == 0)) for kernel in weights)
        epoch = self._first_full_epoch()
        advice = f", or restore none from before the target: start_from_epoch={epoch}"
        warnings.warn(
            "weights set at the end of training, as EarlyStopping(restore_best_weights=True) "
            f"does, had a sparsity of {zeros / held.size:.4g}, not the {held.sparsity:.4g} "
            "reached by then; they were pruned to that, which no metric has seen: evaluate the "
            f"model again{advice if epoch else ''}",
            stacklevel=2,
        )
