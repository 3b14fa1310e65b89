import io
import zipfile

import numpy as np
import pytest

from edgeprune.errors import InputError
from edgeprune.export import tflite
from edgeprune.export.dead_channels import remove_dead_channels_tflite
from edgeprune.export.encode import encode_sparse


def conv(keras, x, filters, size=1, *, silent=(), unread=(), bias=0.5, **options):
    """Add a convolution of random weights; `silent` outputs are zero, `unread` inputs too."""
    layer = keras.layers.Conv2D(filters, size, **options)
    y = layer(x)
    rng = np.random.default_rng(filters)
    kernel = rng.uniform(0.2, 1, layer.kernel.shape) * rng.choice([-1, 1], layer.kernel.shape)
    kernel[..., list(silent)] = 0
    kernel[..., list(unread), :] = 0
    layer.kernel.assign(kernel)
    if layer.use_bias:
        layer.bias.assign(np.full(filters, bias))
    return y


def channels(report):
    return [(layer.channels_before, layer.channels_after) for layer in report.layers]


def constants(content, position):
    """Return the weights and biases of an operator."""
    graph = tflite.read(content).subgraphs[0]
    inputs = graph.operators[position].inputs[1:]
    return [graph.tensors[index].values() for index in inputs if index >= 0]


def assert_same(run_everywhere, content, cleaned):
    graph = tflite.read(content).subgraphs[0]
    given = graph.tensors[graph.inputs[0]]
    rng = np.random.default_rng(0)
    if given.dtype == "int8":
        samples = rng.integers(-128, 128, (8, *given.shape[1:])).astype(np.int8)
    else:
        samples = rng.normal(0, 3, (8, *given.shape[1:])).astype(np.float32)
    for before, after in zip(
        run_everywhere(content, samples), run_everywhere(cleaned, samples), strict=True
    ):
        if given.dtype == "int8":
            np.testing.assert_array_equal(before, after)
        else:
            np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert np.ptp(before.astype(float)) > 0  # the outputs do depend on the input


def test_a_constant_moves_into_the_bias_of_what_reads_it(keras, lite, run_everywhere):
    inputs = keras.Input((4, 4, 2))
    x = conv(keras, inputs, 3, silent=[1], bias=2.0, activation="relu")
    x = conv(keras, x, 2, bias=0.25)
    content = lite(keras.Model(inputs, x), "none")
    cleaned, report = remove_dead_channels_tflite(content)
    assert channels(report) == [(3, 2), (2, 2)]
    kernel = constants(content, 1)[0]
    kernel_after, bias_after = constants(cleaned, 1)
    np.testing.assert_array_equal(kernel_after, kernel[..., [0, 2]])
    np.testing.assert_allclose(bias_after, 0.25 + 2.0 * kernel[:, 0, 0, 1], rtol=1e-6)
    assert (report.weights_before, report.weights_after) == (12, 8)
    assert (report.macs_before, report.macs_after) == (16 * 12, 16 * 8)
    assert (report.bytes_before, report.bytes_after) == (len(content), len(cleaned))
    assert str(report).startswith("1 dead channel removed: 12 -> 8 weights, 192 -> 128 MACs")
    assert report.to_dict()["layers"][0]["channels_after"] == 2
    assert_same(run_everywhere, content, cleaned)


@pytest.mark.parametrize(("bias", "left"), [(2.0, 3), (-2.0, 2)])
def test_padding_shows_every_constant_but_zero(keras, lite, run_everywhere, bias, left):
    inputs = keras.Input((5, 5, 2))
    x = conv(keras, inputs, 3, silent=[1], bias=bias, activation="relu")
    x = conv(keras, x, 2, 3, padding="same")
    if bias < 0:  # the other channels must not be dead as well
        kernel = np.abs(np.random.default_rng(3).normal(5, 1, (1, 1, 2, 3)))
        kernel[..., 1] = 0
        model = keras.Model(inputs, x)
        model.layers[1].kernel.assign(kernel)
    content = lite(keras.Model(inputs, x), "none")
    cleaned, report = remove_dead_channels_tflite(content)
    assert channels(report)[0] == (3, left)
    if left == 3:
        (refused,) = report.refused
        assert refused.channels == 1
        assert "pads it with another value" in refused.reason
        assert cleaned == content
    assert_same(run_everywhere, content, cleaned)


