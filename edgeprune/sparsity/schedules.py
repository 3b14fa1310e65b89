"""Schedules: the sparsity to reach at each optimizer step, as pure functions."""

import math
from dataclasses import dataclass, replace
from typing import Protocol, Self

from edgeprune.errors import InputError
from edgeprune.steps.window import check_window, last_due, resolve_step

DEFAULT_FREQUENCY = 100
# A ramp over a short fit still rises in at least this many steps, unless `frequency` is given.
_FEWEST_UPDATES = 20


class Schedule(Protocol):
    """What a callback asks of a schedule; add a new one by writing these six."""

    @property
    def target(self) -> float:
        """The sparsity it ends with."""

    def sparsity(self, step: int) -> float:
        """Return the sparsity at an optimizer step."""

    def last_due(self, step: int) -> int | None:
        """Return the last step up to `step` at which masks are chosen anew; None before any."""

    def is_due(self, previous_step: int, step: int) -> bool:
        """Tell whether masks are chosen anew at a step in (previous_step, step]."""

    def resolve(self, first_step: int, total_steps: int | None) -> Self:
        """Return the schedule with absolute steps, for a fit of `total_steps` from `first_step`."""

    def with_target(self, target: float) -> Self:
        """Return the schedule with another final sparsity, for one layer."""


