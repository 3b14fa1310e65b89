"""Cut a .tflite model into one small model for each operator, to time operators on their own.

The values that one of them computes are the next one's inputs, as in the whole model: run one after
the other, they compute what the whole model computes.
"""

import copy
import json
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.graph import Operator, Subgraph, TfliteModel

MANIFEST = "parts.json"
EMPTY = "empty.tflite"
"""A model without operators, whose time is that of a call."""

_CALLS = ("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_COMPOSITE")
_UNPACKING = ("DEQUANTIZE", "DENSIFY")
_NO_ARRAYS = ("string", "resource", "variant")


@dataclass(frozen=True)
class Part:
    """One operator as a model of its own.

    Attributes:
      positions: of operators in the main graph: its own, which is the last, and before it
        those that only turn its constants into what it reads (DEQUANTIZE, DENSIFY).
      inputs: tensors of the main graph, in the order of the small model's inputs.
      outputs: likewise.
      last_uses: tensors that no later operator reads.
      file: its name in the archive; None where it cannot be cut out.
      reason: why not.
    """

    positions: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    last_uses: tuple[int, ...]
    file: str | None
    reason: str | None = None


def parts_of(graph: Subgraph) -> list[Part]:
    """Say how a model's main graph is cut, in the order in which it is executed.

    Operators that unpack constants have no part of their own: they go with those that read them.
    """
    constant = _constant_operators(graph)
    last = {i: p for p, operator in enumerate(graph.operators) for i in operator.inputs}
    found = []
    for position, operator in enumerate(graph.operators):
        if position in constant:
            continue
        positions = (*_needed(graph, position, constant), position)
        made = {index for p in positions[:-1] for index in graph.operators[p].outputs}
        inputs = tuple(
            dict.fromkeys(
                index
                for index in operator.inputs
                if index >= 0 and index not in made and _is_computed(graph, index)
            )
        )
        outputs = tuple(index for index in operator.outputs if index >= 0)
        reason = _obstacle(graph, operator, inputs)
        file = None if reason else f"{position}.tflite"
        done = tuple(index for index in inputs if last[index] == position)
        found.append(Part(positions, inputs, outputs, done, file, reason))
    return found


def write_parts(model: TfliteModel, path: Path) -> list[Part]:
    """Write an archive with all parts of a model and `MANIFEST`, which says what they are.

    Raises:
      InputError: a part of the file that `tflite.read` does not read is damaged.
    """
    graph = model.subgraphs[0]
    parts = parts_of(graph)
    cutter = _Cutter(model)
    with zipfile.ZipFile(path, "w") as archive:
        for part in parts:
            if part.file is not None:
                archive.writestr(part.file, cutter.cut(part.positions, part.inputs, part.outputs))
        first = graph.inputs[:1]
        archive.writestr(EMPTY, cutter.cut((), first, first))
        manifest = {
            "inputs": graph.inputs,
            "outputs": graph.outputs,
            "parts": [asdict(part) for part in parts],
        }
        archive.writestr(MANIFEST, json.dumps(manifest))
    return parts


def _is_computed(graph: Subgraph, index: int) -> bool:
    """Whether a tensor is handed from one operator to another, or to the model."""
    return index in graph.inputs or index in graph.producers


def _constant_operators(graph: Subgraph) -> set[int]:
    """Find the operators that unpack constants for others, which runtimes do once for all."""
    fixed: set[int] = set()
    found: set[int] = set()
    for position, operator in enumerate(graph.operators):
        read = [index for index in operator.inputs if index >= 0]
        settled = all(graph.tensors[i].data is not None or i in fixed for i in read)
        shown = set(operator.outputs) & set(graph.outputs)
        if operator.name in _UNPACKING and settled and not shown:
            found.add(position)
            fixed.update(operator.outputs)
    return found


