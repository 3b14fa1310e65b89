"""K-means in one dimension against plain versions of it, and by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.quantization.clustering_kmeans import Channels, cluster


def one_channel(values):
    values = np.asarray(values, np.float32)
    return Channels(values, np.zeros(values.size, int), 1)


def error(values, found):
    """Sum of squared distances to the centroids, of one channel."""
    return float(((np.asarray(values, float) - found.centroids[0, found.assigned]) ** 2).sum())


def least_error(values, clusters):
    """Try every way to cut sorted values into runs."""
    values = np.sort(np.asarray(values, float))
    cuts = itertools.combinations(range(1, values.size), clusters - 1)
    return min(
        sum(float(((run - run.mean()) ** 2).sum()) for run in np.split(values, list(cut)))
        for cut in cuts
    )


small = st.lists(st.integers(-40, 40).map(lambda i: i / 8), min_size=3, max_size=9)


@given(small)
@settings(max_examples=60, deadline=None)
def test_the_optimum_is_found(values):
    found = cluster(one_channel(values), 3, "optimal")
    assert error(values, found) == pytest.approx(least_error(values, 3), abs=1e-9)


many = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=60)


@given(many, many, st.integers(2, 5), st.sampled_from(["optimal", "linear", "density", "random"]))
@settings(max_examples=100, deadline=None)
def test_of_any_beginning_centroids_are_means_and_the_nearest(first, second, clusters, initial):
    """The two laws of where k-means ends, for two channels of their own at once."""
    values = np.array([*first, *second], np.float32)
    numbers = np.repeat([0, 1], [len(first), len(second)])
    order = np.random.default_rng(0).permutation(values.size)
    values, numbers = values[order], numbers[order]
    found = cluster(Channels(values, numbers, 2), clusters, initial, seed=3)
    for channel in (0, 1):
        own = values[numbers == channel].astype(float)
        assigned = found.assigned[numbers == channel]
        used = np.unique(assigned)
        assert list(used) == list(range(used.size))  # the empty ones come last
        assert list(found.counts[channel]) == list(np.bincount(assigned, minlength=clusters))
        for index in used:
            assert found.centroids[channel, index] == pytest.approx(own[assigned == index].mean())
        distances = np.abs(own[:, None] - found.centroids[channel, used][None])
        nearest = distances[np.arange(own.size), assigned]
        assert nearest == pytest.approx(distances.min(axis=1), abs=1e-6)


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40), st.integers(2, 60))
@settings(deadline=None)
def test_no_more_distinct_values_than_clusters_are_kept_to_the_bit(values, clusters):
    values = np.array(values, np.float32)
    if np.unique(values).size > clusters:
        clusters = np.unique(values).size
    for initial in ("optimal", "random"):
        found = cluster(one_channel(values), clusters, initial)
        assert np.array_equal(found.centroids[0, found.assigned].astype(np.float32), values)


def test_large_kernels_come_near_the_optimum():
    import kmeans1d

    values = np.random.default_rng(1).laplace(size=40000).astype(np.float32)
    best = kmeans1d.cluster(values.astype(float), 8)
    least = float(((values - np.array(best.centroids)[best.clusters]) ** 2).sum())
    assert least <= error(values, cluster(one_channel(values), 8, "optimal")) < 1.002 * least


def test_each_of_many_channels_comes_to_its_optimum():
    import kmeans1d

    values = np.random.default_rng(1).laplace(size=(64, 700))
    channels = np.repeat(np.arange(64), 700)
    found = cluster(Channels(values.ravel(), channels, 64), 40, "optimal")
    for channel in (0, 63):
        best = np.array(kmeans1d.cluster(values[channel], 40).centroids)
        assert found.centroids[channel] == pytest.approx(best, abs=1e-12)


def test_beginnings_by_hand():
    """One step away from where they end: 0, 1, 2 and 10 lie apart whatever the start."""
    values = [0, 0, 1, 1, 2, 2, 10, 10]
    for initial in ("optimal", "linear"):
        found = cluster(one_channel(values), 2, initial)
        assert found.centroids[0].tolist() == [1, 10]
    # Linear: 0, 5, 10. The middle one has nobody, and stays for values that may come near.
    found = cluster(one_channel([0, 1, 9, 10]), 3, "linear")
    assert found.centroids[0].tolist() == [0.5, 9.5, np.inf]
    assert found.counts[0].tolist() == [2, 2, 0]


def test_random_beginnings_are_those_of_the_seed():
    values = np.random.default_rng(0).normal(size=500)
    runs = [cluster(one_channel(values), 8, "random", seed).centroids for seed in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_channels_without_values():
    found = cluster(Channels(np.array([3.0, 4.0]), np.array([1, 1]), 3), 2, "optimal")
    none = [np.inf, np.inf]
    assert found.centroids.tolist() == [none, [3, 4], none]
    assert found.counts.tolist() == [[0, 0], [1, 1], [0, 0]]
    nothing = cluster(Channels(np.zeros(0), np.zeros(0, int), 1), 2, "optimal")
    assert nothing.assigned.size == 0
