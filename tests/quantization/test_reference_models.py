"""Whole models: PQAT on the four MLPerf Tiny references, every integer and zero read back."""

import keras
import numpy as np
import pytest
import reference_models

import edgeprune as ep
from edgeprune import models
from edgeprune.export import tflite
from edgeprune.quantization import grid

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn", "mobilenet_v1", "autoencoder"])
def test_integers_and_zeros_of_every_layer_reach_the_file(name, tmp_path):
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = getattr(reference_models, f"build_{name}")(keras)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # gammas of both signs
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape) * rng.choice([-1, 1]))
    x = rng.normal(size=(64, *model.input_shape[1:])).astype("float32")
    y = rng.normal(size=(64, *model.output_shape[1:])).astype("float32")
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    pruning = ep.MagnitudePruning(ep.ConstantSparsity(0.8))
    model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[pruning])
    zeros = {k.name: np.asarray(k.variable) == 0 for k in models.kernels(model)}
    assert sum(int(z.sum()) for z in zeros.values()) > 0

    aware = ep.quantize_aware(model)
    aware.compile(keras.optimizers.Adam(1e-3), "mse")
    aware.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[ep.PreserveSparsity()])
    plain = ep.strip(aware)
    ep.convert(  # with channels that are dead as well: their integers are counted too
        plain,
        tmp_path / "m.tflite",
        quantize="int8",
        calibration=x,
        sparse="off",
        clean=False,
        verify=False,
    )

    trained = []
    for kernel in models.kernels(plain):
        values = np.asarray(kernel.variable)
        assert not values[zeros[kernel.name]].any()
        trained.append(np.abs(grid.integers(values, kernel.output_axes).astype(int)))
    stored = [np.abs(w.stored().astype(int)) for w in tflite.read(tmp_path / "m.tflite").weights()]

    # The converter may order layers otherwise and flips signs with a gamma: magnitudes per kernel.
    def profile(arrays):
        return sorted(np.sort(array, axis=None).tolist() for array in arrays)

    assert profile(stored) == profile(trained)
