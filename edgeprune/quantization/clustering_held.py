"""Clusters on the device: members share one value, in the graph of the training step."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from edgeprune import models
from edgeprune.quantization.clustering_kmeans import Channels, Clusters
from edgeprune.steps.variables import across_replicas, moving_average, native, update

# From this size on, XLA's scatter, some ten times as fast, saves more than its launch costs.
_XLA_MIN_SIZE = 1 << 13


class HeldClusters:
    """For each kernel, a table of centroids, and for each weight the index of its own.

    Index 0 of a table is that of the zeros and always holds zero. A step adds to each centroid
    the mean of what its members moved by, and gives it to them all: so they have exactly one
    value, and centroids that do not move stay as they are to the bit, which a mean of many equal
    numbers would not.

    Args:
      kernels: the kernels to hold; until `set` they are left alone.
      clusters: of each kernel, or of each of its channels.
      per_channel: each output channel has centroids of its own.
      drifting: remember where each member would be by itself, for `drifted`.
      optimizer: its moving averages of these kernels, if it keeps any, share values likewise,
        since they replace the weights at the end of training.
      strategy: the model's `tf.distribute` strategy; all is mirrored as the kernel is.

    Attributes:
      kernels: as given.
      clusters: as given.
      on: whether there are clusters yet.
    """

    def __init__(
        self,
        kernels: Sequence[models.Kernel],
        clusters: Sequence[int],
        per_channel: bool,
        drifting: bool,
        optimizer: Any,
        strategy: Any,
    ) -> None:
        self.kernels = list(kernels)
        self.clusters = list(clusters)
        self.on = False
        self._optimizer = optimizer
        self._strategy = strategy
        with strategy.scope(), tf.init_scope():
            self._on = tf.Variable(False, trainable=False)
            self._state = [
                _State(kernel, count, per_channel, drifting)
                for kernel, count in zip(self.kernels, self.clusters, strict=True)
            ]
        alone = strategy.num_replicas_in_sync == 1
        # One function a kernel, each around an object of its own; see `HeldMasks`.
        self._share = [
            tf.function(functools.partial(_share), jit_compile=True)
            if alone and state.channels.size >= _XLA_MIN_SIZE
            else _share
            for state in self._state
        ]
        self._seen = tf.function(self._new_zeros)

    def sizes(self) -> list[int]:
        """Return how many weights share the centroids of a table: those of a channel or kernel."""
        return [state.channels.size // state.number for state in self._state]

    def weights(self) -> list[NDArray[Any]]:
        """Copy the kernels to the host."""
        return [kernel.variable.numpy() for kernel in self.kernels]

    def drifted(self) -> list[NDArray[Any]]:
        """Return where each weight would be, had it not shared what moved its cluster."""
        return [
            weights if state.drift is None else weights + state.drift.numpy()
            for weights, state in zip(self.weights(), self._state, strict=True)
        ]

    def members(self, index: int, values: NDArray[Any]) -> Channels:
        """Return, by channel, the values for a kernel's weights that are not zero."""
        state, member = self._state[index], self.kernels[index].variable.numpy().ravel() != 0
        return Channels(values.ravel()[member], state.channels[member], state.number)

    def centroids(self, index: int) -> NDArray[Any]:
        """Return a kernel's centroids, (channels, clusters); infinite where there is none."""
        state = self._state[index]
        table: NDArray[Any] = state.table.numpy()
        return table.reshape(state.number, -1)[:, 1:]

    def set(self, index: int, found: Clusters, values: NDArray[Any]) -> None:
        """Put a kernel's weights that are not zero into clusters, and give them their centroids.

        Args:
          index: of the kernel.
          found: of `members(index, values)`.
          values: where each weight would be by itself, of the kernel's shape.
        """
        kernel, state = self.kernels[index], self._state[index]
        weights = kernel.variable.numpy()
        member = weights.ravel() != 0
        indices = np.zeros(weights.size, state.indices.dtype.as_numpy_dtype)
        indices[member] = 1 + found.assigned
        places = state.first + indices
        state.indices.assign(indices.reshape(weights.shape))
        counts = np.column_stack([np.full(state.number, np.inf), np.maximum(found.counts, 1)])
        state.counts.assign(counts.ravel())
        table = np.column_stack([np.zeros(state.number), found.centroids]).ravel()
        state.table.assign(table)
        clustered = table[places].reshape(weights.shape).astype(weights.dtype)
        kernel.variable.assign(clustered)
        average = moving_average(self._optimizer, kernel.variable)
        if average is not None:
            means = np.bincount(places, average.numpy().ravel(), counts.size) / counts.ravel()
            state.average.assign(means)
            average.assign(means[places].reshape(weights.shape))
        if state.drift is not None:
            reach = np.broadcast_to(_reach(found.centroids)[state.channels], weights.size)
            drift = np.clip((values - clustered).ravel(), -reach, reach)
            state.drift.assign(np.where(member, drift, 0).reshape(weights.shape))
        self._on.assign(True)
        self.on = True

    def drop_zeros(self) -> None:
        """Take members that were set to zero since the last step out of their clusters."""
        if not self.on or not self._seen().numpy():
            return
        for kernel, state in zip(self.kernels, self._state, strict=True):
            indices = np.where(kernel.variable.numpy() == 0, 0, state.indices.numpy())
            places = state.first + indices.ravel()
            counts = np.bincount(places, minlength=state.counts.shape[0]).astype(float)
            counts = np.maximum(counts, 1).reshape(state.number, -1)
            counts[:, 0] = np.inf
            state.indices.assign(indices)
            state.counts.assign(counts.ravel())

    def _new_zeros(self) -> Any:
        """Tell whether a weight is zero that is not yet among the zeros."""
        found = [
            tf.reduce_any((native(kernel.variable) == 0) & (state.indices > 0))
            for kernel, state in zip(self.kernels, self._state, strict=True)
        ]
        return tf.reduce_any(tf.stack(found))

    def hold(self) -> None:
        """Let members share one value; may be traced into the graph of a training step."""
        across_replicas(self._strategy, self._hold)

    def _hold(self, strategy: Any) -> None:
        for kernel, state, share in zip(self.kernels, self._state, self._share, strict=True):
            held = (self._on, share, state.indices, state.offsets, state.counts)
            drift = () if state.drift is None else (state.drift,)
            update(strategy, native(kernel.variable), _share_if, *held, state.table, *drift)
            average = moving_average(self._optimizer, kernel.variable)
            if average is not None:
                update(strategy, average, _share_if, *held, state.average)


