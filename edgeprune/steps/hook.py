"""Hook into the training step of a model: Keras 3 and tf_keras alike."""

from collections.abc import Mapping
from typing import Any, Protocol

from edgeprune.steps.building import build


class StepListener(Protocol):
    """What takes part in the training steps of a fit."""

    # Set before each execution that it takes part in; a fit that died leaves it unset.
    armed: bool
    # Listeners act in this order.
    order: int

    def before_execution(self) -> None:
        """Act before an execution, outside any graph; the model is built."""

    def in_step(self) -> None:
        """Be traced after the model's own training step."""

    def after_execution(self) -> Mapping[str, float]:
        """Act after an execution; what is returned is added to the logs."""


class StepHook:
    """Lets listeners act at the end of every training step, and around every execution.

    Keras calls `train_function` once an execution (`steps_per_execution` steps), and traces
    `train_step` into it. Both are replaced on the instance only, and put back when the last
    listener leaves; the class, the layers and what is saved stay as they were. Callbacks see
    weights and logs only after an execution has returned, so their order does not matter.

    A fit that dies, by Ctrl-C or in another callback, takes no leave. So each listener is armed
    before each execution; one that is not belongs to a fit that is over, and is dropped.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._listeners: list[StepListener] = []
        self._own_step = vars(model).get("train_step")
        self._train_step = model.train_step
        self._train_function: Any = None
        self._built = False
        self._executing = False

    @classmethod
    def of(cls, model: Any) -> "StepHook":
        """Return the hook that a model has, or a new one."""
        # A model that was compiled anew has lost its train_function, but not its train_step.
        holder = getattr(model.train_step, "__self__", None)
        return holder if isinstance(holder, StepHook) else cls(model)

    def join(self, listener: StepListener) -> None:
        """Let a listener take part from the next execution on."""
        self._listeners.append(listener)
        self._listeners.sort(key=lambda one: one.order)
        self._rebuild()

    def leave(self, listener: StepListener) -> None:
        """Let it take part no more."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            self._rebuild()

    def has(self, listener: StepListener) -> bool:
        """Tell whether a listener takes part."""
        return listener in self._listeners

    def _rebuild(self) -> None:
        """Have the function made anew, for it may have been traced with other listeners."""
        if self._listeners:
            self._model.train_step = self._step
        elif self._own_step is not None:
            self._model.train_step = self._own_step
        else:
            vars(self._model).pop("train_step", None)
        self._model.make_train_function(force=True)
        if self._listeners:
            self._train_function = self._model.train_function
            self._model.train_function = self._execute

    def _step(self, data: Any) -> Any:
        logs = self._train_step(data)
        if self._executing:
            for listener in self._listeners:
                listener.in_step()
        return logs

    def _execute(self, iterator: Any) -> Any:
        armed = [listener for listener in self._listeners if listener.armed]
        if len(armed) < len(self._listeners):
            self._listeners = armed
            self._rebuild()
            if not armed:
                return self._model.train_function(iterator)
        if not self._built:
            build(self._model, self._train_step, iterator.element_spec)
            self._built = True
        for listener in armed:
            listener.armed = False
            listener.before_execution()
        self._executing = True
        try:
            logs = self._train_function(iterator)
        finally:
            self._executing = False
        extra = {key: value for one in armed for key, value in one.after_execution().items()}
        if not isinstance(logs, dict):
            return logs
        if self._model.distribute_strategy.num_replicas_in_sync > 1:
            logs = self._aggregated(logs)
        return {**logs, **extra}

    def _aggregated(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Over several replicas, turn a step's logs into the metrics' own aggregate.

        Keras does so at the end of an epoch, provided that the keys are those of its metrics:
        they no longer are once a listener's are added.
        """
        metrics: dict[str, Any] = self._model.get_metrics_result()
        return metrics if metrics.keys() == logs.keys() else logs
