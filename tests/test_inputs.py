"""Shapes in messages, and models that do not say what they take."""

import pytest

from edgeprune.errors import InputError
from edgeprune.inputs import inputs_of, shape_text


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((), "()"),
        ((4,), "(4,)"),
        ((None,), "(?,)"),
        ((None, 4), "(?, 4)"),
        ((None, 224, 224, 3), "(?, 224, 224, 3)"),
    ],
)
def test_shapes_are_written_as_tuples(shape, text):
    assert shape_text(shape) == text


def test_the_advice_for_a_model_without_inputs_works():
    import keras

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(InputError, match="call it once on a batch"):
        inputs_of(unbuilt)
    unbuilt(keras.ops.zeros((3, 4)))
    assert inputs_of(unbuilt)[0].shape[1:] == (4,)
    model = Subclassed()
    model(keras.ops.zeros((3, 4)))
    with pytest.raises(InputError, match=r"wrap it .* keras\.Model\(inputs, model\(inputs\)\)"):
        inputs_of(model)
    inputs = keras.Input((4,))
    assert inputs_of(keras.Model(inputs, model(inputs)))[0].shape == (None, 4)
