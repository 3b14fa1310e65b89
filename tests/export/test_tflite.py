"""The reader against files from the real converter, and against damage."""

from contextlib import suppress
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.export.tflite import TfliteModel, read


def convert(model, *, sparse=False, float16=False, calibration=None):
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = []
    if float16 or calibration is not None:
        converter.optimizations.append(tf.lite.Optimize.DEFAULT)
    if sparse:
        converter.optimizations.append(tf.lite.Optimize.EXPERIMENTAL_SPARSITY)
    if float16:
        converter.target_spec.supported_types = [tf.float16]
    if calibration is not None:
        converter.representative_dataset = lambda: ([sample[None]] for sample in calibration)
    return converter.convert()


@pytest.fixture(scope="module")
def model():
    """Conv2D, depthwise and Dense; a quarter of the first and the last kernel is zero."""
    import tf_keras

    layers = tf_keras.layers
    inputs = tf_keras.Input((8, 8, 4), batch_size=1)
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = tf_keras.Model(inputs, layers.Dense(64, name="dense")(x))
    random = np.random.default_rng(0)
    for name in ("conv", "dense"):
        kernel, bias = model.get_layer(name).get_weights()
        kernel = random.uniform(0.5, 1.0, kernel.shape).astype(np.float32)
        kernel[..., ::4] = 0.0  # 2 of 8, and 16 of 64, output channels
        model.get_layer(name).set_weights([kernel, bias + 1])
    return model


@pytest.fixture(scope="module")
def content(model):
    return convert(model)


@pytest.fixture(scope="module")
def sparse_content(model):
    import tf_keras

    sparse = tf_keras.models.clone_model(model)
    for layer, original in zip(sparse.layers, model.layers, strict=True):
        weights = original.get_weights()
        if layer.name in ("conv", "dense"):
            keep = np.random.default_rng(1).random(weights[0].shape) < 0.1
            weights[0] = weights[0] * keep
        layer.set_weights(weights)
    return convert(sparse, sparse=True), sparse


def test_reads_operators_tensors_and_options(content):
    graph = read(content).subgraphs[0]
    assert [op.name for op in graph.operators] == [
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "MEAN",
        "FULLY_CONNECTED",
    ]
    conv = graph.operators[0]
    assert (conv.options["stride_h"], conv.options["padding"]) == (1, schema.Padding.VALID)
    assert graph.tensors[conv.inputs[1]].shape == (8, 3, 3, 4)
    assert [graph.tensors[index].shape for index in (*graph.inputs, *graph.outputs)] == [
        (1, 8, 8, 4),
        (1, 64),
    ]


def test_agrees_with_the_interpreter(content):
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    by_index = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    for tensor in read(content).subgraphs[0].tensors:
        detail = by_index[tensor.index]
        assert (tensor.name, tensor.shape) == (detail["name"], tuple(detail["shape"]))
        assert np.dtype(tensor.dtype) == detail["dtype"]
        if tensor.data is not None:
            np.testing.assert_array_equal(
                tensor.values(), interpreter.get_tensor(tensor.index), strict=True
            )


def test_constants_are_views_into_the_file(content):
    model = read(content)
    assert all(
        np.shares_memory(t.values(), np.frombuffer(model.content, np.uint8))
        for t in model.weights()
    )


def test_weights_are_kernels_and_their_zeros_are_counted(content):
    model = read(content)
    shapes = {tensor.shape for tensor in model.weights()}
    assert shapes == {(8, 3, 3, 4), (1, 3, 3, 8), (64, 8)}
    # conv: 288 entries, a quarter zero; depthwise: 72, none; dense: 512, a quarter zero.
    assert model.sparsity == pytest.approx((72 + 0 + 128) / (288 + 72 + 512))


def test_int8_zeros_and_scales(model):
    samples = np.random.default_rng(2).random((4, 8, 8, 4), np.float32)
    quantized = read(convert(model, calibration=samples))
    assert {tensor.dtype for tensor in quantized.weights()} == {"int8"}
    assert quantized.sparsity == pytest.approx(200 / 872)
    conv = next(tensor for tensor in quantized.weights() if tensor.shape == (8, 3, 3, 4))
    assert conv.quantization is not None
    assert (conv.quantization.scale.shape, conv.quantization.axis) == ((8,), 0)
    real = conv.values() * conv.quantization.scale[:, None, None, None]
    kernel = model.get_layer("conv").get_weights()[0].transpose(3, 0, 1, 2)
    assert np.abs(real - kernel).max() <= conv.quantization.scale.max() / 2 + 1e-6


