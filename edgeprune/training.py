"""Train a user's model for a stage: their own loss and optimizer where they compiled one."""

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune.data import Dataset
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.modelfiles import first_line
from edgeprune.models import keras_of, layers, remade
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
      InputError: Keras cannot train the model on these data with its loss, or the training
        diverged: the loss or the weights ended as NaN or infinity.
    """
    import tensorflow as tf

    keras = keras_of(model)
    check_labels(model, model.loss, data.y)
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
        history = model.fit(
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
    except tf.errors.InvalidArgumentError as error:  # an index beyond a table, say
        raise InputError(
            f"the model cannot be trained on these data: {first_line(error)}; check that inputs "
            "and targets are within what the model takes"
        ) from error
    losses = history.history.get("loss", [])
    if losses and not np.isfinite(losses[-1]):
        raise _diverged(stage, f"the loss is {losses[-1]}")
    for path, layer in layers(model):
        for weight in layer.weights:
            if "float" in str(weight.dtype) and not np.isfinite(np.asarray(weight, "f4")).all():
                raise _diverged(stage, f"layer '{path}' has NaN or infinite weights")


def _diverged(stage: str, sign: str) -> InputError:
    return InputError(
        f"{stage} diverged: {sign}; train with a smaller learning rate, and check that the data "
        "are scaled"
    )


def check_labels(model: Any, loss: Any, targets: Any) -> None:
    """Refuse labels that a sparse cross-entropy has no output for; of other losses say nothing.

    Args:
      model: of one output, or nothing is said.
      loss: that it is trained with: a name, a function or an object.
      targets: (n, ...) labels.

    Raises:
      InputError: one of them is below 0, or not below the number of classes.
    """
    outputs: Any = getattr(model, "outputs", None) or ()
    named = getattr(loss, "name", None) or getattr(loss, "__name__", None) or loss
    sparse = named == "sparse_categorical_crossentropy" or (
        type(loss).__name__ == "SparseCategoricalCrossentropy"
    )
    if not sparse or len(outputs) != 1 or not isinstance(targets, np.ndarray) or not targets.size:
        return
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    classes = outputs[0].shape[config.get("axis", -1)]
    labels = targets[targets != config.get("ignore_class")]
    wrong = labels[(labels < 0) | (labels >= classes)] if classes else labels[:0]
    if wrong.size:
        raise InputError(
            f"y holds {wrong.flat[np.argmax(np.abs(wrong))]:g}, and model '{model.name}' has "
            f"{classes} classes; labels are whole numbers from 0 to {classes - 1}"
        )


def _name(loss: Any) -> str:
    return loss if isinstance(loss, str) else str(getattr(loss, "name", type(loss).__name__))
