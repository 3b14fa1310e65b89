"""Under MirroredStrategy over two logical CPUs, which must be made before TensorFlow runs."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys, json, importlib
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
k = importlib.import_module(sys.argv[1])
from edgeprune import MagnitudePruning, PolynomialDecay, PreserveClusters, WeightClustering, models
from edgeprune.steps.variables import native

rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 300)).astype("float32"), rng.normal(size=(64, 4))
k.utils.set_random_seed(1)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = k.Sequential([k.Input((300,)), k.layers.Dense(64), k.layers.Dense(4)])
    model.compile(k.optimizers.Adam(use_ema=True), "mse", metrics=["mae"])
pruning = MagnitudePruning(PolynomialDecay(final_sparsity=0.5))
callbacks = [WeightClustering(6, frequency=1, per_channel=True, begin_step=2), pruning]
model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=callbacks)

def counted():
    return [
        [[max(len(np.unique(column[column != 0])) for column in part.numpy().T),
          int((part.numpy() == 0).sum())] for part in native(kernel.variable).values]
        for kernel in models.kernels(model)
    ]

first, before = counted(), model.get_weights()[0]
model.fit(x, y, batch_size=16, verbose=0, callbacks=[PreserveClusters()])
moved = not np.array_equal(before, model.get_weights()[0])
print(json.dumps([first, counted(), moved]))
"""


@pytest.mark.parametrize("flavour", ["keras", "tf_keras"])
def test_mirrored_over_two_devices(flavour):
    done = subprocess.run([sys.executable, "-c", SCRIPT, flavour], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, kept, moved = json.loads(done.stdout.splitlines()[-1])
    assert moved
    assert kept == first
    large, small = first
    # Half of 300 * 64 and of 64 * 4 weights, alike on both devices.
    assert large == [[6, 9600], [6, 9600]]
    assert small[0] == small[1]
    distinct, zeros = small[0]
    assert 3 <= distinct <= 6  # pruning may have emptied a cluster
    assert zeros == 128
