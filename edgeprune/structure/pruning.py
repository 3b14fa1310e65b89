"""Prune channels: plan, cut, and again after fine-tuning."""

from collections.abc import Callable
from typing import Any

from edgeprune.errors import InputError
from edgeprune.structure.plan import plan_channels

FineTune = Callable[[Any, int], Any]
"""(smaller model, round from 0) -> None after training it in place, or the model to go on with."""


def prune_channels(
    model: Any, *, rounds: int = 1, fine_tune: FineTune | None = None, **plan: Any
) -> Any:
    """Return a smaller plain Keras model, without the channels that matter least.

    Args:
      model: a built Keras 3 Functional or Sequential model; it is not changed.
      rounds: in how many steps to get there.
      fine_tune: called with the smaller model after every round.
      **plan: as for `plan_channels`: a budget, a criterion, what to skip, ...

    Raises:
      InputError: a bad argument.
      UnsupportedError: the model cannot be pruned.
    """
    if rounds != 1:
        raise InputError(f"rounds={rounds!r} is not 1")
    smaller = plan_channels(model, **plan).apply()
    if fine_tune is not None:
        tuned = fine_tune(smaller, 0)
        smaller = smaller if tuned is None else tuned
    return smaller
