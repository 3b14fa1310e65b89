"""Lossless clean-up: remove the channels that cannot change the output.

A channel is dead for one of two reasons. Nobody reads it: whatever reads it has nothing but zeros
for it. Or it always has the same value, because its kernel is zero or its activation never fires:
then the biases of its readers take that value over. Both spread: a channel that feeds only dead
ones is unread, and constants go on through normalizations, activations and additions.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.errors import UnsupportedError, counted
from edgeprune.keras_macs import keras_macs
from edgeprune.models import layers
from edgeprune.rebuild import copied, copy_weights, rebuild
from edgeprune.structure.call import Part
from edgeprune.structure.graph import Bools, ChannelGraph, channel_graph, check_model
from edgeprune.structure.pruning import compile_as
from edgeprune.structure.readings import Reading, find_readings
from edgeprune.structure.surgery import shrink

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Thinned:
    """A layer that lost channels."""

    layer: str
    channels_before: int
    channels_after: int


@dataclass(frozen=True, eq=False)
class CleanUp:
    """A model without its dead channels, and what they were.

    Attributes:
      original: the model that was given, unchanged.
      model: the smaller model; `original` itself if nothing was dead.
      layers: what each layer lost, of those that lost any.
      parameters_before: weights of the original, BatchNorm's statistics included.
      parameters_after: weights of the smaller model.
    """

    original: Any
    model: Any
    layers: tuple[Thinned, ...]
    parameters_before: int
    parameters_after: int

    @property
    def channels_removed(self) -> int:
        """How many channels left, over all layers."""
        return sum(row.channels_before - row.channels_after for row in self.layers)

    @cached_property
    def macs_before(self) -> int | None:
        """Multiply-accumulates of the original; None where they cannot be counted."""
        return _macs(self.original)

    @cached_property
    def macs_after(self) -> int | None:
        """Multiply-accumulates of the smaller model; None where they cannot be counted."""
        return self.macs_before if self.model is self.original else _macs(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Return what was removed, for a record or a JSON document."""
        return {
            "channels_removed": self.channels_removed,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "layers": [asdict(row) for row in self.layers],
        }

    def __str__(self) -> str:
        if not self.layers:
            return "no dead channels"
        told = f"parameters {self.parameters_before:,} -> {self.parameters_after:,}"
        if self.macs_before is not None and self.macs_after is not None:
            told += f", MACs {self.macs_before:,} -> {self.macs_after:,}"
        removed = counted(self.channels_removed, "dead channel")
        return f"{removed} removed from {counted(len(self.layers), 'layer')}: {told}"


def _macs(model: Any) -> int | None:
    try:
        return keras_macs(model).total
    except UnsupportedError:
        return None


def remove_dead_channels(model: Any) -> Any:
    """Remove the channels that provably cannot change the output of inference.

    After unstructured pruning whole kernels are zero. Their channels, and those that only they
    read, leave; what they contributed (a bias, a normalization's shift) goes into the biases of
    the layers that read them. Nothing is estimated, so no accuracy is lost. `clean_up` returns a
    report with it.

    Args:
      model: a built Keras 3 Functional or Sequential model, nested models included. It is not
        changed.

    Returns:
      A smaller plain model whose outputs are equal up to float rounding, compiled as the original
      is, with a fresh optimizer; or `model` itself if nothing is dead. At least one channel stays
      along every axis.

    Raises:
      UnsupportedError: a subclassed or tf_keras model, or one with a layer that cannot be made
        again from its config.
      InputError: it has no weights yet.
    """
    smaller = clean_up(model).model
    if smaller is not model:
        compile_as(smaller, model)
    return smaller


def clean_up(model: Any) -> CleanUp:
    """Remove dead channels as `remove_dead_channels` does, and say what left.

    The model of the result is not compiled.

    Args:
      model: a built Keras 3 Functional or Sequential model; it is not changed.

    Raises:
      UnsupportedError: a subclassed or tf_keras model, or one with a layer that cannot be made
        again from its config.
      InputError: it has no weights yet.
    """
    check_model(model)
    parameters = int(model.count_params())
    nothing = CleanUp(model, model, (), parameters, parameters)
    readings = find_readings(model)
    if not any(_suspicious(reading) for reading in readings):
        return nothing
    graph = channel_graph(model)
    removed = _Search(graph, readings).removed()
    if not removed:
        return nothing
    smaller = _folded(graph, removed, readings, shrink(graph, removed))
    kept = graph.kept(removed)
    rows = []
    for start, stop, layer, kind in graph.record.channels.made:
        left = int(np.count_nonzero(kept[start:stop]))
        if kind != "fixed" and left < stop - start:
            rows.append(Thinned(layer, stop - start, left))
    return CleanUp(model, smaller, tuple(rows), parameters, int(smaller.count_params()))


