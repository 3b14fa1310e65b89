"""Give subclassed models the inputs that only Functional and Sequential ones declare."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.inputs import shape_text
from edgeprune.modelfiles import first_line

Shape = tuple[int | None, ...]


def with_inputs(model: Any, input_shape: Sequence[int] | Mapping[str, Any] | None) -> Any:
    """Wrap a subclassed model in a Functional one that says what it takes.

    Args:
      model: a Keras 3 or tf_keras model.
      input_shape: of one sample, without the batch, for a model with one input; by default the
        shapes that Keras recorded when the model was first called, with the batch left free.

    Returns:
      A Functional model around it, or `model` itself if it has inputs.

    Raises:
      InputError: it has no weights yet, its shapes were not recorded, or it does not take them.
    """
    keras = models.keras_of(model)
    if getattr(model, "inputs", None):
        return model
    if not model.built:
        raise InputError(
            f"model '{model.name}' has no weights yet; build it first, for example by calling it "
            "on one batch"
        )
    recorded = recorded_inputs(model)
    if isinstance(input_shape, Sequence) and not isinstance(recorded, dict | list):
        dtype = recorded[1] if isinstance(recorded, tuple) else "float32"
        recorded = ((None, *input_shape), dtype)
    advice = (
        "wrap it in a Functional model, and give that: inputs = keras.Input(shape); "
        "keras.Model(inputs, model(inputs)), where model is called as you call it"
    )
    if recorded is None:
        raise InputError(
            f"model '{model.name}' ({type(model).__name__}) does not say what it takes; give "
            f"`input_shape`, or {advice}"
        )
    try:
        inputs = each_input(
            recorded, lambda shape, dtype, name: keras.Input(shape[1:], dtype=dtype, name=name)
        )
        return keras.Model(inputs, model(inputs), name=model.name)
    except Exception as error:  # the user's own code runs here
        raise InputError(
            f"model '{model.name}' ({type(model).__name__}) cannot be called on inputs of shape "
            f"{_text(recorded)} ({first_line(error)}); {advice}"
        ) from error


def recorded_inputs(model: Any) -> Any:
    """Return what a model was called on: (shape, dtype), a list or dict of such, or None.

    The batch is None. Models that take several arguments do not say.
    """
    return _of_keras(model) if models.flavour(model) == "keras" else _of_tf_keras(model)


def each_input(
    recorded: Any, make: Callable[[Shape, str, str | None], Any], name: str | None = None
) -> Any:
    """Make something of the shape, dtype and name of every recorded input, in their structure."""
    if isinstance(recorded, dict):
        return {key: each_input(value, make, key) for key, value in recorded.items()}
    if isinstance(recorded, list):
        return [each_input(value, make) for value in recorded]
    shape, dtype = recorded
    return make(shape, dtype, name)


def _of_keras(model: Any) -> Any:
    shapes = dict(getattr(model, "_build_shapes_dict", None) or {})
    required = [
        parameter
        for parameter in inspect.signature(model.call).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(shapes) != 1 or len(required) > 1:  # of several arguments it may record but the first
        return None
    (recorded,) = shapes.values()
    # Keras 3 records no dtypes; whole numbers are what an embedding of this shape is called on.
    tokens = {
        _free(tuple(shape))
        for _, layer in models.layers(model)
        if type(layer).__name__ == "Embedding"
        for shape in (getattr(layer, "_build_shapes_dict", None) or {}).values()
        if shape is not None
    }

    def tree(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: tree(part) for name, part in value.items()}
        if value and isinstance(value[0], list | tuple | dict):
            return [tree(part) for part in value]
        shape = _free(tuple(value))
        return shape, "int32" if shape in tokens else "float32"

    return tree(recorded) if recorded else None


def _of_tf_keras(model: Any) -> Any:
    import tensorflow as tf

    def tree(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: tree(part) for name, part in value.items()}
        if isinstance(value, list | tuple) and not isinstance(value, tf.TensorShape):
            return [tree(part) for part in value]
        if isinstance(value, tf.TensorSpec):
            return _free(tuple(value.shape)), value.dtype.name
        return _free(tuple(value)), "float32"

    spec = model.save_spec()
    if spec is not None:
        arguments, keywords = spec
        return tree(arguments[0]) if len(arguments) == 1 and not keywords else None
    shape = getattr(model, "_build_input_shape", None)  # of `build`, without a call
    if shape is None:
        return None
    return tree(shape if isinstance(shape, Mapping) else tf.TensorShape(shape))


def _free(shape: Shape) -> Shape:
    return (None, *shape[1:])


def _text(recorded: Any) -> str:
    if isinstance(recorded, dict | list):
        parts = recorded.values() if isinstance(recorded, dict) else recorded
        return ", ".join(_text(part) for part in parts)
    return shape_text(recorded[0])
