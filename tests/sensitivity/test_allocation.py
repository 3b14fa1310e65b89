"""Sparsity shared out among layers: the total is kept, and what matters keeps its weights."""

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.sensitivity.allocation import allocate, allocate_sparsity, divergence
from edgeprune.sparsity.callbacks import MagnitudePruning
from edgeprune.sparsity.schedules import ConstantSparsity

LEVELS = np.array([0, 0.5, 0.75, 0.9])


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def k(request):
    return importlib.import_module(request.param)


def test_by_hand():
    # Slopes a weight: 1, 4 and 20 hundredths of the first kernel, 10, 10 and 10 of the second.
    costs = np.array([[0, 0.5, 1.5, 4.5], [0, 5, 7.5, 9]])
    assert allocate(LEVELS, costs, [100, 100], 0.25) == [0.5, 0]
    assert allocate(LEVELS, costs, [100, 100], 0.375) == [0.75, 0]
    assert allocate(LEVELS, costs, [100, 100], 0.5) == pytest.approx([0.75, 0.25])
    assert allocate(LEVELS, costs, [100, 100], 0.825) == pytest.approx([0.75, 0.9])
    assert allocate(LEVELS, costs, [100, 100], 0.9) == pytest.approx([0.9, 0.9])
    assert allocate(LEVELS, costs, [100, 100], 0) == [0, 0]


def test_a_weight_counts_and_not_a_layer():
    # The same cost, for ten times the weights: the large one goes first.
    costs = np.array([[0, 1, 2, 4], [0, 1, 2, 4]])
    small, large = allocate(LEVELS, costs, [100, 1000], 0.5)
    assert small == 0
    assert large == pytest.approx(0.55)


def test_a_bump_is_crossed_and_nan_is_last():
    # 0.5 costs as much as 0.75 does, so nobody stops there; NaN is worse than any figure.
    costs = np.array([[0, 3, 3, 30], [0, 2, np.nan, np.inf]])
    assert allocate(LEVELS, costs, [100, 100], 0.625) == pytest.approx([0.75, 0.5])
    assert allocate(LEVELS, costs, [100, 100], 0.7) == pytest.approx([0.9, 0.5])


@given(
    st.lists(
        st.tuples(
            st.integers(1, 10_000),
            st.lists(st.floats(0, 100), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=8,
    ),
    st.floats(0, 0.9),
)
def test_the_total_is_exact_and_no_kernel_beyond_the_last_level(kernels, sparsity):
    sizes = [size for size, _ in kernels]
    costs = np.array([[0, *own] for _, own in kernels])
    chosen = allocate(LEVELS, costs, sizes, sparsity)
    zeros = sum(size * share for size, share in zip(sizes, chosen, strict=True))
    assert zeros == pytest.approx(sparsity * sum(sizes), abs=1e-6)
    assert all(0 <= share <= 0.9 + 1e-12 for share in chosen)


def test_divergence_by_hand():
    want = np.array([[0.5, 0.5], [1.0, 0.0]])
    got = np.array([[0.25, 0.75], [0.5, 0.5]])
    expected = (0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75) + np.log(2)) / 2
    assert divergence([want], [got]) == pytest.approx(expected)
    assert divergence([want], [want]) == 0
    values = np.array([[0.0], [2.0]])  # their deviation is 1
    assert divergence([values], [values + 3]) == pytest.approx(9)


def network(k):
    """Two ways to the output; what goes through `faint` is divided by a hundred."""
    k.utils.set_random_seed(0)
    layers = k.layers
    inputs = k.Input((16,))
    loud = layers.Dense(20, activation="tanh", name="loud")(inputs)
    faint = layers.Dense(20, activation="tanh", name="faint")(inputs)
    joined = layers.Concatenate()([loud, layers.Rescaling(0.01)(faint)])
    model = k.Model(inputs, layers.Dense(3, name="head", use_bias=False)(joined))
    model.compile("sgd", "mse")
    return model


X = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)


def test_what_matters_less_is_pruned_more_and_the_callback_takes_it(k):
    model = network(k)
    before = [np.asarray(weight).tobytes() for weight in model.weights]
    layers = allocate_sparsity(model, X, sparsity=0.5)
    assert [np.asarray(weight).tobytes() for weight in model.weights] == before
    assert list(layers) == [kernel.name for kernel in models.kernels(model)]
    assert layers["faint/kernel"] > 0.7 > 0.5 > layers["loud/kernel"]
    assert max(layers.values()) <= 0.9  # each keeps a fifth of the half that all keep
    sizes = {"loud/kernel": 320, "faint/kernel": 320, "head/kernel": 120}
    assert sum(sizes[name] * share for name, share in layers.items()) == pytest.approx(380)
    pruning = MagnitudePruning(ConstantSparsity(0.5), layers=layers)
    model.fit(X, np.zeros((64, 3)), verbose=0, callbacks=[pruning])
    assert {row.name: row.zeros for row in pruning.report} == {
        name: round(sizes[name] * share) for name, share in layers.items()
    }
    assert all(row.reached for row in pruning.report)


def test_scope_and_limit(k):
    model = network(k)
    assert set(allocate_sparsity(model, X, 0.5, skip="head")) == {"loud/kernel", "faint/kernel"}
    layers = allocate_sparsity(model, X, 0.5, only=["loud", "faint"], max_sparsity=0.6)
    assert layers["faint/kernel"] == pytest.approx(0.6)
    assert layers["loud/kernel"] == pytest.approx(0.4)
    assert set(allocate_sparsity(model, X, 0).values()) == {0}


def test_bad_input(k, tmp_path):
    model = network(k)
    for arguments, message in (
        ({"sparsity": 80}, "did you mean 0.8"),
        ({"sparsity": 0.8, "max_sparsity": 0.5}, "max_sparsity 0.5 is below sparsity 0.8"),
        ({"skip": "nothing"}, "skip='nothing' matches no kernel"),
        ({"skip": "*"}, "nothing to prune"),
        ({"data": None}, "sensitivity is measured on data"),
        ({"data": X[:, :3]}, "takes samples of shape"),
        ({"model": tmp_path / "m.tflite"}, "give the .keras or .h5"),
    ):
        with pytest.raises(InputError, match=message):
            allocate_sparsity(**{"model": model, "data": X, **arguments})
    kernel = models.kernels(model)[0]
    kernel.variable.assign(np.full((16, 20), np.nan))
    with pytest.raises(InputError, match="NaN"):
        allocate_sparsity(model, X)
