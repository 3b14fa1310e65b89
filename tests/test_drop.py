"""How much worse a changed model is: by hand."""

import numpy as np
import pytest

from edgeprune.drop import Yardstick
from edgeprune.errors import InputError

CLASSES = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
FLIPPED = np.array([[0.9, 0.1], [0.1, 0.9], [0.3, 0.7], [0.4, 0.6]])


def test_accuracy_with_labels():
    yardstick = Yardstick([CLASSES], np.array([0, 0, 1, 0]))
    assert (yardstick.name, yardstick.score) == ("accuracy", 0.75)
    assert yardstick.drop([FLIPPED]) == 0.25
    assert yardstick.drop([CLASSES]) == 0
    better = CLASSES.copy()
    better[3] = 0.6, 0.4
    assert yardstick.drop([better]) == -0.25


def test_agreement_without_labels():
    yardstick = Yardstick([CLASSES], None, [(5,)])
    assert (yardstick.name, yardstick.score) == ("arg max agreement", 1.0)
    assert yardstick.drop([FLIPPED]) == 0.25


def test_r2_of_a_regression():
    targets = np.array([0.0, 2.0, 4.0])  # variance 8 / 3
    yardstick = Yardstick([targets[:, None] + 1], targets)
    assert yardstick.name == "R2"
    assert yardstick.score == pytest.approx(1 - 1 / (8 / 3))
    # Off by 2 everywhere: a mean square of 4 instead of 1.
    assert yardstick.drop([targets[:, None] + 2]) == pytest.approx(3 / (8 / 3))


def test_output_error_of_the_worst_output():
    first, second = np.array([[0.0], [2.0]]), np.array([[0.0], [4.0]])  # deviations 1 and 2
    yardstick = Yardstick([first, second], None)
    assert (yardstick.name, yardstick.score) == ("output error", 0.0)
    assert yardstick.drop([first + 0.5, second + 0.5]) == pytest.approx(0.5)
    assert yardstick.drop([first, second - 3]) == pytest.approx(1.5)


def test_an_autoencoder_is_no_classifier():
    assert Yardstick([CLASSES], None, [(2,)]).name == "output error"


def test_nan_is_infinitely_worse():
    broken = CLASSES.copy()
    broken[0] = np.nan
    assert Yardstick([CLASSES], np.array([0, 0, 1, 0])).drop([broken]) == np.inf


def test_the_error_is_there_with_labels_too():
    yardstick = Yardstick([CLASSES], np.array([0, 0, 1, 0]))
    assert yardstick.error([CLASSES + np.std(CLASSES)]) == pytest.approx(1)
    constant = Yardstick([np.ones((3, 1))], None)
    assert constant.error([np.ones((3, 1))]) == 0
    assert constant.error([np.zeros((3, 1))]) == np.inf


def test_targets_that_do_not_fit():
    with pytest.raises(InputError, match="labels run from 0 to 7"):
        Yardstick([CLASSES], np.array([0, 0, 1, 7]))
