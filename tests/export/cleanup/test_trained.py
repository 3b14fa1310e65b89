"""A network that was really trained and pruned loses channels, and no answer changes."""

import numpy as np
import pytest

from edgeprune.demo import digits
from edgeprune.export import tflite
from edgeprune.export.dead_channels import remove_dead_channels_tflite
from edgeprune.sparsity.callbacks import MagnitudePruning
from edgeprune.sparsity.schedules import PolynomialDecay


@pytest.mark.slow
def test_pruned_digits_classifier(keras, lite, run_everywhere):
    data = digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), *_ds_cnn(keras)])
    model.compile(
        keras.optimizers.AdamW(2e-3, weight_decay=0.1),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    pruning = MagnitudePruning(
        PolynomialDecay(final_sparsity=0.9, begin_step=100, end_step=400), ranking="global"
    )
    model.fit(data.x, data.y, batch_size=64, epochs=30, verbose=0, callbacks=[pruning])
    content = lite(model, "int8", data.x[:200])
    graph = tflite.read(content)
    cleaned, report = remove_dead_channels_tflite(content)
    assert graph.sparsity > 0.75  # depthwise kernels are not pruned
    assert report.weights_after < 0.95 * report.weights_before
    given = graph.subgraphs[0].tensors[graph.subgraphs[0].inputs[0]].quantization
    samples = np.round(data.x_val / given.scale[0]) + given.zero_point[0]
    samples = np.clip(samples, -128, 127).astype(np.int8)
    for before, after in zip(
        run_everywhere(content, samples), run_everywhere(cleaned, samples), strict=True
    ):
        np.testing.assert_array_equal(before, after)
    assert np.mean(before.argmax(-1) == data.y_val) > 0.8


def _ds_cnn(keras):
    layers = keras.layers
    kinds = [layers.Conv2D(64, 3, padding="same", use_bias=False)]
    for _ in range(4):
        kinds.append(layers.DepthwiseConv2D(3, padding="same", use_bias=False))
        kinds.append(layers.Conv2D(64, 1, use_bias=False))
    for kind in kinds:
        yield from (kind, layers.BatchNormalization(momentum=0.9), layers.ReLU())
    yield from (layers.GlobalAveragePooling2D(), layers.Dense(10, activation="softmax"))
