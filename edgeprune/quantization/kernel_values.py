"""How few values kernels have: what there is of clusters, whoever made them."""

from dataclasses import dataclass

import numpy as np

from edgeprune import models
from edgeprune.quantization.clustering_held import channel_numbers

# An int8 channel has no more values than this, zero not among them; and of as few random floats
# hardly two are equal. So kernels that are not clustered have no more values there either.
_MOST_IN_INT8 = 254


@dataclass(frozen=True)
class KernelValues:
    """The distinct values of a kernel, zero not among them.

    Attributes:
      name: the kernel's.
      size: its weights.
      zeros: those that are zero.
      distinct: values in the whole kernel.
      distinct_in_channel: values in the output channel that has most of them. An int8 file has a
        scale for each channel, so this is the count that it keeps.
      nonzero_in_channel: weights that are not zero in the output channel that has most of them.
    """

    name: str
    size: int
    zeros: int
    distinct: int
    distinct_in_channel: int
    nonzero_in_channel: int

    @property
    def clustered(self) -> bool:
        """Whether weights share values, in the kernel or in channels, as they do not by chance."""
        return _few(self.distinct, self.size - self.zeros) or _few(
            self.distinct_in_channel, self.nonzero_in_channel
        )


def values_of(kernel: models.Kernel) -> KernelValues:
    """Count the values of a kernel."""
    weights = kernel.variable.numpy()
    numbers = channel_numbers(weights.shape, kernel.output_axes)
    channels = np.broadcast_to(numbers, weights.shape)[weights != 0]
    members = weights[weights != 0]
    order = np.lexsort((members, channels))
    ordered, within = members[order], channels[order]
    first = np.ones(members.size, np.bool_)
    first[1:] = (ordered[1:] != ordered[:-1]) | (within[1:] != within[:-1])
    return KernelValues(
        name=kernel.name,
        size=weights.size,
        zeros=weights.size - members.size,
        distinct=np.unique(ordered[first]).size,
        distinct_in_channel=int(np.bincount(within[first]).max(initial=0)),
        nonzero_in_channel=int(np.bincount(channels).max(initial=0)),
    )


def _few(values: int, weights: int) -> bool:
    return values < weights and values <= max(_MOST_IN_INT8, weights // 2)