def _suspicious(reading: Reading) -> bool:
    """Tell whether a layer has an input that is constant or unread."""
    constant = reading.given.constant
    return bool(constant.any()) or not bool(reading.weights.used.any(1).all())


@dataclass(eq=False)
class _Gate:
    """A reading and the channels on both sides of its kernel."""

    reading: Reading
    inputs: Array
    outputs: tuple[Array | None, ...]
    constant: Array
    """(inputs,) bool: a constant that the bias can take over, or that adds nothing."""
    blocked: Array = field(init=False)

    def __post_init__(self) -> None:
        self.blocked = np.zeros(len(self.inputs), bool)


class _Search:
    """Find the channels that can leave, from the outputs back to the inputs."""

    def __init__(self, graph: ChannelGraph, readings: list[Reading]) -> None:
        self._graph = graph
        self._gates = [gate for reading in readings if (gate := self._gate(reading))]
        self._stuck = np.ones(len(graph.roots), bool)
        """Channels (marked at the one that stands for them) that stay whatever the weights are."""
        for gate in self._gates:
            self._stuck[graph.roots[gate.inputs]] = False
        for members, group in zip(graph.members, graph.groups, strict=True):
            self._stuck[members] |= group.frozen | (group.kind != "channels")
        for ids in self._other_reads():
            self._stuck[graph.roots[ids]] = True

    def _other_reads(self) -> Iterator[Array]:
        """Yield channels that are read by more than a plain product with a kernel.

        A softmax or a normalization over channels needs them all, whatever their values; so does
        a product with all of another tensor's.
        """
        yield from self._graph.record.ended
        calls = {(id(gate.reading.layer), gate.reading.axis) for gate in self._gates}
        for operation, tensor, axis, ids in self._graph.record.reads:
            if tensor or (id(operation), axis) not in calls:
                yield ids
        kernels = {(id(gate.reading.kernel), gate.reading.in_axis) for gate in self._gates}
        firsts = (gate.reading.first for gate in self._gates)
        kernels |= {(id(first), len(first.shape) - 2) for first in firsts if first is not None}
        for part in self._graph.record.parts.values():
            for axis, (own, role) in part.axes.items():
                if role == "in" and own is not None and (id(part.variable), axis) not in kernels:
                    yield own

    def _gate(self, reading: Reading) -> _Gate | None:
        part = self._graph.record.parts.get(id(reading.kernel))
        if part is None:
            return None
        ids, role = part.axes.get(reading.in_axis, (None, "other"))
        if ids is None or role != "in":
            return None
        given = reading.given
        foldable = given.constant if reading.foldable else given.constant & (given.low == 0)
        outputs = tuple(part.axes.get(axis, (None, ""))[0] for axis in reading.out_axes)
        return _Gate(reading, ids, outputs, foldable)

    def removed(self) -> dict[int, Array]:
        """Return {position of a group: its channels that leave}."""
        held = np.zeros(len(self._stuck), bool)
        while True:
            dead, constant = self._dead(held)
            placeholders = self._placeholders(dead, constant)
            # One that stays for its constant value needs what it is made from. The last first: it
            # may need channels of earlier axes, of which then no other has to be chosen.
            needed = [root for root in placeholders if constant[root]]
            needed = [max(needed)] if needed else self._peaks(dead)
            if not needed:
                break
            held[needed] = True
        dead[placeholders] = False
        return {
            index: np.flatnonzero(dead[members])
            for index, members in enumerate(self._graph.members)
            if dead[members].any()
        }

    def _peaks(self, dead: Bools) -> list[int]:
        """Return channels whose weights set the scale of a grid that a kernel was trained on.

        The largest weight of an output sets its int8 scale. Without it, those that stay would lie
        between the steps of the converted file.
        """
        found: list[int] = []
        for gate in self._gates:
            leaves = dead[self._graph.roots[gate.inputs]]
            if not leaves.any():
                continue
            largest = gate.reading.weights.largest
            left = largest[~leaves].max(0, initial=0)
            shrunk = self._alive(gate, dead) & (left > 0) & (left < largest.max(0))
            if shrunk.any() and gate.reading.weights.on_grid():
                rows = largest[:, shrunk].argmax(0)
                found += self._graph.roots[gate.inputs[rows]].tolist()
        return found

    def _dead(self, held: Bools) -> tuple[Bools, Bools]:
        """Return which channels are dead, and which of them only for being constant somewhere."""
        roots = self._graph.roots
        stays = self._stuck | held
        standing = roots == np.arange(len(roots))
        blocks = np.zeros(len(roots), np.int64)
        for gate in self._gates:
            gate.blocked = ~gate.constant & gate.reading.weights.used.any(1)
            np.add.at(blocks, roots[gate.inputs], gate.blocked)
        dead = standing & ~stays & (blocks == 0)
        while True:
            before = int(dead.sum())
            for gate in reversed(self._gates):
                blocked = ~gate.constant & self._used(gate, dead)
                freed = gate.blocked & ~blocked
                if freed.any():
                    changed = roots[gate.inputs[freed]]
                    np.subtract.at(blocks, changed, 1)
                    gate.blocked = blocked
                    dead[changed] = (blocks[changed] == 0) & ~stays[changed]
            if int(dead.sum()) == before:
                break
        constant = np.zeros(len(roots), bool)
        for gate in self._gates:
            constant[roots[gate.inputs[gate.constant & self._used(gate, dead)]]] = True
        return dead, constant & dead

    def _used(self, gate: _Gate, dead: Bools) -> Array:
        """Tell which inputs meet a weight that is not zero on the way to a living output."""
        used, alive = gate.reading.weights.used, self._alive(gate, dead)
        return np.asarray(used.any(1) if alive.all() else used[:, alive].any(1))

    def _alive(self, gate: _Gate, dead: Bools) -> Array:
        kernel = gate.reading.kernel
        alive = np.ones(1, bool)
        for axis, ids in zip(gate.reading.out_axes, gate.outputs, strict=True):
            own = (
                np.ones(kernel.shape[axis], bool) if ids is None else ~dead[self._graph.roots[ids]]
            )
            alive = np.outer(alive, own).ravel()
        return alive

    def _placeholders(self, dead: Bools, constant: Bools) -> list[int]:
        """Choose one channel for each axis that would be left with none: best an unread one."""
        chosen: dict[int, None] = {}
        for members, group in zip(self._graph.members, self._graph.groups, strict=True):
            for width in group.widths:
                own = members[width > 0]
                if dead[own].all() and not any(int(root) in chosen for root in own):
                    chosen[int(own[np.argmin(constant[own])])] = None
        return list(chosen)


