"""int4 weights and modes by layer: what lies in the file, and what the interpreter computes."""

import sys

import numpy as np
import pytest

from edgeprune.errors import InputError, UnsupportedError, VerificationError
from edgeprune.export import tflite
from edgeprune.export.convert import convert
from edgeprune.export.inspect import inspect
from edgeprune.export.verify import run_tflite

SAMPLES = np.random.default_rng(1).normal(size=(24, 8, 8, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


def network(keras):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, activation="relu", name="conv1")(inputs)
    x = layers.DepthwiseConv2D(3, name="spread")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="conv2")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(x))


@pytest.fixture(scope="module")
def model(keras):
    return network(keras)


def dtypes(path):
    """Weight dtypes by operator, in order."""
    graph = tflite.read(path).subgraphs[0]
    return [
        (operator.name, kernel.dtype)
        for operator in graph.operators
        for kernel in graph.kernels(operator)
    ]


def test_integers_are_those_of_the_grid_two_to_a_byte(keras, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    # Scales 1, 0.1 and 2 / 7 (the largest is 7); halves round to even, zeros stay zeros.
    kernel = np.array([[7, 0.7, 0], [-3.5, 0.1, -2], [0, -0.26, 1.1], [1.2, 0, 0.5]], np.float32)
    model.layers[0].set_weights([kernel])
    artifact = convert(model, tmp_path / "a.tflite", quantize="int4")
    (weight,) = tflite.read(artifact.path).weights()
    assert (weight.dtype, weight.shape, weight.data.nbytes) == ("int4", (3, 4), 6)
    assert weight.values().tolist() == [[7, -4, 0, 1], [7, 1, -3, 0], [0, -7, 4, 2]]
    np.testing.assert_allclose(weight.quantization.scale, [1, 0.1, 2 / 7], rtol=1e-6)
    assert not weight.quantization.zero_point.any()
    assert artifact.sparsity == 3 / 12
    assert artifact.made_by["weight_dtypes"] == {"int4": 12}
    stored = np.array([[7, -4, 0, 1], [0.7, 0.1, -0.3, 0], [0, -2, 8 / 7, 4 / 7]], np.float32)
    x = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(run_tflite(artifact.path, x), stored.T, atol=1e-6)


def test_int4_of_every_kind_of_layer(model, tmp_path):
    artifact = convert(model, tmp_path / "a.tflite", quantize="int4")
    assert dtypes(artifact.path) == [
        ("CONV_2D", "int4"),
        ("DEPTHWISE_CONV_2D", "int8"),
        ("CONV_2D", "int4"),
        ("FULLY_CONNECTED", "int4"),
    ]
    assert artifact.quantization == "int4"
    assert artifact.verification.passed
    got = run_tflite(artifact.path, SAMPLES)
    np.testing.assert_allclose(got, np.asarray(model(SAMPLES)), atol=0.05)
    assert "int4" in str(artifact)


def test_pruned_weights_stay_zero_and_inspect_counts_them(keras, tmp_path):
    model = network(keras)
    kernel = model.get_layer("conv2").kernel
    values = np.arange(1, 49, dtype=np.float32).reshape(1, 1, 6, 8) / 48
    values[0, 0, :3] = 0  # half of each output channel
    kernel.assign(values)
    artifact = convert(model, tmp_path / "a.tflite", quantize="int4", clean=False)
    found = inspect(artifact.path)
    rows = {layer.shape: layer for layer in found.layers}
    row = rows[8, 1, 1, 6]
    assert row.dtype == "int4"
    assert row.sparsity == 0.5
    assert row.distinct_values <= 8  # zero and some of 1 to 7: no weight is negative
    assert found.sparse_encoded_bytes <= found.bytes
    assert found.entropy_bytes < found.bytes
    note = "TFLite Micro does not run int4 weights of float layers: convert with int8"
    assert note in found.mcu.notes
    said = found.summary().splitlines()
    assert "TFLite Micro has every operator, but refuses the weights: see the notes" in said
    assert f"note: {note}" in said
    zero = tflite.read(artifact.path).weights()[2].values()[..., :3]
    assert not zero.any()


def test_layers_take_the_first_mode_that_matches(model, tmp_path):
    modes = {"*": "int4", "conv1": "int8", "Conv2D": "float16", "spread": "none"}
    artifact = convert(model, tmp_path / "a.tflite", quantize=modes, calibration=SAMPLES)
    assert dtypes(artifact.path) == [
        ("CONV_2D", "int8"),
        ("DEPTHWISE_CONV_2D", "float32"),
        ("CONV_2D", "float16"),
        ("FULLY_CONNECTED", "int4"),
    ]
    graph = tflite.read(artifact.path).subgraphs[0]
    conv1 = next(op for op in graph.operators if op.name == "CONV_2D")
    assert [graph.tensors[i].dtype for i in (*conv1.inputs, *conv1.outputs)] == [
        *("int8", "int8", "int32", "int8")
    ]
    assert artifact.quantization == "mixed"
    assert artifact.made_by["recipe"]["quantize"] == modes
    got = run_tflite(artifact.path, SAMPLES)
    np.testing.assert_allclose(got, np.asarray(model(SAMPLES)), atol=0.05)


@pytest.mark.parametrize("mode", ["int8", "int16x8", "dynamic"])
def test_one_layer_left_in_float(model, tmp_path, mode):
    modes = {"classes": "none", "*": mode}
    calibration = None if mode == "dynamic" else SAMPLES
    artifact = convert(model, tmp_path / "a.tflite", quantize=modes, calibration=calibration)
    assert [dtype for _, dtype in dtypes(artifact.path)] == ["int8", "int8", "int8", "float32"]
    graph = tflite.read(artifact.path).subgraphs[0]
    ends = [graph.tensors[i] for i in (*graph.inputs, *graph.outputs)]
    assert [tensor.dtype for tensor in ends] == ["float32", "float32"]
    softmax = next(op for op in graph.operators if op.name == "SOFTMAX")
    assert graph.tensors[softmax.inputs[0]].dtype == "float32"  # it goes with its dense layer
    got = run_tflite(artifact.path, SAMPLES)
    np.testing.assert_allclose(got, np.asarray(model(SAMPLES)), atol=0.05)


def test_two_inputs_and_a_free_batch(keras, tmp_path):
    keras.utils.set_random_seed(0)
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    joined = keras.layers.Concatenate()([b, a])
    model = keras.Model([a, b], keras.layers.Dense(2, name="last")(joined))
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(9, 4)).astype("f4"), "b": 5 * rng.normal(size=(9, 4)).astype("f4")}
    for batch in (4, "dynamic"):
        path = tmp_path / f"{batch}.tflite"
        convert(model, path, quantize={"last": "int8"}, calibration=x, batch=batch)
        want = np.asarray(model([x["a"], x["b"]]))
        np.testing.assert_allclose(run_tflite(path, x), want, atol=0.2)


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ({"nothing": "int4"}, r"'nothing' in the modes by layer matches no layer; .* conv1, spr"),
        ({"norm": "int4"}, r"'norm' in .* matches only layers that are no operator of their own"),
        ({"conv*": "int4", "conv1": "int8"}, r"'conv1' in .* only layers that others before"),
        ({"conv1": "int5"}, r"unknown quantization 'int5'; supported: none"),
        ("int5", r"unknown quantization 'int5'"),
        ({}, r"`quantize` is a mode or a mapping"),
        (4, r"`quantize` is a mode or a mapping"),
    ],
)
def test_modes_that_mean_nothing(model, tmp_path, quantize, message):
    with pytest.raises(InputError, match=message):
        convert(model, tmp_path / "a.tflite", quantize=quantize, calibration=SAMPLES)
    assert list(tmp_path.iterdir()) == []


