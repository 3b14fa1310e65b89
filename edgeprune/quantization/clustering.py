"""The callback that shares weights: members of a cluster train as one value."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from edgeprune import models
from edgeprune.errors import InputError, listed
from edgeprune.quantization.clustering_checks import (
    check_finite,
    check_not_kept,
    check_unwrapped,
    not_finite,
    tell_if_diverged,
)
from edgeprune.quantization.clustering_held import HeldClusters
from edgeprune.quantization.clustering_kmeans import Initial, cluster
from edgeprune.steps.callback import HoldingCallback
from edgeprune.steps.scope import Scope, Selector, several
from edgeprune.steps.window import check_window, last_due, resolve_step


@dataclass(frozen=True)
class KernelClusters:
    """How few values a kernel has, and was to have.

    Attributes:
      name: the kernel's.
      size: its weights.
      zeros: those that are zero, which no cluster has.
      clusters: asked for, in the kernel or in each output channel.
      distinct: values that are not zero, counted in the kernel itself; the most in any channel.
        Fewer than `clusters` where there were no more to begin with, or clusters ran empty.
    """

    name: str
    size: int
    zeros: int
    clusters: int
    distinct: int


class WeightClustering(HoldingCallback[HeldClusters]):
    """Lets the weights of a kernel share few values during `fit`, and trains those values.

    K-means puts the weights that are not zero into clusters; from then on, after each step of the
    optimizer, the members of a cluster take their mean, inside the training step. Zeros stay
    zeros, and do not count: a pruned kernel ends with `clusters` values and zero.

    Works with Keras 3 (on TensorFlow) and tf_keras, any optimizer and data, without wrapping or
    changing the model: what is saved at any moment loads without edgeprune. In `fit` the model
    need not be built. A model that has few values already keeps those that it has, so a fit goes
    on from a saved model or a checkpoint (`BackupAndRestore`) with the clusters it had.

    In `fit`, here after pruning::

        clustering = WeightClustering(clusters=16)
        model.fit(data, epochs=3, callbacks=[PreserveSparsity(), clustering])

    In a custom loop::

        clustering.start(model, optimizer, total_steps=len(data) * epochs)
        for batch in data.repeat(epochs):
            train_step(batch)
            clustering.step()  # after that of pruning, if there is one
        clustering.finish()

    With 4 clusters a small classifier lost 0.004 of its accuracy, mean of four optimizers and rates
    and two seeds, 0.023 when its weights stayed in their first clusters, and 0.015 when there, as
    in the paper, the optimizer took the sum of the members' gradients
    (tools/bench/clustering_quality.py).

    Batch normalization that conversion folds into a convolution scales each of its channels: the
    .tflite file then has that many values a channel, not in all. `PreserveClusters` keeps the
    clusters in training after this one, as on the int8 grid.

    Args:
      clusters: values other than zero, 2 or more, in each kernel, or in each output channel.
      per_channel: cluster each output channel by itself.
      initial: where k-means begins: at the ``optimal`` centroids (of more than 2048 weights a
        cluster, nearly), at centroids spread ``linear`` between the extremes, by ``density``, or
        drawn at ``random``.
      seed: of the draw.
      begin_step: when to cluster: an int is a step of the optimizer, a float in [0, 1] a fraction
        of the fit's steps. Left out: before the first.
      frequency: steps between two times at which weights change to the nearest cluster, judged by
        where each would be if it had trained by itself. Where it is much more than 5, too many
        change at once to train well. What they drifted is forgotten when a fit is killed or ends.
        None: weights stay in their first clusters.
      end_step: weights do not change their clusters after it. Left out: 0.75.
      skip: what not to cluster: names (of a kernel, layer or path such as ``encoder/conv1``, with
        ``*`` and ``?``), layer class names, or layer classes. Nested layers are included.
      only: likewise, all that is clustered. `skip` wins.
      layers: numbers of their own: {name, class name or class: clusters}; the first match counts.
      include_embeddings: also cluster Embedding tables.
      include_depthwise: also cluster depthwise kernels.

    Attributes:
      report: after training, a `KernelClusters` for each kernel in scope.

    Raises:
      InputError: an argument is out of range or matches nothing; and before the first step, where
        a kernel (or channel) has fewer weights than clusters, a weight is not finite, or the
        clustering would never begin.

    Source: Han 2016, arXiv:1510.00149, section 3.
    """

    order = 1  # after callbacks that make zeros

    def __init__(
        self,
        clusters: int = 16,
        *,
        per_channel: bool = False,
        initial: Initial = "optimal",
        seed: int = 0,
        begin_step: int | float | None = None,
        frequency: int | None = 2,
        end_step: int | float | None = None,
        skip: Selector | Sequence[Selector] = (),
        only: Selector | Sequence[Selector] = (),
        layers: Mapping[Selector, int] | None = None,
        include_embeddings: bool = False,
        include_depthwise: bool = False,
    ) -> None:
        super().__init__()
        if initial not in get_args(Initial):
            raise InputError(
                f"initial is {', '.join(map(repr, get_args(Initial)))}; got {initial!r}"
            )
        if end_step is not None and frequency is None:
            raise InputError(
                f"end_step={end_step} says until when weights change their clusters, but with "
                "frequency=None they never do; leave one of them out"
            )
        check_window(begin_step, end_step, frequency)
        targets = tuple((layers or {}).items())
        _check_clusters("clusters", clusters)
        for selector, own in targets:
            _check_clusters(f"layers[{selector!r}]", own)
        self.clusters = clusters
        self.per_channel = per_channel
        self.initial: Initial = initial
        self.seed = seed
        self.begin_step = begin_step
        self.frequency = frequency
        self.end_step = end_step
        self.report: tuple[KernelClusters, ...] = ()
        self._scope = Scope(
            verb="cluster",
            skip=several(skip),
            only=several(only),
            layers=targets,
            include_embeddings=include_embeddings,
            include_depthwise=include_depthwise,
        )
        self._first_step = 0
        self._last_step = 0

    def check(self, model: Any) -> None:
        """Refuse, before any training, a model whose weights cannot be clustered so.

        Args:
          model: built; it is not changed.

        Raises:
          InputError: as of the fit itself.
        """
        self._select(model)

    def step(self) -> None:
        """Let members share one value after an update of the optimizer; not in a tf.function.

        Raises:
          InputError: `start` was not called, or this was called inside a tf.function.
        """
        self._step_alone()

    def _begin(self, model: Any, done_steps: int, total_steps: int | None) -> HeldClusters:
        kernels, clusters = self._select(model)
        fit_step = max(0, self._step - done_steps)
        self._first_step = (
            fit_step
            if self.begin_step is None
            else resolve_step(self.begin_step, fit_step, total_steps)
        )
        if self.end_step is None and total_steps is None:
            self._last_step = -1
        else:
            end_step = 0.75 if self.end_step is None else self.end_step
            self._last_step = resolve_step(end_step, fit_step, total_steps)
        if total_steps is not None and self._first_step >= fit_step + total_steps:
            raise InputError(
                f"the clustering never begins: this fit ends at step {fit_step + total_steps}, "
                f"and begin_step {self.begin_step} comes to step {self._first_step}; train "
                "longer, begin earlier, or leave begin_step out"
            )
        held = HeldClusters(
            kernels,
            clusters,
            self.per_channel,
            self.frequency is not None,
            self._optimizer,
            model.distribute_strategy,
        )
        if self._step >= self._first_step:
            self._cluster(held)
        return held

    def _resume(self, held: HeldClusters) -> None:
        held.drop_zeros()

    def _advance(self, held: HeldClusters, previous_step: int, step: int) -> None:
        if not held.on:
            if step >= self._first_step:
                check_finite(held.kernels)
                self._cluster(held)
        elif self.frequency is not None:
            due = last_due(step, self._first_step, self._last_step, self.frequency)
            if due is not None and due > previous_step:
                held.change()

    def _mend(self, held: HeldClusters) -> None:
        if not held.on or not_finite(held.kernels):
            return
        most = [held.members(index).distinct() for index in range(len(held.kernels))]
        # As they are, weights of another time or moving averages may have other values, as few.
        many = [index for index, number in enumerate(most) if number > held.clusters[index]]
        if not many:
            return
        for index in many:
            self._cluster_kernel(held, index)
        worst = max(many, key=lambda index: most[index])
        warnings.warn(
            "weights set at the end of training, as EarlyStopping(restore_best_weights=True) "
            f"does, had up to {most[worst]} values ({held.kernels[worst].name}), not "
            f"{held.clusters[worst]}; they were clustered, which no metric has seen: evaluate the "
            "model again",
            stacklevel=2,
        )

    def _end(self, held: HeldClusters) -> None:
        if not held.on:
            warnings.warn(
                f"training ended at step {self._step}, before step {self._first_step}, at which "
                "the clustering was to begin: nothing was clustered",
                stacklevel=2,
            )
        if tell_if_diverged(held.kernels):
            return
        self.report = tuple(
            KernelClusters(
                name=held.kernels[index].name,
                size=weights.size,
                zeros=int(np.count_nonzero(weights == 0)),
                clusters=held.clusters[index],
                distinct=held.members(index).distinct(),
            )
            for index, weights in enumerate(held.weights())
        )

    def _cluster(self, held: HeldClusters) -> None:
        for index in range(len(held.kernels)):
            self._cluster_kernel(held, index)

    def _cluster_kernel(self, held: HeldClusters, index: int) -> None:
        members = held.members(index)
        held.set(index, cluster(members, held.clusters[index], self.initial, self.seed + index))

    def _select(self, model: Any) -> tuple[list[models.Kernel], list[int]]:
        """Return the kernels in scope, and the clusters of each, if they can be made."""
        check_unwrapped(model)
        check_not_kept(model)
        chosen = self._scope.select(model)
        kernels = [kernel for kernel, _ in chosen]
        clusters = [self.clusters if own is None else own for _, own in chosen]
        self._check_sizes(kernels, clusters)  # before tables of that size are made
        check_finite(kernels)
        return kernels, clusters

    def _check_sizes(self, kernels: Sequence[models.Kernel], clusters: Sequence[int]) -> None:
        short = [
            f"{kernel.name} ({size} weights{' a channel' if self.per_channel else ''})"
            for kernel, number in zip(kernels, clusters, strict=True)
            if (size := _sharing(kernel, self.per_channel)) < number
        ]
        if short:
            raise InputError(
                f"fewer weights than clusters: {listed(short)}; "
                "skip them, or give them fewer clusters"
            )


def _check_clusters(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 2:
        raise InputError(f"{name} is a whole number, 2 or more; got {value!r}")


def _sharing(kernel: models.Kernel, per_channel: bool) -> int:
    """Return how many weights share the centroids of a table: those of a channel or kernel."""
    shape = kernel.variable.shape
    return math.prod(
        size for axis, size in enumerate(shape) if not (per_channel and axis in kernel.output_axes)
    )
