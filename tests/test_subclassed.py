"""Subclassed models convert once they were called, and say what to do where that is not enough."""

import importlib

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgeprune.errors import InputError
from edgeprune.export.convert import convert
from edgeprune.export.inspect import inspect

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def keras(request):
    return importlib.import_module(request.param)


def one_input(keras):
    class One(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Dense(8, activation="relu")
            self.last = keras.layers.Dense(2)

        def call(self, x, training=False):
            return self.last(self.first(x)) + (1.0 if training else 0.0)

    return One()


def two_inputs(keras):
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.embed = keras.layers.Embedding(10, 4)
            self.dense = keras.layers.Dense(4)

        def call(self, given):
            tokens = self.embed(given["tokens"])
            return {"sum": tokens[:, 0] + self.dense(given["values"]), "tokens": tokens}

    return Two()


def two_arguments(keras):
    class Pair(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4)

        def call(self, x, y):
            return self.dense(x) + self.dense(y)

    return Pair()


def runner(artifact):
    return Interpreter(str(artifact.path)).get_signature_runner()


@pytest.mark.parametrize("how", ["call", "fit", "build"])
def test_a_model_that_was_used_converts(keras, tmp_path, how):
    model = one_input(keras)
    if how == "call":
        model(X)
    elif how == "fit":
        model.compile(loss="mse")
        model.fit(X, np.zeros((12, 2)), verbose=0)
    else:
        model.build((None, 4))
    artifact = convert(model, tmp_path / "a.tflite", quantize="int8", calibration=X)
    assert artifact.verification.passed
    (details,) = runner(artifact).get_input_details().values()
    assert details["shape"].tolist() == [1, 4]
    artifact = convert(model, tmp_path / "b.tflite")
    (name,) = runner(artifact).get_input_details()
    (values,) = runner(artifact)(**{name: X[:1]}).values()
    np.testing.assert_allclose(values, np.asarray(model(X[:1])), atol=1e-5)


def test_inputs_by_name_and_of_their_dtypes(keras, tmp_path):
    model = two_inputs(keras)
    tokens = np.arange(36).reshape(12, 3).astype(np.int32) % 10
    model({"tokens": tokens, "values": X})
    artifact = convert(model, tmp_path / "a.tflite")
    run = runner(artifact)
    assert {name: d["dtype"] for name, d in run.get_input_details().items()} == {
        "tokens": np.int32,
        "values": np.float32,
    }
    got = run(tokens=tokens[:1], values=X[:1])
    expected = model({"tokens": tokens[:1], "values": X[:1]})
    for want in expected.values():
        assert any(
            got_one.shape == want.shape and np.allclose(got_one, np.asarray(want), atol=1e-5)
            for got_one in got.values()
        )


def test_a_shape_that_is_given_counts(keras, tmp_path):
    class Columns(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv1D(3, 3)

        def call(self, x):
            return self.conv(x)

    model = Columns()
    model(np.zeros((2, 8, 4), np.float32))
    for shape, expected in ((None, [1, 8, 4]), ((20, 4), [1, 20, 4])):
        artifact = convert(model, tmp_path / "a.tflite", input_shape=shape)
        (details,) = runner(artifact).get_input_details().values()
        assert details["shape"].tolist() == expected
    with pytest.raises(InputError, match=r"cannot be called on inputs of shape \(\?, 20, 5\)"):
        convert(model, tmp_path / "b.tflite", input_shape=(20, 5))


def test_advice_that_works(keras, tmp_path):
    model = one_input(keras)
    with pytest.raises(InputError, match="has no weights yet; build it first"):
        convert(model, tmp_path / "a.tflite", input_shape=(4,))
    model = two_arguments(keras)
    model(X, X)
    with pytest.raises(InputError, match=r"keras\.Model\(inputs, model\(inputs\)\)"):
        convert(model, tmp_path / "a.tflite")
    inputs = [keras.Input((4,)), keras.Input((4,))]
    wrapped = keras.Model(inputs, model(*inputs))
    assert convert(wrapped, tmp_path / "a.tflite").verification.passed


def test_inspect_counts_the_same_as_functional(keras):
    """4 x 8 + 8 x 2 products, and 8 + 2 biases."""
    model = one_input(keras)
    model(X)
    found = inspect(model)
    assert (found.macs, found.parameters) == (48, 58)


def test_inspect_counts_models_of_several_inputs(keras):
    """One 4 x 4 product; 40 + 16 + 4 parameters."""
    model = two_inputs(keras)
    model({"tokens": np.zeros((12, 3), np.int32), "values": X})
    found = inspect(model)
    assert (found.macs, found.parameters) == (16, 60)


def test_what_inspect_cannot_tell_it_says(keras):
    model = two_arguments(keras)
    model(X, X)
    found = inspect(model)
    assert found.macs is None
    assert "wrap it: keras.Model(inputs, model(inputs))" in found.unavailable["macs"]
