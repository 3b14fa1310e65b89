"""The callback that holds masks, in `fit` or in a custom loop; its subclasses choose them."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.sparsity.ending import after_all_callbacks
from edgeprune.sparsity.masks import HeldMasks
from edgeprune.sparsity.training import StepHook

keras: Any = models.import_keras()


class HoldingCallback(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Holds masks from the first training step to the last.

    One class serves both flavours of Keras: tf_keras asks of a callback no more than that it has
    the methods below. Subclasses write `_begin`, and `_advance` and `_end` if they need them.

    Weights are zeroed inside the graph of the training step, after the optimizer's update, so
    they hold at every step of an execution of several (`steps_per_execution`) too. Zeros that
    other callbacks fill at the end of training are made again after the last of them.
    """

    _supports_tf_logs = True  # else tf_keras copies every step's logs to the host

    def __init__(self) -> None:
        super().__init__()
        self.armed = False
        self._hook: StepHook | None = None
        self._history: Any = None
        self._history_ended = True
        self._ended = False
        self._masks: HeldMasks | None = None
        self._hold: Any = None
        self._optimizer: Any = None
        self._step = 0
        self._epoch = 0
        self._batch = 0

    # What a subclass does.

    def _begin(self, model: Any, done_steps: int, total_steps: int | None) -> HeldMasks:
        """Make the masks; weights and optimizer are as the first step will find them.

        Args:
          model: the model.
          done_steps: optimizer steps of this fit made before, where a fit is resumed.
          total_steps: optimizer steps of the whole fit; None if not known.
        """
        raise NotImplementedError

    def _advance(self, masks: HeldMasks, previous_step: int, step: int) -> None:
        """Change the masks if the steps in (previous_step, step] ask for it."""

    def _end(self, masks: HeldMasks) -> None:
        """Look back on the training."""

    def _first_full_epoch(self) -> int | None:
        """Return the first epoch of this fit that ends with every zero; None if not known."""
        return None

    # In fit.

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False

    def set_model(self, model: Any) -> None:
        """Note the fit's History, which Keras has set just now (a nested `evaluate` may do so)."""
        super().set_model(model)
        self._history = getattr(model, "history", None)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Take part in the model's training steps."""
        self._masks = None
        self._ended = False
        self._history_ended = not after_all_callbacks(
            self._history, self.params, self._on_history_end
        )
        self._optimizer = _optimizer_of(self.model)
        self._join()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the epoch, since a resumed fit does not begin with the first."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take part in the execution that follows."""
        self._batch = batch
        self._join()
        self.armed = True

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Leave the model as it was, but for its zeros."""
        if self._hook is not None:
            self._hook.leave(self)
            self._hook = None
        self._ended = True
        if self._history_ended:
            self.finish()
        else:
            self._mend()  # for callbacks that look, or save, before the last has ended

    def _on_history_end(self) -> None:
        self._history_ended = True
        if self._ended:
            self.finish()

    def _join(self) -> None:
        if self._hook is None or not self._hook.has(self):
            self._hook = StepHook.of(self.model)
            self._hook.join(self)

    def before_execution(self) -> None:
        """Begin, once: only now have all callbacks (such as BackupAndRestore) set the model up."""
        if self._masks is not None:
            return
        params = self.params or {}
        epochs, steps = params.get("epochs"), params.get("steps")
        updates = getattr(self._optimizer, "gradient_accumulation_steps", None) or 1
        if epochs is None or steps is None:
            done, total = 0, None
        else:
            done = (self._epoch * steps + self._batch) // updates
            total = epochs * steps // updates
        self._start(self.model, done, total)

    def in_step(self) -> None:
        """Zero the masked weights, in the graph of the training step."""
        if self._masks is not None:
            self._masks.hold()

    def after_execution(self) -> Mapping[str, float]:
        """Change the masks where that is due, and log the sparsity they give."""
        previous, self._step = self._step, iterations(self._optimizer)
        masks = self._begun()
        self._advance(masks, previous, self._step)
        return {"sparsity": masks.sparsity}

    # In a custom loop.

    def start(self, model: Any, optimizer: Any = None, total_steps: int | None = None) -> None:
        """Begin in a custom training loop, where no `fit` does it.

        Args:
          model: a built model.
          optimizer: what trains it; left out, the one it was compiled with.
          total_steps: optimizer steps of the loop; a schedule with fractions needs it.

        Raises:
          InputError: as the callback does in `fit`.
        """
        self._optimizer = optimizer if optimizer is not None else _optimizer_of(model)
        self.set_params({})
        self._start(model, 0, total_steps)

    def step(self) -> float:
        """Zero the masked weights after an update of the optimizer; call it outside tf.function.

        Returns:
          The sparsity that the masks give.

        Raises:
          InputError: `start` was not called, or this was called inside a tf.function.
        """
        if tf.inside_function():
            raise InputError(
                "step() was called inside a tf.function, where it would run only once; "
                "call it after the function that trains returns"
            )
        self._begun()
        self._hold()
        return self.after_execution()["sparsity"]

    def finish(self) -> None:
        """End a custom training loop; `fit` does it by itself. Does nothing a second time."""
        if self._masks is None:
            return
        self._mend()
        self._end(self._masks)
        self._masks = None

    def _mend(self) -> None:
        """Zero again what was filled since the last step, as by restoring the best weights."""
        masks = self._masks
        if masks is None:
            return
        weights = masks.weights()
        lost = sum(
            int(np.count_nonzero(kernel[~mask]))
            for kernel, mask in zip(weights, masks.values, strict=True)
        )
        masks.hold()
        if lost == 0:
            return
        zeros = sum(int(np.count_nonzero(kernel == 0)) for kernel in weights)
        epoch = self._first_full_epoch()
        advice = f", or restore none from before the target: start_from_epoch={epoch}"
        warnings.warn(
            "weights set at the end of training, as EarlyStopping(restore_best_weights=True) "
            f"does, had a sparsity of {zeros / masks.size:.4g}, not the {masks.sparsity:.4g} "
            "reached by then; they were pruned to that, which no metric has seen: evaluate the "
            f"model again{advice if epoch else ''}",
            stacklevel=2,
        )

    def _start(self, model: Any, done_steps: int, total_steps: int | None) -> None:
        self._step = iterations(self._optimizer)
        masks = self._begin(model, done_steps, total_steps)
        self._hold = tf.function(masks.hold)
        self._masks = masks

    def _begun(self) -> HeldMasks:
        if self._masks is None:
            raise InputError("step() needs start(model, optimizer) to be called before it")
        return self._masks


def iterations(optimizer: Any) -> int:
    """Return the number of updates that an optimizer has made."""
    return int(optimizer.iterations.numpy())


def _optimizer_of(model: Any) -> Any:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise InputError(
            f"model '{model.name}' has no optimizer; compile it, or pass one to start()"
        )
    return optimizer
