"""What TensorBoard shows of a pruning, read back from the event file that it reads."""

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edgeprune.models import import_keras
from edgeprune.sparsity.callbacks import MagnitudePruning
from edgeprune.sparsity.schedules import PolynomialDecay


def test_sparsity_is_a_scalar_of_the_training_run(tmp_path):
    keras = import_keras()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    model.compile("adam", "mse")
    board = keras.callbacks.TensorBoard(str(tmp_path), write_graph=False)
    # Linear, of 32 weights, with 2 steps an epoch: half of 24 after the first, and all after it.
    pruning = MagnitudePruning(PolynomialDecay(0.0, 0.75, 0, 4, power=1, frequency=1))
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    y = np.zeros((32, 8), np.float32)
    model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=[board, pruning])
    events = EventAccumulator(str(tmp_path / "train"), size_guidance={"tensors": 0})
    events.Reload()
    logged = {
        event.step: float(tf.make_ndarray(event.tensor_proto))
        for event in events.Tensors("epoch_sparsity")
    }
    assert logged == {0: 12 / 32, 1: 24 / 32, 2: 24 / 32}
