"""Write a .tflite file's graph again without the channels that left."""

import copy
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.errors import InputError
from edgeprune.export.cleanup.removal import Removal
from edgeprune.export.cleanup.rules import PAIRWISE
from edgeprune.export.cleanup.weighted import BIASES, Weighted
from edgeprune.export.graph import Subgraph

Array = npt.NDArray[Any]

_BIAS_SLOT = 2
# Microcontrollers read constants where they lie in the file, so these must be aligned (schema.fbs
# asks for it with force_align, which the packing code for Python leaves out).
_ALIGNMENT = 16


@dataclass(frozen=True)
class _Aligned:
    """A buffer that packs its data on a boundary of 16 bytes."""

    buffer: Any

    def Pack(self, builder: Any) -> Any:  # noqa: N802
        """Write the buffer, as the schema's packing code asks each of its tables to."""
        if self.buffer.data is not None:
            builder.Prep(_ALIGNMENT, len(self.buffer.data))
        return self.buffer.Pack(builder)


def without(content: bytes, graph: Subgraph, removal: Removal) -> bytes:
    """Return the file's content without the channels.

    Args:
      content: of a .tflite file of one subgraph, `graph`.
      graph: its graph.
      removal: what leaves.

    Raises:
      InputError: parts of the file that `tflite.read` does not read are damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    # What the accessors raise when an offset or a length points outside the file.
    except (struct.error, ValueError, TypeError, IndexError, OverflowError) as error:
        raise InputError(
            "the .tflite content is damaged: a table points outside it; convert it again"
        ) from error
    _Rewriter(schema, model, graph, removal).run()
    model.buffers = [_Aligned(buffer) for buffer in model.buffers]
    builder = schema.flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Rewriter:
    def __init__(self, schema: Any, model: Any, graph: Subgraph, removal: Removal) -> None:
        self.schema = schema
        self.model = model
        self.graph = graph
        self.removal = removal
        self.tensors = model.subgraphs[0].tensors
        self.operators = model.subgraphs[0].operators
        uses = Counter(index for op in graph.operators for index in op.inputs)
        uses.update(graph.outputs)
        self.uses = uses
        self.buffers: dict[bytes, int] = {}
        self.copies: dict[tuple[int, tuple[int, ...], bytes], int] = {}

    def run(self) -> None:
        """Slice weights and biases, then the other constants, then the shapes between them."""
        for read, (rows, columns) in zip(self.removal.readings, self.removal.masks, strict=True):
            self._weights(read.layer, rows, columns)
        for position, operator in enumerate(self.graph.operators):
            output = operator.outputs[0] if operator.outputs else -1
            if output not in self.removal.live:
                continue
            if operator.name == "RESHAPE":
                self._reshape(position)
            elif operator.name in PAIRWISE:
                for slot, index in enumerate(operator.inputs):
                    self._operand(position, slot, index, self.removal.live[output])
        for index, live in self.removal.live.items():
            _resize(self.tensors[index], len(self.graph.tensors[index].shape) - 1, int(live.sum()))
        used = {tensor.buffer for tensor in self.tensors}
        used.update(entry.buffer for entry in self.model.metadata or [])
        if self.model.metadataBuffer is not None:
            used.update(int(index) for index in self.model.metadataBuffer)
        for index, buffer in enumerate(self.model.buffers):
            if index not in used:
                buffer.data = None

    def _weights(self, layer: Weighted, rows: Array, columns: Array) -> None:
        added = self.removal.biases.get(layer.position)
        if rows.all() and columns.all() and added is None:
            return
        operator = self.graph.operators[layer.position]
        depthwise = operator.name == "DEPTHWISE_CONV_2D"
        values, axes = layer.kernel.values(), [(3, rows)] if depthwise else [(0, rows)]
        if not depthwise:
            axes.append((values.ndim - 1, columns))
        self._set(layer.position, 1, layer.kernel.index, values, axes)
        if depthwise:
            options = self.operators[layer.position].builtinOptions
            if options is not None:
                options.depthMultiplier = int(rows.sum()) // int(columns.sum())
        biases = layer.biases if added is None else layer.biases + added
        if layer.bias is not None:
            stored = layer.bias.values().reshape(-1) if added is None else biases
            values = stored.astype(layer.bias.values().dtype).reshape(layer.bias.shape)
            axis = int(np.argmax(layer.bias.shape))
            self._set(layer.position, _BIAS_SLOT, layer.bias.index, values, [(axis, rows)])
        elif added is not None:
            self._new_bias(layer, biases[rows])

    def _new_bias(self, layer: Weighted, biases: Array) -> None:
        """Give an operator that has none a bias."""
        source = self.graph.tensors[layer.source]
        kind = BIASES.get(source.dtype, "float32")
        tensor = self.schema.TensorT()
        tensor.name = f"{layer.name}/bias".encode()
        tensor.shape = np.array([len(biases)], np.int32)
        tensor.type = getattr(self.schema.TensorType, kind.upper())
        tensor.hasRank = True
        if source.quantization and layer.kernel.quantization:
            quantization = copy.deepcopy(self.tensors[self._kernel_of(layer)].quantization)
            quantization.scale = quantization.scale * source.quantization.scale
            quantization.zeroPoint = np.zeros(quantization.scale.size, np.int64)
            quantization.quantizedDimension = 0
            quantization.min = quantization.max = None
            tensor.quantization = quantization
        tensor.buffer = self._buffer(biases.astype(kind).view(np.uint8))
        self.tensors.append(tensor)
        operator = self.operators[layer.position]
        operator.inputs = np.array([*operator.inputs[:_BIAS_SLOT], len(self.tensors) - 1], np.int32)

    def _kernel_of(self, layer: Weighted) -> int:
        return int(self.operators[layer.position].inputs[1])

    def _operand(self, position: int, slot: int, index: int, live: Array) -> None:
        """Slice a constant that is added to channels, or multiplied with them."""
        tensor = self.graph.tensors[index]
        if tensor.data is not None and tensor.shape and tensor.shape[-1] == len(live) > 1:
            axis = len(tensor.shape) - 1
            self._set(position, slot, index, tensor.values(), [(axis, live)])

    def _reshape(self, position: int) -> None:
        """Write the new last dimension where a RESHAPE keeps its shape: an input, or an option."""
        operator = self.graph.operators[position]
        size = int(self.removal.live[operator.outputs[0]].sum())
        options = self.operators[position].builtinOptions
        shape = getattr(options, "newShape", None)
        if shape is not None and len(shape) and shape[-1] > 0:
            options.newShape = np.array([*shape[:-1], size], np.int32)
        if len(operator.inputs) > 1:
            tensor = self.graph.tensors[operator.inputs[1]]
            values = tensor.values().copy()
            if values.reshape(-1)[-1] > 0:
                values.reshape(-1)[-1] = size
                self._set(position, 1, tensor.index, values, [])

    def _set(
        self, position: int, slot: int, index: int, values: Array, axes: list[tuple[int, Array]]
    ) -> None:
        """Give one operator new values for a constant; others that read it keep theirs."""
        for axis, live in axes:
            values = np.compress(live, values, axis=axis)
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        if data.tobytes() == bytes(self.graph.tensors[index].stored().view(np.uint8)):
            return
        key = (index, tuple(values.shape), data.tobytes())
        if key not in self.copies:
            target = index
            if self.uses[index] > 1:
                target = len(self.tensors)
                self.tensors.append(copy.deepcopy(self.tensors[index]))
            tensor = self.tensors[target]
            for axis, live in axes:
                _slice_scales(tensor, axis, live)
                _resize(tensor, axis, int(live.sum()))
            tensor.buffer = self._buffer(data)
            self.copies[key] = target
        inputs = np.array(self.operators[position].inputs, np.int32)
        inputs[slot] = self.copies[key]
        self.operators[position].inputs = inputs

    def _buffer(self, data: Array) -> int:
        """Store data; tensors of equal content share it, as the converter lets them."""
        content = data.tobytes()
        if content not in self.buffers:
            buffer = self.schema.BufferT()
            buffer.data = data
            self.model.buffers.append(buffer)
            self.buffers[content] = len(self.model.buffers) - 1
        return self.buffers[content]


def _resize(tensor: Any, axis: int, size: int) -> None:
    tensor.shape = np.array([*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]], np.int32)
    signature = tensor.shapeSignature
    if signature is not None and len(signature):
        tensor.shapeSignature = np.array(
            [*signature[:axis], size, *signature[axis + 1 :]], np.int32
        )


def _slice_scales(tensor: Any, axis: int, live: Array) -> None:
    quantization = tensor.quantization
    if quantization is None or quantization.quantizedDimension != axis:
        return
    for name in ("scale", "zeroPoint", "min", "max"):
        values = getattr(quantization, name)
        if values is not None and len(values) == len(live) > 1:
            setattr(quantization, name, np.asarray(values)[live])
