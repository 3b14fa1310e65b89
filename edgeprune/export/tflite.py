"""Read .tflite files, hostile ones included, with no TensorFlow and no interpreter.

The schema's own accessors (`ai_edge_litert.schema_py_generated`) do the parsing. They trust
the file, so what they return is checked here: every count against what the file can hold.
"""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.densify import Dimension, SparseEncoding, entry_bytes
from edgeprune.export.graph import Operator, Quantization, Subgraph, Tensor, TfliteModel

__all__ = ["Operator", "Quantization", "Subgraph", "Tensor", "TfliteModel", "read"]

_MAX_RANK = 32
# Models have thousands of operators; Python reads this many tables in ten seconds.
_MAX_TABLES = 250_000


def read(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> TfliteModel:
    """Read a .tflite file, or its content.

    Raises:
      InputError: no such file, or its content is not a whole, consistent .tflite model.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _Reader(bytes(source), "the .tflite content").model()
    path = Path(source)
    if not path.is_file():
        what = "a directory" if path.is_dir() else "no such file"
        raise InputError(f"cannot read {path}: {what}; name a .tflite file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return _Reader(content, str(path)).model()


class _Reader:
    """Reads one file, and counts what it has read against what the file can hold."""

    def __init__(self, content: bytes, name: str) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.content = content
        self.name = name
        self.tables_left = _MAX_TABLES
        # Tables and vectors may be pointed at many times over, so that a small file could ask
        # for endless work. Unshared, entries never outnumber bytes.
        self.entries_left = len(content) + 4096

    def model(self) -> TfliteModel:
        if not self.content:
            raise InputError(f"{self.name} is empty; a .tflite model was expected")
        if self.content[4:8] != b"TFL3":
            raise InputError(f"{self.name} is not a .tflite model: its identifier TFL3 is missing")
        try:
            return self._model()
        # What the accessors raise when an offset or a length points outside the file.
        except (
            struct.error,
            ValueError,
            TypeError,
            IndexError,
            KeyError,
            OverflowError,
            AssertionError,
        ) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged("it is truncated or inconsistent") from error

    def _damaged(self, why: str) -> InputError:
        return InputError(f"{self.name} is damaged: {why}; convert or download it again")

    def _model(self) -> TfliteModel:
        model = self.schema.Model.GetRootAs(self.content)
        types = _names(self.schema.TensorType)
        builtins = _names(self.schema.BuiltinOperator)
        codes = [
            self._code(code, builtins)
            for code in self._tables(model.OperatorCodesLength(), model.OperatorCodes)
        ]
        buffers = [
            self._buffer(buffer) for buffer in self._tables(model.BuffersLength(), model.Buffers)
        ]
        subgraphs = tuple(
            self._subgraph(subgraph, codes, buffers, types)
            for subgraph in self._tables(model.SubgraphsLength(), model.Subgraphs)
        )
        if not subgraphs:
            raise self._damaged("it holds no graph")
        return TfliteModel(self.content, subgraphs)

    def _tables(self, length: int, accessor: Any) -> Iterator[Any]:
        self._spend(length)
        self.tables_left -= length
        if self.tables_left < 0:
            raise self._damaged(f"more than {_MAX_TABLES} tables")
        return (accessor(index) for index in range(length))

    def _spend(self, entries: int) -> None:
        self.entries_left -= entries
        if self.entries_left < 0:
            raise self._damaged("its parts claim to hold more than the file does")

    def _ints(self, vector: Any) -> tuple[int, ...]:
        return tuple(self._array(vector).tolist())

    def _array(self, vector: Any) -> np.ndarray:
        if not isinstance(vector, np.ndarray):  # the accessors give 0 for a vector left out
            return np.zeros(0, np.int32)
        self._spend(vector.size)
        return vector

    def _text(self, text: bytes | None) -> str:
        self._spend(len(text or b""))
        decoded = (text or b"").decode("utf-8", "replace")
        if decoded.isprintable():
            return decoded
        # Names reach error messages and tables: no newlines, no terminal escapes.
        return "".join(letter if letter.isprintable() else "?" for letter in decoded)

    def _code(self, code: Any, builtins: dict[int, str]) -> tuple[str, bool]:
        # Files from before 2020 have the code in the first, 8-bit field only.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = builtins.get(number, f"UNKNOWN_{number}")
        if name == "CUSTOM":
            return self._text(code.CustomCode()) or "CUSTOM", True
        return name, False

    def _buffer(self, buffer: Any) -> np.ndarray | None:
        data = buffer.DataAsNumpy()
        if isinstance(data, np.ndarray) and data.size:
            return self._array(data)
        # Models over 2 GB keep their data behind the flatbuffer (offsets 0 and 1: nothing there).
        start, size = buffer.Offset(), buffer.Size()
        if start > 1 and size:
            if start + size > len(self.content):
                raise self._damaged("a buffer lies outside the file")
            return self._array(np.frombuffer(self.content, np.uint8, size, start))
        return None

    def _subgraph(
        self,
        subgraph: Any,
        codes: list[tuple[str, bool]],
        buffers: list[np.ndarray | None],
        types: dict[int, str],
    ) -> Subgraph:
        tensors = tuple(
            self._tensor(index, tensor, buffers, types)
            for index, tensor in enumerate(self._tables(subgraph.TensorsLength(), subgraph.Tensors))
        )
        operators = tuple(
            self._operator(operator, codes, len(tensors))
            for operator in self._tables(subgraph.OperatorsLength(), subgraph.Operators)
        )
        return Subgraph(
            self._text(subgraph.Name()),
            tensors,
            self._indices(subgraph.InputsAsNumpy(), len(tensors)),
            self._indices(subgraph.OutputsAsNumpy(), len(tensors)),
            operators,
        )

    def _indices(self, vector: Any, tensors: int) -> tuple[int, ...]:
        indices = self._ints(vector)
        if any(not -1 <= index < tensors for index in indices):
            raise self._damaged("an operator reads or writes a tensor that does not exist")
        return indices

    def _operator(self, operator: Any, codes: list[tuple[str, bool]], tensors: int) -> Operator:
        index = operator.OpcodeIndex()
        if index >= len(codes):
            raise self._damaged("an operator has no code")
        name, custom = codes[index]
        options: dict[str, int | float | bool] = {}
        for kind, table, create in (
            (
                operator.BuiltinOptionsType(),
                operator.BuiltinOptions(),
                self.schema.BuiltinOptionsCreator,
            ),
            (
                operator.BuiltinOptions2Type(),
                operator.BuiltinOptions2(),
                self.schema.BuiltinOptions2Creator,
            ),
        ):
            if kind and table is not None:
                options |= _scalars(create(kind, table))
        return Operator(
            name,
            custom,
            self._indices(operator.InputsAsNumpy(), tensors),
            self._indices(operator.OutputsAsNumpy(), tensors),
            options,
        )

    def _tensor(
        self,
        index: int,
        tensor: Any,
        buffers: list[np.ndarray | None],
        types: dict[int, str],
    ) -> Tensor:
        name = self._text(tensor.Name())
        shape = self._ints(tensor.ShapeAsNumpy())
        signature = self._ints(tensor.ShapeSignatureAsNumpy()) or shape
        if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
            raise self._damaged(f"tensor '{name}' has an impossible shape")
        dtype = types[tensor.Type()].lower()
        buffer = tensor.Buffer()
        if buffer >= len(buffers):
            raise self._damaged(f"tensor '{name}' has a buffer that does not exist")
        data = None if tensor.IsVariable() else buffers[buffer]
        sparsity = self._sparsity(tensor.Sparsity())
        numeric = dtype not in ("string", "resource", "variant")
        if data is not None and sparsity is None and numeric:
            expected = entry_bytes(dtype, math.prod(shape))
            if data.size != expected:
                raise self._damaged(
                    f"tensor '{name}' of {dtype} {list(shape)} takes {expected} bytes, "
                    f"its buffer holds {data.size}"
                )
        # tflite-micro's indices into look-up tables keep the scales of what they stand for.
        encoded = dtype == "uint8" and len(shape) == 1
        quantization = self._quantization(tensor.Quantization(), name, shape, encoded)
        if sparsity is not None and quantization is not None and quantization.zero_point.any():
            raise self._damaged(
                f"sparse tensor '{name}' has a zero point, so what it omits is not 0"
            )
        return Tensor(index, name, shape, signature, dtype, quantization, sparsity, buffer, data)

    def _quantization(
        self, parameters: Any, name: str, shape: tuple[int, ...], encoded: bool
    ) -> Quantization | None:
        scale = self._array(parameters.ScaleAsNumpy()) if parameters is not None else None
        if scale is None or not scale.size:
            return None
        zero_point = self._array(parameters.ZeroPointAsNumpy())
        if not zero_point.size:
            zero_point = np.zeros(scale.size, np.int64)
        axis = parameters.QuantizedDimension()
        several = max(scale.size, zero_point.size) > 1
        if scale.size != zero_point.size or (
            several and not (0 <= axis < len(shape) and scale.size == shape[axis])
        ):
            if encoded:
                return None
            raise self._damaged(f"tensor '{name}' has scales that do not fit its shape")
        return Quantization(scale, zero_point, axis)

    def _sparsity(self, parameters: Any) -> SparseEncoding | None:
        if parameters is None:
            return None
        return SparseEncoding(
            self._ints(parameters.TraversalOrderAsNumpy()),
            self._ints(parameters.BlockMapAsNumpy()),
            tuple(
                self._dimension(dimension)
                for dimension in self._tables(
                    parameters.DimMetadataLength(), parameters.DimMetadata
                )
            ),
        )

    def _dimension(self, dimension: Any) -> Dimension:
        if dimension.Format() == self.schema.DimensionType.DENSE:
            return Dimension(dimension.DenseSize(), None, None)
        return Dimension(
            0,
            self._index_vector(dimension.ArraySegmentsType(), dimension.ArraySegments()),
            self._index_vector(dimension.ArrayIndicesType(), dimension.ArrayIndices()),
        )

    def _index_vector(self, kind: int, table: Any) -> np.ndarray:
        name = _names(self.schema.SparseIndexVector)[kind]
        if name == "NONE" or table is None:
            raise self._damaged("a sparse tensor has no indices")
        vector = getattr(self.schema, name)()
        vector.Init(table.Bytes, table.Pos)
        return self._array(vector.ValuesAsNumpy())


def _names(enumeration: Any) -> dict[int, str]:
    """Invert one of the schema's enumerations: number -> name."""
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}


def _scalars(options: Any) -> dict[str, int | float | bool]:
    """Turn an unpacked options table into its scalars, in the schema's own spelling."""
    return (
        {
            "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name): value
            for name, value in vars(options).items()
            if isinstance(value, int | float)
        }
        if options is not None
        else {}
    )
