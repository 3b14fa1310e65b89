"""What can be done to one kernel alone: put on a coarser grid, pruned or clustered."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeprune.errors import InputError
from edgeprune.models import Kernel
from edgeprune.sparsity.patterns import Unstructured
from edgeprune.sparsity.schedules import check_sparsity

Array = npt.NDArray[Any]
_GRIDS = {8: 127, 4: 7}


@dataclass(frozen=True)
class Change:
    """One way to change a kernel.

    Attributes:
      kind: ``quantized`` to integers of `amount` bits, on the symmetric grid of each output
        channel; ``pruned`` to the sparsity `amount`; ``clustered`` to `amount` values besides 0.
      amount: as above.
    """

    kind: Literal["quantized", "pruned", "clustered"]
    amount: float

    def __post_init__(self) -> None:
        if self.kind == "pruned":
            check_sparsity("sparsity", self.amount)
        elif self.kind == "quantized" and self.amount not in _GRIDS:
            raise InputError(f"weights are put on grids of 8 or 4 bits, got {self.amount:g}")
        elif self.kind == "clustered" and (self.amount < 2 or self.amount != int(self.amount)):
            raise InputError(f"clusters is a whole number from 2, got {self.amount:g}")

    @property
    def name(self) -> str:
        """Short, for tables: ``int8``, ``0.8 zeros``, ``16 values``."""
        if self.kind == "quantized":
            return f"int{self.amount:g}"
        return f"{self.amount:g} {'zeros' if self.kind == 'pruned' else 'values'}"

    def apply(self, kernel: Kernel, weights: Array) -> Array:
        """Return a kernel's changed weights, float32; zeros stay zeros."""
        values = weights.astype(np.float32)
        if self.kind == "pruned":
            kept = Unstructured().mask(np.abs(values), self.amount)
            return np.where(kept, values, np.float32(0))
        if self.kind == "quantized":
            from edgeprune.quantization.grid import to_grid

            return np.asarray(to_grid(values, kernel.output_axes, _GRIDS[int(self.amount)]))
        return _clustered(values, int(self.amount))


def _clustered(values: Array, clusters: int) -> Array:
    """Give all weights but zeros the mean of their cluster, optimal over the whole kernel."""
    from edgeprune.quantization.clustering_kmeans import Channels, cluster

    nonzero = values != 0
    found = cluster(
        Channels(values[nonzero], np.zeros(np.count_nonzero(nonzero), np.int64), 1),
        clusters,
        "optimal",
    )
    changed = values.copy()
    changed[nonzero] = found.centroids[0][found.assigned]
    return changed


CHANGES = (
    Change("quantized", 8),
    Change("quantized", 4),
    Change("pruned", 0.5),
    Change("pruned", 0.8),
    Change("pruned", 0.9),
    Change("pruned", 0.95),
    Change("clustered", 32),
    Change("clustered", 16),
)
"""What `measure_sensitivity` measures unless told otherwise."""
