"""What a model holds: parameters, multiply-accumulates, zeros and sizes, layer by layer."""

import gzip
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.finite import not_finite_in_file
from edgeprune.export.graph import KERNEL_INPUTS, Operator, Subgraph, Tensor, TfliteModel
from edgeprune.export.inspection import Inspection, Layer, Micro
from edgeprune.export.layer_names import Layers
from edgeprune.export.macs import tflite_macs
from edgeprune.export.micro import (
    DECODE,
    all_in_tables,
    dtype_notes,
    kernels_in_tables,
    unsupported_operators,
)
from edgeprune.export.sizes import entropy_bytes, histogram, most_distinct, sparse_bytes
from edgeprune.export.sparse_inference import sparse_inference
from edgeprune.export.tflite import read

# Operators whose kernel the converter can store sparse (those with `SparseOpInterface`).
_SPARSE_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
# Packed ones, such as int4, it leaves alone.
_SPARSE_DTYPES = ("float32", "float16", "int8")
_DENSE_VIEWS = ("DEQUANTIZE", "DENSIFY")
_MAX_NESTING = 32
# Operator -> the axis of its kernel's output channels.
_CHANNEL_AXES = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
# Floats with more distinct values than this share of their entries are not clustered.
_FEW = 0.25


def inspect(model: Any, *, unsafe: bool = False) -> Inspection:
    """Count a model's parameters, multiply-accumulates and zeros, and size it up.

    Args:
      model: a .tflite file (no TensorFlow is loaded for it), a .keras or HDF5 file, or a Keras 3
        or tf_keras model.
      unsafe: load a .keras file that carries Python code, such as Lambda layers.

    Raises:
      InputError: no such file, or not a whole model.
      UnsupportedError: a Keras model that cannot be loaded or traced.
    """
    if not isinstance(model, str | os.PathLike):
        from edgeprune.export.inspect_keras import inspect_keras

        return inspect_keras(model)
    path = Path(model)
    if not path.exists():
        raise InputError(
            f"model file {path} does not exist; supported: .tflite files, and .keras and .h5 files "
            "of Keras 3 or tf_keras"
        )
    if path.suffix.lower() != ".tflite" and not _is_tflite(path):
        from edgeprune.export.inspect_keras import inspect_keras_file

        return inspect_keras_file(path, unsafe)
    return inspect_tflite(read(path), path)


