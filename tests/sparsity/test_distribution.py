"""Under MirroredStrategy over two logical CPUs, which must be made before TensorFlow runs."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, json, importlib
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
k = importlib.import_module(sys.argv[1])
from edgeprune import models
from edgeprune.sparsity.callbacks import MagnitudePruning, PreserveSparsity
from edgeprune.sparsity.schedules import PolynomialDecay
from edgeprune.steps.variables import native

rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 300)).astype("float32"), rng.normal(size=(64, 4))

def fit(callbacks, built=True):
    k.utils.set_random_seed(1)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        layers = [k.layers.Dense(512, activation="relu"), k.layers.Dense(4)]
        model = k.Sequential([k.Input((300,)), *layers] if built else layers)
        model.compile(k.optimizers.Adam(use_ema=True), "mse", metrics=["mae"])
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=callbacks,
                        shuffle=False)
    return model, history.history

def zeros(model):  # on each replica
    return [[int((part.numpy() == 0).sum()) for part in native(kernel.variable).values]
            for kernel in models.kernels(model)]

_, dense = fit([])
model, history = fit([MagnitudePruning(PolynomialDecay(final_sparsity=0.75))], built=False)
pruned = zeros(model)
model.fit(x, y, batch_size=16, verbose=0, callbacks=[PreserveSparsity()])
_, held = fit([MagnitudePruning(PolynomialDecay(0.0, 0.5, 8, 8))])
print(json.dumps({"pruned": pruned, "preserved": zeros(model), "history": history,
                  "dense_loss": dense["loss"], "held_loss": held["loss"]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["keras", "tf_keras"])
def test_mirrored_over_two_devices(flavour):
    done = subprocess.run([sys.executable, "-c", SCRIPT, flavour], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    # 300 * 512 weights, more than from where XLA is used on one device, and 512 * 4.
    assert result["pruned"] == [[115200, 115200], [1536, 1536]]
    assert result["preserved"] == result["pruned"]
    assert result["history"]["sparsity"][-1] == 0.75
    # Until its last step this run trains as the dense one; its losses must be logged alike.
    assert result["held_loss"] == pytest.approx(result["dense_loss"], rel=1e-4)