@pytest.mark.parametrize(("padding", "left"), [("same", 3), ("valid", 2)])
def test_a_depthwise_convolution_spreads_a_constant(keras, lite, run_everywhere, padding, left):
    inputs = keras.Input((5, 5, 2))
    x = conv(keras, inputs, 3, silent=[1], bias=2.0, activation="relu")
    x = keras.layers.DepthwiseConv2D(3, padding=padding, depthwise_initializer="ones")(x)
    content = lite(keras.Model(inputs, conv(keras, x, 2)))
    cleaned, report = remove_dead_channels_tflite(content)
    assert channels(report) == [(3, left), (3, left), (2, 2)]
    assert_same(run_everywhere, content, cleaned)


def test_what_nothing_reads_leaves_and_what_only_that_read_too(keras, lite, run_everywhere):
    inputs = keras.Input((4, 4, 2))
    x = conv(keras, inputs, 4, activation="relu")
    x = conv(keras, x, 3, activation="relu")
    model = keras.Model(inputs, conv(keras, x, 2, 3, unread=[2]))
    kernel = model.layers[2].kernel.numpy()
    kernel[..., 3, :2] = 0  # channel 3 of the first layer is read by channel 2 alone
    model.layers[2].kernel.assign(kernel)
    content = lite(model, "none")
    cleaned, report = remove_dead_channels_tflite(content)
    assert channels(report) == [(4, 3), (3, 2), (2, 2)]
    assert_same(run_everywhere, content, cleaned)


def test_channels_that_are_added_leave_together_or_stay(keras, lite, run_everywhere):
    inputs = keras.Input((4, 4, 2))
    one = conv(keras, inputs, 4, silent=[0, 1], bias=-0.1)
    other = conv(keras, inputs, 4, 3, padding="same", silent=[1, 2], bias=-0.1)
    x = keras.layers.ReLU()(keras.layers.Add()([one, other]))
    content = lite(keras.Model(inputs, conv(keras, x, 2)))
    cleaned, report = remove_dead_channels_tflite(content)
    assert channels(report) == [(4, 3), (4, 3), (2, 2)]
    assert all("varies" in refused.reason for refused in report.refused)
    assert sum(refused.channels for refused in report.refused) == 2
    assert_same(run_everywhere, content, cleaned)


@pytest.mark.parametrize("quantize", ["int8", "none"])
def test_flattened_and_joined_channels(keras, lite, run_everywhere, quantize):
    inputs = keras.Input((3, 5, 2))
    one = conv(keras, inputs, 3, silent=[0], bias=-1.0, activation="relu")
    other = conv(keras, inputs, 4, silent=[1, 3], bias=-1.0, activation="relu")
    x = keras.layers.Flatten()(keras.layers.Concatenate()([one, other]))
    model = keras.Model(inputs, keras.layers.Dense(2, use_bias=False)(x))
    rng = np.random.default_rng(0)
    content = lite(model, quantize, rng.normal(0, 2, (8, 3, 5, 2)).astype(np.float32))
    cleaned, report = remove_dead_channels_tflite(content)
    assert channels(report) == [(3, 2), (4, 2), (2, 2)]
    graph = tflite.read(cleaned).subgraphs[0]
    (reshape,) = (op for op in graph.operators if op.name == "RESHAPE")
    assert graph.tensors[reshape.inputs[1]].values().tolist()[-1] == 3 * 5 * 4
    assert constants(cleaned, -1)[0].shape == (2, 3 * 5 * 4)
    assert_same(run_everywhere, content, cleaned)


