"""The operators that sum products: what a channel's removal means to their weights."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.export.graph import Operator, Subgraph, Tensor
from edgeprune.export.sparse_inference import layer_name

Array = npt.NDArray[Any]

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# Activations -> their bias, as the kernels of tensorflow/lite/kernels pair them.
BIASES = {"int8": "int32", "uint8": "int32", "int16": "int64"}
_VALID = 1


class FrozenError(Exception):
    """The channels at an operator cannot be followed through it; the message says why."""


@dataclass(frozen=True, eq=False)
class Weighted:
    """A convolution, depthwise convolution or fully-connected operator.

    A *mixing* one sums over input channels: output channel o takes input channel i through
    `positive[o, i] + negative[o, i]`. A depthwise one takes input channel o // multiplier alone,
    and its sums are `positive[o]`, `negative[o]`.

    Attributes:
      position: of the operator in its subgraph.
      name: of the layer, by its output.
      source: index of the input tensor.
      output: index of the output tensor.
      kernel: the constant weights.
      bias: the constant bias, or None.
      biases: float64 (o,), zeros where there is no bias.
      positive: sums over the taps of the positive weights, float64; integers where quantized.
      negative: likewise of the negative ones.
      mixing: see above.
      padded: whether a tap may fall outside the input, where it meets the zero point.
      hybrid: int8 weights with float activations, which the kernel quantizes as they come.
    """

    position: int
    name: str
    source: int
    output: int
    kernel: Tensor
    bias: Tensor | None
    biases: Array
    positive: Array
    negative: Array
    mixing: bool
    padded: bool
    hybrid: bool

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return len(self.biases)

    @property
    def fewest(self) -> int:
        """How many output channels must stay.

        A kernel with one scale a channel keeps two: with a single scale left, runtimes take
        other code, which may round otherwise.
        """
        scales = self.kernel.quantization
        return 2 if scales is not None and scales.scale.size > 1 else 1


def weighted(graph: Subgraph, position: int) -> Weighted:
    """Read the operator at a position, one of `WEIGHTED`.

    Raises:
      FrozenError: its weights or shapes are of a kind that is not handled.
    """
    operator = graph.operators[position]
    if len(operator.inputs) < 2 or operator.inputs[0] < 0 or len(operator.outputs) != 1:
        raise FrozenError(f"{operator.name} without weights")
    source, output = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    kernel, bias = _constants(graph, operator)
    hybrid = _check_types(source, output, kernel, bias)
    values = _effective(kernel)
    _check_shapes(operator, source, output, values, bias)
    _check_scales(operator, kernel)
    mixing = operator.name != "DEPTHWISE_CONV_2D" or source.shape[-1] == 1
    # (out, taps, in), or (out, taps) of a depthwise one
    if operator.name == "DEPTHWISE_CONV_2D":
        taps = values.reshape(-1, values.shape[-1])
        values = taps.T[:, :, None] if mixing else taps.T
    elif operator.name == "CONV_2D":
        values = values.reshape(values.shape[0], -1, values.shape[-1])
    else:
        values = values[:, None]
    biases = np.zeros(output.shape[-1])
    if bias is not None:
        biases = bias.values().astype(np.float64).reshape(-1)
    return Weighted(
        position=position,
        name=layer_name(graph, operator),
        source=source.index,
        output=output.index,
        kernel=kernel,
        bias=bias,
        biases=biases,
        positive=np.maximum(values, 0.0).sum(axis=1),
        negative=np.minimum(values, 0.0).sum(axis=1),
        mixing=mixing,
        padded=operator.name != "FULLY_CONNECTED" and _padded(operator, source, output, kernel),
        hybrid=hybrid,
    )


def _constants(graph: Subgraph, operator: Operator) -> tuple[Tensor, Tensor | None]:
    kernel = graph.tensors[operator.inputs[1]] if operator.inputs[1] >= 0 else None
    if kernel is None or kernel.data is None:
        behind = graph.constant(operator.inputs[1])
        if behind is not None and behind.dtype == "float16":
            raise FrozenError("float16 weights")
        raise FrozenError("weights that are not constant")
    index = operator.inputs[2] if len(operator.inputs) > 2 else -1
    if index < 0:
        return kernel, None
    bias = graph.tensors[index]
    if bias.data is None:
        raise FrozenError("a bias that is not constant")
    return kernel, bias


def _check_types(source: Tensor, output: Tensor, kernel: Tensor, bias: Tensor | None) -> bool:
    """Tell whether the operator is hybrid."""
    if kernel.sparsity is not None or (bias is not None and bias.sparsity is not None):
        raise FrozenError("sparsely encoded weights")
    if source.dtype != output.dtype:
        raise FrozenError(f"{source.dtype} input but {output.dtype} output")
    if source.dtype == "float32":
        if kernel.dtype not in ("float32", "int8") or (bias and bias.dtype != "float32"):
            raise FrozenError(f"{kernel.dtype} weights with float activations")
        return kernel.dtype == "int8"
    wanted = "uint8" if source.dtype == "uint8" else "int8"
    if source.dtype not in BIASES or kernel.dtype != wanted:
        raise FrozenError(f"{kernel.dtype} weights with {source.dtype} activations")
    if bias is not None and bias.dtype not in ("int32", BIASES[source.dtype]):
        raise FrozenError(f"a {bias.dtype} bias")
    for tensor in (source, output, kernel):
        if tensor.quantization is None:
            raise FrozenError("integers without scales")
    return False


def _effective(kernel: Tensor) -> Array:
    """Return the weights less their zero points, float64, in the kernel's shape."""
    values = kernel.values().astype(np.float64)
    if not np.isfinite(values).all():
        raise FrozenError("weights that are not finite")
    quantization = kernel.quantization
    if quantization is None or not quantization.zero_point.any():
        return values
    if quantization.zero_point.size > 1:
        raise FrozenError("several zero points in one kernel")
    return values - float(quantization.zero_point[0])


