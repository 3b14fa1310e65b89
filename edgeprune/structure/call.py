"""What a rule sees of one call of a layer, and what it can say about it."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeprune.structure.channels import Axes, Channels, Ids
from edgeprune.structure.group import Role


@dataclass(eq=False)
class Record:
    """What the rules said about a model, call by call."""

    channels: Channels = field(default_factory=Channels)
    parts: dict[int, "Part"] = field(default_factory=dict)
    """id of a variable -> its axes that shrink."""
    sizes: dict[tuple[int, tuple[str | int, ...]], "Size"] = field(default_factory=dict)
    """(id of an operation, where in its config) -> the number there."""
    constants: dict[tuple[int, int], dict[int, Ids]] = field(default_factory=dict)
    """(id of a node, position among its flattened arguments) -> axes of the constant."""
    reads: list[tuple[Any, int, int, Ids]] = field(default_factory=list)
    """(operation, tensor argument, axis, channels)."""
    ended: list[Ids] = field(default_factory=list)
    """Channels that a call neither hands on nor reads, such as one that is spread over others."""


@dataclass(eq=False)
class Part:
    """A variable of which some axes shrink."""

    layer: str
    variable: Any
    axes: dict[int, tuple[Ids | None, Role]] = field(default_factory=dict)
    """Axis -> its channels; None where one call of a shared layer needs its full size."""


@dataclass(eq=False)
class Size:
    """An entry of a layer's config that counts channels."""

    operation: Any
    path: tuple[str | int, ...]
    ids: Ids
    each: int = 1


class Tensor(int):
    """Stands for a tensor among a call's arguments: its index among the inputs."""


