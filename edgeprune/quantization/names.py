"""Find the layers that a caller names."""

from fnmatch import fnmatchcase
from typing import Any

from edgeprune import models
from edgeprune.errors import InputError


def skipped_layers(model: Any, skip: tuple[str, ...]) -> frozenset[int]:
    """Return the ids of the layers that match any of some names.

    Args:
      model: a built model of either flavour.
      skip: patterns, of a path through nested models, a layer's name or its class name.

    Raises:
      InputError: one of them matches no layer.
    """
    found: set[int] = set()
    listed = list(models.layers(model))
    for pattern in skip:
        matches = {
            id(layer)
            for path, layer in listed
            if any(fnmatchcase(name, pattern) for name in (path, layer.name, type(layer).__name__))
        }
        if not matches:
            raise InputError(
                f"skip={pattern!r} matches no layer of model '{model.name}'; its layers are "
                + ", ".join(path for path, _ in listed[:8])
                + (", ..." if len(listed) > 8 else "")
            )
        found |= matches
    return frozenset(found)
