"""Whether XNNPACK, the CPU engine of TFLite, would run a model's zeros as sparse work.

XNNPACK switches whole clusters of operators to a channels-first layout in which its sparse
1x1 convolutions run. A cluster starts at a 3x3 stride-2 convolution of 3 channels, passes
through operators that keep the layout, and ends in a spatial mean.

Source: google/XNNPACK src/subgraph.c, `xnn_check_nchw_compatibility` and
`xnn_subgraph_rewrite_for_nchw`; tensorflow/lite/delegates/xnnpack/README.md, "Sparse Inference".
"""

from dataclasses import dataclass
from typing import Literal

from edgeprune.errors import InputError
from edgeprune.export.graph import Operator, Subgraph, TfliteModel

_SAME = 0  # schema.Padding.SAME
_UNARY = """
ABS CEIL COS ELU EXP FLOOR GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC NEG RELU RELU6 RELU_0_TO_1
RELU_N1_TO_1 ROUND RSQRT SIN SQRT SQUARE TANH
"""
_INSIDE = frozenset(("ADD", "MUL", "RESIZE_BILINEAR", *_UNARY.split()))
# As many blocked clusters are reported; real models have one or two.
_MAX_CLUSTERS = 8
# Not layers: a constant's way to its operator, and padding that is merged into the next one.
_FOLDED = frozenset(("DENSIFY", "DEQUANTIZE", "PAD"))
_DAMAGED = "an operator's inputs do not fit it, in number or shape; the file is damaged"
_NO_START = (
    "reads the model's input; the sparse part must start at a 3x3 stride-2 convolution of 3 "
    "channels"
)
NO_END = "no spatial MEAN (global average pooling) for the sparse part to end in"
_DEVICES = "on Arm and WebAssembly only: on x86 XNNPACK has no sparse inference"

Role = Literal["entry", "inside", "exit"]


@dataclass(frozen=True)
class SparseInference:
    """The verdict, and why.

    Attributes:
      eligible: whether a cluster qualifies; None where it cannot be told.
      reasons: what stands in the way, layer by layer; if eligible, on which devices.
    """

    eligible: bool | None
    reasons: tuple[str, ...]


def sparse_inference(model: TfliteModel) -> SparseInference:
    """Judge a model's main graph by XNNPACK's own rules.

    Raises:
      InputError: operators' inputs do not fit them, in number or shape.
    """
    try:
        return _judge(model.subgraphs[0])
    except IndexError as error:
        raise InputError(_DAMAGED) from error


@dataclass(frozen=True, eq=False)
class Blocker:
    """An operator that keeps a part of a model from running sparse.

    Attributes:
      operator: in the main graph.
      why: what follows the operator's name in a sentence.
    """

    operator: Operator
    why: str


@dataclass(frozen=True, eq=False)
class SparsePart:
    """The operators that would run in the channels-first layout, up to one spatial mean.

    Attributes:
      operators: of the main graph, with those in the way.
      blockers: what stands in the way, nearest to the end first; none if the part qualifies.
    """

    operators: tuple[Operator, ...]
    blockers: tuple[Blocker, ...]


def sparse_parts(model: TfliteModel) -> tuple[SparsePart, ...]:
    """Find the parts of the main graph that may run sparse, whatever their weights hold.

    How many weights are zero, and whether they are stored sparse, plays no role here.

    Raises:
      InputError: operators' inputs do not fit them, in number or shape.
    """
    try:
        return _parts(model.subgraphs[0])
    except IndexError as error:
        raise InputError(_DAMAGED) from error


def _parts(graph: Subgraph) -> tuple[SparsePart, ...]:
    roles = {
        id(operator): _role(graph, operator)
        for operator in graph.operators
        if operator.name not in _FOLDED
    }
    seen: set[int] = set()
    parts: list[SparsePart] = []
    for leaf in graph.operators:
        if roles.get(id(leaf), ("", ""))[0] != "exit" or id(leaf) in seen:
            continue
        if len(parts) == _MAX_CLUSTERS:
            break
        cluster, blockers = _cluster(graph, leaf, roles)
        seen |= set(cluster)
        parts.append(SparsePart(tuple(cluster.values()), tuple(blockers)))
    return tuple(parts)


def _judge(graph: Subgraph) -> SparseInference:
    weights = [kernel for operator in graph.operators for kernel in graph.kernels(operator)]
    if weights and not any(kernel.dtype.startswith("float") for kernel in weights):
        return SparseInference(False, ("the weights are integers; only float models run sparse",))
    if not any(kernel.sparsity is not None for kernel in weights):
        return SparseInference(
            False, ("no weights are stored sparse (DENSIFY): prune, and convert with sparse on",)
        )
    if not any(kernel.sparsity and kernel.dtype.startswith("float") for kernel in weights):
        return SparseInference(
            False, ("the sparse weights are integers; only float ones run sparse",)
        )
    parts = _parts(graph)
    if not parts:
        return SparseInference(False, (NO_END,))
    reasons: list[str] = []
    for part in parts:
        if part.blockers:
            first = part.blockers[0]
            name = layer_name(graph, first.operator)
            reasons.append(f"layer '{name}' ({first.operator.name}) {first.why}")
        elif few := too_dense(graph, list(part.operators)):
            reasons.append(few)
        else:
            return SparseInference(True, (_DEVICES,))
    return SparseInference(False, tuple(dict.fromkeys(reasons)))


