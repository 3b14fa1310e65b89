"""Which operators keep XNNPACK's channels-first layout, in which its sparse 1x1 convolutions run.

A rule counts as kept only where both the XNNPACK of tflite-runtime 2.14 and that of 2025 say so;
what the newer one alone takes can be asked for too, since it may compute that wrongly.

Source: google/XNNPACK src/subgraph.c, `xnn_check_nchw_compatibility` and `xnn_subgraph_fusion`.
"""

from typing import Literal

from edgeprune.export.graph import Operator, Subgraph

Role = Literal["entry", "inside", "exit", "end", "scrambled"]

PADS = "pads "
"""How the reason begins that names padding: what may be rewritten."""
_SAME = 0  # schema.Padding.SAME
_INSIDE_NAMES = """
ADD MUL RESIZE_BILINEAR ABS CEIL ELU FLOOR HARD_SWISH LEAKY_RELU LOGISTIC NEG RELU RELU6
RELU_0_TO_1 RELU_N1_TO_1 ROUND SQUARE
"""
_INSIDE = frozenset(_INSIDE_NAMES.split())
_NEWER = frozenset(("COS", "EXP", "GELU", "LOG", "RSQRT", "SIN", "SQRT", "TANH"))
_ONLY_NEWER = "has a sparse form only in runtimes newer than tflite-runtime 2.14"
# Not layers: a constant's way to its operator, and padding that is merged into the next one.
_FOLDED = frozenset(("DENSIFY", "DEQUANTIZE", "PAD"))


class Roles:
    """What each operator of a graph may be in a part that runs sparse, or why it cannot be in one.

    An entry starts a part: 3x3, stride 2, 3 channels. What is inside keeps the layout. An exit, a
    spatial mean, may end it or be inside; an end only ends it. What is scrambled ends it in newer
    runtimes, which then compute something else.

    Args:
      graph: the main graph.
      newer: take what the XNNPACK of 2025 alone takes, too.
    """

    def __init__(self, graph: Subgraph, *, newer: bool = False) -> None:
        self._found = {
            id(operator): _role(graph, operator, newer)
            for operator in graph.operators
            if operator.name not in _FOLDED
        }

    def of(self, operator: Operator) -> Role | None:
        """Return the role; None for what has none."""
        return self._found.get(id(operator), (None, ""))[0]

    def keep(self, operator: Operator) -> bool:
        """Whether an operator takes the layout that the entry makes."""
        return self.of(operator) in ("inside", "exit", "end", "scrambled")

    def why_not(self, operator: Operator, otherwise: str) -> str:
        """Say why an operator has no role, to follow its name in a sentence."""
        return self._found.get(id(operator), (None, ""))[1] or otherwise


def data_inputs(graph: Subgraph, operator: Operator) -> list[int]:
    """List the computed inputs, through a PAD that belongs to the operator."""
    indices = []
    for index in operator.inputs:
        if index < 0 or graph.constant(index) is not None:
            continue
        padding = graph.producers.get(index)
        if padding is not None and padding.name == "PAD" and _folds(graph, padding):
            index = padding.inputs[0]
        indices.append(index)
    return indices


def users(graph: Subgraph, index: int) -> list[Operator]:
    """List the operators that read a tensor, through PADs that belong to them."""
    found = []
    for user in graph.consumers.get(index, []):
        folds = user.name == "PAD" and _folds(graph, user)
        found += graph.consumers[user.outputs[0]] if folds else [user]
    return found


