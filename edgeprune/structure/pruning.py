"""Prune channels: plan, cut, and again after fine-tuning."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.modelfiles import first_line
from edgeprune.structure.plan import plan, plan_channels
from edgeprune.structure.request import PruningRequest

FineTune = Callable[[Any, int], Any]
"""(smaller model, round from 0) -> None where it trained that in place, or the model to go on
with. What `fit` returns counts as None."""
_Function = TypeVar("_Function", bound=Callable[..., Any])
_REQUEST = {
    name: parameter
    for name, parameter in inspect.signature(plan_channels).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


def _with_request(function: _Function) -> _Function:
    """Let `help` show the arguments of `plan_channels` in the place of ``**request``."""
    signed: Any = function
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    signed.__signature__ = signature.replace(parameters=[*own, *_REQUEST.values()])
    return function


@_with_request
def prune_channels(
    model: Any, *, rounds: int = 1, fine_tune: FineTune | None = None, **request: Any
) -> Any:
    """Return a smaller plain Keras model, without the channels that matter least.

    Halve the channels of every layer but the last in three rounds::

        smaller = edgeprune.prune_channels(
            model, pruning_ratio=0.5, rounds=3,
            fine_tune=lambda smaller, round: smaller.fit(x, y, epochs=2),
        )

    Args:
      model: a built Keras 3 Functional or Sequential model; it is not changed.
      rounds: in how many steps to get to the budget; each leaves out the same share of the
        original, by scores of the model as it is then, and the last meets the budget.
      fine_tune: called with the smaller model and the round (from 0) after every round.
      **request: as for `plan_channels`: a budget, a criterion, data, limits, what to skip.

    Returns:
      A new model with the layers' names, dtype policies and trainable flags of the original. If
      that is compiled, so is this, in the same way and with a fresh optimizer. A warning tells
      where the limits do not allow the budget to be met, or only by going far beyond it.

    Raises:
      InputError: a bad or unknown argument, or weights or data that are not finite.
      UnsupportedError: the model cannot be pruned.
    """
    for name in request:
        if name not in _REQUEST:
            supported = ", ".join(["rounds", "fine_tune", *_REQUEST])
            raise InputError(f"prune_channels has no argument {name!r}; supported: {supported}")
    return in_rounds(model, PruningRequest(**request), rounds, fine_tune)


def in_rounds(
    model: Any, asked: PruningRequest, rounds: int = 1, fine_tune: FineTune | None = None
) -> Any:
    """Prune channels or heads as `prune_channels` does."""
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InputError(f"rounds={rounds!r} is not a whole number from 1 on")
    if fine_tune is not None and not callable(fine_tune):
        raise InputError(
            f"fine_tune={fine_tune!r} is not a function; give one of (smaller model, round)"
        )
    smaller, first = model, None
    for number in range(rounds):
        planned = plan(smaller, asked, first, (number + 1) / rounds)
        first = first or planned
        smaller = planned.apply()
        compile_as(smaller, model)
        if fine_tune is not None:
            smaller = _tuned(fine_tune, smaller, number)
    if planned.missed:
        warnings.warn(planned.missed, stacklevel=3)
    return smaller


def compile_as(smaller: Any, model: Any) -> None:
    """Compile a model as another one is, with an optimizer that starts afresh.

    Nothing is done where that one is not compiled. What cannot be made again from its config is
    left out, with a warning: metrics, or the compilation.
    """
    keras = models.import_keras()
    if not getattr(model, "compiled", False):
        return

    def anew(held: Any) -> Any:
        # Strings and functions hold no state; a metric's and an optimizer's belong to its model.
        if not isinstance(held, keras.metrics.Metric | keras.optimizers.Optimizer):
            return held
        return type(held).from_config(held.get_config())

    given = dict(model._compile_config.config)
    for name in ("metrics", "weighted_metrics"):
        try:
            given[name] = keras.tree.map_structure(anew, given[name])
        except (NotImplementedError, TypeError, ValueError) as error:
            given[name] = None
            _warn(f"the {name} of model '{model.name}' cannot be made again", error)
    try:
        # Keras wraps it for loss scaling again where the model computes in float16.
        given["optimizer"] = anew(getattr(model.optimizer, "inner_optimizer", model.optimizer))
        smaller.compile(**given)
    except (NotImplementedError, TypeError, ValueError) as error:
        _warn(f"model '{model.name}' cannot be compiled again as it is", error)


def _warn(what: str, error: Exception) -> None:
    warnings.warn(
        f"{what} ({first_line(error)}); the smaller model does without: compile it yourself",
        stacklevel=5,
    )


def _tuned(fine_tune: FineTune, smaller: Any, number: int) -> Any:
    keras = models.import_keras()
    tuned = fine_tune(smaller, number)
    if tuned is None or isinstance(tuned, keras.callbacks.History):
        return smaller
    if not isinstance(tuned, keras.Model):
        raise InputError(
            f"fine_tune returned {type(tuned).__name__}; it must return None after training the "
            "model in place, or a Keras 3 model"
        )
    return tuned