def test_a_bias_is_made_where_there_is_none(keras, lite, run_everywhere):
    inputs = keras.Input((1, 1, 3))
    x = keras.layers.Flatten()(conv(keras, inputs, 4, silent=[2], bias=3.0, activation="relu"))
    model = keras.Model(inputs, keras.layers.Dense(3, use_bias=False)(x))
    for quantize in ("int8", "none"):
        content = lite(model, quantize)
        cleaned, report = remove_dead_channels_tflite(content)
        assert channels(report) == [(4, 3), (3, 3)]
        assert_same(run_everywhere, content, cleaned)
    np.testing.assert_allclose(
        constants(cleaned, -1)[1], 3.0 * model.layers[-1].kernel.numpy()[2], rtol=1e-6
    )


@pytest.mark.parametrize(("quantize", "left"), [("int8", 2), ("none", 1)])
def test_a_layer_keeps_a_channel_and_its_scales(keras, lite, quantize, left):
    inputs = keras.Input((4, 4, 2))
    x = conv(keras, inputs, 5, silent=range(5), activation="relu")
    model = keras.Model(inputs, keras.layers.Add()([conv(keras, x, 2), inputs]))
    cleaned, report = remove_dead_channels_tflite(lite(model, quantize))
    assert channels(report) == [(5, left), (2, 2)]
    kernel = tflite.read(cleaned).weights()[0]
    assert kernel.shape == (left, 1, 1, 2)
    if quantize == "int8":
        assert kernel.quantization.scale.size == left
    assert "the last of its layer" in {refused.reason for refused in report.refused}


def test_inputs_and_outputs_stay(keras, lite):
    inputs = keras.Input((4, 4, 3))
    content = lite(keras.Model(inputs, conv(keras, inputs, 3, silent=[1], unread=[0])), "none")
    cleaned, report = remove_dead_channels_tflite(content)
    assert cleaned == content
    assert [refused.reason for refused in report.refused] == ["output of the model"]


def test_a_free_batch_stays_free(keras, lite):
    from ai_edge_litert.interpreter import Interpreter

    inputs = keras.Input((4, 4, 2))
    x = conv(keras, inputs, 3, silent=[1], bias=2.0, activation="relu")
    content = lite(keras.Model(inputs, conv(keras, x, 2)), "none", batch="dynamic")
    cleaned, report = remove_dead_channels_tflite(content)
    assert report.channels_removed == 1
    samples = np.random.default_rng(0).normal(0, 1, (5, 4, 4, 2)).astype(np.float32)
    results = []
    for file in (content, cleaned):
        run = Interpreter(model_content=file).get_signature_runner()
        results.append(next(iter(run(**{next(iter(run.get_input_details())): samples}).values())))
    assert results[0].shape == (5, 4, 4, 2)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_constants_that_several_operators_read_are_split(keras, lite, run_everywhere):
    inputs = keras.Input((4, 4, 2))
    x = conv(keras, inputs, 4, silent=[1], bias=0.0, activation="relu")
    x = conv(keras, x, 4, bias=0.0, activation="relu")
    content = lite(keras.Model(inputs, conv(keras, x, 4, bias=0.0)), "none")
    graph = tflite.read(content).subgraphs[0]
    assert len({op.inputs[2] for op in graph.operators}) == 1  # one bias of zeros for all
    cleaned, report = remove_dead_channels_tflite(content)
    assert channels(report) == [(4, 3), (4, 4), (4, 4)]
    assert_same(run_everywhere, content, cleaned)


def test_constants_are_aligned_for_microcontrollers(keras, lite):
    inputs = keras.Input((4, 4, 3))
    x = conv(keras, inputs, 5, silent=[1], bias=-1.0, activation="relu")
    content = lite(keras.Model(inputs, conv(keras, x, 3)))
    cleaned, _ = remove_dead_channels_tflite(content)
    assert cleaned != content
    model = tflite.read(cleaned)
    offsets = [
        tensor.data.ctypes.data - np.frombuffer(model.content, np.uint8).ctypes.data
        for tensor in model.subgraphs[0].tensors
        if tensor.data is not None
    ]
    assert offsets
    assert not any(offset % 16 for offset in offsets)


