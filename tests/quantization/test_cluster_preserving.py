"""CQAT and PCQAT: how few values and which zeros are counted in the .tflite file. Keras 3."""

import keras
import numpy as np
import pytest
from keras import layers

from edgeprune import (
    PreserveClusters,
    PreserveSparsity,
    WeightClustering,
    convert,
    models,
    quantize_aware,
)
from edgeprune.export import tflite

CLUSTERS = 3
rng = np.random.default_rng(11)
IMAGES = rng.normal(size=(32, 8, 8, 3)).astype("float32")
INT8 = {"quantize": "int8", "calibration": IMAGES, "clean": False}  # so that channels compare


def every_kind():
    """Each kind of kernel that is an int8 operator, with gammas of either sign after most."""
    stack = [layers.Input((8, 8, 3))]
    for layer in (
        layers.Conv2D(6, 3, use_bias=False, name="conv"),
        layers.DepthwiseConv2D(3, use_bias=False, name="depthwise"),
        layers.SeparableConv2D(8, 3, padding="same", use_bias=False, name="separable"),
    ):
        stack += [layer, layers.BatchNormalization(), layers.ReLU()]
    stack += [
        layers.Reshape((16, 8)),
        layers.EinsumDense("abc,cde->abde", output_shape=(16, 2, 4), bias_axes="de", name="heads"),
        layers.Flatten(),
        layers.Dense(5, name="head"),
    ]
    model = keras.Sequential(stack)
    for norm in model.layers:
        if isinstance(norm, layers.BatchNormalization):
            (size,) = norm.gamma.shape
            norm.gamma.assign(rng.uniform(0.5, 1.5, size) * np.where(np.arange(size) % 2, -1, 1))
    return model


def fit(model, *callbacks):
    model.compile(keras.optimizers.Adam(0.01), "mse")
    targets = np.random.default_rng(1).normal(size=(32, 5))
    model.fit(IMAGES, targets, batch_size=8, epochs=2, verbose=0, callbacks=list(callbacks))
    return model


def clustered(sparse, per_channel):
    """A model with few values in every kernel, some of them zero."""
    keras.utils.set_random_seed(1)
    model = every_kind()
    if sparse:
        for kernel in models.kernels(model):
            keep = rng.random(kernel.variable.shape) < 0.6
            kernel.variable.assign(kernel.variable.numpy() * keep)
    clustering = WeightClustering(CLUSTERS, per_channel=per_channel, include_depthwise=True)
    clustering.start(model, keras.optimizers.Adam(), total_steps=1)  # which clusters at once
    clustering.finish()
    return model


def laid_out(model):
    """Return the kernels as .tflite files lay them out: (channels, weights of each)."""
    found = {}
    for kernel in models.kernels(model):
        weights = kernel.variable.numpy()
        if kernel.kind == "depthwise":
            found[kernel.name] = weights.reshape(-1, weights.shape[-2] * weights.shape[-1]).T
        elif kernel.name.startswith("heads"):
            found[kernel.name] = weights.reshape(8, -1).T
        else:
            found[kernel.name] = weights.reshape(-1, weights.shape[-1]).T
    return found


def stored(path):
    """Return the int8 kernels of a .tflite file, in the order of its operators."""
    found = []
    graph = tflite.read(path).subgraphs[0]
    for operator in graph.operators:
        for kernel in graph.kernels(operator):
            assert kernel.dtype == "int8"
            data = np.reshape(kernel.data, kernel.shape)
            if operator.name == "DEPTHWISE_CONV_2D":
                found.append(data.reshape(-1, data.shape[-1]).T)
            else:
                found.append(data.reshape(data.shape[0], -1))
    return found


def most_values(kernel):
    return max(np.unique(channel[channel != 0]).size for channel in kernel)


@pytest.mark.parametrize(
    ("sparse", "per_channel"),
    [
        pytest.param(False, False, marks=pytest.mark.slow),
        (True, False),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_the_file_has_as_few_values_a_channel_and_every_zero(sparse, per_channel, tmp_path):
    model = clustered(sparse, per_channel)
    before = laid_out(model)
    keep_zeros = [PreserveSparsity()] if sparse else []
    aware = fit(quantize_aware(model), *keep_zeros, PreserveClusters())
    convert(aware, tmp_path / "m.tflite", **INT8)
    found = stored(tmp_path / "m.tflite")
    assert len(found) == len(before) == 6
    for (name, old), new in zip(before.items(), found, strict=True):
        assert new.shape == old.shape, name
        assert not new[old == 0].any(), name
        assert most_values(new) <= CLUSTERS, name
        # Weights of a channel that were one value are one value.
        for one, other in zip(old, new, strict=True):
            for value in np.unique(one):
                assert np.unique(other[one == value]).size == 1, name
    for old, new in zip(before.values(), laid_out(aware).values(), strict=True):
        assert not np.allclose(new[old != 0], old[old != 0], rtol=1e-3)  # it trained


def test_without_the_callback_the_file_has_more_values(tmp_path):
    model = clustered(sparse=True, per_channel=False)
    aware = fit(quantize_aware(model), PreserveSparsity())
    convert(aware, tmp_path / "m.tflite", **INT8)
    conv, *_, head = stored(tmp_path / "m.tflite")
    assert most_values(conv) > CLUSTERS
    assert most_values(head) > CLUSTERS
