"""Small models and data for tests of training, in both flavours of Keras: fixtures."""

import importlib
from typing import Any

import numpy as np
import pytest

from edgeprune import models


@pytest.fixture(params=["keras", "tf_keras"])
def k(request):
    """Keras 3, then tf_keras."""
    module = importlib.import_module(request.param)
    module.utils.set_random_seed(1)
    yield module
    module.mixed_precision.set_global_policy("float32")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6, 6, 2)).astype("float32")
    return x, rng.integers(0, 3, 64)


@pytest.fixture
def cnn(k):
    """A convolution of 3*3*2*4 = 72 weights and two dense kernels of 256 and 48."""

    def build() -> Any:
        return k.Sequential(
            [
                k.Input((6, 6, 2)),
                k.layers.Conv2D(4, 3, name="conv", use_bias=False),
                k.layers.BatchNormalization(),
                k.layers.ReLU(),
                k.layers.MaxPooling2D(2),
                k.layers.Flatten(),
                k.layers.Dense(16, name="hidden", activation="relu"),
                k.layers.Dense(3, name="head", dtype="float32"),
            ]
        )

    return build


@pytest.fixture
def compiled(k, cnn):
    def build(optimizer: Any = "adam", **arguments: Any) -> Any:
        model = cnn()
        loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"], **arguments)
        return model

    return build


def zeros(model: Any) -> dict[str, int]:
    """Count the zeros of every kernel, by name."""
    return {
        kernel.name: int((kernel.variable.numpy() == 0).sum()) for kernel in models.kernels(model)
    }
