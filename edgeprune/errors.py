"""The errors that edgeprune raises: each is one line that says what was got and what to do.

Arguments stand in backticks, `` `max_drop` `` or `` `quantize='auto'` ``, as they are called in
Python. The command line puts its options in their place, so that there is one set of messages.
"""

from collections.abc import Sequence

_SHOWN = 12


class EdgepruneError(Exception):
    """Root of every error that edgeprune raises on purpose."""


class InputError(EdgepruneError, ValueError):
    """What the caller gave (a file, an argument, data) cannot be used as it is."""


class ArgumentError(InputError):
    """An argument is wrong in itself or beside the others, whatever the files named hold.

    The command line counts it as wrong usage.
    """


class UnsupportedError(EdgepruneError):
    """The request is well-formed, but this model or this environment cannot do it."""


class VerificationError(EdgepruneError):
    """A converted model does not compute what the Keras model computes."""


def listed(names: Sequence[str]) -> str:
    """Write names one after the other for a message, only the first of very many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def counted(number: int, what: str) -> str:
    """Write how many there are of something: ``1 sample``, ``1,024 samples``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
