import numpy as np
import pytest
from structure.law import random_inputs
from structure.rule_models import (
    around,
    followed,
    image,
    kept,
    keras,
    layers,
    positions,
    steps,
    without,
)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.BatchNormalization(),
        lambda: layers.BatchNormalization(scale=False, center=False),
        lambda: layers.LayerNormalization(),
        lambda: layers.LayerNormalization(scale=False, center=False),
        lambda: layers.LayerNormalization(axis=[1, 2, 3]),
        lambda: layers.LayerNormalization(axis=1),
        lambda: layers.RMSNormalization(),
        lambda: layers.RMSNormalization(axis=(2, 3)),
        lambda: layers.UnitNormalization(),
        lambda: layers.UnitNormalization(axis=(1, 2, 3)),
        lambda: layers.GroupNormalization(1),
        lambda: layers.GroupNormalization(-1),
        lambda: layers.GroupNormalization(8, scale=False, center=False),
        lambda: layers.Normalization(axis=None, mean=0.5, variance=2.0),
    ],
)
def test_single_channels_leave(make):
    followed(image(lambda x: make()(x)), 8)


def test_whole_groups_leave_of_a_group_normalization():
    model = image(layers.GroupNormalization(4, name="norm"))
    group = followed(model, 4)
    assert positions(group, "source/kernel", 3) == {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [6, 7]}
    smaller = without(model, [1, 2])
    assert smaller.get_layer("norm").groups == 2
    np.testing.assert_array_equal(
        smaller.get_layer("norm").gamma, np.asarray(model.get_layer("norm").gamma)[[0, 1, 6, 7]]
    )


def test_an_instance_normalization_counts_its_channels():
    model = image(layers.GroupNormalization(-1, name="norm"))
    assert without(model, [0]).get_layer("norm").groups == 7


def test_statistics_go_along():
    model = steps(layers.BatchNormalization(name="norm"))
    smaller = without(model, [4, 5])
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        np.testing.assert_array_equal(
            getattr(smaller.get_layer("norm"), name),
            np.delete(np.asarray(getattr(model.get_layer("norm"), name)), [4, 5]),
        )


def test_channels_elsewhere_stay_where_groups_are_averaged():
    norm = layers.GroupNormalization(2, axis=1)
    kept(around(norm, layers.Dense(8, name="source"), (6, 3)), "averages over these channels")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: layers.SpectralNormalization(layers.Conv2D(4, 3)), "divides a kernel by its norm"),
        (lambda: layers.LayerNormalization(axis=[-1, 1]), "out of order"),
        (lambda: layers.Normalization(mean=[0.5] * 8, variance=[2.0] * 8), "a mean and a variance"),
    ],
)
def test_channels_stay_for_a_reason(make, reason):
    kept(image(lambda x: make()(x)), reason)


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
def test_the_deprecated_scaling_is_refused():
    kept(image(layers.LayerNormalization(rms_scaling=True)), "rms_scaling")


def test_an_adapted_normalization_of_the_inputs_keeps_what_it_learned():
    """It holds mean and variance beside its weights, which were assigned after it was built."""
    adapted = layers.Normalization()
    adapted.adapt(np.random.default_rng(0).normal(3, 2, size=(50, 4)).astype(np.float32))
    entry = keras.Input((4,))
    hidden = layers.Dense(8, activation="relu", name="source")(adapted(entry))
    model = keras.Model(entry, layers.Dense(2)(hidden))
    followed(model, 8)
    inputs = random_inputs(model)[0]
    np.testing.assert_array_equal(without(model, [])(inputs), model(inputs))
