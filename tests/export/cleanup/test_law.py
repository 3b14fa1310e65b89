"""The law: a cleaned file computes what the file computed, whatever goes in."""

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgeprune.export import tflite
from edgeprune.export.dead_channels import remove_dead_channels_tflite

_SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def removed() -> Any:
    """Count what the laws below removed: laws about nothing would hold too."""
    counts: dict[str, int] = {"int8": 0, "none": 0}
    yield counts
    assert all(counts.values()), counts


@_SETTINGS
@given(random=st.randoms(use_true_random=False))
def test_int8_outputs_are_bit_identical(random, keras, lite, run_everywhere, removed):
    content = lite(random_model(keras, random))
    assume(runnable(content))
    cleaned, report = remove_dead_channels_tflite(content)
    removed["int8"] += report.channels_removed
    samples = extreme_int8(random, content)
    for before, after in zip(
        run_everywhere(content, samples), run_everywhere(cleaned, samples), strict=True
    ):
        np.testing.assert_array_equal(before, after)


@settings(_SETTINGS, max_examples=10)
@given(random=st.randoms(use_true_random=False))
def test_float_outputs_are_equal(random, keras, lite, run_everywhere, removed):
    model = random_model(keras, random)
    content = lite(model, "none")
    cleaned, report = remove_dead_channels_tflite(content)
    removed["none"] += report.channels_removed
    rng = np.random.default_rng(random.randrange(2**32))
    samples = rng.normal(0, 3, (6, *model.inputs[0].shape[1:])).astype(np.float32)
    for before, after in zip(
        run_everywhere(content, samples), run_everywhere(cleaned, samples), strict=True
    ):
        largest = max(1.0, float(np.abs(before).max()))
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * largest)


def extreme_int8(random: Random, content: bytes) -> Any:
    """Sample inputs over the whole int8 range, corners included."""
    graph = tflite.read(content).subgraphs[0]
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    rng = np.random.default_rng(random.randrange(2**32))
    corners = np.stack([np.full(shape, value) for value in (-128, 127, 0)])
    signs = rng.choice([-128, 127], (3, *shape))
    return np.concatenate([corners, signs, rng.integers(-128, 128, (6, *shape))]).astype(np.int8)


def random_model(keras: Any, random: Random) -> Any:
    """Build a small convolutional model with planted zeros, constants and one-sided channels."""
    layers = keras.layers
    keras.utils.set_random_seed(random.randrange(2**31))
    size = random.choice([6, 9])
    inputs = keras.Input((size, size, random.choice([1, 3])))
    x = inputs
    for _ in range(random.randint(2, 5)):
        x = _block(layers, random, x)
    ending = random.choice(["flatten", "mean", "image"])
    if ending != "image":
        x = layers.Flatten()(x) if ending == "flatten" else layers.GlobalAveragePooling2D()(x)
        if random.random() < 0.5:
            x = layers.Dense(random.randint(2, 6), activation="relu")(x)
        x = layers.Dense(random.randint(1, 4), use_bias=random.random() < 0.7)(x)
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(random.randrange(2**32))
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(
                [_planted(rng, weight.path, weight.numpy()) for weight in layer.weights]
            )
    return model


def _block(layers: Any, random: Random, x: Any) -> Any:
    kind = random.choice(
        ["conv", "conv", "depthwise", "residual", "concat", "excite", "pool", "pad", "scale"]
    )
    if kind == "conv":
        return _conv(layers, random, x, random.randint(2, 8))
    if kind == "depthwise":
        y = layers.DepthwiseConv2D(
            3,
            padding=_padding(random, x),
            depth_multiplier=random.choice([1, 1, 2]),
            activation=random.choice([None, "relu", "relu6"]),
        )(x)
        return _conv(layers, random, y, random.randint(2, 8), 1)
    if kind == "residual":
        y = _conv(layers, random, x, x.shape[-1], same=True)
        y = random.choice([layers.Add, layers.Add, layers.Multiply, layers.Subtract])()([x, y])
        return layers.ReLU()(y) if random.random() < 0.7 else y
    if kind == "concat":
        y = _conv(layers, random, x, random.randint(1, 5), same=True)
        return layers.Concatenate()([x, y])
    if kind == "excite":
        y = layers.GlobalAveragePooling2D(keepdims=True)(x)
        y = layers.Conv2D(random.randint(2, 4), 1, activation="relu")(y)
        return layers.Multiply()([x, layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(y)])
    if kind == "pool" and x.shape[1] >= 4:
        pool = random.choice([layers.MaxPooling2D, layers.AveragePooling2D])
        return pool(2, padding=random.choice(["same", "valid"]))(x)
    if kind == "scale":
        return layers.BatchNormalization()(layers.Activation("tanh")(x))
    return layers.ZeroPadding2D(1)(x)


def _conv(
    layers: Any, random: Random, x: Any, filters: int, size: int | None = None, same: bool = False
) -> Any:
    x = layers.Conv2D(
        filters,
        size or random.choice([1, 3]),
        padding="same" if same else _padding(random, x),
        strides=1 if same else random.choice([1, 1, 2]),
        use_bias=random.random() < 0.8,
    )(x)
    if random.random() < 0.5:
        x = layers.BatchNormalization()(x)
    activation = random.choice([None, "relu", "relu", "relu6"])
    return layers.Activation(activation)(x) if activation else x


def _padding(random: Random, x: Any) -> str:
    return random.choice(["same", "valid"]) if x.shape[1] >= 3 else "same"


def _planted(rng: np.random.Generator, path: str, value: Any) -> Any:
    """Make weights with zeros and with channels that are dead; the first channel is not."""
    first = np.arange(value.shape[-1]) == 0
    if "kernel" in path:
        value = rng.normal(0, 1, value.shape) * (rng.random(value.shape) > rng.uniform(0, 0.9))
        value *= first | (rng.random(value.shape[-1]) > 0.4)  # silent outputs
        if value.ndim > 1 and "depthwise" not in path:
            value *= rng.random((value.shape[-2], 1)) > rng.choice([0.0, 0.3])  # unread inputs
        one_sided = rng.random(value.shape[-1]) < rng.choice([0.0, 0.5])
        return np.where(one_sided & ~first, -np.abs(value), value).astype(np.float32)
    if "variance" in path or "gamma" in path:
        return rng.uniform(0.5, 2, value.shape).astype(np.float32)
    # Biases, betas, means: zero, or far below what a ReLU lets through, or above.
    chosen = rng.choice([0.0, -0.3, -9.0, 1.0, 3.0], value.shape)
    return np.where(first, 0.5, chosen).astype(np.float32)


def runnable(content: bytes) -> bool:
    """Tell whether XNNPACK takes a file: of tensors that are zero throughout it often does not."""
    scales = [
        float(tensor.quantization.scale.min())
        for tensor in tflite.read(content).subgraphs[0].tensors
        if tensor.quantization is not None and tensor.data is None
    ]
    return min(scales, default=1.0) > 1e-6
