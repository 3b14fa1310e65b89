"""Clusters on the device, without a callback: by hand."""

import numpy as np
import pytest
import tensorflow as tf

from edgeprune import models
from edgeprune.quantization.clustering_held import HeldClusters
from edgeprune.quantization.clustering_kmeans import cluster, nearest


@pytest.fixture
def held(k):
    """Four weights, 1, 2, 11 and 12, in two clusters: 1.5 and 11.5."""
    model = k.Sequential([k.Input((4,)), k.layers.Dense(1, use_bias=False)])
    weights = np.array([[1], [2], [11], [12]], "float32")
    (kernel,) = models.kernels(model)
    kernel.variable.assign(weights)
    held = HeldClusters(
        [kernel], [2], False, True, k.optimizers.SGD(), tf.distribute.get_strategy()
    )
    held.set(0, cluster(held.members(0, weights), 2, "optimal"), weights)
    return held


def weights(held):
    return held.weights()[0].ravel().tolist()


def test_members_take_their_mean_and_remember_where_they_were(held):
    assert weights(held) == [1.5, 1.5, 11.5, 11.5]
    assert held.drifted()[0].ravel().tolist() == [1, 2, 11, 12]
    held.kernels[0].variable.assign([[1.5], [2.5], [11.5], [11.5]])
    held.hold()
    assert weights(held) == [2, 2, 11.5, 11.5]
    assert held.drifted()[0].ravel().tolist() == [1, 3, 11, 12]


def test_what_a_member_drifts_is_cut_to_half_a_gap(held):
    held.kernels[0].variable.assign([[-88.5], [1.5], [11.5], [11.5]])
    held.hold()
    # The centroid goes half the way; the second weight is nearer to the other one now.
    assert weights(held) == [-43.5, -43.5, 11.5, 11.5]
    values = held.drifted()[0]
    assert values.ravel().tolist() == [-89, 2, 11, 12]
    held.set(0, nearest(held.members(0, values), held.centroids(0)), values)
    assert weights(held) == [-43.5, 11.5, 11.5, 11.5]
    assert held.drifted()[0].ravel().tolist() == [-43.5 - 27.5, 2, 11, 12]


def test_a_weight_set_to_zero_no_longer_counts(held):
    held.kernels[0].variable.assign([[1.5], [0], [11.5], [11.5]])
    held.drop_zeros()
    held.kernels[0].variable.assign([[2.5], [0.25], [11.5], [11.5]])
    held.hold()
    assert weights(held) == [2.5, 0, 11.5, 11.5]


def test_a_cluster_that_lost_its_members_may_get_some_again(held):
    for target in ([2, 2, 2, 2], [2, 12, 2, 2]):
        values = np.reshape(np.array(target, "float32"), (4, 1))
        held.set(0, nearest(held.members(0, values), held.centroids(0)), values)
    assert weights(held) == [1.5, 11.5, 1.5, 1.5]