def edited(content, edit):
    """Pack a file again after `edit` changed its tables."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    edit(model)
    builder = schema.flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.fixture(scope="module")
def with_dead(keras, lite):
    inputs = keras.Input((4, 4, 2))
    x = conv(keras, inputs, 3, silent=[1], bias=2.0, activation="relu")
    return lite(keras.Model(inputs, conv(keras, x, 2)))


def test_a_bias_without_room_keeps_the_channel(with_dead, run_everywhere):
    graph = tflite.read(with_dead).subgraphs[0]
    bias = graph.tensors[graph.operators[-1].inputs[2]]
    weights = constants(with_dead, -1)[0][:, 0, 0, 1]

    def overfill(model):
        full = (2**31 - 1) * np.sign(weights).astype(np.int64)
        model.buffers[bias.buffer].data = full.astype(np.int32).view(np.uint8)

    content = edited(with_dead, overfill)
    cleaned, report = remove_dead_channels_tflite(content)
    assert cleaned == content
    assert any("has no room" in refused.reason for refused in report.refused)


def several_subgraphs(model):
    model.subgraphs.append(model.subgraphs[0])


def custom_operator(model):
    model.operatorCodes[0].builtinCode = 32
    model.operatorCodes[0].deprecatedBuiltinCode = 32
    model.operatorCodes[0].customCode = b"Mine"


def external_weights(model):
    model.buffers[-1].offset, model.buffers[-1].size = 4, 4


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (several_subgraphs, "several subgraphs"),
        (custom_operator, "custom operators (Mine)"),
        (external_weights, "outside the flatbuffer"),
    ],
)
def test_files_that_cannot_be_followed_are_left_alone(with_dead, edit, reason):
    content = edited(with_dead, edit)
    cleaned, report = remove_dead_channels_tflite(content)
    assert cleaned == content
    assert reason in report.refused[0].reason
    assert str(report).startswith("dead channels were not looked for: it")


def test_attached_files_are_not_lost(with_dead):
    attached = io.BytesIO()
    with zipfile.ZipFile(attached, "w") as archive:
        archive.writestr("labels.txt", "cat")
    content = with_dead + attached.getvalue()
    cleaned, report = remove_dead_channels_tflite(content)
    assert cleaned == content
    assert "attached files" in report.refused[0].reason


def test_sparsely_encoded_files_are_left_alone(keras, lite):
    inputs = keras.Input((64,))
    layer = keras.layers.Dense(64)
    model = keras.Model(inputs, layer(inputs))
    layer.kernel.assign(np.eye(64))
    content, encoding = encode_sparse(lite(model, "none"), "on", lambda encoded: True)
    assert encoding == "sparse"
    cleaned, report = remove_dead_channels_tflite(content)
    assert cleaned == content
    assert "sparsely encoded; convert the Keras model again without that" in (
        report.refused[0].reason
    )


def test_an_unknown_operator_freezes_its_channels_only(keras, lite, run_everywhere):
    inputs = keras.Input((4, 4, 2))
    x = conv(keras, inputs, 4, silent=[1], bias=2.0, activation="relu")
    x = conv(keras, x, 4, silent=[2], bias=2.0)
    x = keras.layers.Permute((2, 1, 3))(x)
    content = lite(keras.Model(inputs, conv(keras, x, 2)))
    cleaned, report = remove_dead_channels_tflite(content)
    assert channels(report) == [(4, 3), (4, 4), (2, 2)]
    assert any("TRANSPOSE is not followed" in refused.reason for refused in report.refused)
    assert_same(run_everywhere, content, cleaned)


def test_damaged_files_raise_an_input_error(with_dead):
    with pytest.raises(InputError, match=r"not a \.tflite model"):
        remove_dead_channels_tflite(b"no model at all")
    with pytest.raises(InputError, match="damaged"):
        remove_dead_channels_tflite(with_dead[: len(with_dead) // 2])


def test_flipped_bytes_never_raise_anything_else(with_dead):
    rng = np.random.default_rng(0)
    survived = 0
    for _ in range(300):
        damaged = np.frombuffer(with_dead, np.uint8).copy()
        damaged[rng.integers(0, len(damaged), 2)] = rng.integers(0, 256, 2)
        try:
            remove_dead_channels_tflite(damaged.tobytes())
        except InputError:
            continue
        survived += 1
    assert 0 < survived < 300
