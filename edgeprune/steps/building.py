"""Give a model its weights before its first training step, as that step would."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.modelfiles import first_line


def build(model: Any, train_step: Callable[[Any], Any], element_spec: Any) -> None:
    """Make the weights that a training step on such data would make; none if there are no more.

    Keras makes them while it traces the first training step. Here the step is traced and never
    run, so layers get the shapes that they will train with, whatever the step does with them.

    Args:
      model: a compiled model, built or not.
      train_step: its own, which takes one batch.
      element_spec: the `tf.TypeSpec`s of a batch, as an iterator of `tf.data` tells them.

    Raises:
      InputError: the model has no weights, and runs only eagerly.
    """
    if model.built and all(layer.built for _, layer in models.layers(model)):
        return

    def step(data: Any) -> Any:
        # Keras 3 hands an absent part, such as sample weights, over as an empty Optional.
        data = tf.nest.map_structure(
            lambda part: None if isinstance(part, tf.experimental.Optional) else part, data
        )
        return model.distribute_strategy.run(train_step, args=(data,))

    if models.flavour(model) == "keras":  # which unlike tf_keras leaves Python code as it is
        step = tf.autograph.experimental.do_not_convert(step)
    try:
        tf.function(step).get_concrete_function(element_spec)
    except Exception as error:
        if not model.run_eagerly:
            raise  # what fit alone would have raised
        if model.built:
            return  # its layers without weights are ones that its call left out
        raise InputError(
            f"model '{model.name}' has no weights yet, and its training step runs only eagerly "
            f"({first_line(error)}); call the model on one batch before fit"
        ) from error
