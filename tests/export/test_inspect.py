"""`inspect` on real conversions: figures by hand, verdicts by XNNPACK's rules, damage refused."""

import gzip
import json
import subprocess
import sys
from contextlib import suppress

import flatbuffers
import keras
import numpy as np
import pytest
import reference_models
import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import edgeprune
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.export.inspect import inspect_tflite
from edgeprune.export.micro import SUPPORTED_OPERATORS
from edgeprune.export.sizes import entropy_bytes, histogram, most_distinct, sparse_bytes
from edgeprune.export.tflite import read

BOTH = pytest.mark.parametrize("flavour", [keras, tf_keras], ids=["keras", "tf_keras"])


def convert(model, *, sparse=False, quantize="none"):
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [] if quantize == "none" else [tf.lite.Optimize.DEFAULT]
    if sparse:
        converter.optimizations.append(tf.lite.Optimize.EXPERIMENTAL_SPARSITY)
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        random = np.random.default_rng(0)
        samples = random.random((4, 1, *model.input_shape[1:]), np.float32)
        converter.representative_dataset = lambda: ([sample] for sample in samples)
    return converter.convert()


def zero_out(model, sparsity, *, only=lambda kernel: True):
    random = np.random.default_rng(1)
    for layer in model.layers:
        weights = layer.get_weights()
        if weights and weights[0].ndim >= 2 and only(weights[0]):
            weights[0] = weights[0] * (random.random(weights[0].shape) >= sparsity)
            layer.set_weights(weights)
    return model


def small(flavour):
    """Conv2D 3x3 2->4 and Dense 4->3, with the conv's first two output channels zero."""
    layers = flavour.layers
    inputs = flavour.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    model = flavour.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    kernel = np.arange(72, dtype=np.float32).reshape(3, 3, 2, 4) + 1
    kernel[..., :2] = 0
    model.get_layer("conv").set_weights([kernel, np.ones(4, np.float32)])
    model.get_layer("head").set_weights([np.ones((64, 3)), np.ones(3)])
    return model


@BOTH
def test_keras_figures_by_hand(flavour):
    found = edgeprune.inspect(small(flavour))
    conv, norm, head = found.layers
    # Kernel 72 and bias 4; four BatchNormalization vectors of 4; kernel 192 and bias 3.
    assert (conv.parameters, norm.parameters, head.parameters) == (76, 16, 195)
    assert (found.parameters, found.bytes) == (287, 287 * 4)
    assert (conv.macs, norm.macs, head.macs, found.macs) == (16 * 72, 0, 192, 16 * 72 + 192)
    assert (conv.sparsity, norm.sparsity, head.sparsity) == (0.5, None, 0.0)
    assert found.sparsity == 36 / (72 + 192)
    assert (conv.distinct_values, norm.distinct_values, head.distinct_values) == (37, None, 1)
    assert (conv.name, conv.op, conv.shape, conv.dtype) == (
        "conv",
        "Conv2D",
        (3, 3, 2, 4),
        "float32",
    )
    assert found.sparse_inference.eligible is None
    assert set(found.unavailable) == {"sparse_inference.eligible", "mcu.unsupported_ops"}


@BOTH
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_keras_files(flavour, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    small(flavour).save(path)
    found = edgeprune.inspect(path)
    assert (found.parameters, found.macs, found.bytes) == (287, 1344, path.stat().st_size)


def test_recurrent_cells_and_attention_have_one_row_each():
    inputs = keras.Input((7, 5))
    x = keras.layers.LSTM(6, return_sequences=True, name="lstm")(inputs)
    model = keras.Model(inputs, keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x))
    rows = {layer.name: layer for layer in edgeprune.inspect(model).layers}
    assert (rows["lstm"].parameters, rows["lstm"].macs) == (264 + 24, 7 * 264)
    assert rows["attention"].macs == 2 * (2 * 7 * 7 * 3)
    assert rows["attention/query"].parameters == 6 * 6 + 6
    assert sum(row.parameters for row in rows.values()) == model.count_params()


