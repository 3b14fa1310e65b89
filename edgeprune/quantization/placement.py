"""Where TFLite rounds activations to int8: once for each value that really exists on the device.

A convolution, the batch normalization after it and the ReLU after that are one operator in a
.tflite file, so only what comes out of the last of them is an int8 tensor. Pooling, padding and
reshaping hand on the numbers that they were given. Everything else makes a new int8 tensor.
"""

from dataclasses import dataclass, field
from typing import Any

from edgeprune.quantization.layers import FIXED_ACTIVATIONS, FUSED_ACTIVATIONS, activation_name
from edgeprune.rebuild import calls, is_container

# Layers whose kernels go on the grid. A batch normalization after one of them folds into it.
GRID_LAYERS = frozenset(
    {"Dense", "EinsumDense"}
    | {f"Conv{n}D" for n in (1, 2, 3)}
    | {f"Conv{n}DTranspose" for n in (1, 2, 3)}
    | {f"DepthwiseConv{n}D" for n in (1, 2)}
    | {f"SeparableConv{n}D" for n in (1, 2)}
)
# Arithmetic that fuses a ReLU after it. Names of layers and of `keras.ops` operations alike.
ARITHMETIC = frozenset({"Add", "Subtract", "Multiply", "Divide", "BatchNormalization"})
# New values that fuse nothing.
PLAIN = frozenset(
    {"Concatenate", "Average", "Maximum", "Minimum", "Dot", "Matmul", "Mean", "Sum"}
    | {f"GlobalAveragePooling{n}D" for n in (1, 2, 3)}
    | {"LeakyReLU", "PReLU", "ELU", "LeakyRelu", "Elu", "Gelu", "Silu", "HardSilu"}
    | {"Rescaling", "Normalization"}
)
RELU = frozenset({"ReLU", "Relu", "Relu6"})
# Same numbers out as in, or a mean or maximum of a few of them: the range is handed on.
SAME_RANGE = frozenset(
    {f"{kind}Pooling{n}D" for kind in ("Max", "Average", "GlobalMax") for n in (1, 2, 3)}
    | {f"{kind}{n}D" for kind in ("ZeroPadding", "Cropping", "UpSampling") for n in (1, 2, 3)}
    | {"Flatten", "Reshape", "Permute", "RepeatVector", "Transpose", "Squeeze", "ExpandDims"}
    | {"GetItem", "Pad", "Masking"}
)
# Gone at inference: the layers around them see through.
TRANSPARENT = frozenset(
    {"Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout"}
    | {"GaussianNoise", "GaussianDropout", "ActivityRegularization", "Identity", "InputLayer"}
)
# Their int8 range is fixed by the format.
FIXED = frozenset({"Softmax", "Sigmoid", "HardSigmoid", "Tanh"})


def kind(layer: Any) -> str:
    """Sort a layer or `keras.ops` operation into one of the rows above.

    Returns:
      ``grid``, ``arithmetic``, ``plain``, ``relu``, ``same``, ``transparent``, ``fixed``, or
      ``float`` for a layer that is not known here and stays in float.
    """
    name = type(layer).__name__
    if not type(layer).__module__.startswith("keras."):
        return "float"
    if name == "Activation":
        return _kind_of_activation(activation_name(layer))
    if name == "EinsumDense" and set.intersection(*_letters(layer)):
        # "abc,bcd->abd" becomes BATCH_MATMUL, whose constant has one asymmetric scale: no grid.
        return "float"
    if name == "ReLU" and (layer.negative_slope or layer.threshold):
        return "plain"
    for row, names in (
        ("grid", GRID_LAYERS),
        ("arithmetic", ARITHMETIC),
        ("plain", PLAIN),
        ("relu", RELU),
        ("same", SAME_RANGE),
        ("transparent", TRANSPARENT),
        ("fixed", FIXED),
    ):
        if name in names:
            return row
    return "float"


def _kind_of_activation(name: str) -> str:
    if name == "linear":
        return "transparent"
    if name in FUSED_ACTIVATIONS:
        return "relu"
    return "fixed" if name in FIXED_ACTIVATIONS else "plain"


@dataclass(eq=False)
class Value:
    """One output of one call of a layer, and the calls that read it.

    Attributes:
      layer: the layer that made it; None for an input of the whole model.
      call: which call of that layer, counted from 0.
      container: the Functional or Sequential model that makes the call.
      readers: layers that read the value; None stands for an output of the whole model.
    """

    layer: Any
    call: int
    container: Any
    readers: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Placement:
    """The calls whose outputs are rounded: (id of the container, id of the layer, call)."""

    calls: frozenset[tuple[int, int, int]]

    def rounds(self, container: Any, layer: Any, call: int) -> bool:
        """Tell whether that call's output is rounded to int8."""
        return (id(container), id(layer), call) in self.calls


def place(model: Any, skipped: frozenset[int]) -> Placement:
    """Decide where a Functional or Sequential model's activations are rounded.

    Nested models are looked through: a ReLU outside fuses with a convolution inside.

    Args:
      model: a built Keras 3 model.
      skipped: ids of layers that stay in float.
    """
    values: list[Value] = []
    for output in _flow(model, [Value(None, 0, model) for _ in model.inputs], values):
        output.readers.append(None)
    return Placement(
        frozenset(
            (id(value.container), id(value.layer), value.call)
            for value in values
            if _is_rounded(value, skipped)
        )
    )


def _is_rounded(value: Value, skipped: frozenset[int]) -> bool:
    row = kind(value.layer)
    if row in ("same", "fixed") or id(value.layer) in skipped:
        return False
    activation = activation_name(value.layer) if row == "grid" else "linear"
    if activation in FIXED_ACTIVATIONS:
        return False
    if activation != "linear" or len(value.readers) != 1:
        return True
    reader = value.readers[0]
    if reader is None or id(reader) in skipped:
        return True
    if type(reader).__name__ == "BatchNormalization":
        return not _folds_normalization(value.layer)
    return not (kind(reader) == "relu" and row in ("grid", "arithmetic"))


def _folds_normalization(layer: Any) -> bool:
    """Tell whether a batch normalization after a layer becomes part of its kernel.

    Not after Conv3D, which the converter leaves in float, nor after an einsum that it reshapes
    because the kernel has several output letters. Measured on TensorFlow 2.21.
    """
    if type(layer).__name__ == "EinsumDense":
        _, weights, output = _letters(layer)
        return len(weights & output) == 1
    return kind(layer) == "grid" and not type(layer).__name__.startswith("Conv3D")


def _letters(layer: Any) -> tuple[set[str], set[str], set[str]]:
    operands, _, output = layer.equation.replace("...", "").partition("->")
    inputs, weights = operands.split(",")
    return set(inputs), set(weights), set(output)


def _flow(container: Any, inputs: list[Value], values: list[Value]) -> list[Value]:
    """Follow values through a container's graph; append those made inside to `values`."""
    from keras import Sequential

    if isinstance(container, Sequential):
        current = inputs
        for layer in container.layers:
            current = _call(layer, 0, container, current, 1, values)
        return current
    known = {id(tensor): value for tensor, value in zip(container.inputs, inputs, strict=True)}
    for node, call in calls(container):
        read = [known[id(tensor)] for tensor in node.input_tensors]
        made = _call(node.operation, call, container, read, len(node.outputs), values)
        known |= {id(tensor): value for tensor, value in zip(node.outputs, made, strict=True)}
    return [known[id(tensor)] for tensor in container.outputs]


def _call(
    layer: Any, call: int, container: Any, read: list[Value], outputs: int, values: list[Value]
) -> list[Value]:
    if is_container(layer):
        return _flow(layer, read, values)
    if kind(layer) == "transparent" and len(read) == outputs == 1:
        return read
    for value in read:
        value.readers.append(layer)
    made = Value(layer, call, container)
    values.append(made)
    return [made] * outputs