def _check_shapes(
    operator: Operator, source: Tensor, output: Tensor, kernel: Array, bias: Tensor | None
) -> None:
    if not source.shape or not output.shape or 0 in (*source.shape, *output.shape, *kernel.shape):
        raise FrozenError("empty tensors")
    columns, channels = source.shape[-1], output.shape[-1]
    if bias is not None and bias.entries != channels:
        raise FrozenError("a bias that does not fit the output")
    if operator.name == "FULLY_CONNECTED":
        if operator.options.get("weights_format", 0) != 0:
            raise FrozenError("shuffled weights")
        if kernel.ndim != 2 or kernel.shape[0] != channels or kernel.shape[1] % columns:
            raise FrozenError("weights that do not fit the shapes")
        return
    if kernel.ndim != 4 or len(source.shape) != 4 or len(output.shape) != 4:
        raise FrozenError("weights that do not fit the shapes")
    if operator.name == "DEPTHWISE_CONV_2D":
        if kernel.shape[0] != 1 or kernel.shape[3] != channels or channels % columns:
            raise FrozenError("weights that do not fit the shapes")
    elif kernel.shape[0] != channels or kernel.shape[3] != columns:
        raise FrozenError(
            "grouped convolution"
            if columns % kernel.shape[3] == 0
            else "weights that do not fit the shapes"
        )


def _check_scales(operator: Operator, kernel: Tensor) -> None:
    """Refuse scales that do not run along the output channels."""
    axis = 3 if operator.name == "DEPTHWISE_CONV_2D" else 0
    scales = kernel.quantization
    if scales is not None and scales.scale.size > 1 and scales.axis != axis:
        raise FrozenError("weights with scales along another axis than the output channels")


def _padded(operator: Operator, source: Tensor, output: Tensor, kernel: Tensor) -> bool:
    if operator.options.get("padding", 0) == _VALID:
        return False
    for axis, side in ((1, "h"), (2, "w")):
        stride = int(operator.options.get(f"stride_{side}", 1))
        dilation = int(operator.options.get(f"dilation_{side}_factor", 1))
        reach = (kernel.shape[axis] - 1) * dilation + 1
        if reach == 1:
            continue
        if source.signature[axis] < 0 or stride < 1:
            return True
        size = math.ceil(source.shape[axis] / stride)
        if output.shape[axis] != size or (size - 1) * stride + reach > source.shape[axis]:
            return True
    return False
