"""The layers of an aware model: what they compute, train, save and load."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from edgeprune.quantization import grid
from edgeprune.quantization.layers import ActivationRange, GridLayer, on_grid


def states(layer):
    return [float(v) for v in (layer.minimum, layer.maximum, layer.batches)]


def test_a_range_passes_values_unchanged_until_it_has_seen_a_batch():
    values = np.float32([[-1.234567, 0.1, 55.5]])
    layer = ActivationRange()
    np.testing.assert_array_equal(layer(values, training=False), values)
    assert states(layer) == [0, 0, 0]


def test_a_range_is_the_mean_of_the_first_batches_and_holds_zero():
    layer = ActivationRange(momentum=0.6)
    layer(np.float32([1.0, 4.0]), training=True)
    assert states(layer) == [0, 4, 1]  # the least value is 1, but zero must be in the range
    layer(np.float32([-2.0, 6.0]), training=True)
    assert states(layer) == [-1, 5, 2]
    layer(np.float32([-4.0, 10.0]), training=True)  # past weighs min(2/3, 0.6) from here on
    assert states(layer) == pytest.approx([-2.2, 7.0, 3])


def test_evaluation_neither_learns_nor_goes_beyond_the_range():
    layer = ActivationRange()
    layer(np.float32([0.0, 2.55]), training=True)
    before = states(layer)
    # Steps of 0.01: rounded to the nearest, cut off at both ends.
    found = layer(np.float32([-1.0, 0.0, 0.014, 1.0, 9.0]), training=False)
    np.testing.assert_allclose(found, [0, 0, 0.01, 1.0, 2.55], atol=1e-6)
    assert states(layer) == before


def test_a_range_has_256_values_and_zero_is_one_of_them():
    layer = ActivationRange()
    values = np.linspace(-0.7, 1.9, 5001, dtype="float32")
    rounded = np.asarray(layer(values, training=True))
    assert len(np.unique(rounded)) == 256
    assert 0.0 in rounded
    assert np.abs(rounded - values).max() <= 2.6 / 255  # half a step, and half for the nudge


def test_a_batch_that_overflowed_leaves_no_trace():
    layer = ActivationRange()
    layer(np.float32([-1.0, 1.0]), training=True)
    before = states(layer)
    layer(np.float32([np.inf, np.nan]), training=True)
    assert states(layer) == before


def test_gradients_pass_inside_the_range_and_stop_outside():
    layer = ActivationRange()
    layer(np.float32([-1.0, 1.0]), training=True)
    values = tf.constant([-3.0, -0.5, 0.3, 5.0])
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.reduce_sum(layer(values, training=False))
    assert tape.gradient(total, values).numpy().tolist() == [0, 1, 1, 0]


def test_a_grid_layer_computes_with_the_rounded_kernel_and_trains_the_float_one():
    values = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    layer = GridLayer(keras.layers.Dense(3, bias_initializer="ones"))
    with tf.GradientTape() as tape:
        outputs = layer(values)
        total = tf.reduce_sum(outputs)
    kernel = layer.layer.kernel
    rounded = grid.to_grid(kernel.value, (1,)).numpy()
    assert not np.array_equal(rounded, kernel.numpy())
    np.testing.assert_allclose(outputs, values @ rounded + 1, rtol=1e-5, atol=1e-5)
    gradient, bias = tape.gradient(total, layer.trainable_variables)
    np.testing.assert_allclose(gradient, np.repeat(values.sum(0)[:, None], 3, 1), rtol=1e-5)
    np.testing.assert_allclose(bias, [4, 4, 4])


def test_an_activation_that_is_not_fused_sees_rounded_values():
    layer = GridLayer(keras.layers.Dense(8, activation="swish"))
    values = np.random.default_rng(0).normal(size=(256, 6)).astype("float32")
    outputs = np.asarray(layer(values, training=True))
    assert layer.layer.activation is keras.activations.silu
    assert states(layer.before_activation)[2] == 1
    assert len(np.unique(outputs)) <= 256
    fused = GridLayer(keras.layers.Dense(8, activation="relu"))
    assert len(np.unique(np.asarray(fused(values, training=True)))) > 256
    assert fused.before_activation is None


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_kernels_are_rounded_in_full_precision_under_a_mixed_policy(policy):
    keras.config.set_dtype_policy(policy)
    try:
        dense = keras.layers.Dense(3, use_bias=False)
        layer = GridLayer(dense)
        outputs = layer(np.eye(6, dtype="float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    assert outputs.dtype == dense.compute_dtype
    expected = tf.cast(grid.to_grid(dense.kernel.value, (1,)), dense.compute_dtype)
    np.testing.assert_array_equal(np.float32(outputs), np.float32(expected))


def test_a_mixed_policy_around_does_not_reach_the_kernels():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((6,))
        layer = GridLayer(keras.layers.Dense(3, use_bias=False))
        model = keras.Model(inputs, layer(inputs))
        outputs = model(np.eye(6, dtype="float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    expected = tf.cast(grid.to_grid(layer.layer.kernel.value, (1,)), "float16")
    np.testing.assert_array_equal(outputs, expected)


def test_losses_of_the_wrapped_layer_count_once():
    dense = keras.layers.Dense(3, activity_regularizer="l2", kernel_regularizer="l1")
    layer = GridLayer(dense)
    outputs = layer(np.ones((2, 4), "float32"))
    expected = [0.01 * np.abs(dense.kernel.numpy()).sum(), 0.01 * np.square(outputs).sum() / 2]
    assert sorted(map(float, layer.losses)) == pytest.approx(sorted(expected), rel=1e-5)
    again = GridLayer.from_config(layer.get_config())
    again(np.ones((2, 4), "float32"))
    assert len(again.losses) == 2


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: keras.layers.SeparableConv2D(5, 3, strides=2, padding="same"), (2, 9, 9, 4)),
        (lambda: keras.layers.SeparableConv2D(5, 3, depth_multiplier=2), (2, 9, 9, 4)),
        (lambda: keras.layers.SeparableConv2D(5, 3, dilation_rate=2, use_bias=False), (2, 9, 9, 4)),
        (lambda: keras.layers.SeparableConv1D(5, 3, activation="relu"), (2, 9, 4)),
        (lambda: keras.layers.SeparableConv1D(5, 3, activation="tanh"), (2, 9, 4)),
    ],
)
def test_a_separable_convolution_is_taken_apart_without_changing_what_it_computes(layer, shape):
    values = np.random.default_rng(0).normal(size=shape).astype("float32")
    wrapped = on_grid(layer())
    found = wrapped(values)  # no range has seen a batch: only the kernels are rounded
    plain = wrapped.layer
    for kernel in (plain.depthwise_kernel, plain.pointwise_kernel):
        axes = (-2, -1) if kernel is plain.depthwise_kernel else (-1,)
        kernel.assign(grid.to_grid(kernel.value, tuple(a % len(kernel.shape) for a in axes)))
    np.testing.assert_allclose(found, plain(values), atol=1e-5)
    wrapped(values, training=True)
    assert states(wrapped.between)[2] == 1


def test_weights_are_listed_once():
    layer = GridLayer(keras.layers.Dense(3))
    layer(np.ones((2, 4), "float32"))
    assert [w.path.split("/")[-1] for w in layer.weights] == ["kernel", "bias"]