def layer_name(graph: Subgraph, operator: Operator) -> str:
    """Name an operator by its output: `model/conv1/Relu;model/bn1/...` -> `model/conv1/Relu`."""
    for index in operator.outputs:
        if index >= 0 and (name := graph.tensors[index].name.strip(";").partition(";")[0]):
            return name
    return operator.name


def _cluster(
    graph: Subgraph, leaf: Operator, roles: dict[int, tuple[Role | None, str]]
) -> tuple[dict[int, Operator], list[Blocker]]:
    """Collect the operators from the entry to a leaf, and those among them that cannot be there."""
    cluster: dict[int, Operator] = {id(leaf): leaf}
    blockers: list[Blocker] = []
    waiting = [leaf]
    while waiting:
        operator = waiting.pop()
        for index in _data_inputs(graph, operator):
            producer = graph.producers.get(index)
            if producer is None:
                if roles.get(id(operator), (None, ""))[0] is not None:
                    blockers.append(Blocker(operator, _NO_START))
                continue
            if id(producer) in cluster:
                continue
            cluster[id(producer)] = producer
            role, why = roles.get(id(producer), (None, "is not followed by a convolution"))
            if role is None:
                blockers.append(Blocker(producer, why))
            if role != "entry":
                waiting.append(producer)
    if blockers:
        return cluster, blockers
    # What else keeps the layout and reads nothing but the cluster belongs to it.
    for operator in graph.operators:
        inputs = _data_inputs(graph, operator)
        producers = [graph.producers.get(index) for index in inputs]
        if roles.get(id(operator), (None, ""))[0] in ("inside", "exit") and all(
            producer is not None and id(producer) in cluster for producer in producers
        ):
            cluster[id(operator)] = operator
    for operator in cluster.values():
        if roles[id(operator)][0] == "entry":
            continue
        for index in _data_inputs(graph, operator):
            for user in graph.consumers.get(index, []):
                if id(user) not in cluster and not _pads_for(graph, user, cluster):
                    why = roles.get(id(user), (None, "pads explicitly"))[1] or "is outside"
                    blockers.append(Blocker(user, f"{why}, and reads from inside the sparse part"))
    return cluster, list({id(blocker.operator): blocker for blocker in blockers}.values())


def _data_inputs(graph: Subgraph, operator: Operator) -> list[int]:
    """List the computed inputs, through a PAD that belongs to the operator."""
    indices = []
    for index in operator.inputs:
        if index < 0 or graph.constant(index) is not None:
            continue
        padding = graph.producers.get(index)
        folded = padding is not None and padding.name == "PAD" and _padding(graph, operator)
        indices.append(padding.inputs[0] if folded and padding is not None else index)
    return indices


def _pads_for(graph: Subgraph, operator: Operator, cluster: dict[int, Operator]) -> bool:
    users = graph.consumers.get(operator.outputs[0], [])
    return operator.name == "PAD" and bool(users) and all(id(user) in cluster for user in users)


def too_dense(graph: Subgraph, cluster: list[Operator]) -> str | None:
    """Say that a part's weights are not zero often enough to run sparse; None if they are."""
    zeros = entries = 0
    for operator in cluster:
        for kernel in graph.kernels(operator):
            if operator.name == "FULLY_CONNECTED" or (
                operator.name == "CONV_2D" and kernel.shape[1:3] == (1, 1)
            ):
                zeros += kernel.zeros()
                entries += kernel.entries
    if 3 * zeros > 2 * entries:
        return None
    found = f"{zeros / entries:.3f}" if entries else "none"
    return f"sparsity of the 1x1 convolutions is {found}; it must be more than 2/3"


def _role(graph: Subgraph, operator: Operator) -> tuple[Role | None, str]:
    """Return what an operator may be in a cluster, or None and why it cannot be in one."""
    tensors = [
        graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0
    ]
    if any(
        tensor.dtype not in ("float32", "float16")
        for tensor in tensors
        if tensor.data is None or tensor.quantization is not None
    ):
        return None, "is not float"
    ranks = [
        len(graph.tensors[index].shape)
        for index in operator.inputs
        if index >= 0 and graph.constant(index) is None
    ]
    name = operator.name
    if name == "FULLY_CONNECTED":
        return "inside", ""
    if name == "CONV_2D":
        return _convolution_role(graph, operator)
    if name == "DEPTHWISE_CONV_2D":
        return _depthwise_role(graph, operator)
    if any(rank != 4 for rank in ranks):
        return None, "does not work on images"
    if name in _INSIDE:
        return "inside", ""
    if name in ("MEAN", "SUM"):
        axes = graph.constant(operator.inputs[1]) if len(operator.inputs) > 1 else None
        if axes is None or sorted(axes.values().reshape(-1) % 4) != [1, 2]:
            return None, "does not reduce over height and width"
        return "exit", ""
    if name == "DEPTH_TO_SPACE":
        return "exit", ""
    return None, "has no sparse form"


