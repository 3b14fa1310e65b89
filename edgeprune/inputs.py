"""What a model takes: the name, shape and dtype of every input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeprune.errors import InputError


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
      name: unique within the model.
      shape: with the batch dimension first; None where a dimension is free.
      dtype: NumPy's name, or ``bfloat16`` or ``string``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def inputs_of(model: Any) -> list[InputSpec]:
    """List a Keras model's inputs, in the order in which it takes them.

    Raises:
      InputError: a subclassed or unbuilt model, which does not say what it takes.
    """
    tensors = getattr(model, "inputs", None)
    if not tensors:
        advice = (
            "as a subclassed model; wrap it in a Functional one, and give that: "
            "inputs = keras.Input(shape); keras.Model(inputs, model(inputs))"
            if model.built
            else "since it has not been built; call it once on a batch"
        )
        raise InputError(f"model '{model.name}' does not say what it takes, {advice}")
    return [
        InputSpec(tensor.name.partition(":")[0], tuple(tensor.shape), _dtype(tensor.dtype))
        for tensor in tensors
    ]


def _dtype(dtype: Any) -> str:
    return dtype if isinstance(dtype, str) else str(dtype.name)


def shape_text(shape: Sequence[int | None]) -> str:
    """Write a shape as users do: ``(?, 224, 224, 3)``, and ``(4,)``."""
    sizes = ", ".join("?" if size is None else str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"
