"""Load and save Keras models, and walk their kernels: Keras 3 and tf_keras alike."""

import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from edgeprune.errors import EdgepruneError, InputError, UnsupportedError
from edgeprune.files import atomic_path
from edgeprune.modelfiles import first_line, identify

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
    _require_tensorflow()
    return importlib.import_module("keras")


def _require_tensorflow() -> None:
    backend = _selected_backend()
    if backend != "tensorflow":
        raise UnsupportedError(
            f"Keras is set to the {backend} backend, and .tflite files are made on TensorFlow. "
            "A saved model runs on TensorFlow too: save it, then set KERAS_BACKEND=tensorflow "
            "(before Keras is imported) and load it again"
        )


def import_tfmot() -> ModuleType:
    """Import TFMOT on tf_keras without changing what `tf.keras` is for everyone else.

    TFMOT sets TF_USE_LEGACY_KERAS=1 when it is imported, which would turn a `tf.keras` that
    nobody has used yet into tf_keras. It only needs tf_keras itself, so the choice is made first
    and the variable put back.

    Raises:
      UnsupportedError: Keras 3, which `tf.keras` is, is set to another backend.
    """
    _require_tensorflow()
    import tensorflow as tf

    _ = tf.keras.Model
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        return importlib.import_module("tensorflow_model_optimization")
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before


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


def load_model(path: str | os.PathLike[str], *, unsafe: bool = False, compile: bool = True) -> Any:
    """Load a .keras or HDF5 file with the Keras flavour that wrote it.

    Nothing in the file is run: layers that carry Python code are refused unless `unsafe`.
    TensorFlow Model Optimization's wrapped and quantized models, and edgeprune's own
    quantize-aware ones, load too.

    Args:
      path: a .keras, .h5 or .hdf5 file of Keras 3 or tf_keras.
      unsafe: allow code from the file, such as Lambda layers; only for files that you trust.
      compile: restore the optimizer, loss and metrics as well, if the file has them; where that
        fails, a warning says why and the model is not compiled.

    Raises:
      InputError: no such file, or not a whole model that may be loaded.
      UnsupportedError: another Keras backend is selected, or a layer is unknown.
    """
    path = Path(path)
    load = _load_keras if identify(path, unsafe=unsafe) == "keras" else _load_tf_keras
    _require_tensorflow()  # also by tf_keras models: TensorFlow itself imports Keras 3
    try:
        if not compile:
            return load(path, unsafe, False)
        try:
            return load(path, unsafe, True)
        except Exception as error:
            # The loss may be the user's own; Keras also fails on some of its own in HDF5 files.
            model = load(path, unsafe, False)
            warnings.warn(
                f"{path}: its loss and optimizer could not be restored ({first_line(error)}); "
                "the model is not compiled",
                stacklevel=2,
            )
            return model
    except EdgepruneError:
        raise
    except Exception as error:  # Keras raises whatever its readers run into
        raise _load_error(path, error) from error


def _load_keras(path: Path, unsafe: bool, compile: bool) -> Any:
    keras = import_keras()
    # Importing them registers edgeprune's own layers, which models in training hold.
    importlib.import_module("edgeprune.quantization.layers")
    importlib.import_module("edgeprune.structure.layerdrop")
    return keras.saving.load_model(path, compile=compile, safe_mode=not unsafe)


def _load_tf_keras(path: Path, unsafe: bool, compile: bool) -> Any:
    tf_keras = importlib.import_module("tf_keras")
    tfmot = import_tfmot()
    serialization = importlib.import_module("tf_keras.src.saving.serialization_lib")
    with (
        tempfile.TemporaryDirectory(prefix="edgeprune-") as folder,
        # `safe_mode` alone has no effect on HDF5 files.
        serialization.SafeModeScope(not unsafe),
        tfmot.sparsity.keras.prune_scope(),
        tfmot.quantization.keras.quantize_scope(),
        tf_keras.utils.custom_object_scope(_clustering_wrappers()),
    ):
        if not os.access(path, os.W_OK):  # tf_keras opens .keras files for writing
            path = Path(shutil.copy(path, folder))
            path.chmod(0o600)
        return tf_keras.models.load_model(path, compile=compile, safe_mode=not unsafe)


def _clustering_wrappers() -> dict[str, Any]:
    """Return TFMOT's wrappers by name; its own `cluster_scope` knows but the first."""
    wrappers = importlib.import_module(
        "tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper"
    )
    names = ("ClusterWeights", "ClusterWeightsRNN", "ClusterWeightsMHA")
    return {name: getattr(wrappers, name) for name in names}


