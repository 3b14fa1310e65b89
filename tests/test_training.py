"""Training ends in finite weights or in an error, and labels belong to the model's outputs."""

import keras
import numpy as np
import pytest

from edgeprune.data import Dataset
from edgeprune.errors import InputError
from edgeprune.recipe import TrainingSpec
from edgeprune.training import check_labels, fit

SPARSE = keras.losses.SparseCategoricalCrossentropy


def classifier(rate=0.01, loss="sparse_categorical_crossentropy"):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, activation="softmax")], name="three"
    )
    model.compile(keras.optimizers.SGD(rate), loss)
    return model


def data(labels=3):
    x = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
    y = np.arange(30) % labels
    return Dataset(x, y, x, y, "")


@pytest.mark.parametrize("rate", [1e38, float("inf")])
def test_a_training_that_diverges_is_an_error(rate):
    model = classifier(rate)
    with pytest.raises(InputError, match=r"^tuning diverged: .*smaller learning rate") as raised:
        fit(model, data(), 3, TrainingSpec(), [], "tuning", None)
    assert "\n" not in str(raised.value)


def test_a_training_that_does_not_diverge_is_none():
    model = classifier()
    before = model.get_weights()[0]
    fit(model, data(), 1, TrainingSpec(), [], "tuning", None)
    assert (model.get_weights()[0] != before).any()


def test_labels_beyond_the_classes_are_refused_before_training():
    model = classifier()
    before = model.get_weights()[0]
    with pytest.raises(
        InputError, match=r"^y holds 4, and model 'three' has 3 classes; labels are"
    ):
        fit(model, data(labels=5), 1, TrainingSpec(), [], "tuning", None)
    np.testing.assert_array_equal(model.get_weights()[0], before)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        ("sparse_categorical_crossentropy", [0, 3]),
        (keras.losses.sparse_categorical_crossentropy, [0, -1]),
        (SPARSE(name="mine"), [[99], [0]]),
        (SPARSE(ignore_class=255), [255, 99]),
    ],
)
def test_which_labels_are_refused(loss, labels):
    with pytest.raises(InputError, match=r"y holds (3|-1|99), and model 'three' has 3 classes"):
        check_labels(classifier(), loss, np.array(labels))


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        ("sparse_categorical_crossentropy", [0, 2]),
        (SPARSE(ignore_class=-1), [-1, 2]),
        ("mse", [0, 99]),
        (None, [0, 99]),
    ],
)
def test_which_labels_are_not(loss, labels):
    check_labels(classifier(), loss, np.array(labels))


def test_indices_beyond_a_table_are_one_line():
    model = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(5, 3)])
    model.compile("sgd", "mse")
    x = np.full((8, 2), 7, "int32")
    y = np.zeros((8, 2, 3), "float32")
    with pytest.raises(InputError, match="cannot be trained on these data: ") as raised:
        fit(model, Dataset(x, y, x, y, ""), 1, TrainingSpec(), [], "tuning", None)
    assert "\n" not in str(raised.value)
