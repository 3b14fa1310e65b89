"""The steps of a fit at which something is due: from a begin to an end, every so often."""

from edgeprune.errors import InputError


def check_window(
    begin: int | float | None,
    end: int | float | None,
    frequency: int | None,
    *,
    endless: bool = False,
) -> None:
    """Refuse a begin, end and frequency that no fit could follow.

    Args:
      begin: an int is a step; a float a fraction of the fit's steps; None is left out.
      end: likewise.
      frequency: steps between two that are due.
      endless: an end of -1 is the end of training.

    Raises:
      InputError: a value is out of range, or the end lies before the begin.
    """
    for name, value in (("begin_step", begin), ("end_step", end)):
        if value is None or (name == "end_step" and endless and value == -1):
            continue
        if isinstance(value, float) and not 0 <= value <= 1:
            raise InputError(
                f"{name} as a float is a fraction of the fit's steps, in [0, 1]; got {value}"
            )
        if value < 0:
            raise InputError(f"{name} must be 0 or more; got {value}")
    if type(begin) is type(end) and begin is not None and end != -1 and end < begin:  # type: ignore[operator]  # same type, neither None
        raise InputError(f"begin_step {begin} lies after end_step {end}")
    if frequency is not None and frequency < 1:
        raise InputError(f"frequency must be 1 or more; got {frequency}")


def resolve_step(step: int | float, first_step: int, total_steps: int | None) -> int:
    """Return an absolute step, for a fit of `total_steps` from `first_step`.

    Raises:
      InputError: it is a fraction, and the fit's length is not known.
    """
    if not isinstance(step, float):
        return step
    if total_steps is None:
        raise InputError(
            "begin_step and end_step are fractions of a fit whose length is not known; "
            "give steps_per_epoch to fit, or whole steps to the schedule"
        )
    return first_step + round(step * total_steps)


def last_due(step: int, begin: int, end: int, frequency: int) -> int | None:
    """Return the last step up to `step` that is due; None before any; an `end` of -1 is none.

    The end is due even where it is not a multiple of `frequency` from the begin.
    """
    if step < begin:
        return None
    if end != -1 and step >= end:
        return end
    return begin + (step - begin) // frequency * frequency