def test_float16_behind_dequantize_is_the_weight(model):
    half = read(convert(model, float16=True))
    assert "DEQUANTIZE" in {op.name for op in half.subgraphs[0].operators}
    assert {tensor.dtype for tensor in half.weights()} == {"float16"}
    assert half.sparsity == pytest.approx(200 / 872)


def test_sparse_encoded_weights_are_decoded(sparse_content):
    content, keras_model = sparse_content
    model = read(content)
    encoded = [tensor for tensor in model.weights() if tensor.sparsity is not None]
    assert len(encoded) == 2
    for tensor in encoded:
        name = "conv" if len(tensor.shape) == 4 else "dense"
        kernel = keras_model.get_layer(name).get_weights()[0]
        np.testing.assert_array_equal(tensor.values(), np.moveaxis(kernel, -1, 0))
        assert tensor.zeros() == np.count_nonzero(kernel == 0)


def test_block_sparse_weights_are_decoded():
    import tf_keras

    dense = tf_keras.layers.Dense(32, use_bias=False)
    model = tf_keras.Sequential([tf_keras.Input((64,), batch_size=1), dense])
    keep = np.random.default_rng(3).random((16, 32)) < 0.2  # 4x1 blocks of the (64, 32) kernel
    kernel = np.random.default_rng(4).uniform(1, 2, (64, 32)) * np.repeat(keep, 4, axis=0)
    dense.set_weights([kernel.astype(np.float32)])
    (weight,) = read(convert(model, sparse=True)).weights()
    assert weight.sparsity is not None
    assert weight.sparsity.block_map == (1,)  # the (32, 64) weight's input axis, in blocks of 4
    np.testing.assert_array_equal(weight.values(), kernel.T.astype(np.float32))


def build(type_, shape, data, *, scale=(), zero_point=(), axis=0):
    """Write a model of one FULLY_CONNECTED whose weight is as given."""
    weight = schema.TensorT()
    weight.shape, weight.type, weight.buffer, weight.name = shape, type_, 1, b"weight"
    if scale:
        weight.quantization = schema.QuantizationParametersT()
        weight.quantization.scale, weight.quantization.zeroPoint = scale, zero_point
        weight.quantization.quantizedDimension = axis
    value = schema.TensorT()
    value.shape, value.buffer, value.name = [1, 1], 0, b"value"
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [1, 0, -1], [1]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [weight, value], [operator]
    graph.inputs, graph.outputs = [1], [1]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(bytes(data), np.uint8)
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT(), buffer]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_packed_int4():
    # Low half first: 0x2F is -1 then 2; 0x80 is 0 then -8; the last half of 0x07 is padding.
    content = build(schema.TensorType.INT4, [1, 5], [0x2F, 0x80, 0x07], scale=[1.0])
    (weight,) = read(content).weights()
    assert weight.values().tolist() == [[-1, 2, 0, -8, 7]]
    assert read(content).sparsity == pytest.approx(1 / 5)


def test_bfloat16():
    (weight,) = read(build(schema.TensorType.BFLOAT16, [1, 2], [0, 0, 0x80, 0xBF])).weights()
    assert weight.values().tolist() == [[0.0, -1.0]]


@pytest.mark.parametrize(
    ("scale", "zero_point", "axis", "zeros"),
    [
        ([0.5], [3], 0, 2),  # entries equal to 3
        ([0.5, 0.5], [3, 0], 0, 3),  # row 0: the two 3s; row 1: one 0
        ([0.5, 0.5, 0.5], [0, 3, 5], 1, 3),  # columns: 3 0 / 3 5 / 1 5 -> one, one, one
    ],
)
def test_zero_is_the_zero_point(scale, zero_point, axis, zeros):
    rows = [3, 3, 1, 0, 5, 5]
    content = build(
        schema.TensorType.UINT8, [2, 3], rows, scale=scale, zero_point=zero_point, axis=axis
    )
    assert read(content).weights()[0].zeros() == zeros


