"""Train a user's model for a stage: their own loss and optimizer where they compiled one."""

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune.data import Dataset
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.modelfiles import first_line
from edgeprune.models import keras_of, remade
from edgeprune.recipe import TrainingSpec
from edgeprune.scoring import Array, task_of

Progress = Callable[[str, float, str], None]
_PREDICT_BATCH = 256
LEARNING_RATE = 1e-3


def predict(model: Any, x: Any) -> Array:
    """Return the model's output for every sample, (n, ...)."""
    return np.asarray(model.predict(x, batch_size=_PREDICT_BATCH, verbose=0))


def plain_copy(model: Any) -> Any:
    """Copy a model without its optimizer, whose state would make up most of a saved file."""
    copy = remade(model)
    copy.set_weights(model.get_weights())
    return copy


def compile_like(model: Any, original: Any, data: Dataset, learning_rate: Any) -> None:
    """Compile `model` with the loss and a fresh optimizer of `original`, or sensible ones.

    The learning rate is a number or a Keras schedule; None keeps the original's.
    An original that was never compiled gets Adam and the loss that fits its targets:
    cross-entropy of classifiers (from logits unless its outputs are probabilities), mean squared
    error otherwise.
    """
    keras = keras_of(model)
    compiled = getattr(original, "optimizer", None)
    if compiled is not None and getattr(original, "loss", None) is not None:
        # Built from its configuration: a used optimizer belongs to the variables of its model.
        # Keras wraps it for loss scaling again where the model computes in float16.
        compiled = getattr(compiled, "inner_optimizer", compiled)
        config = compiled.get_config()
        if learning_rate is not None:
            config["learning_rate"] = learning_rate
        optimizer = type(compiled).from_config(config)
        loss = original.loss
    else:
        optimizer = keras.optimizers.Adam(learning_rate or LEARNING_RATE)
        loss = fitting_loss(original, data)
    model.compile(optimizer=optimizer, loss=loss)


def fitting_loss(model: Any, data: Dataset) -> Any:
    """Return the loss that fits what a model predicts to the validation targets."""
    keras = keras_of(model)
    outputs = predict(model, data.x_val)
    task = task_of(data.y_val, outputs)
    if task == "regression":
        return keras.losses.MeanSquaredError()
    bounded = outputs.min() >= 0 and outputs.max() <= 1
    if task == "binary":
        return keras.losses.BinaryCrossentropy(from_logits=not bounded)
    logits = not (bounded and np.allclose(outputs.sum(-1), 1, atol=1e-3))
    if task == "one-hot":
        return keras.losses.CategoricalCrossentropy(from_logits=logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)


def fit(
    model: Any,
    data: Dataset,
    epochs: int,
    spec: TrainingSpec,
    callbacks: list[Any],
    stage: str,
    progress: Progress | None,
) -> None:
    """Run the model's own `fit`, telling `progress` (stage, fraction done, "").

    Raises:
      InputError: Keras cannot train the model on these targets with its loss.
    """
    keras = keras_of(model)
    keras.utils.set_random_seed(spec.seed)
    if progress is not None:
        steps = -(-len(data.y) // spec.batch_size)
        total = steps * epochs + 1  # the stage is done when its caller says so
        done = 0

        def count(batch: int, logs: Any = None) -> None:
            nonlocal done
            done += 1
            progress(stage, done / total, "")

        callbacks = [*callbacks, keras.callbacks.LambdaCallback(on_train_batch_end=count)]
    try:
        model.fit(
            data.x,
            data.y,
            batch_size=spec.batch_size,
            epochs=epochs,
            callbacks=callbacks,
            verbose=0,
        )
    except EdgepruneError:
        raise
    except (ValueError, TypeError) as error:  # what Keras raises where loss and targets differ
        raise InputError(
            f"the model cannot be trained on targets of shape {data.y.shape} with its loss "
            f"{_name(model.loss)}: {first_line(error)}; mend the targets, or "
            "compile the model with a loss that fits them"
        ) from error


def _name(loss: Any) -> str:
    return loss if isinstance(loss, str) else str(getattr(loss, "name", type(loss).__name__))