class _State:
    """What is held of one kernel; the variables lie beside it, on its devices.

    Attributes:
      channels: (size,) the channel of each weight, in flat order.
      number: of channels.
      first: (size,) where the table of each weight's channel begins.
      offsets: the same, to broadcast to the kernel.
      indices: of the kernel's shape, into the table of a channel.
      counts: (number * (clusters + 1),) members; infinitely many zeros, so nothing moves them.
      table: likewise, centroids.
      average: likewise, of the optimizer's moving average.
      drift: of the kernel's shape, what a member is away from where it would be; or None.
    """

    def __init__(
        self, kernel: models.Kernel, clusters: int, per_channel: bool, drifting: bool
    ) -> None:
        shape = tuple(kernel.variable.shape)
        numbers = channel_numbers(shape, kernel.output_axes if per_channel else ())
        self.channels = np.broadcast_to(numbers, shape).ravel()
        self.number = int(numbers.max()) + 1
        self.first = self.channels * (clusters + 1)
        self.offsets = tf.constant(numbers * (clusters + 1), tf.int32)
        # 32-bit integers would be kept away from a GPU; and these take less to read.
        small = tf.uint8 if clusters < 1 << 8 else tf.uint16 if clusters < 1 << 16 else tf.int64
        real = tf.float64 if "float64" in str(kernel.variable.dtype) else tf.float32
        size = self.number * (clusters + 1)
        self.indices = tf.Variable(tf.zeros(shape, small), trainable=False)
        self.counts = tf.Variable(tf.ones(size, real), trainable=False)
        self.table = tf.Variable(tf.zeros(size, real), trainable=False)
        self.average = tf.Variable(tf.zeros(size, real), trainable=False)
        self.drift = tf.Variable(tf.zeros(shape, real), trainable=False) if drifting else None


def _reach(centroids: NDArray[Any]) -> NDArray[Any]:
    """Return, of each channel, half the mean distance from one centroid to the next."""
    finite = np.isfinite(centroids)
    largest = np.where(finite, centroids, -np.inf).max(axis=1)
    smallest = np.where(finite, centroids, np.inf).min(axis=1)
    gaps = finite.sum(axis=1) - 1
    return np.where(gaps > 0, (largest - smallest) / np.maximum(gaps, 1) / 2, 0)


def channel_numbers(shape: tuple[int, ...], axes: tuple[int, ...]) -> NDArray[np.int32]:
    """Number the channels that some axes index, as an array that broadcasts to the shape."""
    inside = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return np.arange(np.prod(inside, dtype=int), dtype=np.int32).reshape(inside)


def _share_if(variable: Any, on: Any, share: Any, *state: Any) -> None:
    def act() -> bool:
        share(variable, *state)
        return True

    tf.cond(on, act, lambda: True)


def _share(
    variable: Any, indices: Any, offsets: Any, counts: Any, table: Any, drift: Any = None
) -> None:
    places = tf.cast(indices, tf.int32) + offsets
    before = tf.gather(table, places)
    moved = tf.cast(variable, table.dtype) - before
    table.assign_add(tf.math.unsorted_segment_sum(moved, places, table.shape[0]) / counts)
    after = tf.gather(table, places)
    if drift is not None:
        drift.assign_add(moved + before - after)
    variable.assign(tf.cast(after, variable.dtype))
