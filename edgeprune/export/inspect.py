"""What a model holds: parameters, multiply-accumulates, zeros and sizes, layer by layer."""

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.export.graph import KERNEL_INPUTS, Operator, Subgraph, Tensor, TfliteModel
from edgeprune.export.macs import tflite_macs
from edgeprune.export.micro import dtype_notes, unsupported_operators
from edgeprune.export.sizes import entropy_bytes, histogram, sparse_bytes
from edgeprune.export.sparse_inference import SparseInference, layer_name, sparse_inference
from edgeprune.export.tflite import read
from edgeprune.report.table import Column, format_bytes, render

# Operators whose kernel the converter can store sparse (those with `SparseOpInterface`).
_SPARSE_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
_DENSE_VIEWS = ("DEQUANTIZE", "DENSIFY")

LAYER_COLUMNS = (
    Column("layer"),
    Column("op"),
    Column("shape"),
    Column("dtype"),
    Column("parameters", "count"),
    Column("MACs", "count"),
    Column("sparsity", "fraction"),
    Column("distinct values", "count"),
)
_MAX_NESTING = 32


@dataclass(frozen=True)
class Layer:
    """One operator of a .tflite file, or one Keras layer, that has parameters or products.

    Attributes:
      name: of the layer: its path through nested models, or the operator's output tensor.
      op: operator (`CONV_2D`) or layer class (`Conv2D`).
      shape: of its largest kernel; without one, of its largest parameter, else of its output.
      dtype: of that tensor.
      parameters: entries of its kernels, biases and other constants; a shared one in each layer.
      macs: multiply-accumulates; None where the model's are unknown.
      sparsity: fraction of its kernels' entries that are zero; None without a kernel.
      distinct_values: in its kernel; the most in any of them if there are several.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    macs: int | None
    sparsity: float | None
    distinct_values: int | None


@dataclass(frozen=True)
class Micro:
    """What keeps a model off TensorFlow Lite Micro.

    Attributes:
      unsupported_ops: operators without a kernel there; None where it cannot be told.
      notes: dtypes that its kernels refuse.
    """

    unsupported_ops: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
      parameters: entries of all weights, biases and other learned constants, shared ones once.
      macs: multiply-accumulates of one inference at batch 1; None with a reason in `unavailable`.
      bytes: of the file; of a Keras model in memory, of its weights.
      gzip_bytes: those bytes after gzip, level 9.
      sparse_encoded_bytes: what they would be with each kernel in TFLite's sparse encoding
        where that is smaller (`edgeprune.export.sizes.sparse_bytes`).
      entropy_bytes: what they would be with each kernel at its order-0 entropy, its table of
        distinct values included (`edgeprune.export.sizes.entropy_bytes`).
      sparsity: fraction of the kernels' entries that are zero.
      layers: in order of execution, those with parameters or products.
      sparse_inference: whether XNNPACK would skip the zeros.
      mcu: what keeps it off microcontrollers.
      notes: what the figures rest on.
      unavailable: figure -> why it is None.
    """

    parameters: int
    macs: int | None
    bytes: int
    gzip_bytes: int
    sparse_encoded_bytes: int
    entropy_bytes: int
    sparsity: float
    layers: tuple[Layer, ...]
    sparse_inference: SparseInference
    mcu: Micro
    notes: tuple[str, ...] = ()
    unavailable: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, keyed as the attributes."""
        plain: dict[str, Any] = json.loads(self.to_json())
        return plain

    def to_json(self) -> str:
        """Return one JSON document."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def rows(self) -> list[tuple[str | float | None, ...]]:
        """Return the values of `LAYER_COLUMNS`, a row a layer."""
        return [
            (
                layer.name,
                layer.op,
                "x".join(map(str, layer.shape)),
                layer.dtype,
                layer.parameters,
                layer.macs,
                layer.sparsity,
                layer.distinct_values,
            )
            for layer in self.layers
        ]

    def summary(self) -> str:
        """Return the totals in words, a line each."""
        macs = f"unknown ({self.unavailable['macs']})" if self.macs is None else f"{self.macs:,}"
        lines = [
            f"parameters  {self.parameters:,}",
            f"MACs        {macs}",
            f"sparsity    {self.sparsity:.3f}",
            f"size        {format_bytes(self.bytes)}, gzip {format_bytes(self.gzip_bytes)}, "
            f"sparse-encoded {format_bytes(self.sparse_encoded_bytes)}, "
            f"entropy {format_bytes(self.entropy_bytes)}",
        ]
        sparse = self.sparse_inference
        if sparse.eligible is not None:
            verdict = "yes" if sparse.eligible else f"no: {'; '.join(sparse.reasons)}"
            lines.append(f"XNNPACK skips zeros (64-bit Arm)  {verdict}")
        if self.mcu.unsupported_ops is not None:
            missing = ", ".join(self.mcu.unsupported_ops)
            verdict = f"lacks {missing}" if missing else "has every operator"
            lines.append(f"TFLite Micro {verdict}")
        lines += [f"note: {note}" for note in (*self.mcu.notes, *self.notes)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{render(LAYER_COLUMNS, self.rows())}\n\n{self.summary()}"


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
    if path.suffix.lower() != ".tflite" and not _is_tflite(path):
        from edgeprune.export.inspect_keras import inspect_keras_file

        return inspect_keras_file(path, unsafe)
    return inspect_tflite(read(path))


def _is_tflite(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(8)[4:] == b"TFL3"
    except OSError:
        return False


def inspect_tflite(model: TfliteModel) -> Inspection:
    """Inspect a .tflite model that has been read.

    Raises:
      InputError: its operators contradict their inputs.
    """
    macs = tflite_macs(model)
    facts = {tensor.buffer: _Facts.of(tensor) for tensor in model.weights()}
    rows = _Rows(model, facts)
    layers = []
    for position, operator in enumerate(model.subgraphs[0].operators):
        count = None if macs.total is None else macs.by_layer[position]
        layer = rows.row(operator, count)
        if layer.parameters or layer.macs:
            layers.append(layer)
    parameters = {
        tensor.buffer: tensor.entries
        for graph in model.subgraphs
        for operator in graph.operators
        for tensor in _parameters(graph, operator)
    }
    size = len(model.content)
    encodable = {
        tensor.buffer: tensor
        for graph in model.subgraphs
        for operator in graph.operators
        if operator.name in _SPARSE_OPERATORS
        for tensor in graph.kernels(operator)
        if tensor.sparsity is None and not _has_zero_point(tensor)
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
        sparse_encoded_bytes=size - saved,
        entropy_bytes=size - sum(fact.stored_bytes - fact.entropy_bytes for fact in facts.values()),
        sparsity=_fraction(list(facts.values())) or 0.0,
        layers=tuple(layers),
        sparse_inference=sparse_inference(model),
        mcu=Micro(tuple(unsupported_operators(model)), tuple(dtype_notes(model))),
        notes=macs.notes,
        unavailable={} if macs.reason is None else {"macs": macs.reason},
    )


@dataclass(frozen=True)
class _Facts:
    """What is counted in one kernel."""

    entries: int
    zeros: int
    distinct: int
    stored_bytes: int
    entropy_bytes: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Facts":
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
        return cls(tensor.entries, tensor.zeros(), counts.size, stored_bytes, ideal)


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

    def row(self, operator: Operator, macs: int | None) -> Layer:
        main = self.model.subgraphs[0]
        called = _called(operator)
        if not called:
            layer = self._summary(operator, [(main, operator)])
        elif called in self.called:
            layer = self.called[called]
        else:
            layer = self.called[called] = self._summary(operator, self._inside(operator))
        return replace(layer, name=layer_name(main, operator), op=operator.name, macs=macs)

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
    if operator.name in _DENSE_VIEWS or _called(operator):  # those are a loop's first values
        return
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
