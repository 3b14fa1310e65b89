"""Load and save Keras models, and walk their kernels: Keras 3 and tf_keras alike."""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from edgeprune.errors import InputError, UnsupportedError

Flavour = Literal["keras", "tf_keras"]
KernelKind = Literal["kernel", "depthwise", "embedding"]


@dataclass(frozen=True)
class Kernel:
    """One weight tensor of a model that pruning or quantization may act on.

    Attributes:
      name: path through nested models, unique: ``encoder/conv1/kernel``.
      layer: the layer that owns it.
      variable: the `keras.Variable` or `tf.Variable` itself.
      kind: ``kernel`` is what is pruned by default.
      output_axes: axes that index output channels; products are summed over the others.
    """

    name: str
    layer: Any
    variable: Any
    kind: KernelKind
    output_axes: tuple[int, ...]


# Layer class -> the attributes that hold its kernels, what they are, and their output axes.
_KERNELS: dict[str, tuple[tuple[str, KernelKind, tuple[int, ...]], ...]] = {
    "Dense": (("kernel", "kernel", (-1,)),),
    "EinsumDense": (("kernel", "kernel", ()),),
    **{f"Conv{n}D": (("kernel", "kernel", (-1,)),) for n in (1, 2, 3)},
    # Both flavours store transposed kernels as (..., c_out, c_in).
    **{f"Conv{n}DTranspose": (("kernel", "kernel", (-2,)),) for n in (1, 2, 3)},
    **{
        f"SeparableConv{n}D": (
            ("depthwise_kernel", "depthwise", (-2, -1)),
            ("pointwise_kernel", "kernel", (-1,)),
        )
        for n in (1, 2)
    },
    # Keras 3 calls it `kernel`, tf_keras `depthwise_kernel`.
    **{
        f"DepthwiseConv{n}D": (
            ("kernel", "depthwise", (-2, -1)),
            ("depthwise_kernel", "depthwise", (-2, -1)),
        )
        for n in (1, 2)
    },
    **{
        f"{cell}Cell": (
            ("kernel", "kernel", (-1,)),
            ("recurrent_kernel", "kernel", (-1,)),
        )
        for cell in ("LSTM", "GRU", "SimpleRNN")
    },
    "Embedding": (("embeddings", "embedding", (-1,)),),
}


def import_keras() -> ModuleType:
    """Import Keras 3 on its TensorFlow backend.

    Raises:
      UnsupportedError: another backend is selected.
    """
    backend = _selected_backend()
    if backend != "tensorflow":
        raise UnsupportedError(
            f"Keras is set to the {backend} backend, and .tflite files are made on TensorFlow. "
            "A model saved as .keras runs on either: save it, then set KERAS_BACKEND=tensorflow "
            "(before Keras is imported) and load it again"
        )
    return importlib.import_module("keras")


def _selected_backend() -> str:
    if "keras" in sys.modules:
        return str(sys.modules["keras"].backend.backend())
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    try:
        return str(json.loads((home / "keras.json").read_text())["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


def keras_of(model: Any) -> ModuleType:
    """Return the module, `keras` or `tf_keras`, whose class `model` (or a layer) is.

    Raises:
      InputError: it is neither.
    """
    for base in type(model).__mro__:
        package = base.__module__.partition(".")[0]
        if package == "keras":
            return import_keras()
        if package == "tf_keras":
            return importlib.import_module("tf_keras")
    raise InputError(f"got {type(model).__name__}; supported: a Keras 3 or tf_keras model")


def flavour(model: Any) -> Flavour:
    """Tell whether a model is of Keras 3 (`keras`) or of the legacy `tf_keras`."""
    return "keras" if keras_of(model).__name__ == "keras" else "tf_keras"


def layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, layer) through nested models, wrappers and cells, a shared layer once."""
    seen: set[int] = set()

    def walk(parent: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        # Private, but the one way both flavours list the layers that a layer holds.
        for layer in parent._flatten_layers(include_self=False, recursive=False):
            if id(layer) not in seen:
                seen.add(id(layer))
                path = prefix + layer.name
                yield path, layer
                yield from walk(layer, path + "/")

    return walk(model, prefix)


def kernels(model: Any) -> list[Kernel]:
    """List every kernel of a built model, in the order of its layers, a shared one once.

    Source for the layouts: the `kernel` documentation of each layer, keras.io/api/layers.

    Raises:
      InputError: the model has no weights yet.
    """
    if not model.built:
        raise InputError(
            f"model '{model.name}' has no weights yet; build it first, for example by "
            "calling it on one batch"
        )
    found: list[Kernel] = []
    seen: set[int] = set()
    names: set[str] = set()
    for path, layer in layers(model):
        for attribute, kind, axes in _kernel_attributes(layer):
            # A getattr on a Keras 3 layer whose LoRA or integer kernel is merged on the fly
            # gives a tensor; only variables can be changed in place.
            variable = getattr(layer, attribute, None)
            if variable is None or not hasattr(variable, "assign") or id(variable) in seen:
                continue
            if "float" not in str(variable.dtype):
                continue
            seen.add(id(variable))
            name = _unique(f"{path}/{attribute}", names)
            found.append(
                Kernel(name, layer, variable, kind, _output_axes(layer, axes, len(variable.shape)))
            )
    return found


def _kernel_attributes(layer: Any) -> tuple[tuple[str, KernelKind, tuple[int, ...]], ...]:
    for base in type(layer).__mro__:
        if base.__name__ in _KERNELS and base.__module__.partition(".")[0] in ("keras", "tf_keras"):
            return _KERNELS[base.__name__]
    return ()


def _output_axes(layer: Any, axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    if not axes:  # EinsumDense: kernel letters that reach the output, "abc,cde->abde" gives d, e
        operands, _, output = layer.equation.replace("...", "").partition("->")
        letters = operands.split(",")[1]
        return tuple(axis for axis, letter in enumerate(letters) if letter in output)
    return tuple(axis % rank for axis in axes)


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate

