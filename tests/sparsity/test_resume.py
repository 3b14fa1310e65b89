"""A run that was killed and resumed ends with the masks and weights of one that was not."""

import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import os, sys
import numpy as np
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
flavour, folder, out, kill_after = sys.argv[1:]
import importlib
k = importlib.import_module(flavour)
from edgeprune import models
from edgeprune.sparsity.callbacks import MagnitudePruning
from edgeprune.sparsity.schedules import PolynomialDecay

k.utils.set_random_seed(5)
model = k.Sequential([
    k.Input((12,)),
    k.layers.Dense(32, activation="tanh"),
    k.layers.Dense(4),
])
model.compile(k.optimizers.Adam(0.01), "mse")
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 12)), rng.normal(size=(64, 4))

class Kill(k.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == int(kill_after):
            os._exit(9)  # as if by kill -9: nothing is cleaned up

backup = k.callbacks.BackupAndRestore(folder)
pruning = MagnitudePruning(PolynomialDecay(0.1, 0.8, frequency=2))
model.fit(x, y, batch_size=16, epochs=6, shuffle=False, verbose=0,
          callbacks=[backup, pruning, Kill()])
np.savez(out, **{kernel.name: kernel.variable.numpy() for kernel in models.kernels(model)})
"""


def run(flavour, folder, out, kill_after):
    arguments = [flavour, str(folder), str(out), str(kill_after)]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["keras", "tf_keras"])
def test_killed_and_resumed(flavour, tmp_path):
    whole, resumed = tmp_path / "whole.npz", tmp_path / "resumed.npz"
    done = run(flavour, tmp_path / "a", whole, -1)
    assert done.returncode == 0, done.stderr
    # 24 steps, the ramp over the first 18. Step 11 is in the third epoch: what BackupAndRestore
    # kept is the end of the second, at step 8, in the midst of the ramp.
    assert run(flavour, tmp_path / "b", resumed, 11).returncode == 9
    done = run(flavour, tmp_path / "b", resumed, -1)
    assert done.returncode == 0, done.stderr

    with np.load(whole) as a, np.load(resumed) as b:
        assert a.files == b.files
        for name in a.files:
            assert (a[name] == 0).sum() == round(0.8 * a[name].size)
            assert np.array_equal(a[name] == 0, b[name] == 0)
            assert np.allclose(a[name], b[name], rtol=1e-5, atol=1e-7)
