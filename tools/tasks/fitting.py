"""Train a model on a task, one recipe for all: what differs between runs is what is studied."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeprune.models import keras_of
from tasks.task import Array, Task

_WARM_UP = 0.05  # of all steps


def train(
    model: Any,
    task: Task,
    epochs: int,
    seed: int = 0,
    *,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    callbacks: Sequence[Any] = (),
) -> float:
    """Train on the task's training samples, and return the accuracy on its test samples.

    Adam and cross-entropy; the learning rate rises over the first 20th of the steps and then
    falls along a cosine to 0. Nothing is augmented, and no epoch is chosen by its accuracy: the
    last one counts.

    Args:
      model: a Keras model of either flavour that ends in a softmax; it is compiled anew, its
        weights are trained on from where they are.
      task: what to learn.
      epochs: over the training samples.
      seed: of the order of samples and of dropout; for other initial weights, call
        ``keras.utils.set_random_seed`` before building the model.
      learning_rate: the highest.
      batch_size: samples a step.
      callbacks: given to the model's `fit`.

    Returns:
      Fraction of the test samples whose class is right, in [0, 1].
    """
    keras = keras_of(model)
    keras.utils.set_random_seed(seed)
    steps = epochs * -(-len(task.y_train) // batch_size)
    warm_up = max(1, round(_WARM_UP * steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=learning_rate, warmup_steps=warm_up
    )
    model.compile(
        keras.optimizers.Adam(schedule), loss=keras.losses.SparseCategoricalCrossentropy()
    )
    model.fit(
        task.x_train,
        task.y_train,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=list(callbacks),
        verbose=0,
    )
    return accuracy(model, task.x_test, task.y_test)


def accuracy(model: Any, x: Array, y: Array) -> float:
    """Return the fraction of samples whose class a model tells, in [0, 1]."""
    outputs = np.asarray(model.predict(x, batch_size=256, verbose=0))
    return float(np.mean(outputs.argmax(axis=1) == y))
