"""Match layers by name, pattern or type."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from edgeprune.errors import InputError, listed
from edgeprune.models import layers
from edgeprune.structure.group import PruningGroup

Selector = str | type[Any]
"""A layer's name or path, a pattern of either (``block?_*``), its class's name, or its class."""


def selected(
    model: Any, groups: Sequence[PruningGroup], selector: Selector, argument: str
) -> list[int]:
    """Return the positions of the groups whose channels a layer makes or carries.

    A selector that matches a nested model or wrapper stands for all layers inside it.

    Raises:
      InputError: it matches no layer, or none that makes or carries channels.
    """
    paths = {path for path, layer in layers(model) if _matches(path, layer, selector)}
    shown = getattr(selector, "__name__", selector)
    if not paths:
        raise InputError(
            f"`{argument}={shown!r}` matches no layer of model '{model.name}'; its layers are "
            f"{listed([path for path, _ in layers(model)])}"
        )
    found = [
        index
        for index, group in enumerate(groups)
        if any(_within(layer, paths) for layer in _layers(group))
    ]
    if not found:
        raise InputError(
            f"`{argument}={shown!r}` matches no layer with channels of its own in model "
            f"'{model.name}'; name the layer that makes them, such as a convolution"
        )
    return found


def _layers(group: PruningGroup) -> set[str]:
    return {*group.layers, *(part.layer for part in group.slices if part.role != "in")}


def _matches(path: str, layer: Any, selector: Selector) -> bool:
    if isinstance(selector, type):
        return isinstance(layer, selector)
    return any(fnmatchcase(name, selector) for name in (path, layer.name, type(layer).__name__))


def _within(path: str, chosen: set[str]) -> bool:
    parts = path.split("/")
    return any("/".join(parts[:end]) in chosen for end in range(1, len(parts) + 1))