def _load_error(path: Path, error: Exception) -> EdgepruneError:
    text = str(error)
    unknown = re.search(
        r"Could not locate \w+ '([^']+)'|Unknown [\w ]+: '?([\w>]+)|object of type `([^`]+)`", text
    )
    if unknown:
        name = next(group for group in unknown.groups() if group)
        return UnsupportedError(
            f"{path} holds '{name}', which Keras does not know; in Python, import the code that "
            "defines it and registers it (keras.saving.register_keras_serializable), load the "
            "model and pass it to edgeprune.convert; a subclassed model is pruned as "
            "edgeprune.prune_channels(keras.Model(inputs, model.call(inputs)), ...)"
        )
    if "safe_mode" in text or "unsafe" in text:
        return InputError(
            f"{path} holds code that would be run ({first_line(error)}); if you trust the file, "
            "pass `unsafe=True`"
        )
    if "quantize_layer" in text and path.suffix == ".keras":
        return UnsupportedError(
            f"{path} was quantized by TensorFlow Model Optimization, whose models tf_keras cannot "
            "load from .keras files; save it as .h5"
        )
    if re.search("Weight count mismatch for layer .* quant_", text):
        return UnsupportedError(
            f"{path} was quantized by TensorFlow Model Optimization, which cannot load a model "
            "whose clusters it kept; save what strip(model) returns"
        )
    return InputError(
        f"model file {path} cannot be loaded ({first_line(error)}); it may be damaged: save it "
        "again, or load it in Python and pass the model"
    )


def fingerprint(model: Any) -> str:
    """Return the SHA-256 of a model's configuration and weights, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    try:
        config = json.loads(model.to_json())
    except (NotImplementedError, TypeError, ValueError):  # subclassed models may have none
        config = type(model).__qualname__
    digest.update(json.dumps(_lasting(config), sort_keys=True).encode())
    for variable in model.weights:
        values = np.asarray(variable)
        digest.update(f"{values.shape} {values.dtype} ".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _lasting(config: Any) -> Any:
    """Leave out of a configuration what differs from one run to the next."""
    if isinstance(config, dict):
        # Shared objects are numbered by their addresses; how a model is compiled is not the model.
        passing = ("shared_object_id", "compile_config")
        return {key: _lasting(value) for key, value in config.items() if key not in passing}
    return [_lasting(value) for value in config] if isinstance(config, list) else config


def save_model(model: Any, path: str | os.PathLike[str]) -> None:
    """Save a Keras model of either flavour, whole or not at all.

    Args:
      model: a Keras 3 or tf_keras model.
      path: ends in .keras or .h5.

    Raises:
      InputError: another suffix, or the folder cannot be written.
      EdgepruneError: the disk is full or fails.
    """
    path = Path(path)
    if path.suffix not in (".keras", ".h5"):
        raise InputError(f"cannot save a model as {path}; supported: .keras, .h5")
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Keras calls HDF5 legacy; who asks for .h5 knows.
        warnings.simplefilter("ignore")
        model.save(temporary)


def remade(layer: Any) -> Any:
    """Return a new layer or model with the same config, and initial weights or none yet.

    Raises:
      UnsupportedError: it cannot be made again from its config.
    """
    try:
        return type(layer).from_config(layer.get_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedError(
            f"layer '{layer.name}' ({type(layer).__name__}) cannot be made again from its config "
            f"({first_line(error)}); give it a get_config() and from_config() that agree"
        ) from error


def layers(model: Any) -> Iterator[tuple[str, Any]]:
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

    return walk(model, "")


def kernels(model: Any) -> list[Kernel]:
    """List every kernel of a built model, in the order of its layers, a shared one once.

    Source for the layouts: the `kernel` documentation of each layer, keras.io/api/layers.

    Raises:
      InputError: the model has no weights yet.
    """
    parts = [layer for _, layer in layers(model)]
    # A model whose training step calls its parts by themselves is never built as a whole.
    if not model.built and not (parts and all(layer.built for layer in parts)):
        raise InputError(
            f"model '{model.name}' has no weights yet; build it first, for example by "
            "calling it on one batch"
        )
    found: list[Kernel] = []
    seen: set[int] = set()
    names: set[str] = set()
    held: dict[tuple[int, str], Any] = {}
    for path, layer in layers(model):
        # TFMOT's quantizing wrapper takes the kernel's variable out of its layer and holds it.
        for weight, *_ in getattr(layer, "_weight_vars", ()):
            held[id(layer.layer), weight.name.rpartition("/")[2].partition(":")[0]] = weight
        for attribute, kind, axes in _kernel_attributes(layer):
            # A getattr on a Keras 3 layer whose LoRA or integer kernel is merged on the fly
            # gives a tensor; only variables can be changed in place.
            variable = held.get((id(layer), attribute), getattr(layer, attribute, None))
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
