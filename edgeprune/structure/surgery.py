"""Rebuild a model without the channels that leave: smaller configs, sliced weights."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.rebuild import copied, rebuild, settle
from edgeprune.structure.call import Part
from edgeprune.structure.graph import Bools, ChannelGraph


def shrink(graph: ChannelGraph, removed: dict[int, npt.NDArray[np.integer[Any]]]) -> Any:
    """Return a smaller plain model: the graph's, without these channels.

    Args:
      graph: of the model; neither it nor the model is changed.
      removed: position of a group in `graph.groups` -> its channels that leave.

    Returns:
      A new model, not compiled, with the same layers, names, dtype policies and trainable flags.
    """
    kept = graph.kept(removed)
    record = graph.record
    sizes: dict[int, list[Any]] = {}
    for size in record.sizes.values():
        sizes.setdefault(id(size.operation), []).append(size)
    pairs: list[tuple[Any, Any]] = []

    def replace(old: Any) -> Any:
        new = copied(old)
        own = sizes.get(id(old), [])
        config = new.get_config() if own or _has_weights(old) else {}
        # Not only what counts channels: a layer that reads fewer may be tied to its old shape too.
        if _unbound(config) or own:
            for size in own:
                _set(config, size.path, size.each * int(np.count_nonzero(kept[size.ids])))
            new = type(old).from_config(config)
        pairs.append((old, new))
        return new

    def constants(node: Any, position: int, value: Any) -> Any:
        axes = record.constants.get((id(node), position))
        if axes is None:
            return value
        if isinstance(value, slice):
            start, stop, _ = value.indices(len(axes[0]))
            before = np.concatenate([[0], np.cumsum(kept[axes[0]])])
            return slice(int(before[start]), int(before[stop]))
        array = np.asarray(value)
        for axis, ids in axes.items():
            array = np.compress(kept[ids], array, axis)
        return array

    smaller = rebuild(graph.model, replace, constants=constants)
    for old, new in pairs:
        for source, target in zip(
            getattr(old, "weights", ()), getattr(new, "weights", ()), strict=True
        ):
            part = record.parts.get(id(source))
            target.assign(source if part is None else _sliced(part, kept))
        settle(new)
    return smaller


def _sliced(part: Part, kept: Bools) -> npt.NDArray[Any]:
    array = np.asarray(part.variable)
    for axis, (ids, _) in part.axes.items():
        if ids is not None and not kept[ids].all():
            array = np.compress(kept[ids], array, axis)
    return array


def _has_weights(layer: Any) -> bool:
    return bool(getattr(layer, "weights", None))


def _unbound(config: Any) -> bool:
    """Take out of a config what ties its layer to the shapes that it had; tell whether any did.

    That is how the layers that it holds were built, and arrays as initial values.
    """
    if isinstance(config, list | tuple):
        return sum(map(_unbound, config)) > 0  # all of them, not only up to the first
    if not isinstance(config, dict):
        return False
    found = config.get("class_name") == "Constant" and isinstance(
        config["config"].get("value"), dict
    )
    if found:
        config.update(class_name="Zeros", config={})
    # Of the layers inside; at the top, `from_config` does not look at it.
    if "class_name" in config and config.pop("build_config", None) is not None:
        found = True
    return sum(map(_unbound, config.values())) > 0 or found


def _set(config: Any, path: tuple[str | int, ...], value: int) -> None:
    """Put a number into a nested config, whose lists may be tuples."""
    *outer, last = path
    for key in outer:
        inner = config[key]
        # An operation's config shares its lists with the operation itself.
        config[key] = inner = list(inner) if isinstance(inner, list | tuple) else dict(inner)
        config = inner
    config[last] = value
