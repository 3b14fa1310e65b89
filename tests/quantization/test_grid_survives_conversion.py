"""The contract: the integers in the .tflite file are the integers that training ended with."""

import keras
import numpy as np
import pytest
from keras import layers

from edgeprune import models, quantize_aware, strip
from edgeprune.quantization import grid
from edgeprune.quantization.qat import float_layers

rng = np.random.default_rng(7)


def from_conv(kernel):  # (..., c_in, c_out) -> (c_out, ..., c_in)
    return np.moveaxis(kernel, -1, 0)


def from_depthwise(kernel):  # (..., c, multiplier) -> (..., c * multiplier)
    return kernel.reshape(*kernel.shape[:-2], -1)


def from_transpose(kernel):  # (..., c_out, c_in) -> (c_out, ..., c_in)
    return np.moveaxis(kernel, -2, 0)


def with_columns(inputs):  # contracted letters first, then the output's: a Dense kernel
    return lambda kernel: kernel.reshape(inputs, -1).T


IMAGE, SERIES = (6, 6, 4), (8, 4)
# id: (input shape, layer, [(operator, kernel layout -> .tflite layout, channel axis there)])
CASES = {
    "dense": ((8,), lambda: layers.Dense(5), [("FULLY_CONNECTED", from_conv)]),
    "dense_on_series": (SERIES, lambda: layers.Dense(5), [("FULLY_CONNECTED", from_conv)]),
    "conv1d": (SERIES, lambda: layers.Conv1D(5, 3), [("CONV_2D", from_conv)]),
    "conv1d_causal_dilated": (
        SERIES,
        lambda: layers.Conv1D(5, 3, padding="causal", dilation_rate=2),
        [("CONV_2D", from_conv)],
    ),
    "conv2d": (IMAGE, lambda: layers.Conv2D(5, 3), [("CONV_2D", from_conv)]),
    "conv2d_no_bias": (
        IMAGE,
        lambda: layers.Conv2D(5, 3, use_bias=False),
        [("CONV_2D", from_conv)],
    ),
    "conv2d_dilated": (
        IMAGE,
        lambda: layers.Conv2D(5, 3, dilation_rate=2),
        [("CONV_2D", from_conv)],
    ),
    "conv2d_grouped": (IMAGE, lambda: layers.Conv2D(6, 3, groups=2), [("CONV_2D", from_conv)]),
    "depthwise2d": (
        IMAGE,
        lambda: layers.DepthwiseConv2D(3),
        [("DEPTHWISE_CONV_2D", from_depthwise)],
    ),
    "depthwise2d_multiplier": (
        IMAGE,
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        [("DEPTHWISE_CONV_2D", from_depthwise)],
    ),
    "depthwise1d": (
        SERIES,
        lambda: layers.DepthwiseConv1D(3, depth_multiplier=2),
        [("DEPTHWISE_CONV_2D", from_depthwise)],
    ),
    "separable2d": (
        IMAGE,
        lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2),
        [("DEPTHWISE_CONV_2D", from_depthwise), ("CONV_2D", from_conv)],
    ),
    "separable1d": (
        SERIES,
        lambda: layers.SeparableConv1D(5, 3),
        [("DEPTHWISE_CONV_2D", from_depthwise), ("CONV_2D", from_conv)],
    ),
    "transpose2d": (
        IMAGE,
        lambda: layers.Conv2DTranspose(5, 3, strides=2),
        [("TRANSPOSE_CONV", from_transpose)],
    ),
    "transpose1d": (
        SERIES,
        lambda: layers.Conv1DTranspose(5, 3, strides=2),
        [("TRANSPOSE_CONV", from_transpose)],
    ),
    "einsum_dense": (
        (8,),
        lambda: layers.EinsumDense("ab,bc->ac", output_shape=5, bias_axes="c"),
        [("FULLY_CONNECTED", from_conv)],
    ),
    "einsum_heads_out": (
        (6, 8),
        lambda: layers.EinsumDense("abc,cde->abde", output_shape=(6, 2, 4), bias_axes="de"),
        [("FULLY_CONNECTED", with_columns(8))],
    ),
    "einsum_heads_in": (
        (6, 2, 4),
        lambda: layers.EinsumDense("abcd,cde->abe", output_shape=(6, 5), bias_axes="e"),
        [("FULLY_CONNECTED", with_columns(8))],
    ),
}