class Call:
    """One call of one layer (or `keras.ops` operation), as its rule sees it.

    A rule takes a call and returns the axes of each output: for each axis the numbers of the
    channels along it, or None where it keeps its size. On the way it says which weights' axes
    those channels lie on (`reads`, `makes`, `carries`) and which entries of the layer's config
    count them (`counts`).

    Attributes:
      layer: the layer or operation; a wrapper's rule calls the inner layer's with `inside`.
      inputs: axes of each tensor argument, flattened.
      input_shapes: their shapes, batch first, None where unknown.
      output_shapes: of its results, flattened.
      arguments: flattened arguments, tensors and constants alike.
    """

    def __init__(
        self,
        record: Record,
        layer: Any,
        name: str,
        inputs: Sequence[Axes],
        input_shapes: Sequence[tuple[int | None, ...]],
        output_shapes: Sequence[tuple[int | None, ...]],
        arguments: Sequence[Any] = (),
        node: Any = None,
    ) -> None:
        self.layer = layer
        self.name = name
        self.inputs = list(inputs)
        self.input_shapes = list(input_shapes)
        self.output_shapes = list(output_shapes)
        self.arguments = list(arguments)
        self._record = record
        self._node = node
        self._owner = layer
        self._prefix: tuple[str | int, ...] = ()
        self._place: Callable[[int, int], tuple[int, int]] = lambda given, axis: (given, axis)

    def inside(
        self,
        layer: Any,
        config: tuple[str | int, ...],
        inputs: Sequence[Axes],
        input_shapes: Sequence[tuple[int | None, ...]],
        output_shapes: Sequence[tuple[int | None, ...]],
        place: Callable[[int, int], tuple[int, int]] | None = None,
    ) -> "Call":
        """Return the call of a layer that this one holds.

        Args:
          layer: the inner layer.
          config: where its config lies in this one's.
          inputs: axes of its inputs.
          input_shapes: their shapes.
          output_shapes: of its results.
          place: (input, axis) of the inner layer -> where that is among this one's inputs; None
            if it is given the same inputs.
        """
        call = Call(self._record, layer, self.name, inputs, input_shapes, output_shapes)
        call._owner = self._owner
        call._prefix = (*self._prefix, *config)
        if place is not None:
            call._place = lambda given, axis: self._place(*place(given, axis))
        return call

    def named(self) -> dict[str, Any]:
        """Return what the layer was called with, by the names of its arguments.

        Returns:
          Name -> the value given; in place of each tensor, nested or not, a `Tensor`.
        """
        if self._node is None:
            args, kwargs = [Tensor(index) for index in range(len(self.inputs))], {}
        else:
            from keras import KerasTensor, tree

            given = [list(self._node.arguments.args), dict(self._node.arguments.kwargs)]
            indices = iter(range(len(self.inputs)))
            flat = [
                Tensor(next(indices)) if isinstance(value, KerasTensor) else value
                for value in tree.flatten(given)
            ]
            args, kwargs = tree.pack_sequence_as(given, flat)
        bound = inspect.signature(self.layer.call).bind(*args, **kwargs)
        return dict(bound.arguments)

    def new(self, size: int, kind: str = "channels") -> Ids:
        """Number `size` channels that this layer makes."""
        return self._record.channels.new(size, self.name, kind)

    def tie(self, a: Ids | None, b: Ids | None) -> None:
        """Let two axes of the same size lose the same channels; neither any if one is None."""
        if a is not None and b is not None:
            self._record.channels.tie(a, b)
        else:
            for ids in (a, b):
                if ids is not None:
                    self.freeze(ids, "meets an axis that keeps its size")

    def freeze(self, ids: Ids | None, reason: str) -> None:
        """Let channels stay; `reason` goes on after the layer's name."""
        if ids is not None:
            described = f"'{self.name}' ({type(self.layer).__name__}) {reason}"
            self._record.channels.freeze(ids, described)

    def freeze_all(self, reason: str) -> tuple[Axes, ...]:
        """Freeze every input; return outputs that keep their sizes."""
        for axes in self.inputs:
            for ids in axes:
                self.freeze(ids, reason)
        return tuple((None,) * len(shape) for shape in self.output_shapes)

    def makes(self, weight: Any, axis: int, ids: Ids | None, role: Role = "out") -> None:
        """Say that a weight's axis makes these channels. A weight that is None has no part."""
        self._part(weight, axis, ids, role)

    def carries(self, weight: Any, axis: int, ids: Ids | None, role: Role = "other") -> None:
        """Say that a weight's axis goes along with these channels."""
        self._part(weight, axis, ids, role)

    def reads(self, weight: Any, axis: int, input: int = 0, input_axis: int = -1) -> Ids | None:
        """Say that a weight's axis runs along an axis of an input; return its channels."""
        ids = self.inputs[input][input_axis]
        self._part(weight, axis, ids, "in")
        self.sees(input, input_axis)
        return ids

    def sees(self, input: int, axis: int) -> None:
        """Say that this call is where the activations of an input's channels are used."""
        ids = self.inputs[input][axis]
        if ids is not None:
            positive = axis % len(self.inputs[input])
            self._record.reads.append((self._owner, *self._place(input, positive), ids))

    def _part(self, variable: Any, axis: int, ids: Ids | None, role: Role) -> None:
        if variable is None:
            return
        axis %= len(variable.shape)
        part = self._record.parts.get(id(variable))
        if part is None:
            part = self._record.parts[id(variable)] = Part(self.name, variable)
        # A shared layer is called more than once, on channels that then are the same channels.
        if axis in part.axes:
            self.tie(part.axes[axis][0], ids)
        else:
            part.axes[axis] = (ids, role)

    def counts(self, key: str, ids: Ids | None, *index: int, each: int = 1) -> None:
        """Say that a number of the config is `each` times how many of these channels there are.

        Args:
          key: of the config; dots lead into nested configs.
          ids: the channels; None leaves the entry as it is.
          index: of the number, where the entry is a list.
          each: what one channel adds.
        """
        if ids is None:
            return
        path = (*self._prefix, *key.split("."), *index)
        known = self._record.sizes.setdefault(
            (id(self._owner), path), Size(self._owner, path, ids, each)
        )
        if known.ids is not ids:
            self.tie(known.ids, ids)

    def constant(self, position: int, axis: int, ids: Ids) -> None:
        """Say that an array among the arguments shrinks along an axis with these channels.

        Of a slice among the arguments, with axis 0: that it cuts a piece out of these channels.
        """
        self._record.constants.setdefault((id(self._node), position), {})[axis] = ids


def entries(shape: Sequence[int | None]) -> int:
    """Return the entries of a shape without its batch; an unknown size counts as 1."""
    return math.prod(size or 1 for size in shape[1:])
