"""Rewritten padding: shapes and weights stay, and XNNPACK's rules are met in the real file."""

import warnings

import numpy as np
import pytest

from edgeprune.errors import UnsupportedError
from edgeprune.export.converter import to_tflite
from edgeprune.export.encode import encode_sparse
from edgeprune.export.program import program_of
from edgeprune.export.sparse_inference import sparse_inference, sparse_parts
from edgeprune.export.tflite import read
from edgeprune.models import import_keras
from edgeprune.structure.eligible import (
    FineTuningNeededWarning,
    make_sparse_eligible,
    plan_sparse_eligible,
)

keras = import_keras()
layers = keras.layers
ONE_SIDE = ((0, 1), (0, 1))


def mobilenet_v1(size=16):
    """conv1 pads 'same'; dw2 by a ZeroPadding2D of one side, as Keras' own MobileNet does."""
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv1")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(6.0)(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="dw1")(x)
    x = layers.Conv2D(16, 1, name="pw1")(x)
    x = layers.ZeroPadding2D(ONE_SIDE, name="pad2")(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="valid", name="dw2")(x)
    x = layers.Conv2D(24, 1, name="pw2")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="top")(x))


def mobilenet_v2(size=16):
    """An inverted residual, and a 5x5 depthwise layer of stride 2."""
    inputs = keras.Input((size, size, 3))
    x = layers.ZeroPadding2D(ONE_SIDE)(inputs)
    x = layers.Conv2D(8, 3, strides=2, name="conv1")(x)
    y = layers.Conv2D(16, 1, activation="relu6", name="expand")(x)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="dw1")(y)
    y = layers.Conv2D(8, 1, name="project")(y)
    x = layers.Add()([x, y])
    x = layers.DepthwiseConv2D(5, strides=2, padding="same", name="dw2")(x)
    x = layers.Conv2D(16, 1, name="pw")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


def sequential():
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", name="conv1"),
            layers.Conv2D(8, 1, name="pw"),
            layers.GlobalAveragePooling2D(),
        ]
    )


def pruned(model, sparsity=0.9):
    random = np.random.default_rng(0)
    for variable in model.weights:
        values = random.normal(size=variable.shape)
        if "variance" in variable.path:
            values = np.abs(values) + 0.5
        if len(variable.shape) > 1:
            flat = values.reshape(-1)
            flat[random.permutation(flat.size)[: round(sparsity * flat.size)]] = 0
        variable.assign(values)
    return model


def rewritten(model):
    with pytest.warns(FineTuningNeededWarning):
        return make_sparse_eligible(model)


def sparse_file(model):
    content = to_tflite(
        program_of(model).fixed(1, None), "none", None, integer_io=False, allow_select_ops=False
    )
    return read(encode_sparse(content, "on", lambda encoded: True)[0])


@pytest.mark.slow
@pytest.mark.parametrize("build", [mobilenet_v1, mobilenet_v2])
def test_xnnpack_takes_what_it_refused_before(build):
    model = pruned(build())
    before = sparse_inference(sparse_file(model))
    assert before.eligible is False
    assert "needs padding" in before.reasons[0]
    after = sparse_file(rewritten(model))
    # No more is promised of models this small, of whose work the 1x1 convolutions have little.
    assert sparse_inference(after).eligible is not False
    assert all(not part.blockers for part in sparse_parts(after))


