"""Small .tflite files made by hand, without TensorFlow."""

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema


def _buffer(data):
    buffer = schema.BufferT()
    buffer.data = None if data is None else np.frombuffer(data.tobytes(), np.uint8)
    return buffer


def _tensor(name, shape, dtype, buffer, scales=None, axis=0):
    tensor = schema.TensorT()
    tensor.name, tensor.buffer = name.encode(), buffer
    tensor.shape = np.array(shape, np.int32)
    tensor.type = getattr(schema.TensorType, dtype.upper())
    if scales is not None:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.asarray(scales, np.float32)
        tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        tensor.quantization.quantizedDimension = axis
    return tensor


def _make(kernels, input_scale=0.05):
    """Fully-connected layers, one a subgraph; int8 kernels have scales by channel and a bias."""
    model = schema.ModelT()
    model.version, model.description = 3, b"made by hand"
    model.buffers, model.subgraphs = [_buffer(None)], []
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    model.operatorCodes = [code]
    for index, kernel in enumerate(kernels):
        rows = kernel.shape[0]
        quantized = kernel.dtype == np.int8
        scales = np.linspace(0.001, 0.02, rows).astype(np.float32) if quantized else None
        factor = np.float32(input_scale)
        dtype = "int8" if quantized else "float32"
        bias = (np.arange(rows) * 37 - 500).astype(np.int32 if quantized else np.float32)
        model.buffers += [_buffer(kernel), _buffer(bias)]
        graph = schema.SubGraphT()
        graph.name = f"graph{index}".encode()
        last = len(model.buffers) - 1
        graph.tensors = [
            _tensor("x", (1, kernel.shape[-1]), dtype, 0, [factor] if quantized else None),
            _tensor("kernel", kernel.shape, kernel.dtype.name, last - 1, scales),
            _tensor("bias", (rows,), bias.dtype.name, last, scales * factor if quantized else None),
            _tensor("y", (1, rows), dtype, 0, [np.float32(0.1)] if quantized else None),
        ]
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, 2], [3]
        graph.operators, graph.inputs, graph.outputs = [operator], [0], [3]
        model.subgraphs.append(graph)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture(scope="session")
def make_tflite():
    """A function from kernels (output channels first) to the content of a .tflite file."""
    return _make


def _weights(dtype, sparsity, clusters, shape=(64, 576)):
    """Kernels as training leaves them: Laplace, each channel on its own scale, pruned."""
    rng = np.random.default_rng(7)
    weights = rng.laplace(0, 1, shape) * rng.lognormal(0, 0.3, (shape[0], 1))
    if dtype == "int8":
        weights *= 127 / np.abs(weights).max(axis=1, keepdims=True)
    weights[np.abs(weights) < np.quantile(np.abs(weights), sparsity)] = 0
    if clusters:
        centres = np.quantile(weights[weights != 0], (np.arange(15) + 0.5) / 15)
        nearest = np.abs(weights[..., None] - centres).argmin(axis=-1)
        weights = np.where(weights == 0, 0, centres[nearest])
    return np.rint(weights).astype(np.int8) if dtype == "int8" else weights.astype(np.float32)


@pytest.fixture(scope="session")
def trained_weights():
    """A function from dtype, sparsity and clusters to a kernel."""
    return _weights
