"""The callback that keeps the clusters that a model has: CQAT, and beside zeros PCQAT."""

import logging
import warnings
from typing import Any

from edgeprune import models
from edgeprune.errors import InputError, listed
from edgeprune.quantization.clustering_checks import (
    check_finite,
    check_unwrapped,
    not_finite,
    tell_if_diverged,
)
from edgeprune.quantization.clustering_held import HeldClusters
from edgeprune.quantization.clustering_kmeans import cluster
from edgeprune.quantization.kernel_values import KernelValues, values_of
from edgeprune.quantization.tfmot_clusters import kernels_kept
from edgeprune.steps.callback import HoldingCallback

log = logging.getLogger(__name__)


class PreserveClusters(HoldingCallback[HeldClusters]):
    """Keeps the clusters that the kernels have at the first step, to the end of training.

    Weights of a kernel that are equal stay equal, and train as one; zeros stay zeros. How many
    clusters there are, in a kernel or in its channels, is found, not asked for. Kernels of every
    kind are held, depthwise and embeddings too; those that are not clustered train freely, and a
    warning in the log names their layers, but not those of depthwise kernels, which
    `WeightClustering` leaves out by default.

    For fine-tuning a clustered model, and for quantization-aware training that keeps its clusters
    (CQAT); with `PreserveSparsity`, which also keeps zeros of kernels that are not clustered, and
    clusters (PCQAT)::

        aware = quantize_aware(clustered)
        aware.compile(...)
        aware.fit(data, epochs=3, callbacks=[PreserveSparsity(), PreserveClusters()])
        convert(aware, "model.tflite", quantize="int8", calibration=samples)

    In an int8 file each output channel has a scale of its own, so a centroid of a whole kernel is
    an integer in one channel and another in the next: the file has at most as many values as there
    were clusters in each channel, and more in the whole kernel. That is so however it was
    clustered; `WeightClustering(per_channel=True)` fits the centroids of a channel to it, at the
    cost of a table a channel. Centroids that are small in a channel may round to one integer, or to
    zero: then there are fewer values, and more zeros. Look-up tables (`look_up_tables`) hold a
    table a channel, and lose nothing by it.

    On tf_keras, TensorFlow Model Optimization keeps the clusters of some kernels by itself, see
    `quantize_aware`; they are left to it, and this callback keeps the others.

    Kernels that were trained on the int8 grid have few values, too: a model that was stripped after
    QAT without clusters would be held to those it has.

    Works as `WeightClustering` does: with any optimizer, in mixed precision, with
    `BackupAndRestore`, and in a custom loop by `start`, `step` and `finish`.

    Attributes:
      report: after training, a `KernelValues` for each kernel that it kept.

    Raises:
      InputError: before the first step, where nothing is clustered, a weight is not finite, or
        TensorFlow Model Optimization's `cluster_weights` wraps the model.
    """

    order = 1  # after callbacks that make zeros

    def __init__(self) -> None:
        super().__init__()
        self.report: tuple[KernelValues, ...] = ()

    def step(self) -> None:
        """Let members share one value after an update of the optimizer; not in a tf.function.

        Raises:
          InputError: `start` was not called, or this was called inside a tf.function.
        """
        self._step_alone()

    def _begin(self, model: Any, done_steps: int, total_steps: int | None) -> HeldClusters:
        check_unwrapped(model)
        trainable = {id(variable) for variable in model.trainable_variables}
        kept = kernels_kept(model)
        kernels = [
            kernel
            for kernel in models.kernels(model)
            if id(kernel.variable) in trainable and id(kernel.variable) not in kept
        ]
        check_finite(kernels)
        found = [(kernel, values_of(kernel)) for kernel in kernels]
        clustered = [(kernel, values) for kernel, values in found if values.clustered]
        free = [pair for pair in found if pair[1].distinct and not pair[1].clustered]
        if not clustered and not kept:
            raise InputError(_nothing(model, [values for _, values in free]))
        if told := [kernel.layer.name for kernel, _ in free if kernel.kind != "depthwise"]:
            log.warning(
                "The kernels of these layers are not clustered, and train freely: %s", listed(told)
            )
        counts = [values.distinct for _, values in clustered]
        # Clusters of channels need no tables of their own, for members that share a value are held.
        held = HeldClusters(
            [kernel for kernel, _ in clustered],
            counts,
            False,
            False,
            self._optimizer,
            model.distribute_strategy,
        )
        for index, count in enumerate(counts):
            held.set(index, cluster(held.members(index), count, "optimal"))
        return held

    def _resume(self, held: HeldClusters) -> None:
        held.drop_zeros()

    def _mend(self, held: HeldClusters) -> None:
        if not_finite(held.kernels):
            return
        apart = [
            kernel.name for index, kernel in enumerate(held.kernels) if not held.is_shared(index)
        ]
        if not apart:
            return
        held.hold()
        warnings.warn(
            "weights set at the end of training, as EarlyStopping(restore_best_weights=True) "
            f"does, did not share the values of {listed(apart)}; they took the means of their "
            "clusters, which no metric has seen: evaluate the model again",
            stacklevel=2,
        )

    def _end(self, held: HeldClusters) -> None:
        if tell_if_diverged(held.kernels):
            return
        self.report = tuple(values_of(kernel) for kernel in held.kernels)


def _nothing(model: Any, free: list[KernelValues]) -> str:
    if not free:
        return (
            f"model '{model.name}' has no kernels with weights that training may change: there are "
            "no clusters to keep; leave PreserveClusters out"
        )
    most = max(free, key=lambda values: values.size)
    return (
        f"no kernel of model '{model.name}' is clustered: {most.name} has {most.distinct} values "
        f"in {most.size - most.zeros} weights; train it with WeightClustering first, or leave "
        "PreserveClusters out"
    )