def _convolution_role(graph: Subgraph, operator: Operator) -> tuple[Role | None, str]:
    kernel, given = graph.tensors[operator.inputs[1]], graph.tensors[operator.inputs[0]]
    size, channels = kernel.shape[1:3], kernel.shape[3]
    strides = _strides(operator)
    if _dilation(operator) != (1, 1) or given.shape[3] != channels:
        return None, "is dilated or grouped"
    if size == (1, 1):
        if strides != (1, 1):
            return None, f"is 1x1 with stride {strides[0]}; it must be 1"
        return "inside", ""
    if size != (3, 3):
        return None, f"is {size[0]}x{size[1]}; only 1x1, and 3x3 at the start, have a sparse form"
    if strides != (2, 2) or channels != 3:
        return None, "is 3x3; only one of 3 channels with stride 2 may start the sparse part"
    if _padding(graph, operator) != (1, 1, 1, 1):
        return None, _wrong_padding(graph, operator, 1)
    return "entry", ""


def _depthwise_role(graph: Subgraph, operator: Operator) -> tuple[Role | None, str]:
    kernel, given = graph.tensors[operator.inputs[1]], graph.tensors[operator.inputs[0]]
    size, strides = kernel.shape[1:3], _strides(operator)
    if _dilation(operator) != (1, 1) or kernel.shape[3] != given.shape[3]:
        return None, "is dilated, or has a depth multiplier"
    if size not in ((3, 3), (5, 5)) or strides not in ((1, 1), (2, 2)):
        return None, "must be 3x3 or 5x5 with stride 1 or 2"
    pad = size[0] // 2
    if _padding(graph, operator) != (pad,) * 4:
        return None, _wrong_padding(graph, operator, pad)
    return "inside", ""


def _strides(operator: Operator) -> tuple[int, int]:
    return int(operator.options.get("stride_h", 1)), int(operator.options.get("stride_w", 1))


def _dilation(operator: Operator) -> tuple[int, int]:
    options = operator.options
    return int(options.get("dilation_h_factor", 1)), int(options.get("dilation_w_factor", 1))


def _padding(graph: Subgraph, operator: Operator) -> tuple[int, ...] | None:
    """Return (top, bottom, left, right) as XNNPACK sees it; None where it stays 'same'.

    'same' at stride 1 becomes explicit; at stride 2 it does not. A PAD before a 'valid'
    convolution is merged into it.
    """
    if operator.name not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return None
    rows, columns = graph.tensors[operator.inputs[1]].shape[1:3]
    if operator.options.get("padding") == _SAME:
        if _strides(operator) != (1, 1):
            return None
        return (rows - 1) // 2, rows // 2, (columns - 1) // 2, columns // 2
    before = graph.producers.get(operator.inputs[0])
    if before is None or before.name != "PAD" or len(graph.consumers[before.outputs[0]]) > 1:
        return (0, 0, 0, 0)
    amounts = graph.constant(before.inputs[1])
    if amounts is None or amounts.shape != (4, 2):
        return None
    pads = amounts.values().tolist()
    if pads[0] != [0, 0] or pads[3] != [0, 0]:
        return None
    return (*pads[1], *pads[2])


def _wrong_padding(graph: Subgraph, operator: Operator, wanted: int) -> str:
    """Say how a convolution pads, and how it must."""
    rows, columns = _shown_padding(graph, operator)
    shown = f"({rows[0]},{rows[1]})"
    if rows != columns:
        shown += f" and ({columns[0]},{columns[1]})"
    same = operator.options.get("padding") == _SAME
    how = f" ('same' with stride {_strides(operator)[0]})" if same else ""
    explicit = ", explicitly" if same else ""
    return (
        f"pads {shown}{how}: XNNPACK's sparse path needs padding {wanted} on every side{explicit}"
    )


def _shown_padding(graph: Subgraph, operator: Operator) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (top, bottom), (left, right) as computed, also where XNNPACK sees 'same'."""
    known = _padding(graph, operator)
    if known is not None:
        return (known[0], known[1]), (known[2], known[3])
    if operator.options.get("padding") != _SAME:
        return (0, 0), (0, 0)  # what comes before is no part of the operator
    given = graph.tensors[operator.inputs[0]].shape[1:3]
    kernel = graph.tensors[operator.inputs[1]].shape[1:3]
    found = []
    for size, width, stride in zip(given, kernel, _strides(operator), strict=True):
        total = max((-(-size // stride) - 1) * stride + width - size, 0)
        found.append((total // 2, total - total // 2))
    return found[0], found[1]