def test_tflite_figures_by_hand():
    content = convert(small(tf_keras))
    found = inspect_tflite(read(content))
    conv, head = (layer for layer in found.layers if layer.macs)
    assert (conv.op, conv.shape, conv.parameters, conv.macs) == ("CONV_2D", (4, 3, 3, 2), 76, 1152)
    assert (head.op, head.shape, head.parameters) == ("FULLY_CONNECTED", (3, 64), 195)
    assert (conv.sparsity, conv.distinct_values) == (0.5, 37)
    # Of 72 floats 37 differ: not clustered. The head's are all 1.
    assert (conv.distinct_in_channel, head.distinct_in_channel) == (None, 1)
    assert found.macs == 1344
    assert (found.bytes, found.gzip_bytes) == (len(content), len(gzip.compress(content, 9)))
    assert found.sparse_inference.eligible is False
    assert found.mcu.unsupported_ops == ()


def test_json_has_the_promised_keys():
    found = json.loads(inspect_tflite(read(convert(small(tf_keras)))).to_json())
    keys = """
    parameters macs bytes gzip_bytes sparse_encoded_bytes entropy_bytes sparsity layers
    sparse_inference mcu
    """
    assert set(found) == {*keys.split(), "notes", "unavailable"}
    keys = "name op shape dtype parameters macs sparsity distinct_values distinct_in_channel"
    assert set(found["layers"][0]) == set(keys.split())
    assert {"eligible", "reasons"} == set(found["sparse_inference"])
    assert "unsupported_ops" in found["mcu"]


@pytest.mark.parametrize("quantize", ["none", "float16", "int8", "dynamic"])
def test_values_of_clustered_kernels_are_counted_in_channels(quantize):
    """Channels share values 0, 1, 2 times a factor of their own; the depthwise ones 4 more."""
    inputs = tf_keras.Input((6, 6, 8))
    x = tf_keras.layers.Conv2D(16, 3, use_bias=False, name="conv")(inputs)
    x = tf_keras.layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(4)(tf_keras.layers.Flatten()(x)))
    random = np.random.default_rng(0)
    few = random.integers(0, 3, (3, 3, 8, 16)) * np.linspace(0.5, 1.0, 16)
    filters = np.arange(9).reshape(3, 3, 1, 1) % 7 * np.ones(16)[:, np.newaxis]
    model.get_layer("conv").set_weights([few])
    model.get_layer("depthwise").set_weights([filters])
    found = inspect_tflite(read(convert(model, quantize=quantize)))
    conv, depthwise = (layer for layer in found.layers if "CONV" in layer.op)
    assert (depthwise.op, depthwise.distinct_in_channel) == ("DEPTHWISE_CONV_2D", 7)
    assert conv.distinct_in_channel == 3
    assert "in a channel" in str(found)


@given(
    arrays(
        st.sampled_from([np.int8, np.uint8, np.int16, np.float16, np.float32]),
        st.tuples(st.integers(1, 5), st.integers(1, 40)),
        elements=st.integers(0, 20),
    )
)
def test_the_most_distinct_values_of_a_row(rows):
    assert most_distinct(rows) == max(np.unique(row).size for row in rows)


@pytest.mark.parametrize("quantize", ["none", "float16", "int8"])
def test_sparse_encoded_bytes_foretell_the_sparse_file(quantize):
    model = zero_out(reference_models.build_resnet8(tf_keras), 0.8)
    dense = inspect_tflite(read(convert(model, quantize=quantize)))
    sparse = inspect_tflite(read(convert(model, quantize=quantize, sparse=True)))
    assert dense.sparse_encoded_bytes == pytest.approx(sparse.bytes, rel=0.02)
    assert sparse.sparse_encoded_bytes == sparse.bytes
    assert dense.sparsity == sparse.sparsity
    assert [layer.distinct_values for layer in dense.layers] == [
        layer.distinct_values for layer in sparse.layers
    ]