def test_an_int8_layer_needs_calibration(model, tmp_path):
    with pytest.raises(InputError, match="int8 quantization needs calibration data"):
        convert(model, tmp_path / "a.tflite", quantize={"conv1": "int8"})
    cut = SAMPLES[:, :4]
    with pytest.raises(InputError, match=r"takes samples of shape \(8, 8, 2\), got"):
        convert(model, tmp_path / "a.tflite", quantize={"conv1": "int8"}, calibration=cut)


@pytest.mark.parametrize("quantize", ["int4", {"spread": "int4"}])
def test_int4_without_a_layer_to_act_on(keras, tmp_path, quantize):
    layers = keras.layers
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.DepthwiseConv2D(3, name="spread")])
    with pytest.raises(UnsupportedError, match="no layer to act on: found DEPTHWISE_CONV_2D"):
        convert(model, tmp_path / "a.tflite", quantize=quantize)
    pooling = keras.Sequential([keras.Input((8, 8, 2)), layers.AveragePooling2D(2)])
    with pytest.raises(UnsupportedError, match="no layer to act on: found no weights"):
        convert(pooling, tmp_path / "a.tflite", quantize="int4")


def test_int4_that_computes_something_else_is_refused(keras, tmp_path):
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4, use_bias=False)])
    kernel = np.full((16, 4), 0.05, np.float32)
    kernel[0] = 1.0  # the others are less than half a step, and vanish
    model.layers[0].set_weights([kernel * 1.2])
    x = np.ones((32, 16), np.float32)
    x[:, 0] = 0
    x *= np.random.default_rng(0).uniform(0.5, 1.5, (32, 1)).astype("f4")
    with pytest.raises(VerificationError, match="does not compute what the Keras model computes"):
        convert(model, tmp_path / "a.tflite", quantize="int4", calibration=x)
    assert list(tmp_path.iterdir()) == []


def test_loops_cannot_be_calibrated(keras, tmp_path):
    layers = [keras.Input((8, 4)), keras.layers.LSTM(5), keras.layers.Dense(3, name="last")]
    model = keras.Sequential(layers)
    x = np.random.default_rng(0).normal(size=(9, 8, 4)).astype(np.float32)
    with pytest.raises(UnsupportedError, match="unroll=True"):
        convert(model, tmp_path / "a.tflite", quantize={"last": "int8"}, calibration=x)
    artifact = convert(model, tmp_path / "a.tflite", quantize={"last": "int4"})
    assert artifact.made_by["weight_dtypes"]["int4"] == 15


def test_without_the_package_the_way_to_it_is_told(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'edgeprune\[int4\]'"):
        convert(model, tmp_path / "a.tflite", quantize="int4")
    convert(model, tmp_path / "b.tflite", quantize="int8", calibration=SAMPLES)


def test_sparse_encoding_is_not_tried_on_int4(model, tmp_path):
    artifact = convert(model, tmp_path / "a.tflite", quantize="int4")
    assert "int4 weights have no sparse encoding" in artifact.made_by["weights_encoding"]
    with pytest.raises(UnsupportedError, match="int4 weights have no sparse encoding"):
        convert(model, tmp_path / "b.tflite", quantize="int4", sparse="on")


def test_legacy_keras_too(tmp_path):
    import tf_keras

    model = network(tf_keras)
    modes = {"conv1": "int8", "*": "int4"}
    artifact = convert(model, tmp_path / "a.tflite", quantize=modes, calibration=SAMPLES)
    assert [dtype for _, dtype in dtypes(artifact.path)] == ["int8", "int8", "int4", "int4"]
    assert artifact.verification.passed
