"""Recurrent layers: each unit is made, remembered, and read by all units at the next step."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes, Ids
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.registry import rule_for
from edgeprune.structure.rules.elementwise import activated

_STATES = {"LSTMCell": 2, "GRUCell": 1, "SimpleRNNCell": 1, "ConvLSTMCell": 2}
"""Cell -> how many tensors it remembers, each as wide as its units."""


@rule("LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
def recurrent(call: Call) -> Sequence[Axes]:
    """Make the units; tie the states that are given, hand on those that are returned."""
    if reason := _refusal(call.layer):
        return call.freeze_all(reason)
    return _unrolled(call, _initial_states(call))


@rule("Bidirectional")
def bidirectional(call: Call) -> Sequence[Axes]:
    """Follow one layer in each direction; unit i of both leaves together.

    Keras takes both directions to be of one size, whatever the merge mode.
    """
    layer = call.layer
    both = {"layer": layer.forward_layer, "backward_layer": layer.backward_layer}
    for inner in both.values():
        if rule_for(inner) is not recurrent:
            return call.freeze_all(f"holds a {type(inner).__name__}, no recurrent layer of Keras's")
        if reason := _refusal(inner):
            return call.freeze_all(reason)
    sizes = [[_size(cell) for cell in _cells(inner)] for inner in both.values()]
    if sizes[0] != sizes[1]:
        return call.freeze_all("has directions of two sizes")
    states = _initial_states(call)
    half = len(states) // 2
    forward, backward = (
        _unrolled(call.inside(inner, (key, "config"), call.inputs, call.input_shapes, ()), own)
        for (key, inner), own in zip(both.items(), (states[:half], states[half:]), strict=True)
    )
    for one, other in zip(forward, backward, strict=True):
        for a, b in zip(one, other, strict=True):
            call.tie(a, b)
    merged = [forward[0]]
    if layer.merge_mode is None:
        merged.append(backward[0])
    elif layer.merge_mode == "concat":
        merged = [
            tuple(
                np.concatenate([a, b]) if a is not None and b is not None else None
                for a, b in zip(forward[0], backward[0], strict=True)
            )
        ]
    return [*merged, *forward[1:], *backward[1:]]


def _cells(layer: Any) -> list[Any]:
    return list(getattr(layer.cell, "cells", [layer.cell]))


def _size(cell: Any) -> int:
    return int(cell.filters if hasattr(cell, "filters") else cell.units)


def _refusal(layer: Any) -> str | None:
    """Say why a recurrent layer cannot be followed, if it cannot."""
    for kind in (type(layer.cell), *map(type, _cells(layer))):
        if not (
            kind.__module__.startswith("keras.src.layers.")
            and (kind.__name__ in _STATES or kind.__name__ == "StackedRNNCells")
        ):
            return f"holds a {kind.__name__}, no cell of Keras's, so these channels are kept"
    return None


def _initial_states(call: Call) -> list[int]:
    """Return which inputs are the initial states, in their order; freeze masks."""
    from keras import tree

    given = tree.flatten(call.named().get("initial_state"))
    states = [index for index in given if index is not None]
    for index in set(range(1, len(call.inputs))) - set(states):
        for ids in call.inputs[index]:
            call.freeze(ids, "takes them for a mask")
    return states


def _unrolled(call: Call, states: Sequence[int]) -> list[Axes]:
    """Follow a layer along its sequence, which is the first input.

    Args:
      call: of the layer, or of a layer that holds it.
      states: which inputs its initial states are.

    Returns:
      Axes of its output, then of its states if it returns them.
    """
    layer = call.layer
    cells = _cells(layer)
    spatial = getattr(layer.cell, "rank", 0)
    first = spatial and layer.cell.data_format == "channels_first"
    axis = -1 - spatial if first else -1  # of sequences and of states
    rank = len(call.input_shapes[0])
    for place, ids in enumerate(call.inputs[0]):
        if place != rank + axis:
            call.freeze(ids, "runs along this axis")
    call.sees(0, axis)
    read = call.inputs[0][axis]
    held: list[Ids] = []
    for index, cell in enumerate(cells):
        made = call.new(_size(cell))
        path: tuple[str | int, ...] = ()
        if type(layer).__name__ == "RNN":  # the others hold their cells' entries themselves
            path = ("cell", "config")
        if cell is not layer.cell:
            path = (*path, "cells", index, "config")
        _cell(call.inside(cell, path, call.inputs, call.input_shapes, ()), read, made)
        held += [made] * _STATES[type(cell).__name__]
        read = made
    for state, ids in zip(states, held, strict=True) if states else ():
        own = call.inputs[state]
        call.tie(own[axis], ids)
        for place, other in enumerate(own):
            if place != len(own) + axis:
                call.freeze(other, "runs along this axis")
    outputs = [_only(rank if layer.return_sequences else rank - 1, axis, read)]
    if layer.return_state:
        outputs += [_only(rank - 1, axis, ids) for ids in held]
    return outputs


def _only(rank: int, axis: int, ids: Ids | None) -> Axes:
    axes: list[Ids | None] = [None] * rank
    axes[axis] = ids
    return tuple(axes)


def _cell(call: Call, read: Ids | None, made: Ids) -> None:
    """Read what comes in and each unit's own past; each gate has one column a unit."""
    cell = call.layer
    columns = np.tile(made, cell.kernel.shape[-1] // len(made))
    call.carries(cell.kernel, -2, read, "in")
    call.makes(cell.kernel, -1, columns)
    call.carries(cell.recurrent_kernel, -2, made, "in")
    call.makes(cell.recurrent_kernel, -1, columns)
    call.carries(cell.bias, -1, columns, "bias")
    call.counts("filters" if hasattr(cell, "filters") else "units", made)
    for activation in (cell.activation, getattr(cell, "recurrent_activation", None)):
        activated(call, activation, (made,))
