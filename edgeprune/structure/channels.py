"""Numbered channels, and which of them must leave together: a union-find over arrays.

Every channel that some layer makes gets a number. An axis of a tensor is described by the numbers
of the channels along it (an array as long as the axis), or by None where it cannot shrink.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Axes = tuple[Ids | None, ...]
"""One entry an axis of a tensor, the batch's included."""


class Channels:
    """All channels of one model."""

    def __init__(self) -> None:
        self._parent: Ids = np.arange(1024)
        self.made: list[tuple[int, int, str, str]] = []
        """(first, last + 1, name of the layer, kind) of every axis that a layer makes."""
        self.frozen: list[tuple[Ids, str]] = []
        """(channels that must stay, why)."""

    @property
    def count(self) -> int:
        """How many channels there are."""
        return self.made[-1][1] if self.made else 0

    def new(self, size: int, layer: str, kind: str) -> Ids:
        """Number `size` channels that `layer` makes."""
        start, stop = self.count, self.count + size
        if stop > len(self._parent):
            grown = np.arange(max(2 * len(self._parent), stop))
            grown[: len(self._parent)] = self._parent
            self._parent = grown
        self.made.append((start, stop, layer, kind))
        return np.arange(start, stop)

    def freeze(self, ids: Ids, reason: str) -> None:
        """Let these channels, and all that are tied to them, stay."""
        self.frozen.append((ids, reason))

    def roots(self, ids: Ids) -> Ids:
        """Return the channel that stands for each channel: the lowest that is tied to it."""
        found = self._parent[ids]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[ids] = found
        return found

    def tie(self, a: Ids, b: Ids) -> None:
        """Let `a[i]` and `b[i]` leave together or not at all."""
        while True:
            a, b = self.roots(a), self.roots(b)
            differ = a != b
            if not differ.any():
                return
            low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
            # Where one channel meets several at once, the last wins and the next pass ties it on.
            self._parent[high] = low


def connected(count: int, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Ids:
    """Number the connected parts of a graph with `count` nodes and the edges (a[i], b[i])."""
    parts = Channels()
    nodes = parts.new(count, "", "")
    parts.tie(a, b)
    return parts.roots(nodes)
