"""Sparse encoding: kept where it pays and runs, refused in one line where it cannot be."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgeprune.errors import UnsupportedError
from edgeprune.export import tflite
from edgeprune.export.convert import convert
from edgeprune.export.encode import encode_sparse

SAMPLES = np.random.default_rng(1).normal(size=(12, 12, 12, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


def network(keras, sparsity):
    """A network whose kernels have this fraction of zeros, the smallest weights of each."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((12, 12, 8))
    x = layers.Conv2D(32, 3, activation="relu")(inputs)
    x = layers.Conv2D(48, 1, activation="relu")(x)
    x = layers.Dense(64, activation="relu")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(6)(x))
    for variable in model.trainable_weights:
        values = np.array(variable)
        if values.ndim > 1:
            order = np.argsort(np.abs(values), axis=None)
            values.reshape(-1)[order[: round(sparsity * values.size)]] = 0
            variable.assign(values)
    return model


def encoded(path):
    return [weight.sparsity is not None for weight in tflite.read(path).weights()]


def output_of(path):
    runner = Interpreter(str(path)).get_signature_runner()
    (name,) = runner.get_input_details()
    (values,) = runner(**{name: SAMPLES[:1]}).values()
    return values


@pytest.mark.parametrize("mode", ["none", "float16"])
def test_sparse_weights_make_a_smaller_file_that_computes_the_same(keras, tmp_path, mode):
    model = network(keras, 0.9)
    # Dead channels would take their zeros with them.
    dense = convert(model, tmp_path / "dense.tflite", quantize=mode, sparse="off", clean=False)
    auto = convert(model, tmp_path / "auto.tflite", quantize=mode, clean=False)
    assert encoded(dense.path) == [False] * 4
    assert encoded(auto.path) == [True] * 4
    assert auto.bytes < (0.4 if mode == "none" else 0.6) * dense.bytes
    assert auto.sparsity == dense.sparsity == pytest.approx(0.9, abs=0.005)
    assert auto.made_by["weights_encoding"] == "sparse"
    assert dense.made_by["weights_encoding"] == "off"
    np.testing.assert_allclose(output_of(auto.path), output_of(dense.path), rtol=1e-4, atol=1e-5)
    # Not one weight changes.
    for a, b in zip(
        tflite.read(auto.path).weights(), tflite.read(dense.path).weights(), strict=True
    ):
        np.testing.assert_array_equal(a.values(), b.values())


def test_dense_weights_stay_dense(keras, tmp_path):
    artifact = convert(network(keras, 0.1), tmp_path / "a.tflite")
    assert encoded(artifact.path) == [False] * 4
    assert artifact.made_by["weights_encoding"] == (
        "dense, as no weight has 30% zeros (highest: 10.0%)"
    )
    assert "weights stored" not in str(artifact)


def test_int8_stays_dense_since_the_interpreter_refuses_it_sparse(keras, tmp_path):
    artifact = convert(
        network(keras, 0.95), tmp_path / "a.tflite", quantize="int8", calibration=SAMPLES
    )
    assert encoded(artifact.path) == [False] * 4
    told = "dense: no runtime runs int8 weights sparse-encoded"
    assert artifact.made_by["weights_encoding"] == told
    assert f"weights stored {told}" in str(artifact)
    assert artifact.verification.passed


@pytest.mark.slow
def test_on_fails_where_nothing_can_be_encoded(keras, tmp_path):
    with pytest.raises(UnsupportedError, match=r"30% zeros .*leave out `sparse='on'`"):
        convert(network(keras, 0.0), tmp_path / "a.tflite", sparse="on")
    with pytest.raises(UnsupportedError, match="no runtime runs int8 weights sparse-encoded"):
        convert(
            network(keras, 0.9),
            tmp_path / "a.tflite",
            sparse="on",
            quantize="int8",
            calibration=SAMPLES,
        )
    assert list(tmp_path.iterdir()) == []


def test_auto_keeps_what_is_smaller_and_on_what_is_asked(keras, tmp_path):
    """float16 weights with a third of zeros: indices cost more than the zeros do."""
    model = network(keras, 0.34)
    off = convert(model, tmp_path / "off.tflite", quantize="float16", sparse="off")
    on = convert(model, tmp_path / "on.tflite", quantize="float16", sparse="on")
    assert on.bytes > off.bytes
    auto = convert(model, tmp_path / "auto.tflite", quantize="float16")
    assert auto.bytes == off.bytes
    assert f"takes {on.bytes} bytes, not {off.bytes}" in auto.made_by["weights_encoding"]


def test_a_file_that_does_not_match_is_not_kept(keras, tmp_path):
    content = convert(network(keras, 0.9), tmp_path / "a.tflite", sparse="off").path.read_bytes()
    kept, reason = encode_sparse(content, "auto", lambda encoded: False)
    assert kept == content
    assert reason.startswith("dense: the interpreter does not run")
