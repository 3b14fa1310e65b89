"""Give subclassed models the inputs that only Functional and Sequential ones declare."""

from collections.abc import Mapping, Sequence
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
    recorded = _of_keras(model) if keras.__name__ == "keras" else _of_tf_keras(model)
    if isinstance(input_shape, Sequence) and not isinstance(recorded, dict | list):
        dtype = recorded[1] if isinstance(recorded, tuple) else "float32"
        recorded = ((None, *input_shape), dtype)
    advice = (
        "wrap it in a Functional model, and give that: inputs = keras.Input(shape); "
        "keras.Model(inputs, model(inputs)), where model is called as you call it"
    )
    if recorded is None:
        raise InputError(
            f"model '{model.name}' ({type(model).__name__}) does not say what it takes; give the "
            f"input shape (--input-shape, input_shape in Python), or {advice}"
        )
    try:
        inputs = _declared(keras, recorded, None)
        return keras.Model(inputs, model(inputs), name=model.name)
    except Exception as error:  # the user's own code runs here
        raise InputError(
            f"model '{model.name}' ({type(model).__name__}) cannot be called on inputs of shape "
            f"{_text(recorded)} ({first_line(error)}); {advice}"
        ) from error


def _of_keras(model: Any) -> Any:
    """Return (shape, dtype) of the input, a list or dict of such, or None if not recorded."""
    shapes = dict(getattr(model, "_build_shapes_dict", None) or {})
    if len(shapes) != 1:  # several arguments, which it does not record in a usable way
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


def _declared(keras: Any, recorded: Any, name: str | None) -> Any:
    if isinstance(recorded, dict):
        return {key: _declared(keras, value, key) for key, value in recorded.items()}
    if isinstance(recorded, list):
        return [_declared(keras, value, None) for value in recorded]
    shape, dtype = recorded
    return keras.Input(shape[1:], dtype=dtype, name=name)


def _text(recorded: Any) -> str:
    if isinstance(recorded, dict | list):
        parts = recorded.values() if isinstance(recorded, dict) else recorded
        return ", ".join(_text(part) for part in parts)
    return shape_text(recorded[0])
