"""Clusters on the device, without a callback: by hand, and against plain versions."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune import models
from edgeprune.quantization.clustering_held import HeldClusters, _nearest, _search
from edgeprune.quantization.clustering_kmeans import cluster


@pytest.fixture
def held(k):
    """Four weights, 1, 2, 11 and 12, in two clusters: 1.5 and 11.5."""
    model = k.Sequential([k.Input((4,)), k.layers.Dense(1, use_bias=False)])
    (kernel,) = models.kernels(model)
    kernel.variable.assign(np.array([[1], [2], [11], [12]], "float32"))
    held = HeldClusters(
        [kernel], [2], False, True, k.optimizers.SGD(), tf.distribute.get_strategy()
    )
    held.set(0, cluster(held.members(0), 2, "optimal"))
    return held


def weights(held):
    return held.weights()[0].ravel().tolist()


def move(held, *by):
    kernel = held.kernels[0].variable
    kernel.assign(kernel.numpy() + np.reshape(np.array(by, "float32"), (4, 1)))
    held.hold()


def test_members_take_their_mean_and_change_by_where_they_would_be(held):
    assert weights(held) == [1.5, 1.5, 11.5, 11.5]
    move(held, 0, 3, 0, 0)
    assert weights(held) == [3, 3, 11.5, 11.5]
    held.change()  # the second would be at 5; they part at 7.25
    assert weights(held) == [3, 3, 11.5, 11.5]
    move(held, 0, 4, 0, 0)
    assert weights(held) == [5, 5, 11.5, 11.5]
    held.change()  # it would be at 9; they part at 8.25
    assert weights(held) == [5, 11.5, 11.5, 11.5]
    move(held, 1, 3, 0, 0)
    assert weights(held) == [6, 12.5, 12.5, 12.5]


def test_what_a_member_drifts_is_cut_to_half_a_gap(held):
    move(held, -90, 0, 0, 0)
    assert weights(held) == [-43.5, -43.5, 11.5, 11.5]
    held.change()  # the second would be at 2; they part at -16
    assert weights(held) == [-43.5, 11.5, 11.5, 11.5]
    # The first would be at -89, which is cut to -43.5 - 27.5 = -71: nearer to -43.5 than
    # the others, which now go to -119.5 and part from it at -81.5.
    move(held, 0, -131, -131, -131)
    held.change()
    assert weights(held) == [-43.5, -119.5, -119.5, -119.5]


def test_a_weight_set_to_zero_no_longer_counts(held):
    kernel = held.kernels[0].variable
    kernel.assign([[1.5], [0], [11.5], [11.5]])
    held.drop_zeros()
    move(held, 1, 0.25, 0, 0)
    assert weights(held) == [2.5, 0, 11.5, 11.5]
    kernel.assign([[2.5], [0], [0], [11.5]])
    held.change()
    move(held, 0, 1, 1, 4)
    assert weights(held) == [2.5, 0, 0, 15.5]


@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=2, max_size=2),
    st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=8),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_the_nearest_is_the_nearest(centroids, values, infinite):
    """Three centroids of each of two channels, in any order, one perhaps not there."""
    table = np.array(centroids, np.float32)
    if infinite:
        table[0, 1] = np.inf
    values = np.array(values[: len(values) // 2 * 2], np.float32).reshape(-1, 2)
    search = _search(tf.constant(table))
    found = np.asarray(_nearest(tf.constant(values), tf.constant([[0, 1]]), *search))
    for channel in (0, 1):
        distances = np.abs(values[:, channel, None] - table[channel])
        taken = distances[np.arange(len(values)), found[:, channel]]
        assert taken.tolist() == pytest.approx(distances.min(axis=1).tolist(), rel=1e-6)
