"""What is left of a model without some channels: parameters exactly, MACs nearly."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgeprune.models import layers
from edgeprune.structure.graph import ChannelGraph
from edgeprune.structure.selection import Removed


class Remaining:
    """Counts what is left of a model, without making the smaller one.

    A layer's multiply-accumulates are taken to shrink with its kernels: so they do where every
    weight is used at the same places before and after. Of a layer without kernels, such as the
    products within attention, they shrink with the kernels inside it.

    Args:
      graph: of the model.
      macs: of each layer of the model, by its path; see `edgeprune.keras_macs`.
    """

    def __init__(self, graph: ChannelGraph, macs: Mapping[int | str, int]) -> None:
        self._graph = graph
        parts = graph.record.parts
        shrinking = [
            (weight, axis, ids)
            for weight, variable in enumerate(parts.values())
            for axis, (ids, _) in variable.axes.items()
            if ids is not None
        ]
        self._ids = np.concatenate([ids for *_, ids in shrinking] or [np.empty(0, np.int64)])
        lengths = [len(ids) for *_, ids in shrinking]
        self._starts = np.cumsum([0, *lengths])[:-1]
        self._lengths = np.array(lengths, float)
        self._weight_of = np.array([weight for weight, *_ in shrinking], int)
        self._weights = np.array([math.prod(part.variable.shape) for part in parts.values()], float)
        self._fixed = graph.model.count_params() - self._weights.sum()
        owners = {
            id(variable): path
            for path, layer in layers(graph.model)  # an inner layer comes after its outer one
            for variable in layer.weights
        }
        self._kernels = self._kernels_of(macs, owners)
        self._macs = np.array([macs[path] for path in self._kernels], float)
        self._other_macs = sum(macs.values()) - self._macs.sum()

    def _kernels_of(
        self, macs: Mapping[int | str, int], owners: Mapping[int, str]
    ) -> dict[int | str, list[int]]:
        """Return for each counted layer which weights its products grow with."""
        found: dict[int | str, list[int]] = {}
        for weight, part in enumerate(self._graph.record.parts.values()):
            roles = {role for _, role in part.axes.values()}
            if len(part.variable.shape) < 2 or roles.isdisjoint(("in", "out")):
                continue
            path = owners.get(id(part.variable), part.layer)
            while path:
                if path in macs:
                    found.setdefault(path, []).append(weight)
                path = path.rpartition("/")[0]
        return found

    def _left(self, removed: Removed) -> npt.NDArray[np.float64]:
        """Return the entries left of every weight that shrinks."""
        left = self._weights.copy()
        if len(self._starts):
            kept = self._graph.kept(removed)[self._ids]
            counts = np.add.reduceat(kept, self._starts, dtype=float)
            np.multiply.at(left, self._weight_of, counts / self._lengths)
        return left

    def parameters(self, removed: Removed) -> int:
        """Return the parameters left."""
        return round(float(self._fixed + self._left(removed).sum()))

    def macs(self, removed: Removed) -> int:
        """Return about how many multiply-accumulates are left."""
        left = self._left(removed)
        shares = [left[own].sum() / self._weights[own].sum() for own in self._kernels.values()]
        return round(float(self._other_macs + self._macs @ np.array(shares)))
