"""The callback that holds weights in shape, in `fit` or in a custom loop."""

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import tensorflow as tf

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.steps.ending import after_all_callbacks
from edgeprune.steps.hook import StepHook

keras: Any = models.import_keras()


class Held(Protocol):
    """What a callback holds weights by: masks, clusters."""

    def hold(self) -> None:
        """Bring the weights back in shape; may be traced into the graph of a training step."""


H = TypeVar("H", bound=Held)


class HoldingCallback(keras.callbacks.Callback, Generic[H]):  # type: ignore[misc]  # Keras is untyped
    """Holds weights in shape from the first training step to the last.

    One class serves both flavours of Keras: tf_keras asks of a callback no more than that it has
    the methods below. Subclasses write `_begin`, and others of the first group if they need them.

    Weights are brought back in shape inside the graph of the training step, after the optimizer's
    update, so they hold at every step of an execution of several (`steps_per_execution`) too.
    What other callbacks change at the end of training is mended after the last of them.
    """

    # Of callbacks in one fit, those with zeros act before those that share the other weights.
    order = 0

    _supports_tf_logs = True  # else tf_keras copies every step's logs to the host

    def __init__(self) -> None:
        super().__init__()
        self.armed = False
        self._hook: StepHook | None = None
        self._history: Any = None
        self._history_ended = True
        self._ended = False
        self._held: H | None = None
        self._hold: Any = None
        self._optimizer: Any = None
        self._step = 0
        self._epoch = 0
        self._batch = 0

    # What a subclass does.

    def _begin(self, model: Any, done_steps: int, total_steps: int | None) -> H:
        """Make what to hold by; weights and optimizer are as the first step will find them.

        Args:
          model: the model.
          done_steps: optimizer steps of this fit made before, where a fit is resumed.
          total_steps: optimizer steps of the whole fit; None if not known.
        """
        raise NotImplementedError

    def _resume(self, held: H) -> None:
        """Look at what others changed since the last step."""

    def _advance(self, held: H, previous_step: int, step: int) -> None:
        """Change what to hold by if the steps in (previous_step, step] ask for it."""

    def _logs(self, held: H) -> Mapping[str, float]:
        """Return what to log of a step."""
        return {}

    def _mend(self, held: H) -> None:
        """Bring back in shape what was set since the last step, as by restoring weights."""
        held.hold()

    def _end(self, held: H) -> None:
        """Look back on the training."""

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
        self._held = None
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
        """Leave the model as it was, but for its weights."""
        if self._hook is not None:
            self._hook.leave(self)
            self._hook = None
        self._ended = True
        if self._history_ended:
            self.finish()
        elif self._held is not None:
            self._mend(self._held)  # for callbacks that look, or save, before the last has ended

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
        if self._held is not None:
            self._resume(self._held)
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
        """Bring the weights back in shape, in the graph of the training step."""
        if self._held is not None:
            self._held.hold()

    def after_execution(self) -> Mapping[str, float]:
        """Change what to hold by where that is due."""
        previous, self._step = self._step, iterations(self._optimizer)
        held = self._begun()
        self._advance(held, previous, self._step)
        return self._logs(held)

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

    def _step_alone(self) -> Mapping[str, float]:
        """Do what an execution in `fit` does; return what it would log.

        Raises:
          InputError: `start` was not called, or this was called inside a tf.function.
        """
        if tf.inside_function():
            raise InputError(
                "step() was called inside a tf.function, where it would run only once; "
                "call it after the function that trains returns"
            )
        self._resume(self._begun())
        self._hold()
        return self.after_execution()

    def finish(self) -> None:
        """End a custom training loop; `fit` does it by itself. Does nothing a second time."""
        if self._held is None:
            return
        self._mend(self._held)
        self._end(self._held)
        self._held = None

    def _start(self, model: Any, done_steps: int, total_steps: int | None) -> None:
        self._step = iterations(self._optimizer)
        held = self._begin(model, done_steps, total_steps)
        self._hold = tf.function(held.hold)
        self._held = held

    def _begun(self) -> H:
        if self._held is None:
            raise InputError("step() needs start(model, optimizer) to be called before it")
        return self._held


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