def _needed(graph: Subgraph, position: int, constant: set[int]) -> list[int]:
    """List the constant operators that lead to one, in the order of the graph."""
    makers = {index: p for p in constant for index in graph.operators[p].outputs}
    wanted: set[int] = set()
    left = [position]
    while left:
        for index in graph.operators[left.pop()].inputs:
            maker = makers.get(index)
            if maker is not None and maker not in wanted:
                wanted.add(maker)
                left.append(maker)
    return sorted(wanted)


def _obstacle(graph: Subgraph, operator: Operator, inputs: Sequence[int]) -> str | None:
    """Say why an operator cannot run on its own; None if it can."""
    for index in (*inputs, *operator.outputs):
        if index >= 0 and graph.tensors[index].dtype in _NO_ARRAYS:
            return f"it shares a {graph.tensors[index].dtype} with other operators"
    if not operator.outputs:
        return "it has no output"
    return None


class _Cutter:
    """Writes models of some of a model's operators."""

    def __init__(self, model: TfliteModel) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.graph = model.subgraphs[0]
        try:
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model.content))
        # What the accessors raise when an offset or a length points outside the file.
        except (struct.error, ValueError, TypeError, IndexError, OverflowError) as error:
            raise InputError(
                "the .tflite content is damaged: a table points outside it; convert it again"
            ) from error
        # What lies behind the flatbuffer, in files over 2 GB, is taken inside.
        for graph in model.subgraphs:
            for tensor in graph.tensors:
                if tensor.data is not None:
                    buffer = self.model.buffers[tensor.buffer]
                    buffer.data, buffer.offset, buffer.size = tensor.data, 0, 0

    def cut(self, operators: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Return the content of a .tflite file of some operators.

        Args:
          operators: their positions in the main graph.
          inputs: tensors there that the small model takes.
          outputs: that it gives.
        """
        main = self.model.subgraphs[0]
        chosen = [main.operators[position] for position in operators]
        used = dict.fromkeys((*inputs, *outputs))
        for operator in chosen:
            for indices in (operator.inputs, operator.outputs, operator.intermediates):
                used |= dict.fromkeys(int(i) for i in _listed(indices) if i >= 0)
        place = {index: number for number, index in enumerate(used)}
        graph = copy.copy(main)
        graph.tensors = [main.tensors[index] for index in used]
        graph.inputs, graph.outputs = (
            np.array([place[index] for index in indices], np.int32) for indices in (inputs, outputs)
        )
        graph.operators = [_moved(operator, place) for operator in chosen]
        calls = any(self.graph.operators[position].name in _CALLS for position in operators)
        return self._packed([graph, *(self.model.subgraphs[1:] if calls else [])])

    def _packed(self, graphs: list[Any]) -> bytes:
        """Write a model of these subgraphs, with the buffers that they use and no others."""
        cut = copy.copy(self.model)
        cut.signatureDefs = cut.metadata = cut.metadataBuffer = None
        cut.subgraphs, cut.buffers = [], [self.schema.BufferT()]
        place = {0: 0}
        for graph in graphs:
            own = copy.copy(graph)
            own.tensors = [copy.copy(tensor) for tensor in graph.tensors]
            for tensor in own.tensors:
                if tensor.buffer not in place:
                    place[tensor.buffer] = len(cut.buffers)
                    cut.buffers.append(self.model.buffers[tensor.buffer])
                tensor.buffer = place[tensor.buffer]
            cut.subgraphs.append(own)
        builder = self.schema.flatbuffers.Builder(1024)
        builder.Finish(cut.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _listed(indices: Any) -> Sequence[int]:
    return () if indices is None else indices


def _moved(operator: Any, place: dict[int, int]) -> Any:
    """Return an operator that reads and writes its tensors at other places."""
    moved = copy.copy(operator)
    for name in ("inputs", "outputs", "intermediates"):
        indices = _listed(getattr(operator, name))
        setattr(moved, name, np.array([place.get(int(i), -1) for i in indices], np.int32))
    return moved