def padding_of(graph: Subgraph, operator: Operator) -> tuple[int, int, int, int] | None:
    """Return (top, bottom, left, right) as XNNPACK sees it; None where it stays 'same'.

    'same' at stride 1 becomes explicit; at stride 2 it does not. A PAD before a convolution whose
    padding is explicit is merged into it.
    """
    rows, columns = graph.tensors[operator.inputs[1]].shape[1:3]
    own = (0, 0, 0, 0)
    if operator.options.get("padding") == _SAME:
        if _strides(operator) != (1, 1):
            return None
        own = ((rows - 1) // 2, rows // 2, (columns - 1) // 2, columns // 2)
    before = graph.producers.get(operator.inputs[0])
    if before is None or before.name != "PAD" or not _folds(graph, before):
        return own
    pads = _amounts(graph, before)
    assert pads is not None
    return own[0] + pads[0], own[1] + pads[1], own[2] + pads[2], own[3] + pads[3]


def _folds(graph: Subgraph, padding: Operator) -> bool:
    """Whether a PAD is merged into the convolution that reads it, which must be the only one."""
    readers = graph.consumers.get(padding.outputs[0], [])
    if len(readers) != 1 or padding.outputs[0] in graph.outputs:
        return False
    (reader,) = readers
    if reader.name not in ("CONV_2D", "DEPTHWISE_CONV_2D") or _amounts(graph, padding) is None:
        return False
    return reader.options.get("padding") != _SAME or _strides(reader) == (1, 1)


def _amounts(graph: Subgraph, padding: Operator) -> tuple[int, int, int, int] | None:
    """Return how many rows and columns a PAD adds; None where it adds more than those."""
    amounts = graph.constant(padding.inputs[1])
    if amounts is None or amounts.shape != (4, 2):
        return None
    pads = amounts.values().tolist()
    if pads[0] != [0, 0] or pads[3] != [0, 0]:
        return None
    return (*pads[1], *pads[2])


def _role(graph: Subgraph, operator: Operator, newer: bool) -> tuple[Role | None, str]:
    tensors = [
        graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0
    ]
    if any(
        tensor.dtype not in ("float32", "float16")
        for tensor in tensors
        if tensor.data is None or tensor.quantization is not None
    ):
        return None, "is not float"
    name = operator.name
    given = [index for index in operator.inputs if index >= 0]
    images = all(
        len(graph.tensors[index].shape) == 4 for index in given if graph.constant(index) is None
    )
    if name == "FULLY_CONNECTED":
        return (None, _ONLY_NEWER) if images and not newer else ("inside", "")
    if name == "CONV_2D":
        return _convolution_role(graph, operator)
    if name == "DEPTHWISE_CONV_2D":
        return _depthwise_role(graph, operator)
    if not images:
        return None, "does not work on images"
    constants = [tensor for index in given if (tensor := graph.constant(index)) is not None]
    if name in ("ADD", "MUL") and constants:
        vectors = all(
            len(tensor.shape) == 4 and tensor.entries == max(tensor.shape) for tensor in constants
        )
        return ("inside", "") if newer and vectors else (None, "has a constant operand")
    if name == "RESIZE_BILINEAR" and 1 in graph.tensors[given[0]].shape[1:3]:
        return None, "enlarges a single row or column"
    if name in _INSIDE:
        return "inside", ""
    if name in _NEWER:
        return ("inside", "") if newer else (None, _ONLY_NEWER)
    if name in ("MEAN", "SUM"):
        return _reduction_role(graph, operator, newer)
    if name == "DEPTH_TO_SPACE":
        return "end", "changes the layout back"
    return None, "has no sparse form"


def _reduction_role(graph: Subgraph, operator: Operator, newer: bool) -> tuple[Role | None, str]:
    constant = graph.constant(operator.inputs[1]) if len(operator.inputs) > 1 else None
    axes = None if constant is None else set((constant.values().reshape(-1) % 4).tolist())
    if operator.name == "MEAN" and axes == {1, 2}:
        return "exit", ""
    if axes is not None and newer:
        # Where axes of images are left they end up in the wrong order, or nothing starts at all.
        whole = axes >= {1, 2} and len(graph.tensors[operator.outputs[0]].shape) < 4
        return ("exit" if whole else "scrambled"), ""
    if operator.name == "SUM":
        return None, _ONLY_NEWER
    return None, "does not reduce over height and width"


def _convolution_role(graph: Subgraph, operator: Operator) -> tuple[Role | None, str]:
    kernel, given = graph.tensors[operator.inputs[1]], graph.tensors[operator.inputs[0]]
    size, channels = kernel.shape[1:3], kernel.shape[3]
    strides = _strides(operator)
    if _dilation(operator) != (1, 1) or given.shape[3] != channels:
        return None, "is dilated or grouped"
    if size == (1, 1):
        if strides != (1, 1):
            return None, f"is 1x1 with stride {strides[0]}; it must be 1"
        if padding_of(graph, operator) != (0, 0, 0, 0):
            return None, "is 1x1 with padding; it must have none"
        return "inside", ""
    if size != (3, 3):
        return None, f"is {size[0]}x{size[1]}; only 1x1, and 3x3 at the start, have a sparse form"
    if strides != (2, 2) or channels != 3:
        return None, "is 3x3; only one of 3 channels with stride 2 may start the sparse part"
    if padding_of(graph, operator) != (1, 1, 1, 1):
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
    if padding_of(graph, operator) != (pad,) * 4:
        return None, _wrong_padding(graph, operator, pad)
    return "inside", ""


def _strides(operator: Operator) -> tuple[int, int]:
    return int(operator.options.get("stride_h", 1)), int(operator.options.get("stride_w", 1))


def _dilation(operator: Operator) -> tuple[int, int]:
    options = operator.options
    return int(options.get("dilation_h_factor", 1)), int(options.get("dilation_w_factor", 1))


def _wrong_padding(graph: Subgraph, operator: Operator, wanted: int) -> str:
    """Say how a convolution pads, and how it must."""
    rows, columns = _shown_padding(graph, operator)
    shown = f"({rows[0]},{rows[1]})"
    if rows != columns:
        shown += f" and ({columns[0]},{columns[1]})"
    same = operator.options.get("padding") == _SAME and _strides(operator) != (1, 1)
    how = f" ('same' with stride {_strides(operator)[0]})" if same else ""
    explicit = ", explicitly" if same else ""
    return (
        f"{PADS}{shown}{how}: XNNPACK's sparse path needs padding {wanted} on every side{explicit}"
    )


def _shown_padding(graph: Subgraph, operator: Operator) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (top, bottom), (left, right) as computed, also where XNNPACK sees 'same'."""
    known = padding_of(graph, operator)
    if known is not None:
        return (known[0], known[1]), (known[2], known[3])
    given = graph.tensors[operator.inputs[0]].shape[1:3]
    kernel = graph.tensors[operator.inputs[1]].shape[1:3]
    found = []
    for size, width, stride in zip(given, kernel, _strides(operator), strict=True):
        total = max((-(-size // stride) - 1) * stride + width - size, 0)
        found.append((total // 2, total - total // 2))
    return found[0], found[1]
