"""Bring XNNPACK's operators back to the model's: what a profiler tells of them to a profile.

XNNPACK tells the operators that it runs by names of its own, in the order in which it runs them,
which is the model's. It leaves some out, since they are done along with a neighbour, and adds some:
a clamp for an activation, a copy for a shape. So its rows are laid beside the model's operators,
kind by kind; where they do not fit, no layer is named.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprune.devices.benchmark_model import Node
from edgeprune.devices.profiling import OperatorTime, profile_of
from edgeprune.devices.profiling_parts import parts_of
from edgeprune.export.graph import Subgraph
from edgeprune.export.layer_names import Layers
from edgeprune.export.tflite import read

HOW = (
    "benchmark_model's own profile, of the whole model with XNNPACK, in a run of its own; its "
    "clock counts whole microseconds"
)
UNKNOWN = "(unknown)"
_MERGED = "XNNPACK does it along with another operator"
# TFLite's operator -> the first words of what XNNPACK makes of it.
# Source: XNNPACK's src/operators/*.c and src/subgraph/*.c, xnn_operator_type_to_string.
_MADE: dict[str, tuple[str, ...]] = {
    "ABS": ("Abs",),
    "ADD": ("Add",),
    "AVERAGE_POOL_2D": ("Average Pooling", "Global Average Pooling", "Mean", "Sum"),
    "BATCH_MATMUL": ("Batch Matrix Multiply", "Fully Connected", "Dynamic Fully Connected"),
    "CEIL": ("Ceiling",),
    "CONCATENATION": ("Concatenate", "Copy"),
    "CONV_2D": ("Convolution", "Fully Connected"),
    "COS": ("Cosine",),
    "DEPTHWISE_CONV_2D": ("Convolution",),
    "DEPTH_TO_SPACE": ("Depth To Space",),
    "DEQUANTIZE": ("Convert",),
    "DIV": ("Divide",),
    "ELU": ("ELU",),
    "EXP": ("Exp",),
    "EXPAND_DIMS": ("Static Expand Dims", "Static Reshape", "Copy"),
    "FLOOR": ("Floor",),
    "FULLY_CONNECTED": ("Fully Connected", "Dynamic Fully Connected", "Convolution"),
    "GELU": ("GELU", "ApproxGELU"),
    "HARD_SWISH": ("HardSwish",),
    "LEAKY_RELU": ("LeakyReLU", "Leaky ReLU"),
    "LOG": ("Log",),
    "LOGISTIC": ("Sigmoid",),
    "MAXIMUM": ("Maximum",),
    "MAX_POOL_2D": ("Max Pooling",),
    "MEAN": ("Mean", "Global Average Pooling", "Sum"),
    "MINIMUM": ("Minimum",),
    "MUL": ("Multiply",),
    "NEG": ("Negate",),
    "PAD": ("Constant Pad",),
    "PRELU": ("PReLU",),
    "QUANTIZE": ("Convert",),
    "REDUCE_MAX": ("Reduce Max",),
    "REDUCE_MIN": ("Reduce Min",),
    "RELU": ("Clamp",),
    "RELU6": ("Clamp",),
    "RESHAPE": ("Static Reshape", "Copy"),
    "RESIZE_BILINEAR": ("Resize Bilinear",),
    "RSQRT": ("Reciprocal Square Root",),
    "SIN": ("Sine",),
    "SLICE": ("Slice",),
    "SOFTMAX": ("Softmax",),
    "SPACE_TO_DEPTH": ("Space To Depth",),
    "SQRT": ("Square Root",),
    "SQUARE": ("Square",),
    "SQUARED_DIFFERENCE": ("Squared Difference",),
    "SQUEEZE": ("Static Reshape", "Copy"),
    "STRIDED_SLICE": ("Slice",),
    "SUB": ("Subtract",),
    "SUM": ("Sum", "Mean"),
    "TANH": ("TanH", "Tanh"),
    "TRANSPOSE": ("Transpose",),
    "TRANSPOSE_CONV": ("Deconvolution",),
}
_MERGEABLE = (
    *("PAD", "RELU", "RELU6", "QUANTIZE", "DEQUANTIZE", "TRANSPOSE"),
    *("RESHAPE", "SQUEEZE", "EXPAND_DIMS"),
)
_ADDED = ("Clamp", "Static Reshape", "Copy", "Convert", "Transpose", "Constant Pad")


def nodes_profile(
    path: Path, nodes: Sequence[Node], whole_ms: float | None, how: str = HOW
) -> dict[str, Any]:
    """Return what goes under ``per_operator`` in the row of a model of which these were told."""
    model = read(path)
    graph = model.subgraphs[0]
    layers = Layers(path, model)
    positions = places(graph, nodes)
    if positions is None:
        found = [_unplaced(node, layers, len(graph.operators)) for node in nodes]
        return profile_of(found, f"{how}; the layers of XNNPACK's are not told", whole_ms, layers)
    times: dict[int, float] = {}
    for node, position in zip(nodes, positions, strict=True):
        times[position] = times.get(position, 0.0) + node.ms
    found = [
        OperatorTime(
            part.positions,
            graph.operators[part.positions[-1]].name,
            layers.of(part.positions[-1]),
            times.get(part.positions[-1]),
            reason=None if part.positions[-1] in times else _MERGED,
        )
        for part in parts_of(graph)
    ]
    return profile_of(found, how, whole_ms, layers)


def _unplaced(node: Node, layers: Layers, count: int) -> OperatorTime:
    if node.position is None or node.position >= count:
        return OperatorTime((), node.kind, UNKNOWN, node.ms)
    return OperatorTime((node.position,), node.kind, layers.of(node.position), node.ms)


def places(graph: Subgraph, nodes: Sequence[Node]) -> list[int] | None:
    """Find the position of each node in the model's main graph; None where they do not fit it."""
    own = {node.position for node in nodes if node.position is not None}
    rest = [part.positions[-1] for part in parts_of(graph) if part.positions[-1] not in own]
    found: list[int] = []
    at = 0  # in `rest`: the first that no node has come from yet
    for node in nodes:
        if node.position is not None:
            if node.position >= len(graph.operators) or node.is_delegate:
                return None
            found.append(node.position)
            continue
        if node.calls > 1:  # several delegates' operators in one row
            return None
        kind = node.kind.split(" (")[0]
        match = _next(graph, rest, at, kind)
        if match is not None:
            found.append(rest[match])
            at = match + 1
        elif kind in _ADDED and rest:
            found.append(rest[max(at - 1, 0)])
        else:
            return None
    skipped = [graph.operators[position].name for position in rest[at:]]
    return found if all(name in _MERGEABLE for name in skipped) else None


def _next(graph: Subgraph, rest: Sequence[int], at: int, kind: str) -> int | None:
    """Find the next operator that makes this kind, past those only that may be merged."""
    for place in range(at, len(rest)):
        name = graph.operators[rest[place]].name
        if kind in _MADE.get(name, ()):
            return place
        if name not in _MERGEABLE:
            return None
    return None