def test_sparse_encoding_is_exact_apart_from_its_tables():
    random = np.random.default_rng(2)
    for shape, dtype in [((40, 3, 3, 70), "float32"), ((300, 512), "int8"), ((64, 300), "float16")]:
        weight = (random.random(shape) < 0.1) * random.integers(1, 100, shape)
        stored = np.count_nonzero(weight)
        value, index = np.dtype(dtype).itemsize, 1 if shape[-1] <= 256 else 2
        segment = 1 if stored < 256 else 2
        rows = weight.size // shape[-1]
        expected = stored * (value + index) + (rows + 1) * segment
        tables = sparse_bytes(weight.astype(dtype)) - expected
        assert 250 < tables < 350


def test_blocks_are_cheaper_than_single_indices():
    weight = np.zeros((64, 128), np.float32)
    weight[:, :32] = 1
    assert sparse_bytes(weight) < 64 * 32 * 4 + 64 * 8 + 65 * 2 + 350
    assert sparse_bytes(np.ones((64, 128), np.float32)) == 64 * 128 * 4  # never more than dense


def test_entropy_by_hand():
    # 4 values: 8 of one, 4, 2 and 2 of the others: 8*1 + 4*2 + 2*3 + 2*3 = 28 bits; table 4 bytes.
    values = np.repeat(np.array([0, 5, -7, 9], np.int8), [8, 4, 2, 2])
    assert sorted(histogram(values, 0).tolist()) == [2, 2, 4, 8]
    assert entropy_bytes(histogram(values, 0), 16) == 8  # 28 bits are 3.5 bytes, and 4
    assert entropy_bytes(histogram(values[8:], 8), 16) == 8  # zeros left out by a sparse encoding
    assert entropy_bytes(np.array([16]), 16) == 1


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.5]), min_size=1), st.integers(0, 5))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_histogram_merges_signed_zeros(dtype, values, implied):
    array = np.array(values, dtype)
    expected = np.unique(np.append(array, np.zeros(implied)), return_counts=True)[1]
    assert sorted(histogram(array, implied).tolist()) == sorted(expected.tolist())


def pointwise_net(*, pad=1, stem=3, stem_strides=2, pool=True, depthwise_strides=1, branch=False):
    layers = tf_keras.layers
    inputs = tf_keras.Input((16, 16, 3))
    x = layers.ZeroPadding2D(pad)(inputs) if pad else inputs
    x = layers.Conv2D(16, stem, strides=stem_strides, padding="valid" if pad else "same")(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, strides=depthwise_strides, padding="same")(x)
    y = layers.Conv2D(32, 1, activation="relu6", name="point")(x)
    y = layers.Conv2D(16, 1)(y)
    x = layers.Add()([x, y])
    x = layers.Conv2D(64, 1)(x)
    if branch:
        x = layers.Conv2D(64, 3, padding="same", name="wide")(x)
    x = layers.GlobalAveragePooling2D()(x) if pool else layers.Flatten()(x)
    return tf_keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


@pytest.mark.parametrize(
    ("net", "sparsity", "eligible", "reason"),
    [
        ({}, 0.9, True, "x86"),
        ({}, 0.5, False, "more than 2/3"),
        ({"pad": 0}, 0.9, False, "needs padding 1"),
        ({"pad": ((0, 1), (0, 1))}, 0.9, False, "needs padding 1"),
        ({"stem_strides": 1}, 0.9, False, "stride 2"),
        ({"depthwise_strides": 2}, 0.9, False, "needs padding 1"),
        ({"pool": False}, 0.9, False, "MEAN"),
        ({"branch": True}, 0.9, False, "3x3"),
    ],
)
def test_sparse_inference(net, sparsity, eligible, reason):
    model = zero_out(pointwise_net(**net), sparsity)
    verdict = inspect_tflite(read(convert(model, sparse=True))).sparse_inference
    assert verdict.eligible is eligible
    assert reason in " ".join(verdict.reasons)


