"""What is left of a model without some channels: parameters exactly, MACs nearly."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from edgeprune.models import layers
from edgeprune.structure.channels import Ids
from edgeprune.structure.graph import ChannelGraph
from edgeprune.structure.selection import Removed


class Remaining:
    """Counts what is left of a model, without making the smaller one.

    A layer's multiply-accumulates are taken to shrink with its kernels: so they do where every
    weight is used at the same places before and after. Products that a layer makes between those
    of the kernels that it holds, as attention does, shrink with the channels that go from one of
    these to another.

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
        self._kernels: dict[int | str, list[int]] = {}
        between: dict[int | str, dict[str, list[Ids]]] = {}
        for weight, part in enumerate(parts.values()):
            found = [role for _, role in part.axes.values()]
            if len(part.variable.shape) < 2 or not {"in", "out"} & {*found}:
                continue
            holders = _counted(owners.get(id(part.variable), part.layer), macs)
            self._kernels.setdefault(next(holders, ""), []).append(weight)
            for path in holders:
                for ids, role in part.axes.values():
                    if ids is not None:
                        roles = between.setdefault(path, {"in": [], "out": []})
                        roles.setdefault(role, []).append(graph.roots[ids])
        self._kernels.pop("", None)
        self._between = {
            path: np.intersect1d(np.concatenate(roles["in"]), np.concatenate(roles["out"]))
            for path, roles in between.items()
            if path not in self._kernels and roles["in"] and roles["out"]
        }
        self._by_kernels = np.array([macs[path] for path in self._kernels], float)
        self._by_channels = np.array([macs[path] for path in self._between], float)
        self._constant = sum(macs.values()) - self._by_kernels.sum() - self._by_channels.sum()

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
        left, kept = self._left(removed), self._graph.kept(removed)
        by_kernels = [left[own].sum() / self._weights[own].sum() for own in self._kernels.values()]
        by_channels = [kept[own].mean() if len(own) else 1 for own in self._between.values()]
        return round(
            float(
                self._constant
                + self._by_kernels @ np.array(by_kernels, float)
                + self._by_channels @ np.array(by_channels, float)
            )
        )


def _counted(path: str, macs: Mapping[int | str, int]) -> Iterator[str]:
    """Yield a layer's path and those of its holders, innermost first, that have products."""
    while path:
        if path in macs:
            yield path
        path = path.rpartition("/")[0]