def trained(shape, *stack):
    """An aware model of a few layers, a few steps into training; gammas of either sign."""
    model = keras.Sequential([layers.Input(shape), *stack])
    for norm in model.layers:
        if isinstance(norm, layers.BatchNormalization):
            (size,) = norm.gamma.shape
            norm.gamma.assign(rng.uniform(0.5, 1.5, size) * np.where(np.arange(size) % 2, -1, 1))
    aware = quantize_aware(model)
    samples = rng.normal(size=(16, *shape)).astype("float32")
    targets = rng.normal(size=(16, *model.output_shape[1:])).astype("float32")
    aware.compile(keras.optimizers.SGD(0.05), "mse")
    aware.fit(samples, targets, batch_size=8, epochs=2, verbose=0)
    return aware, samples


def trained_integers(aware):
    return [grid.integers(k.variable.numpy(), k.output_axes) for k in models.kernels(aware)]


@pytest.mark.parametrize("case", CASES)
def test_integers_are_the_trained_ones(case, to_int8):
    shape, make, operators = CASES[case]
    aware, samples = trained(shape, make())
    expected = trained_integers(aware)
    file = to_int8(strip(aware), samples)
    for (operator, layout), integers in zip(operators, expected, strict=True):
        (found,) = file.weights(operator)
        assert found.dtype == np.int8
        assert len(np.unique(found)) > 5  # a live kernel, not a degenerate one
        np.testing.assert_array_equal(found.squeeze(), layout(integers).squeeze())


@pytest.mark.parametrize("case", CASES)
def test_integers_survive_batch_normalization_with_negative_gammas(case, to_int8):
    shape, make, operators = CASES[case]
    aware, samples = trained(shape, make(), layers.BatchNormalization(), layers.ReLU())
    (norm,) = [x for x in aware.layers if isinstance(x, layers.BatchNormalization)]
    sign = np.sign(norm.gamma.numpy()).astype(np.int8)
    assert set(sign) == {-1, 1}
    *earlier, last = trained_integers(aware)
    # The normalization folds into the last product, and turns channels of negative gamma over;
    # its channels lie along the kernel's last axis, or along the transposed kernel's first.
    *_, (operator, layout) = operators
    if case == "einsum_heads_out":
        pass  # the converter reshapes in between, and multiplies separately
    elif operator == "TRANSPOSE_CONV":
        last = last * sign[:, None]
    elif operator == "DEPTHWISE_CONV_2D":
        last = last * sign.reshape(last.shape[-2:])
    else:
        last = last * sign
    file = to_int8(strip(aware), samples)
    for (operator, layout), integers in zip(operators, [*earlier, last], strict=True):
        (found,) = file.weights(operator)
        np.testing.assert_array_equal(found.squeeze(), layout(integers).squeeze())


def test_einsum_with_a_batch_letter_is_left_in_float_for_the_file_has_no_such_grid(to_int8):
    einsum = layers.EinsumDense("abc,bcd->abd", output_shape=(6, 5), name="per_position")
    aware, samples = trained((6, 8), layers.Dense(8), einsum)
    assert float_layers(aware) == ("per_position (EinsumDense)",)
    file = to_int8(strip(aware), samples)
    (operator,) = [o for o in file.operators if o.name == "BATCH_MATMUL"]
    quantization = operator.inputs[1]["quantization_parameters"]
    assert len(quantization["scales"]) == 1
    spread = np.ptp(np.append(strip(aware).get_layer("per_position").kernel.numpy(), 0))
    np.testing.assert_allclose(quantization["scales"], spread / 255, rtol=1e-3)


