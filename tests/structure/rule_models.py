"""What the tests of the rules share: small models around one layer or operation."""

from typing import Any

import numpy as np
from structure.law import check_law, randomize

from edgeprune.models import import_keras
from edgeprune.structure.graph import ChannelGraph, channel_graph
from edgeprune.structure.surgery import shrink

keras = import_keras()
layers = keras.layers


def around(operate: Any, source: Any, shape: tuple[int | None, ...]) -> Any:
    """Build input -> `source` (named 'source') -> `operate` -> a Dense 'head' of 2."""
    entry = keras.Input(shape)
    made = operate(source(entry))
    if len(made.shape) > 2:
        made = layers.Flatten()(made)
    model = keras.Model(entry, layers.Dense(2, name="head")(made))
    randomize(model)
    return model


def image(operate: Any, filters: int = 8) -> Any:
    """Put `operate` behind a convolution: it gets (batch, 6, 6, filters)."""
    return around(operate, layers.Conv2D(filters, 3, name="source"), (8, 8, 3))


def steps(operate: Any, units: int = 8) -> Any:
    """Put `operate` behind a dense layer: it gets (batch, 6, units)."""
    return around(operate, layers.Dense(units, name="source"), (6, 3))


def group_of(graph: ChannelGraph, layer: str = "source") -> Any:
    """Return the group that a layer's channels are in."""
    (group,) = [group for group in graph.groups if layer in group.layers]
    return group


def check(model: Any, layer: str = "source") -> Any:
    """Hold the model to the law, several times; return the group of a layer's channels."""
    for seed in range(3):
        graph, smaller = check_law(model, seed=seed)
        assert np.isfinite(smaller.count_params())
    return group_of(graph, layer)


def followed(model: Any, size: int, layer: str = "source") -> Any:
    """Expect the law to hold and a layer's channels, `size` of them, to be free to leave."""
    group = check(model, layer)
    assert not group.frozen.any(), group.reasons
    assert group.size == size
    return group


def kept(model: Any, reason: str, layer: str = "source") -> None:
    """Expect a layer's channels to stay, for a reason."""
    group = check(model, layer)
    assert group.frozen.all()
    assert any(reason in given for given in group.reasons), group.reasons


def without(model: Any, channels: list[int], layer: str = "source") -> Any:
    """Remove channels of the group that a layer makes."""
    graph = channel_graph(model)
    index = graph.groups.index(group_of(graph, layer))
    return shrink(graph, {index: np.array(channels, int)})


def positions(group: Any, path: str, axis: int) -> dict[int, list[int]]:
    """Return where each of a group's channels lies along one axis of one weight."""
    (found,) = [s for s in group.slices if s.variable.path.endswith(path) and s.axis == axis]
    places: dict[int, list[int]] = {}
    for position, channel in zip(found.positions, found.channels, strict=True):
        places.setdefault(int(channel), []).append(int(position))
    return places