def _folded(
    graph: ChannelGraph, removed: dict[int, Array], readings: list[Reading], smaller: Any
) -> Any:
    """Let biases take over the constants that left."""
    kept = graph.kept(removed)
    paths = {id(layer): path for path, layer in layers(graph.model)}
    twins = dict(layers(smaller))
    missing: dict[int, Array] = {}
    for reading in readings:
        part = graph.record.parts.get(id(reading.kernel))
        ids = None if part is None else part.axes.get(reading.in_axis, (None, ""))[0]
        if part is None or ids is None:
            continue
        given = reading.given
        leaves = np.flatnonzero(~kept[ids] & given.constant & (given.low != 0))
        if not reading.foldable or not len(leaves):
            continue
        shift = reading.weights.product(leaves, given.low[leaves])
        shift = _kept_outputs(shift, reading, part, kept)
        if not shift.any():
            continue
        new = twins[paths[id(reading.layer)]]
        if new.bias is None:
            missing[id(new)] = shift
        else:
            new.bias.assign(np.asarray(new.bias, np.float64) + shift)
    return _with_biases(smaller, missing) if missing else smaller


def _kept_outputs(shift: Array, reading: Reading, part: Part, kept: Bools) -> Array:
    array = shift.reshape([reading.kernel.shape[axis] for axis in reading.out_axes])
    for position, axis in enumerate(reading.out_axes):
        ids = part.axes.get(axis, (None, ""))[0]
        if ids is not None:
            array = np.compress(kept[ids], array, position)
    return array


def _with_biases(model: Any, biases: dict[int, Array]) -> Any:
    """Rebuild a model in which some layers get a bias that they did not have."""
    pairs: list[tuple[Any, Any]] = []
    added: list[tuple[Any, Any]] = []

    def replace(old: Any) -> Any:
        if id(old) not in biases:
            pairs.append((old, copied(old)))
            return pairs[-1][1]
        new = type(old).from_config(old.get_config() | {"use_bias": True})
        added.append((old, new))
        return new

    rebuilt = rebuild(model, replace)
    copy_weights(pairs)
    for old, new in added:
        # The bias comes last.
        for source, target in zip(old.weights, new.weights, strict=False):
            target.assign(source)
        new.bias.assign(biases[id(old)])
    return rebuilt