def test_sparse_inference_wants_float_and_sparse_storage():
    model = zero_out(pointwise_net(), 0.9)
    dense = inspect_tflite(read(convert(model))).sparse_inference
    assert (dense.eligible, "DENSIFY" in dense.reasons[0]) == (False, True)
    quantized = inspect_tflite(read(convert(model, sparse=True, quantize="int8")))
    assert quantized.sparse_inference.eligible is False
    assert "float" in quantized.sparse_inference.reasons[0]
    # What cannot help is not advised.
    dense = inspect_tflite(read(convert(model, quantize="int8"))).sparse_inference
    assert dense.eligible is False
    assert dense.reasons == ("the weights are integers; only float models run sparse",)


def test_microcontroller_verdicts():
    layers = tf_keras.layers
    inputs = tf_keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(inputs)
    x = tf_keras.Model(inputs, layers.Lambda(lambda t: tf.tile(tf.nn.gelu(t), [1, 1, 2, 1]))(x))
    found = inspect_tflite(read(convert(x)))
    assert set(found.mcu.unsupported_ops) >= {"TILE"}
    assert "CONV_2D" not in found.mcu.unsupported_ops
    builtins = {name for name in vars(schema.BuiltinOperator) if name.isupper()}
    customs = {name for name in SUPPORTED_OPERATORS if name not in builtins}
    assert len(SUPPORTED_OPERATORS - customs) == 100  # what tflite_micro 0.dev20261023 resolves
    float16 = inspect_tflite(read(convert(small(tf_keras), quantize="float16")))
    assert "float16" in float16.mcu.notes[0]
    integers = inspect_tflite(read(convert(small(tf_keras), quantize="int8")))
    assert "TFLite Micro has every operator" in integers.summary().splitlines()


def test_tflite_is_inspected_without_tensorflow(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(convert(small(tf_keras)))
    script = (
        "import sys, edgeprune; found = edgeprune.inspect(sys.argv[1]); "
        "assert not {'tensorflow', 'keras', 'tf_keras'} & set(sys.modules); print(found.macs)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1344"]


def test_bad_input(tmp_path):
    (tmp_path / "cut.tflite").write_bytes(convert(small(tf_keras))[:500])
    for name in ("cut.tflite", "absent.tflite", "absent.keras"):
        with pytest.raises(InputError, match=name):
            edgeprune.inspect(tmp_path / name)
    with pytest.raises(InputError, match=r"absent does not exist; supported: \.tflite files, and"):
        edgeprune.inspect(tmp_path / "absent")
    with pytest.raises(InputError, match="supported"):
        edgeprune.inspect(object())


@pytest.fixture(scope="module")
def contents():
    sparse = convert(zero_out(pointwise_net(), 0.9), sparse=True, quantize="int8")
    inputs = tf_keras.Input((4, 3), batch_size=1)
    recurrent = convert(tf_keras.Model(inputs, tf_keras.layers.GRU(2)(inputs)))
    return [sparse, recurrent]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_flipped_bytes_never_crash(contents, data):
    damaged = bytearray(data.draw(st.sampled_from(contents)))
    flips = st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255))
    for position, value in data.draw(st.lists(flips, min_size=1, max_size=30)):
        damaged[position] = value
    with suppress(EdgepruneError):  # anything else fails the test
        inspect_tflite(read(bytes(damaged))).to_json()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_rewired_graphs_never_crash(contents, data):
    """Well-formed files whose operators read and write whatever tensors come."""
    model = schema.ModelT.InitFromPackedBuf(data.draw(st.sampled_from(contents)))
    graph = data.draw(st.sampled_from(model.subgraphs))
    operator = data.draw(st.sampled_from(graph.operators))
    index = st.integers(-1, len(graph.tensors) - 1)
    operator.inputs = data.draw(st.lists(index, max_size=5))
    operator.outputs = data.draw(st.lists(index, max_size=2))
    operator.opcodeIndex = data.draw(st.integers(0, len(model.operatorCodes) - 1))
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    with suppress(EdgepruneError):
        inspect_tflite(read(bytes(builder.Output()))).to_json()
