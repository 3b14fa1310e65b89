"""The law of structured pruning, checked from outside.

The smaller model's output equals the original's with the removed channels' contribution masked to
zero. The masked original is computed here without surgery: by the original's own layers, where

- every weight that reads a removed channel (role ``in``) is zero there;
- every call that uses channels without such a weight gets them masked in its input;
- normalizations over channels take their mean and variance over the kept channels only.
"""

from typing import Any

import numpy as np

from edgeprune.models import import_keras
from edgeprune.rebuild import calls, copied, copy_weights, is_container, rebuild
from edgeprune.structure.graph import ChannelGraph, channel_graph
from edgeprune.structure.surgery import shrink

keras = import_keras()
TOLERANCE = 1e-5


def randomize(model: Any, seed: int = 0) -> None:
    """Give every weight, statistics included, a random value, so that no term vanishes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if not np.issubdtype(np.dtype(variable.dtype), np.floating):
            continue
        if "variance" in variable.path:
            value = rng.uniform(0.5, 1.5, variable.shape)
        elif len(variable.shape) >= 2:
            fan_in = max(1, int(np.prod(variable.shape[:-1])))
            value = rng.normal(0, (1.5 / fan_in) ** 0.5, variable.shape)
        else:
            value = rng.normal(0, 0.5, variable.shape) + ("gamma" in variable.path)
        variable.assign(value)


def random_removal(graph: ChannelGraph, ratio: float, seed: int = 0) -> dict[int, np.ndarray]:
    """Choose channels to remove at random, at least one kept along every axis."""
    rng = np.random.default_rng(seed)
    removed = {}
    for index, group in enumerate(graph.groups):
        leaving = (rng.random(group.size) < ratio) & ~group.frozen
        for width in group.widths:
            used = np.flatnonzero(width)
            if leaving[used].all():
                leaving[rng.choice(used)] = False
        if leaving.any():
            removed[index] = np.flatnonzero(leaving)
    return removed


def masked_output(graph: ChannelGraph, removed: dict[int, np.ndarray], inputs: Any) -> list[Any]:
    """Return the original's outputs with the removed channels' contribution masked to zero."""
    kept = graph.kept(removed)
    pairs: list[tuple[Any, Any]] = []

    def replace(old: Any) -> Any:
        new = copied(old)
        pairs.append((old, new))
        return new

    clone = rebuild(graph.model, replace)
    copy_weights(pairs)
    weights = {
        id(source): target
        for old, new in pairs
        for source, target in zip(
            getattr(old, "weights", ()), getattr(new, "weights", ()), strict=True
        )
    }
    for part in graph.record.parts.values():
        for axis, (ids, role) in part.axes.items():
            if role == "in" and ids is not None:
                target = weights[id(part.variable)]
                shape = [1] * len(target.shape)
                shape[axis] = -1
                target.assign(np.asarray(target) * kept[ids].reshape(shape))
    reads: dict[int, list[Any]] = {}
    twins = {id(old): new for old, new in pairs}
    for operation, tensor, axis, ids in graph.record.reads:
        reads.setdefault(id(twins[id(operation)]), []).append((tensor, axis, kept[ids]))
    return _run(clone, list(inputs), reads)


def _run(container: Any, inputs: list[Any], reads: dict[int, list[Any]]) -> list[Any]:
    graph = container if hasattr(container, "_nodes_by_depth") else container._functional
    known = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}
    for node, _ in calls(graph):
        args, kwargs = node.arguments.fill_in(known)
        operation = node.operation
        if is_container(operation):
            made = _run(operation, keras.tree.flatten(args), reads)
        else:
            masks = reads.get(id(operation), [])
            if masks:
                args, kwargs = _mask_inputs(node, args, kwargs, masks)
            made = _normalize(operation, args[0], masks) if masks and args else None
            made = operation(*args, **kwargs) if made is None else made
        for tensor, value in zip(node.outputs, keras.tree.flatten(made), strict=True):
            known[id(tensor)] = value
    return [known[id(tensor)] for tensor in graph.outputs]


def _mask_inputs(node: Any, args: Any, kwargs: Any, masks: list[Any]) -> Any:
    given = keras.tree.flatten([args, kwargs])
    old = keras.tree.flatten([node.arguments.args, node.arguments.kwargs])
    tensors = [i for i, argument in enumerate(old) if hasattr(argument, "_keras_history")]
    for tensor, axis, kept in masks:
        position = tensors[tensor]
        shape = [1] * len(given[position].shape)
        shape[axis] = -1
        masked = given[position] * kept.reshape(shape).astype("float32")
        # Keras hangs the mask of padded steps on the tensor.
        if getattr(given[position], "_keras_mask", None) is not None:
            masked._keras_mask = given[position]._keras_mask
        given[position] = masked
    return keras.tree.pack_sequence_as([args, kwargs], given)


def _normalize(layer: Any, x: Any, masks: list[Any]) -> Any:
    """Normalize over the kept entries; None for a layer that is no such normalization."""
    kind = type(layer).__name__
    if kind in ("LayerNormalization", "RMSNormalization"):
        axes = tuple(a % len(x.shape) for a in np.atleast_1d(layer.axis))
    elif kind == "GroupNormalization" and layer.groups == 1:
        axes = tuple(range(1, len(x.shape)))
    else:
        return None
    x = np.asarray(x, np.float64)
    mask = np.ones(x.shape[1:])
    for _, axis, kept in masks:
        shape = [1] * mask.ndim
        shape[axis - 1] = -1
        mask = mask * kept.reshape(shape)
    mask = mask[None]
    count = np.broadcast_to(mask, x.shape).sum(axes, keepdims=True)
    mean = 0 if kind == "RMSNormalization" else (x * mask).sum(axes, keepdims=True) / count
    variance = (((x - mean) * mask) ** 2).sum(axes, keepdims=True) / count
    y = (x - mean) / np.sqrt(variance + layer.epsilon)
    own = [layer.axis % x.ndim] if kind == "GroupNormalization" else axes
    shape = [x.shape[a] if a in own else 1 for a in range(x.ndim)]
    for name in ("gamma", "scale", "beta"):
        weight = getattr(layer, name, None)
        if hasattr(weight, "shape"):
            value = np.asarray(weight).reshape(shape)
            y = y + value if name == "beta" else y * value
    return keras.ops.convert_to_tensor(y.astype(np.float32))


def check_law(
    model: Any, ratio: float = 0.4, seed: int = 0, inputs: list[np.ndarray] | None = None
) -> tuple[ChannelGraph, Any]:
    """Remove random channels of a model and hold the result against the masked original.

    Returns:
      The graph and the smaller model.
    """
    graph = channel_graph(model)
    return graph, hold(graph, random_removal(graph, ratio, seed), seed, inputs)


def hold(
    graph: ChannelGraph,
    removed: dict[int, np.ndarray],
    seed: int = 0,
    inputs: list[np.ndarray] | None = None,
) -> Any:
    """Remove these channels, hold the result against the masked original, and return it."""
    smaller = shrink(graph, removed)
    inputs = random_inputs(graph.model, seed) if inputs is None else inputs
    expected = masked_output(graph, removed, inputs)
    got = _run(smaller, inputs, {})
    for want, have in zip(expected, got, strict=True):
        want, have = np.asarray(want), np.asarray(have)
        assert want.shape == have.shape
        assert np.isfinite(want).all()
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        assert np.abs(want - have).max(initial=0) <= TOLERANCE * scale, graph.model.name
    return smaller


def random_inputs(model: Any, seed: int = 0, batch: int = 2) -> list[np.ndarray]:
    """Return one random array for each input; unknown sizes become 7."""
    rng = np.random.default_rng(seed)
    made = []
    for tensor in model.inputs:
        shape = (batch, *(size or 7 for size in tensor.shape[1:]))
        if "int" in str(tensor.dtype):
            made.append(rng.integers(0, 5, shape).astype(tensor.dtype))
        else:
            made.append(rng.normal(size=shape).astype(np.float32))
    return made