@dataclass(frozen=True)
class PolynomialDecay:
    """Raise the sparsity from `initial_sparsity` to `final_sparsity`, quickly at first.

    ``final + (initial - final) * (1 - progress) ** power``, where `progress` runs from 0 at
    `begin_step` to 1 at `end_step`.

    Steps count the updates that the optimizer has made (`optimizer.iterations`). Masks are chosen
    at `begin_step`, every `frequency` steps after it, and at `end_step` even where that is not a
    multiple of `frequency`, so the final sparsity is always reached.

    Args:
      initial_sparsity: fraction of zeros at `begin_step`, in [0, 1).
      final_sparsity: fraction of zeros from `end_step` on, in [0, 1).
      begin_step: an int is a step; a float in [0, 1] a fraction of the fit's steps. Left out: 0.0.
      end_step: likewise. Left out: 0.75, so a quarter of the fit trains at full sparsity.
      power: exponent; 1 is linear, 3 the published choice.
      frequency: steps between two choices of masks. Left out: 100, or fewer where begin and end
        are fractions and the ramp would otherwise rise in less than 20 steps.

    Raises:
      InputError: a value is out of range.

    Source: Zhu & Gupta 2017, arXiv:1710.01878; names and values as in
    `tfmot.sparsity.keras.PolynomialDecay`.
    """

    initial_sparsity: float = 0.0
    final_sparsity: float = math.nan
    begin_step: int | float | None = None
    end_step: int | float | None = None
    power: float = 3
    frequency: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.final_sparsity, float) and math.isnan(self.final_sparsity):
            raise InputError(
                "PolynomialDecay needs final_sparsity, for example "
                "PolynomialDecay(final_sparsity=0.8)"
            )
        check_sparsity("initial_sparsity", self.initial_sparsity)
        check_sparsity("final_sparsity", self.final_sparsity)
        check_window(self.begin_step, self.end_step, self.frequency)
        if not self.power > 0:
            raise InputError(f"power must be above 0; got {self.power}")

    @property
    def target(self) -> float:
        """The sparsity it ends with."""
        return self.final_sparsity

    def sparsity(self, step: int) -> float:
        """Return the fraction of zeros at `step`; the schedule must be resolved."""
        begin, end, _ = _absolute(self)
        if step >= end:
            return self.final_sparsity
        progress = max(0.0, (step - begin) / (end - begin)) if end > begin else 0.0
        rest: float = (1 - progress) ** self.power
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * rest

    def last_due(self, step: int) -> int | None:
        """Return the last step up to `step` at which masks are chosen anew; None before any."""
        return last_due(step, *_absolute(self))

    def is_due(self, previous_step: int, step: int) -> bool:
        """Tell whether masks are chosen anew at a step in (previous_step, step]."""
        due = self.last_due(step)
        return due is not None and due > previous_step

    def resolve(self, first_step: int, total_steps: int | None) -> "PolynomialDecay":
        """Return the schedule with absolute steps, for a fit of `total_steps` from `first_step`.

        Raises:
          InputError: begin or end is a fraction, and the fit's length is not known.
        """
        begin = resolve_step(
            0.0 if self.begin_step is None else self.begin_step, first_step, total_steps
        )
        end = resolve_step(
            0.75 if self.end_step is None else self.end_step, first_step, total_steps
        )
        if end < begin:
            raise InputError(
                f"begin_step {self.begin_step} comes to step {begin} in this fit, after end_step "
                f"{self.end_step} (step {end}); give both as steps or both as fractions"
            )
        frequency = self.frequency
        if frequency is None:
            whole = isinstance(self.begin_step, int) and isinstance(self.end_step, int)
            ramp = max(1, (end - begin) // _FEWEST_UPDATES)
            frequency = DEFAULT_FREQUENCY if whole else min(DEFAULT_FREQUENCY, ramp)
        return replace(self, begin_step=begin, end_step=end, frequency=frequency)

    def with_target(self, target: float) -> "PolynomialDecay":
        """Return the schedule with another final sparsity, for one layer."""
        return replace(
            self, final_sparsity=target, initial_sparsity=min(self.initial_sparsity, target)
        )


@dataclass(frozen=True)
class ConstantSparsity:
    """Prune to `target_sparsity` at `begin_step`, and stay there.

    Args:
      target_sparsity: fraction of zeros, in [0, 1).
      begin_step: an int is a step; a float in [0, 1] a fraction of the fit's steps. Left out: 0.0.
      end_step: masks are not chosen anew after it; -1: to the end of training.
      frequency: steps between two choices of masks. Since a pruned weight stays zero, the choices
        after the first change nothing unless weights were set from outside.

    Raises:
      InputError: a value is out of range.

    Source: names and values as in `tfmot.sparsity.keras.ConstantSparsity`.
    """

    target_sparsity: float
    begin_step: int | float | None = None
    end_step: int | float = -1
    frequency: int = DEFAULT_FREQUENCY

    def __post_init__(self) -> None:
        check_sparsity("target_sparsity", self.target_sparsity)
        check_window(self.begin_step, self.end_step, self.frequency, endless=True)

    @property
    def target(self) -> float:
        """The sparsity it ends with."""
        return self.target_sparsity

    def sparsity(self, step: int) -> float:
        """Return the fraction of zeros, the same at every `step`."""
        return self.target_sparsity

    def last_due(self, step: int) -> int | None:
        """Return the last step up to `step` at which masks are chosen anew; None before any."""
        return last_due(step, *_absolute(self))

    def is_due(self, previous_step: int, step: int) -> bool:
        """Tell whether masks are chosen anew at a step in (previous_step, step]."""
        due = self.last_due(step)
        return due is not None and due > previous_step

    def resolve(self, first_step: int, total_steps: int | None) -> "ConstantSparsity":
        """Return the schedule with absolute steps, for a fit of `total_steps` from `first_step`.

        Raises:
          InputError: begin or end is a fraction, and the fit's length is not known.
        """
        if self.begin_step is None:
            begin = first_step
        else:
            begin = resolve_step(self.begin_step, first_step, total_steps)
        end = -1 if self.end_step == -1 else resolve_step(self.end_step, first_step, total_steps)
        return replace(self, begin_step=begin, end_step=end)

    def with_target(self, target: float) -> "ConstantSparsity":
        """Return the schedule with another sparsity, for one layer."""
        return replace(self, target_sparsity=target)


def check_sparsity(name: str, value: float) -> None:
    """Refuse what is no fraction of zeros, 80 for 0.8 above all.

    Raises:
      InputError: `value` is not in [0, 1).
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and 0 <= value < 1:
        return
    hint = f", did you mean {value / 100:g}?" if number and 1 < value < 100 else ""
    raise InputError(f"{name} is a fraction in [0, 1); got {value!r}{hint}")


def _absolute(schedule: PolynomialDecay | ConstantSparsity) -> tuple[int, int, int]:
    begin, end, frequency = schedule.begin_step, schedule.end_step, schedule.frequency
    if not isinstance(begin, int) or not isinstance(end, int):
        raise InputError(
            f"begin_step {begin} and end_step {end} are fractions of a fit; "
            "call resolve(first_step, total_steps) first"
        )
    return begin, end, DEFAULT_FREQUENCY if frequency is None else frequency
