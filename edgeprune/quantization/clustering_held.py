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
      drifting: remember where each member would be by itself, for `change`.
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
        fused = [alone and state.channels.size >= _XLA_MIN_SIZE for state in self._state]
        self._share = [_compiled(_share, one) for one in fused]
        self._choose = [_compiled(_choose, one) for one in fused]
        self._change = [_compiled(_change, one) for one in fused]
        self._changed = tf.function(self._change_all)
        self._seen = tf.function(self._new_zeros)

    def weights(self) -> list[NDArray[Any]]:
        """Copy the kernels to the host."""
        return [kernel.variable.numpy() for kernel in self.kernels]

    def members(self, index: int) -> Channels:
        """Return a kernel's weights that are not zero, by channel."""
        state, weights = self._state[index], self.kernels[index].variable.numpy().ravel()
        member = weights != 0
        return Channels(weights[member], state.channels[member], state.number)

    def set(self, index: int, found: Clusters) -> None:
        """Put a kernel's weights that are not zero into clusters, and give them their centroids.

        Args:
          index: of the kernel.
          found: of `members(index)`.
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
            state.drift.assign(weights - clustered)
        self._on.assign(True)
        self.on = True

    def is_shared(self, index: int) -> bool:
        """Tell whether all members of each of a kernel's clusters have one value, and zeros are."""
        state, weights = self._state[index], self.kernels[index].variable.numpy().ravel()
        indices = state.indices.numpy().ravel()
        places = state.first + indices
        values = np.zeros(state.counts.shape[0], weights.dtype)
        values[places] = weights  # of one member of each cluster
        return bool(np.array_equal(np.where(indices > 0, values[places], 0), weights))

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

    def change(self) -> None:
        """Let weights change to the nearest cluster, judged by where each would be by itself.

        From there no weight may be farther than half the mean distance between centroids: what
        many steps in one direction add up to would take as many to undo.
        """
        self._changed()

    def _change_all(self) -> None:
        across_replicas(self._strategy, self._change_on)

    def _change_on(self, strategy: Any) -> None:
        for kernel, state, choose, change in zip(
            self.kernels, self._state, self._choose, self._change, strict=True
        ):
            average = moving_average(self._optimizer, kernel.variable)
            tables = (state.offsets, state.counts, state.table, state.average)
            held = (average, state.indices, state.drift)
            update(strategy, native(kernel.variable), _change_by, choose, change, *tables, *held)

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


def channel_numbers(shape: tuple[int, ...], axes: tuple[int, ...]) -> NDArray[np.int32]:
    """Number the channels that some axes index, as an array that broadcasts to the shape."""
    inside = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return np.arange(np.prod(inside, dtype=int), dtype=np.int32).reshape(inside)


def _compiled(function: Any, fused: bool) -> Any:
    """Return a function of its own for each kernel, compiled by XLA; or the plain one.

    Around an object of its own, since TensorFlow warns of many traces of the same code.
    """
    return tf.function(functools.partial(function), jit_compile=True) if fused else function


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


def _change_by(
    variable: Any,
    choose: Any,
    change: Any,
    offsets: Any,
    counts: Any,
    table: Any,
    averages: Any,
    average: Any,
    indices: Any,
    drift: Any,
) -> None:
    channels = int(np.prod(offsets.shape))
    size = table.shape[0] // channels
    channel = offsets // size
    centroids = tf.reshape(table, (channels, size))[:, 1:]
    # In parts, for XLA would compute in each place anew what several have in common.
    chosen = choose(variable, indices, drift, channel, *_search(centroids))
    reach = tf.gather(_half_gap(centroids), channel)
    change(variable, chosen, offsets, counts, table, averages, average, indices, drift, reach)


def _choose(
    variable: Any, indices: Any, drift: Any, channel: Any, boundaries: Any, order: Any
) -> Any:
    """Return the new indices of all weights."""
    values = tf.cast(variable, drift.dtype) + drift
    member = (indices > 0) & (variable != 0)
    nearest = 1 + _nearest(values, channel, boundaries, order)
    return tf.cast(tf.where(member, nearest, 0), indices.dtype)


def _change(
    variable: Any,
    chosen: Any,
    offsets: Any,
    counts: Any,
    table: Any,
    averages: Any,
    average: Any,
    indices: Any,
    drift: Any,
    reach: Any,
) -> None:
    places = tf.cast(chosen, tf.int32) + offsets
    ones = tf.ones(chosen.shape, table.dtype)
    numbers = tf.math.unsorted_segment_sum(ones, places, table.shape[0])
    counts.assign(tf.where(tf.math.is_inf(counts), counts, tf.maximum(numbers, 1)))
    after = tf.gather(table, places)
    away = tf.cast(variable, table.dtype) + drift - after
    drift.assign(tf.where(chosen > 0, tf.clip_by_value(away, -reach, reach), 0))
    if average is not None:
        moved = tf.cast(average, table.dtype) - tf.gather(averages, places)
        averages.assign_add(tf.math.unsorted_segment_sum(moved, places, table.shape[0]) / counts)
        average.assign(tf.cast(tf.gather(averages, places), average.dtype))
    indices.assign(chosen)
    variable.assign(tf.cast(after, variable.dtype))


def _search(centroids: Any) -> tuple[Any, Any]:
    """Return for each channel its boundaries, ascending, and the order of its centroids.

    Boundaries are filled up to one less than a power of two, for a binary search.
    """
    count = centroids.shape[1]
    order = tf.argsort(centroids, axis=1)
    ordered = tf.gather(centroids, order, batch_dims=1)
    fill = (1 << (count - 1).bit_length()) - count
    infinite = tf.constant(np.inf, centroids.dtype)
    between = (ordered[:, 1:] + ordered[:, :-1]) / 2
    return tf.pad(between, [[0, 0], [0, fill]], constant_values=infinite), order


def _nearest(values: Any, channel: Any, boundaries: Any, order: Any) -> Any:
    """Return the index of the centroid of its channel that each value is nearest to."""
    number, flat = boundaries.shape[1], tf.reshape(boundaries, [-1])
    rank = tf.zeros(values.shape, tf.int32)
    for step in reversed(range(number.bit_length())):
        ahead = rank + (1 << step)
        rank = tf.where(values > tf.gather(flat, channel * number + ahead - 1), ahead, rank)
    return tf.gather(tf.reshape(order, [-1]), channel * order.shape[1] + rank)


def _half_gap(centroids: Any) -> Any:
    """Return, of each channel, half the mean distance from one centroid to the next."""
    finite = tf.math.is_finite(centroids)
    infinite = tf.constant(np.inf, centroids.dtype)
    largest = tf.reduce_max(tf.where(finite, centroids, -infinite), axis=1)
    smallest = tf.reduce_min(tf.where(finite, centroids, infinite), axis=1)
    gaps = tf.reduce_sum(tf.cast(finite, centroids.dtype), axis=1) - 1
    return tf.where(gaps > 0, (largest - smallest) / tf.maximum(gaps, 1) / 2, 0)