def _is_tflite(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(8)[4:] == b"TFL3"
    except OSError:
        return False


def inspect_tflite(model: TfliteModel, path: Path | None = None) -> Inspection:
    """Inspect a .tflite model that has been read.

    Args:
      model: its content.
      path: its file, beside which the record of its conversion may lie.

    Raises:
      InputError: its operators contradict their inputs.
    """
    macs = tflite_macs(model)
    axes = {
        tensor.buffer: _CHANNEL_AXES[operator.name]
        for graph in model.subgraphs
        for operator in graph.operators
        if operator.name in _CHANNEL_AXES
        for tensor in graph.kernels(operator)
    }
    facts = {
        tensor.buffer: _Facts.of(tensor, axes.get(tensor.buffer)) for tensor in model.weights()
    }
    rows = _Rows(model, facts)
    names = Layers(path, model)
    layers = []
    for position, operator in enumerate(model.subgraphs[0].operators):
        count = None if macs.total is None else macs.by_layer[position]
        layer = rows.row(operator, names.of(position), count)
        if layer.parameters or layer.macs:
            layers.append(layer)
    parameters = {
        tensor.buffer: tensor.entries
        for graph in model.subgraphs
        for operator in graph.operators
        for tensor in _parameters(graph, operator)
    }
    tables = all_in_tables(model)
    unavailable = {} if macs.reason is None else {"macs": macs.reason}
    if tables:
        what = "1 kernel is" if len(tables) == 1 else f"{len(tables)} kernels are"
        why = f"{what} in look-up tables, where values are not counted; inspect the plain file"
        unavailable |= dict.fromkeys(("sparsity", "sparse_encoded_bytes", "entropy_bytes"), why)
    size = len(model.content)
    encodable = {
        tensor.buffer: tensor
        for graph in model.subgraphs
        for operator in graph.operators
        if operator.name in _SPARSE_OPERATORS
        for tensor in graph.kernels(operator)
        if tensor.sparsity is None
        and tensor.dtype in _SPARSE_DTYPES
        and not _has_zero_point(tensor)
    }
    saved = sum(
        len(tensor.data) - sparse_bytes(tensor.values(), _scales(tensor))
        for tensor in encodable.values()
        if tensor.data is not None
    )
    return Inspection(
        parameters=sum(parameters.values()),
        macs=macs.total,
        bytes=size,
        gzip_bytes=len(gzip.compress(model.content, 9, mtime=0)),
        sparse_encoded_bytes=None if tables else size - saved,
        entropy_bytes=None
        if tables
        else size - sum(fact.stored_bytes - fact.entropy_bytes for fact in facts.values()),
        sparsity=None if tables else _fraction(list(facts.values())) or 0.0,
        layers=tuple(layers),
        sparse_inference=sparse_inference(model),
        mcu=Micro(tuple(unsupported_operators(model)), tuple(dtype_notes(model))),
        notes=(*macs.notes, *map(str, not_finite_in_file(model, names.known))),
        unavailable=unavailable,
    )


@dataclass(frozen=True)
class _Facts:
    """What is counted in one kernel."""

    entries: int
    zeros: int
    distinct: int
    distinct_in_channel: int | None
    stored_bytes: int
    entropy_bytes: int

    @classmethod
    def of(cls, tensor: Tensor, axis: int | None) -> "_Facts":
        stored = tensor.stored()
        counts = histogram(stored, tensor.entries - stored.size)
        data_bytes = 0 if tensor.data is None else tensor.data.nbytes
        if tensor.sparsity is None:
            dense_bytes = stored_bytes = data_bytes
        else:
            dense_bytes = tensor.entries * stored.itemsize
            stored_bytes = data_bytes + sum(
                dimension.index_bytes for dimension in tensor.sparsity.dimensions
            )
        ideal = min(entropy_bytes(counts, dense_bytes), stored_bytes)
        in_channel = _in_channel(tensor, axis, counts.size)
        return cls(tensor.entries, tensor.zeros(), counts.size, in_channel, stored_bytes, ideal)


def _in_channel(tensor: Tensor, axis: int | None, distinct: int) -> int | None:
    """Count the distinct values of the output channel that has most of them."""
    if axis is None or axis >= len(tensor.shape) or not tensor.entries:
        return None
    values = tensor.values()
    if values.dtype.itemsize > 1 and distinct > _FEW * tensor.entries:
        return None
    return most_distinct(np.moveaxis(values, axis, 0).reshape(tensor.shape[axis], -1))


def _fraction(facts: list[_Facts]) -> float | None:
    entries = sum(fact.entries for fact in facts)
    return sum(fact.zeros for fact in facts) / entries if entries else None


class _Rows:
    """Makes the rows of the main graph; an operator that runs subgraphs owns what they hold."""

    def __init__(self, model: TfliteModel, facts: dict[int, _Facts]) -> None:
        self.model = model
        self.facts = facts
        self.called: dict[tuple[int, ...], Layer] = {}
        # Subgraphs nest, so their operators may be visited again, but not without end.
        self.visits_left = _MAX_NESTING * sum(len(graph.operators) for graph in model.subgraphs)

    def row(self, operator: Operator, name: str, macs: int | None) -> Layer:
        main = self.model.subgraphs[0]
        called = _called(operator)
        if not called:
            layer = self._summary(operator, [(main, operator)])
        elif called in self.called:
            layer = self.called[called]
        else:
            layer = self.called[called] = self._summary(operator, self._inside(operator))
        return replace(layer, name=name, op=operator.name, macs=macs)

    def _summary(self, operator: Operator, steps: Iterable[tuple[Subgraph, Operator]]) -> Layer:
        kernels: dict[int, Tensor] = {}
        parameters: dict[int, Tensor] = {}
        for graph, step in steps:
            kernels |= {tensor.buffer: tensor for tensor in graph.kernels(step)}
            parameters |= {tensor.buffer: tensor for tensor in _parameters(graph, step)}
        main = self.model.subgraphs[0]
        outputs = [main.tensors[index] for index in operator.outputs if index >= 0]
        shown = max(
            kernels.values() or parameters.values() or outputs,
            key=lambda tensor: tensor.entries,
            default=None,
        )
        own = [self.facts[buffer] for buffer in kernels]
        return Layer(
            name="",
            op="",
            shape=() if shown is None else shown.shape,
            dtype="" if shown is None else shown.dtype,
            parameters=sum(tensor.entries for tensor in parameters.values()),
            macs=None,
            sparsity=_fraction(own),
            distinct_values=max((fact.distinct for fact in own), default=None),
            distinct_in_channel=max(
                (one for fact in own if (one := fact.distinct_in_channel) is not None), default=None
            ),
        )

    def _inside(self, operator: Operator) -> Iterator[tuple[Subgraph, Operator]]:
        """Yield the operators of all the subgraphs that an operator runs, directly or not."""
        waiting, seen = [operator], {0}
        while waiting:
            for index in _called(waiting.pop()):
                if index in seen:
                    continue
                if not 0 <= index < len(self.model.subgraphs):
                    raise InputError("an operator calls a subgraph that does not exist")
                seen.add(index)
                graph = self.model.subgraphs[index]
                self.visits_left -= len(graph.operators)
                if self.visits_left < 0:
                    raise InputError("subgraphs call each other too often; the file is damaged")
                waiting.extend(graph.operators)
                yield from ((graph, inner) for inner in graph.operators)


def _called(operator: Operator) -> tuple[int, ...]:
    """Return the subgraphs that an operator runs: a loop's condition and body, say."""
    return tuple(
        int(index) for name, index in operator.options.items() if name.endswith("subgraph_index")
    )


def _parameters(graph: Subgraph, operator: Operator) -> Iterator[Tensor]:
    """Yield the constants that an operator computes with, but not shapes, axes and lone factors."""
    if operator.name in (*_DENSE_VIEWS, DECODE) or _called(operator):  # a loop's first values
        return
    yield from kernels_in_tables(graph, operator)
    for index in operator.inputs:
        tensor = graph.constant(index)
        if (
            tensor is not None
            and (tensor.dtype.startswith(("float", "bfloat")) or tensor.quantization is not None)
            and (tensor.entries > 1 or operator.name in KERNEL_INPUTS)
        ):
            yield tensor


def _scales(tensor: Tensor) -> int:
    return 0 if tensor.quantization is None else tensor.quantization.scale.size


def _has_zero_point(tensor: Tensor) -> bool:
    return tensor.quantization is not None and bool(tensor.quantization.zero_point.any())
