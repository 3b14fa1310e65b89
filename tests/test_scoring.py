"""Scores, worked out by hand."""

import numpy as np
import pytest

from edgeprune.errors import InputError
from edgeprune.scoring import Score, score, task_of

LOGITS = np.array([[2.0, -1.0, 0.0], [0.0, 0.5, 0.2], [-3.0, -2.0, -1.0], [1.0, 0.0, 0.9]])


def test_accuracy_of_labels():  # arg max is 0, 1, 2, 0: three of four right
    labels = np.array([0, 1, 2, 2])
    assert task_of(labels, LOGITS) == "classes"
    assert score(labels, LOGITS) == Score("accuracy", 0.75)
    assert score(labels[:, None], LOGITS) == Score("accuracy", 0.75)


def test_accuracy_of_one_hot_rows():
    rows = np.eye(3)[[0, 1, 2, 2]]
    assert task_of(rows, LOGITS) == "one-hot"
    assert score(rows, LOGITS) == Score("accuracy", 0.75)


def test_binary_probabilities_and_logits():
    targets = np.array([1, 0, 1, 0])
    assert score(targets, np.array([[0.9], [0.4], [0.4], [0.1]])) == Score("accuracy", 0.75)
    assert score(targets, np.array([[2.0], [-1.0], [0.1], [0.2]])) == Score("accuracy", 0.75)


def test_pixels_count_each():
    labels = np.array([[[0, 1], [1, 1]]])
    predictions = np.stack([1.0 - labels, labels], axis=-1)
    predictions[0, 0, 0] = [0.0, 1.0]
    assert score(labels, predictions) == Score("accuracy", 0.75)


def test_regression():  # errors 1 and 3: (1 + 9) / 2
    assert score(np.array([1.5, 2.0]), np.array([[2.5], [5.0]])) == Score("mean squared error", 5.0)


def test_autoencoder_is_regression():
    image = np.full((2, 4, 4, 3), 0.25)
    assert score(image, image + 0.5) == Score("mean squared error", 0.25)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.array([0, 1, 2, 3]), "from 0 to 3, but the model has 3 outputs"),
        (np.array([0, 1, -1, 2]), "from -1 to 2"),
        (np.array([0.0, 1.5, 1.0, 2.0]), "whole numbers from 0 to 2"),
        (np.zeros((4, 2)), r"\(4, 2\) do not fit predictions of shape \(4, 3\)"),
        (np.zeros(3), "do not fit"),
    ],
)
def test_targets_that_do_not_fit(targets, message):
    with pytest.raises(InputError, match=message):
        score(targets, LOGITS)
