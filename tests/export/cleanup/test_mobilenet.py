"""A MobileNetV1-0.25 of which over 80 % of the weights are zero loses most of them."""

from typing import Any

import numpy as np
import pytest
from reference_models import build_mobilenet_v1

from edgeprune.export import tflite
from edgeprune.export.dead_channels import remove_dead_channels_tflite

# Fraction of collapsed channels by width: in trained small models it grows with the width.
_COLLAPSED = {8: 0.0, 16: 0.25, 32: 0.25, 64: 0.4, 128: 0.6, 256: 0.6}
_SPARSITY = 0.87  # of the pointwise kernels, which hold 94 % of the weights


@pytest.mark.slow
def test_mobilenet_loses_most_of_its_weights(keras, lite, run_everywhere):
    model = collapsed_mobilenet(keras)
    rng = np.random.default_rng(1)
    content = lite(model, "int8", rng.random((8, 96, 96, 3), np.float32))
    zeros = tflite.read(content).sparsity
    assert 0.80 < zeros < 0.85
    cleaned, report = remove_dead_channels_tflite(content)
    assert report.weights_before == 208_112
    assert report.macs_before == 7_489_664
    assert report.weights_after == sum(weight.entries for weight in tflite.read(cleaned).weights())
    assert report.weights_after < 0.3 * report.weights_before
    assert report.macs_after is not None
    assert report.macs_after < 0.7 * report.macs_before
    assert len(cleaned) < 0.5 * len(content)
    samples = rng.integers(-128, 128, (3, 96, 96, 3)).astype(np.int8)
    for before, after in zip(
        run_everywhere(content, samples), run_everywhere(cleaned, samples), strict=True
    ):
        np.testing.assert_array_equal(before, after)
    # Nothing is left to find.
    assert remove_dead_channels_tflite(cleaned)[0] == cleaned


def collapsed_mobilenet(keras: Any) -> Any:
    """Build the reference shape as weight decay leaves it after long training.

    Channels that no input excites get no gradient, so that decay shrinks their weights, and those
    that read them, towards zero; magnitude pruning then takes these first.
    """
    keras.utils.set_random_seed(0)
    model = build_mobilenet_v1(keras)
    rng = np.random.default_rng(0)
    dead = np.zeros(3, bool)
    kernels = []
    for layer in model.layers:
        kind = type(layer).__name__
        if kind in ("Conv2D", "Dense"):
            kernel = layer.kernel.numpy()
            kernel = rng.normal(0, 1 / np.sqrt(kernel[..., 0].size), kernel.shape)
            kernel[..., dead, :] *= 1e-3
            if kind == "Conv2D":
                dead = rng.random(kernel.shape[-1]) < _COLLAPSED[kernel.shape[-1]]
                kernel[..., dead] *= 1e-3
                kernels.append(layer)
            layer.kernel.assign(kernel)
        elif kind == "BatchNormalization":
            layer.gamma.assign(rng.uniform(0.5, 1.5, dead.shape))
            # The next depthwise convolution shares the channels; its own shift may differ.
            layer.beta.assign(
                np.where(dead, -rng.uniform(0.1, 1, dead.shape), rng.normal(0.2, 0.3, dead.shape))
            )
    pointwise = [layer for layer in kernels if layer.kernel_size == (1, 1)]
    scores = [np.abs(layer.kernel.numpy()) * np.sqrt(layer.kernel.shape[2]) for layer in pointwise]
    threshold = np.quantile(np.concatenate([score.reshape(-1) for score in scores]), _SPARSITY)
    for layer, score in zip(pointwise, scores, strict=True):
        layer.kernel.assign(layer.kernel.numpy() * (score > threshold))
    _fit_statistics(model, rng.random((32, 96, 96, 3), np.float32))
    return model


def _fit_statistics(model: Any, samples: Any) -> None:
    """Give every BatchNormalization the statistics of what reaches it."""
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.momentum = 0.0
    for _ in range(3):
        model(samples, training=True)