@pytest.mark.parametrize("build", [mobilenet_v1, mobilenet_v2, sequential])
def test_shapes_and_weights_stay(build):
    model = pruned(build(), 0.0)
    new = rewritten(model)
    assert new.output_shape == model.output_shape
    for layer in model.layers:
        if layer.weights or "pad" not in layer.name:
            assert new.get_layer(layer.name).output.shape == layer.output.shape
        for old, copy in zip(layer.weights, new.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(np.asarray(old), np.asarray(copy))
    x = np.ones((1, 16, 16, 3), np.float32)
    assert not np.allclose(model(x), new(x))  # which is why fine-tuning must follow


def test_a_rewritten_layer_pads_one_on_every_side():
    """By hand: ones 4x4, a kernel of ones, stride 2; the first window loses a row and a column."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(1, 3, strides=2, padding="same", use_bias=False, name="conv1"),
        ]
    )
    model.get_layer("conv1").kernel.assign(np.ones((3, 3, 3, 1)))
    x = np.ones((1, 4, 4, 3), np.float32)
    # 'same' pads (0,1): windows of 3x3, 3x2, 2x3 and 2x2 ones, times 3 channels.
    assert np.asarray(model(x)).reshape(-1).tolist() == [27, 18, 18, 12]
    # Padding 1 on every side: 2x2, 2x3, 3x2 and 3x3.
    assert np.asarray(rewritten(model)(x)).reshape(-1).tolist() == [12, 18, 18, 27]


def test_odd_sizes_keep_their_shapes_under_same():
    inputs = keras.Input((15, 15, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="conv1")(inputs)
    new = rewritten(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    assert new.get_layer("conv1").output.shape == (None, 8, 8, 4)


def test_the_plan_names_what_is_rewritten():
    assert plan_sparse_eligible(mobilenet_v1()).rewritten == ("conv1", "dw2")
    assert plan_sparse_eligible(mobilenet_v2()).rewritten == ("conv1", "dw2")
    assert plan_sparse_eligible(mobilenet_v1()).left == ()


def odd_one_side():
    """11 -> 12 with one side, windows at 0, 2, .. 8: 5; with padding 1 on every side 6."""
    inputs = keras.Input((11, 11, 3))
    x = layers.ZeroPadding2D(ONE_SIDE)(inputs)
    x = layers.Conv2D(4, 3, strides=2, name="bad")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


def without(layer, *, pool=True, channels=8):
    inputs = keras.Input((16, 16, channels))
    x = layer(inputs)
    x = layers.GlobalAveragePooling2D()(x) if pool else layers.Flatten()(x)
    return keras.Model(inputs, x, name="net")


@pytest.mark.parametrize(
    ("build", "layer", "why"),
    [
        (odd_one_side, "bad", "would change its output's shape"),
        (lambda: without(layers.MaxPooling2D(name="bad")), "bad", "(MaxPooling2D)"),
        (lambda: without(layers.Conv2D(4, 3, name="bad")), "bad", "is 3x3"),
        (lambda: without(layers.Conv2D(4, 1, strides=2, name="bad")), "bad", "stride"),
        (lambda: without(layers.Conv2D(4, 3, name="bad"), channels=3), "bad", "has stride 1"),
        (lambda: without(layers.DepthwiseConv2D(3, name="bad")), "bad", "does not pad"),
        (lambda: without(layers.DepthwiseConv2D(7, name="bad")), "bad", "3x3 or 5x5"),
        (
            lambda: without(layers.DepthwiseConv2D(3, depth_multiplier=2, name="bad")),
            "bad",
            "depth multiplier 2",
        ),
        (
            lambda: without(layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", name="bad")),
            "bad",
            "dilated",
        ),
        (lambda: without(layers.Conv2D(4, 1), pool=False), "net", "GlobalAveragePooling2D"),
    ],
)
def test_what_cannot_be_rewritten_is_named(build, layer, why):
    model = build()
    (left,) = plan_sparse_eligible(model).left
    assert left[0] == layer
    assert why in left[1]
    with pytest.warns(FineTuningNeededWarning, match=layer):
        new = make_sparse_eligible(model)
    assert new.output_shape == model.output_shape


def test_a_padding_that_others_read_stays():
    inputs = keras.Input((16, 16, 3))
    x = layers.ZeroPadding2D(ONE_SIDE, name="pad")(inputs)
    y = layers.Conv2D(4, 3, strides=2, name="conv1")(x)
    z = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, [layers.GlobalAveragePooling2D()(y), z])
    assert plan_sparse_eligible(model).left == (("conv1", "shares its padding 'pad' with others"),)


def test_a_model_that_qualifies_is_left_alone():
    inputs = keras.Input((16, 16, 3))
    x = layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(4, 3, strides=2)(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = make_sparse_eligible(model)
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(model(x)), np.asarray(new(x)))


def test_tf_keras_models_are_refused():
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    with pytest.raises(UnsupportedError, match="tf_keras"):
        make_sparse_eligible(model)