@pytest.mark.parametrize(
    ("layer", "operator", "axis"),
    [(layers.Conv3D, "CONV_3D", 4), (layers.Conv3DTranspose, "CONV_3D_TRANSPOSE", 3)],
)
def test_conv3d_which_the_converter_keeps_in_float_holds_the_grid_in_float(
    layer, operator, axis, to_int8
):
    aware, samples = trained((4, 4, 4, 2), layer(5, 3), layers.BatchNormalization())
    (kernel,) = models.kernels(aware)
    assert kernel.output_axes == (axis,)
    weights = kernel.variable.numpy()
    (found,) = to_int8(strip(aware), samples).weights(operator)
    assert found.dtype == np.float32
    scale = np.abs(weights).max(axis=tuple({0, 1, 2, 3, 4} - {axis}), keepdims=True) / 127
    np.testing.assert_array_equal(np.round(found / scale), np.round(weights / scale))
    np.testing.assert_allclose(found / scale, np.round(found / scale), atol=1e-4)


def test_zero_channels_stay_zero_and_leave_their_neighbours_alone(to_int8):
    layer = layers.Conv2D(4, 3, use_bias=False)
    norm = layers.BatchNormalization(gamma_initializer="ones", beta_initializer="ones")
    model = keras.Sequential([layers.Input(IMAGE), layer, norm, layers.ReLU()])
    layer.kernel.assign(layer.kernel.numpy() * np.array([1, 0, 1, 0]))
    samples = rng.normal(size=(8, *IMAGE)).astype("float32")
    aware = quantize_aware(model)
    assert np.isfinite(aware.predict(samples, verbose=0)).all()
    (found,) = to_int8(strip(aware), samples).weights("CONV_2D")
    np.testing.assert_array_equal(found, from_conv(grid.integers(layer.kernel.numpy(), (3,))))
    assert not found[[1, 3]].any()
    assert np.abs(found[[0, 2]]).max(axis=(1, 2, 3)).tolist() == [127, 127]


@pytest.mark.parametrize("gamma", [1e-3, 1e-5, 0.0])
def test_a_tiny_gamma_keeps_the_integers_of_its_channel(gamma, to_int8):
    layer = layers.Conv2D(3, 3, use_bias=False)
    norm = layers.BatchNormalization()
    model = keras.Sequential([layers.Input(IMAGE), layer, norm, layers.ReLU()])
    norm.gamma.assign([1.0, gamma, 1.0])
    samples = rng.normal(size=(8, *IMAGE)).astype("float32")
    (found,) = to_int8(strip(quantize_aware(model)), samples).weights("CONV_2D")
    integers = from_conv(grid.integers(layer.kernel.numpy(), (3,)))
    np.testing.assert_array_equal(found, integers * np.sign([1, gamma, 1]).reshape(3, 1, 1, 1))


def test_a_channel_folded_below_the_converters_least_range_is_coarser_but_keeps_its_zeros(to_int8):
    # The converter widens a channel's range to at least 1e-6, so such a channel is noise anyway.
    layer = layers.Conv2D(3, 3, use_bias=False)
    norm = layers.BatchNormalization()
    model = keras.Sequential([layers.Input(IMAGE), layer, norm, layers.ReLU()])
    layer.kernel.assign(layer.kernel.numpy() * (rng.random(layer.kernel.shape) < 0.5))
    norm.gamma.assign([1.0, 1e-7, 1.0])
    samples = rng.normal(size=(8, *IMAGE)).astype("float32")
    (found,) = to_int8(strip(quantize_aware(model)), samples).weights("CONV_2D")
    integers = from_conv(grid.integers(layer.kernel.numpy(), (3,)))
    np.testing.assert_array_equal(found[[0, 2]], integers[[0, 2]])
    assert not found[1][integers[1] == 0].any()
    assert np.abs(found[1]).max() < 127
