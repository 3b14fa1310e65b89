"""Leave a Keras model's dead channels out of what is converted."""

from dataclasses import replace
from typing import Any

from edgeprune import models
from edgeprune.errors import UnsupportedError
from edgeprune.export.program import Program, program_of
from edgeprune.modelfiles import first_line


def cleaned(program: Program) -> tuple[Program, dict[str, Any]]:
    """Remove the channels that cannot change the output.

    Args:
      program: what is to be converted.

    Returns:
      The program without them, under the same names, and what the conversion's record says:
      ``channels_removed``, parameters and MACs before and after, ``layers``; or why nothing was
      removed (``reason``). A model that cannot be cleaned comes back as it is.
    """
    if not hasattr(program.owner, "layers"):
        return program, kept("clean-up is for Keras 3 models, and this is a SavedModel")
    if models.flavour(program.owner) == "tf_keras":
        return program, kept("clean-up is for Keras 3 models, and this is a tf_keras model")
    from edgeprune.structure.cleanup import clean_up

    try:
        report = clean_up(program.owner)
    except UnsupportedError as error:
        return program, kept(str(error))
    except Exception as error:
        # The user's layers are called anew and the user's rules run: they may raise anything, and
        # what is only a service must not stop a conversion that works without it.
        return program, kept(f"clean-up failed: {type(error).__name__}: {first_line(error)}")
    if report.model is program.owner:
        return program, kept("none found")
    smaller = program_of(report.model)
    return (
        replace(program, call=smaller.call, owner=smaller.owner),
        report.to_dict() | {"summary": str(report)},
    )


def kept(reason: str) -> dict[str, Any]:
    """Return what the record says where nothing was removed."""
    return {"channels_removed": 0, "reason": reason}
