"""Inspect Keras models, of Keras 3 and tf_keras alike."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.finite import not_finite
from edgeprune.export.inspection import Inspection, Layer, Micro
from edgeprune.export.sizes import entropy_bytes, histogram, sparse_bytes
from edgeprune.export.sparse_inference import SparseInference
from edgeprune.keras_macs import keras_macs
from edgeprune.macs import Macs
from edgeprune.models import Kernel, keras_of, kernels, layers, load_model

_ONCE_CONVERTED = "judged in the .tflite file: convert the model, then inspect that"


def inspect_keras_file(path: Path, unsafe: bool) -> Inspection:
    """Inspect a .keras or HDF5 file; its byte figures are the file's.

    Raises:
      InputError, UnsupportedError: it cannot be loaded.
    """
    model = load_model(path, unsafe=unsafe)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return _inspect(model, content)


def inspect_keras(model: Any) -> Inspection:
    """Inspect a model in memory; its byte figures are those of its weights.

    Raises:
      InputError: not a Keras model, or one without weights yet.
      UnsupportedError: it cannot be traced.
    """
    keras_of(model)
    return _inspect(model, None)


def _inspect(model: Any, content: bytes | None) -> Inspection:
    found = kernels(model)  # refuses a model that is not built
    macs = keras_macs(model)
    if content is None:
        content = b"".join(np.ascontiguousarray(_array(v)).tobytes() for v in model.weights)
    arrays = [_array(kernel.variable) for kernel in found]
    dense = sum(array.nbytes for array in arrays)
    sparse = sum(
        sparse_bytes(_as_stored(kernel, array)) for kernel, array in zip(found, arrays, strict=True)
    )
    ideal = sum(entropy_bytes(_counts(array), array.nbytes) for array in arrays)
    entries = sum(array.size for array in arrays)
    zeros = entries - sum(int(np.count_nonzero(array)) for array in arrays)
    # A file may hold its weights compressed, and then takes less than they do.
    rest = max(0, len(content) - dense)
    return Inspection(
        parameters=sum(_array(variable).size for variable in model.weights),
        macs=macs.total,
        bytes=len(content),
        gzip_bytes=len(gzip.compress(content, 9, mtime=0)),
        sparse_encoded_bytes=rest + sparse,
        entropy_bytes=rest + ideal,
        sparsity=zeros / entries if entries else 0.0,
        layers=_layers(model, found, macs),
        sparse_inference=SparseInference(None, (_ONCE_CONVERTED,)),
        mcu=Micro(None),
        notes=(*macs.notes, *map(str, not_finite(model))),
        unavailable={
            **({} if macs.reason is None else {"macs": macs.reason}),
            "sparse_inference.eligible": _ONCE_CONVERTED,
            "mcu.unsupported_ops": _ONCE_CONVERTED,
        },
    )


def _layers(model: Any, found: list[Kernel], macs: Macs) -> tuple[Layer, ...]:
    """Make a row of each layer with parameters or products; cells count with their layer."""
    members: dict[str, Any] = {model.name: model}
    row_of: dict[int, str] = {id(model): model.name}
    owner: dict[int, str] = {id(variable): model.name for variable in model.weights}
    recurrent: list[str] = []
    for path, layer in layers(model):
        row = next((outer for outer in recurrent if path.startswith(outer + "/")), path)
        if row == path:
            members[path] = layer
            if hasattr(layer, "cell"):
                recurrent.append(path)
        row_of[id(layer)] = row
        # Outer layers come first: a variable ends with the innermost that holds it.
        owner |= {id(variable): row for variable in layer.weights}
    variables: dict[str, list[Any]] = {}
    for variable in model.weights:
        variables.setdefault(owner[id(variable)], []).append(variable)
    kernels_of: dict[str, list[np.ndarray]] = {}
    for kernel in found:
        row = owner.get(id(kernel.variable), row_of.get(id(kernel.layer), model.name))
        kernels_of.setdefault(row, []).append(_array(kernel.variable))
    return tuple(
        _row(path, layer, variables.get(path, []), kernels_of.get(path, []), macs)
        for path, layer in members.items()
        if path in variables or macs.by_layer.get(path)
    )


def _row(path: str, layer: Any, variables: list[Any], found: list[np.ndarray], macs: Macs) -> Layer:
    arrays = [_array(variable) for variable in variables]
    shown = max(found or arrays, key=lambda array: array.size, default=None)
    entries = sum(array.size for array in found)
    nonzero = sum(int(np.count_nonzero(array)) for array in found)
    return Layer(
        name=path,
        op=type(layer).__name__,
        shape=_output_shape(layer) if shown is None else shown.shape,
        dtype=str(layer.compute_dtype) if shown is None else shown.dtype.name,
        parameters=sum(array.size for array in arrays),
        macs=None if macs.total is None else macs.by_layer.get(path, 0),
        sparsity=1 - nonzero / entries if entries else None,
        distinct_values=max((_counts(array).size for array in found), default=None),
    )


def _output_shape(layer: Any) -> tuple[int, ...]:
    """Return a layer's output shape at batch 1, or () if it has none, or several."""
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError, RuntimeError):
        return ()
    return tuple(1 if size is None else int(size) for size in shape)


def _as_stored(kernel: Kernel, array: np.ndarray) -> np.ndarray:
    """Lay a kernel out as the converter does: output channels first, what is summed last."""
    if kernel.kind == "embedding":
        return array
    if kernel.kind == "depthwise":
        array = array.reshape(*array.shape[:-2], -1)
        return array.reshape(1, *([1] * (3 - array.ndim)), *array.shape)
    summed = [axis for axis in range(array.ndim) if axis not in kernel.output_axes]
    if array.ndim <= 2 or "Conv" not in type(kernel.layer).__name__:
        outputs = int(np.prod([array.shape[axis] for axis in kernel.output_axes]))
        return array.transpose(*kernel.output_axes, *summed).reshape(outputs, -1)
    moved = np.moveaxis(array, kernel.output_axes[0], 0)
    return moved[:, None] if moved.ndim == 3 else moved


def _counts(array: np.ndarray) -> np.ndarray:
    return histogram(np.ascontiguousarray(array).reshape(-1), 0)


def _array(variable: Any) -> np.ndarray:
    return np.asarray(variable)