@pytest.mark.parametrize(
    ("shape", "data", "scale"),
    [
        ([2, 3], b"12345", ()),  # one byte short
        ([2, 3], b"1234567", ()),
        ([2, -3], b"123456", ()),
        ([2**31 - 1] * 4, b"123456", ()),
        ([1] * 40, b"1", ()),
        ([2, 3], b"123456", (1.0, 1.0, 1.0, 1.0)),  # four scales, axis 0 has 2
    ],
)
def test_contradictions_are_refused(shape, data, scale):
    with pytest.raises(InputError, match="damaged"):
        read(build(schema.TensorType.INT8, shape, data, scale=scale))


def test_a_name_cannot_break_the_one_line(content):
    hostile = content.replace(b"conv/Conv2D", b"conv/\n\x1b[2JD")
    assert hostile != content
    assert all(tensor.name.isprintable() for tensor in read(hostile).subgraphs[0].tensors)


def test_missing_and_wrong_files(tmp_path: Path):
    (tmp_path / "empty.tflite").touch()
    (tmp_path / "text.tflite").write_text("not a model at all")
    for name, reason in [
        ("absent.tflite", "no such file"),
        (".", "directory"),
        ("empty.tflite", "empty"),
        ("text.tflite", "TFL3"),
    ]:
        with pytest.raises(InputError, match=reason):
            read(tmp_path / name)


def test_every_truncation_is_refused(content):
    # Buffers come first or last depending on the writer: try lengths all along the file.
    for length in {*range(0, len(content), 97), *range(1, 64), len(content) - 1}:
        with pytest.raises(InputError):
            usable(content[:length])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bytes_never_crash(content, sparse_content, data):
    damaged = bytearray(data.draw(st.sampled_from([content, sparse_content[0]])))
    flips = st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255))
    for position, value in data.draw(st.lists(flips, min_size=1, max_size=30)):
        damaged[position] = value
    with suppress(EdgepruneError):  # anything else fails the test
        usable(bytes(damaged))


def usable(content: bytes) -> TfliteModel:
    model = read(content)
    assert 0.0 <= model.sparsity <= 1.0
    return model


def test_endless_sharing_is_refused():
    """Tables that all point at one long vector must not multiply the work."""
    model = schema.ModelT()
    model.version, model.buffers = 3, [schema.BufferT()]
    builder = flatbuffers.Builder(0)
    length = 20_000
    inputs = builder.CreateNumpyVector(np.full(length, -1, np.int32))
    schema.OperatorStart(builder)
    schema.OperatorAddInputs(builder, inputs)
    operator = schema.OperatorEnd(builder)
    schema.SubGraphStartOperatorsVector(builder, length)
    for _ in range(length):
        builder.PrependUOffsetTRelative(operator)
    operators = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddOperators(builder, operators)
    graph = schema.SubGraphEnd(builder)
    schema.ModelStartSubgraphsVector(builder, 1)
    builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    code = schema.OperatorCodeT().Pack(builder)
    schema.ModelStartOperatorCodesVector(builder, 1)
    builder.PrependUOffsetTRelative(code)
    codes = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddOperatorCodes(builder, codes)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    with pytest.raises(InputError, match="claim to hold more"):
        read(bytes(builder.Output()))


@pytest.mark.parametrize("claimed", [2**31 - 1, 2**20])
def test_a_sparse_tensor_claiming_gigabytes_stays_cheap(sparse_content, claimed):
    import tracemalloc

    content, _ = sparse_content
    unpacked = schema.ModelT.InitFromPackedBuf(content)
    for tensor in unpacked.subgraphs[0].tensors:
        if tensor.sparsity is not None:
            tensor.shape = [claimed, *tensor.shape[1:]]
    builder = flatbuffers.Builder(0)
    builder.Finish(unpacked.Pack(builder), b"TFL3")
    hostile = bytes(builder.Output())
    tracemalloc.start()
    with pytest.raises(InputError):
        usable(hostile)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()
