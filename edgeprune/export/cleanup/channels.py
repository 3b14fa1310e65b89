"""Follow every channel of a graph from the operator that makes it to those that read it.

A channel is an index of a tensor's last axis. Through most operators it goes on as itself
(pooling, padding, a depthwise convolution: one channel in, the same channel out), so what the
tensors share is the channel's identity, a number. Take

    CONV_2D a -> 3 channels: 0 1 2        RESHAPE to (1, 4 * 3): 0 1 2 0 1 2 0 1 2 0 1 2
    CONV_2D b -> 3 channels: 3 4 5        ADD a, b: 0 1 2, and from now on 3 is 0, 4 is 1, 5 is 2

To remove channel 1 is to remove index 1 of a, index 1 of b and of their sum, and four columns of
the matrix that reads the flattened sum. It may be done if no operator that *mixes* channels,
wherever it reads channel 1, would notice; what is in between does not matter.

An operator that is not known *freezes* what it reads and makes: these channels stay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.export.cleanup.ranges import Range, anything, of_constant
from edgeprune.export.cleanup.weighted import FrozenError, Weighted
from edgeprune.export.graph import Operator, Subgraph
from edgeprune.export.sparse_inference import layer_name

Array = npt.NDArray[Any]
Rule = Callable[["Channels", Operator, int], None]


@dataclass(frozen=True, eq=False)
class Reading:
    """A weighted operator with the channels on both sides.

    Attributes:
      layer: the operator.
      rows: channels that it makes, one for each output index.
      columns: channels that it reads, one for each column of its weights.
      given: range of the values in each column.
      made: range of the values in each row, after the activation.
    """

    layer: Weighted
    rows: Array
    columns: Array
    given: Range
    made: Range


class Channels:
    """Which channels a graph's tensors hold, what values they take, and which must stay."""

    def __init__(self, graph: Subgraph) -> None:
        self.graph = graph
        self.tensors: dict[int, Array] = {}
        self.ranges: dict[int, Range] = {}
        self.readings: list[Reading] = []
        self._parents: list[int] = []
        self._frozen: list[tuple[Array, str]] = []

    def follow(self, rules: dict[str, Rule]) -> None:
        """Walk the operators in their order."""
        tensors = self.graph.tensors
        for position, operator in enumerate(self.graph.operators):
            for index in operator.inputs:
                if index >= 0 and tensors[index].data is None and index not in self.tensors:
                    reason = "input" if index in self.graph.inputs else "variable or absent tensor"
                    self.freeze_tensor(index, f"{reason} of the model")
            try:
                if operator.name not in rules or operator.custom:
                    raise FrozenError(f"{operator.name} is not followed")
                rules[operator.name](self, operator, position)
            except FrozenError as reason:
                name = layer_name(self.graph, operator)
                for index in (*operator.inputs, *operator.outputs):
                    if index >= 0 and tensors[index].data is None:
                        self.freeze_tensor(index, f"{reason} ('{name}')")
        for index in self.graph.outputs:
            if index >= 0:
                self.freeze_tensor(index, "output of the model")

    def freeze_tensor(self, index: int, reason: str) -> None:
        """Keep all channels of a tensor, known or not yet."""
        tensor = self.graph.tensors[index]
        if index not in self.tensors:
            self.tensors[index] = self.new(tensor.shape[-1] if tensor.shape else 1)
            self.ranges[index] = anything(tensor)
        self._frozen.append((self.tensors[index], reason))

    def new(self, count: int) -> Array:
        """Make channels that nothing shares yet."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def tie(self, some: Array, others: Array) -> None:
        """Make channels one, pair by pair."""
        for one, other in zip(some.tolist(), others.tolist(), strict=True):
            self._parents[self._root(one)] = self._root(other)

    def _root(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def put(self, index: int, channels: Array, given: Range) -> None:
        """Say what an operator's output holds.

        Raises:
          FrozenError: its last axis is of another or an unknown size.
        """
        tensor = self.graph.tensors[index]
        if index in self.tensors:
            raise FrozenError("a tensor written twice")
        if not tensor.shape or tensor.shape[-1] != len(channels):
            raise FrozenError("shapes that do not fit")
        if tensor.signature and tensor.signature[-1] < 0:
            raise FrozenError("a free last dimension")
        self.tensors[index] = channels
        self.ranges[index] = given

    def range(self, index: int) -> Range:
        """Return what values a tensor takes, constant or computed."""
        tensor = self.graph.tensors[index]
        return self.ranges[index] if tensor.data is None else of_constant(tensor)

    def settled(self) -> tuple[dict[int, Array], list[Reading], dict[int, str]]:
        """Return tensors and readings with tied channels as one number, and why some are frozen."""
        roots = np.array([self._root(channel) for channel in range(len(self._parents))], np.int64)
        reasons: dict[int, str] = {}
        for channels, reason in self._frozen:
            for root in np.unique(roots[channels]).tolist():
                reasons.setdefault(root, reason)
        readings = [
            Reading(read.layer, roots[read.rows], roots[read.columns], read.given, read.made)
            for read in self.readings
        ]
        return {index: roots[ids] for index, ids in self.tensors.items()}, readings, reasons
