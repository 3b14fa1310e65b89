"""Decide which channels leave a graph, and what their leaving adds to the biases.

A channel leaves if every operator that mixes it with others either has only zero weights for it,
or reads it as a constant whose contribution its bias can take over. Where a convolution pads,
only the zero point is the same constant everywhere. Channels that left no longer count as
readers, so this repeats until nothing more leaves. The values of the channels that stay never
change, so their ranges need not be computed again.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.export.cleanup.channels import Channels, Reading
from edgeprune.export.cleanup.ranges import scale_of
from edgeprune.export.graph import Subgraph

Array = npt.NDArray[Any]

_BIAS_LIMITS = {"int32": 2**31 - 1, "int64": 2**47 - 1}  # int16 kernels take 48 bits of theirs


@dataclass(frozen=True, eq=False)
class Removal:
    """What leaves.

    Attributes:
      live: tensor index -> bool for each index of its last axis, of the tensors that lose some.
      readings: the weighted operators, with `live` of their rows and columns in `masks`.
      masks: for each of `readings`: bool of its rows and of its columns.
      biases: position of an operator -> what is added to its biases, for all its rows.
      refused: for each of `readings`: reason -> how many constant channels stay for it.
    """

    live: dict[int, Array]
    readings: list[Reading]
    masks: list[tuple[Array, Array]]
    biases: dict[int, Array]
    refused: list[Counter[str]] = field(default_factory=list)


def find_removal(channels: Channels) -> Removal:
    """Find every channel of a followed graph that can leave."""
    return _Search(channels).run()


class _Search:
    def __init__(self, channels: Channels) -> None:
        self.graph: Subgraph = channels.graph
        self.tensors, self.readings, self.stays = channels.settled()
        count = 1 + max((int(ids.max(initial=-1)) for ids in self.tensors.values()), default=-1)
        self.dead = np.zeros(count, bool)
        self.fixed = np.zeros(count, bool)
        self.fixed[list(self.stays)] = True
        self.fewest = {read.layer.output: read.layer.fewest for read in self.readings}
        self.biases: dict[int, Array] = {}
        self.mixing = [read for read in self.readings if read.layer.mixing]

    def run(self) -> Removal:
        """Repeat until nothing more leaves."""
        while True:
            candidates = self._unnoticed()
            while self._leave_some(candidates) or self._overflows(candidates):
                pass
            if not candidates.any():
                break
            for read in self.mixing:
                position = read.layer.position
                added = self._folded(read, candidates)
                if added.any():
                    self.biases[position] = self.biases.get(position, 0.0) + added
            self.dead[candidates] = True
        live = {index: ~self.dead[ids] for index, ids in self.tensors.items()}
        return Removal(
            live={index: mask for index, mask in live.items() if not mask.all()},
            readings=self.readings,
            masks=[(~self.dead[read.rows], ~self.dead[read.columns]) for read in self.readings],
            biases=self.biases,
            refused=[self._refused(read) for read in self.readings],
        )

    def _unnoticed(self) -> Array:
        """Mark the channels that no mixing operator would miss."""
        noticed: Array = self.fixed.copy()
        noticed[self.dead] = True
        for read in self.mixing:
            missed = self._read(read) & ~self._foldable(read)
            noticed[read.columns[missed]] = True
        unnoticed: Array = ~noticed
        return unnoticed

    def _read(self, read: Reading) -> Array:
        """Mark the columns that meet a weight in a row that stays."""
        weights = read.layer.positive - read.layer.negative
        used: Array = np.count_nonzero(weights[~self.dead[read.rows]], axis=0) > 0
        return used

    def _foldable(self, read: Reading) -> Array:
        layer = read.layer
        constant: Array = read.given.constant
        if layer.padded or layer.hybrid:
            harmless: Array = constant & (self._centred(read) == 0)
            return harmless
        return constant

    def _centred(self, read: Reading) -> Array:
        """Return the columns' least values, less the zero point."""
        scale = scale_of(self.graph.tensors[read.layer.source])
        return read.given.low - (0 if scale is None else scale[1])

    def _folded(self, read: Reading, candidates: Array) -> Array:
        """Return what the columns of candidates contribute to each row; zeros for dead rows."""
        layer = read.layer
        columns = candidates[read.columns] & read.given.constant
        rows = ~(self.dead | candidates)[read.rows]
        weights = (layer.positive + layer.negative)[:, columns]
        added: Array = weights @ self._centred(read)[columns]
        return np.where(rows, added, 0.0)

    def _leave_some(self, candidates: Array) -> bool:
        """Withdraw candidates from tensors that would lose too many; tell whether any was."""
        withdrawn = False
        for index, ids in self.tensors.items():
            here = np.unique(ids[~self.dead[ids]])
            leaving = here[candidates[here]]
            missing = self.fewest.get(index, 1) - (len(here) - len(leaving))
            if missing > 0 and len(leaving):
                self._keep(leaving[:missing], candidates, "the last of its layer")
                withdrawn = True
        return withdrawn

    def _overflows(self, candidates: Array) -> bool:
        """Withdraw candidates that a bias has no room for; tell whether any was."""
        withdrawn = False
        for read in self.mixing:
            layer = read.layer
            added = self._folded(read, candidates)
            if not added.any() or self.graph.tensors[layer.source].dtype == "float32":
                continue
            limit = _BIAS_LIMITS[layer.bias.dtype if layer.bias is not None else "int32"]
            total = layer.biases + self.biases.get(layer.position, 0.0) + added
            if np.abs(total).max() <= limit:
                continue
            columns = candidates[read.columns] & (self._centred(read) != 0) & self._read(read)
            self._keep(read.columns[columns], candidates, f"the bias of '{layer.name}' has no room")
            withdrawn = True
        return withdrawn

    def _keep(self, channels: Array, candidates: Array, reason: str) -> None:
        candidates[channels] = False
        self.fixed[channels] = True
        for channel in channels.tolist():
            self.stays.setdefault(channel, reason)

    def _refused(self, read: Reading) -> Counter[str]:
        """Say why constant channels that a layer makes stay."""
        staying = np.flatnonzero(read.made.constant & ~self.dead[read.rows])
        return Counter(self._reason(int(channel)) for channel in read.rows[staying])

    def _reason(self, channel: int) -> str:
        if channel in self.stays:
            return self.stays[channel]
        for read in self.mixing:
            columns = (read.columns == channel) & self._read(read)
            if (columns & read.given.constant & ~self._foldable(read)).any():
                why = "quantizes it anew" if read.layer.hybrid else "pads it with another value"
                return f"'{read.layer.name}' {why}"
            if (columns & ~read.given.constant).any():
                return f"what '{read.layer.name}' reads of it varies"
        return "nothing is known against it"
