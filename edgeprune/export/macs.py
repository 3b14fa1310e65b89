"""Multiply-accumulates of one inference of a .tflite model, exact, from shapes alone.

What counts: every product that is summed, in convolutions, matrix products and recurrent cells.
What does not: biases, activations, pooling, element-wise operators, look-ups (an embedding is 0).
Two conventions, both the usual ones: products with the zeros of 'same' padding count, and a
transposed convolution multiplies each input position with its whole kernel, cropped or not.
"""

import math

from edgeprune.errors import InputError
from edgeprune.export.graph import KERNEL_INPUTS, Operator, Subgraph, Tensor, TfliteModel
from edgeprune.export.micro import DECODE
from edgeprune.macs import Macs, UnknownShapeError

# Deeper than any converter nests loops and branches; a file may claim more.
_MAX_NESTING = 32
# Reshapes that a one-dimensional convolution puts before its BATCH_TO_SPACE_ND.
_MAX_VIEWS = 3
# Loops carry a few; a hostile file could make every look-up among them slow.
_MAX_LOOP_VARIABLES = 1000
_RECURRENT = tuple(name for name in KERNEL_INPUTS if name.endswith(("LSTM", "RNN")))
_BRANCHES = ("then_subgraph_index", "else_subgraph_index")


def tflite_macs(model: TfliteModel) -> Macs:
    """Count the multiply-accumulates of a .tflite model's main graph.

    A free batch dimension counts as 1; any other free dimension gives no total, with a reason.
    A WHILE loop counts its trips where its condition is a comparison of a counter with a
    constant, and otherwise once, with a note; of an IF the dearer branch counts.

    Source: the shapes that each kernel of tensorflow/lite/kernels documents and checks.
    """
    counter = _Counter(model)
    try:
        by_layer = counter.operators(0, 0)
    except UnknownShapeError as unknown:
        return Macs(None, reason=str(unknown))
    return Macs(sum(by_layer.values()), dict(by_layer), None, tuple(counter.notes))


class _Counter:
    def __init__(self, model: TfliteModel) -> None:
        self.model = model
        self.totals: dict[int, int] = {}
        self.notes: dict[str, None] = {}  # an ordered set

    def operators(self, index: int, depth: int) -> dict[int | str, int]:
        graph = self.subgraph(index)
        return {
            position: self.operator(graph, operator, depth)
            for position, operator in enumerate(graph.operators)
        }

    def subgraph(self, index: int) -> Subgraph:
        if not 0 <= index < len(self.model.subgraphs):
            raise InputError("an operator calls a subgraph that does not exist; file damaged")
        return self.model.subgraphs[index]

    def total(self, index: int, depth: int) -> int:
        if depth >= _MAX_NESTING:
            raise InputError(
                f"subgraphs call each other more than {_MAX_NESTING} deep; the file is damaged"
            )
        if index not in self.totals:
            self.totals[index] = sum(self.operators(index, depth + 1).values())
        return self.totals[index]

    def operator(self, graph: Subgraph, operator: Operator, depth: int) -> int:
        options = operator.options
        if operator.name == "WHILE":
            body = self.total(int(options.get("body_subgraph_index", -1)), depth)
            if not body:
                return 0
            trips = _trips(self.model, graph, operator)
            if trips is None:
                self.notes["a loop of unknown length (WHILE) was counted as one pass"] = None
            return body * (1 if trips is None else trips)
        if operator.name == "IF":
            branches = [self.total(int(options.get(name, -1)), depth) for name in _BRANCHES]
            if branches[0] != branches[1]:
                self.notes["of a branch (IF), the side with more products was counted"] = None
            return max(branches)
        for name in ("decomposition_subgraph_index", "subgraph"):
            if name in options and operator.name in ("STABLEHLO_COMPOSITE", "CALL"):
                return self.total(int(options[name]), depth)
        if (operator.custom and operator.name != DECODE) or operator.name in _UNCOUNTED:
            self.notes[f"products inside operator {operator.name} are not counted"] = None
        return _products(graph, operator)


_UNCOUNTED = ("STABLEHLO_CONVOLUTION", "STABLEHLO_DOT_GENERAL", "STABLEHLO_WHILE")


def _products(graph: Subgraph, operator: Operator) -> int:
    """Count one builtin operator; 0 for those that sum no products."""
    name = operator.name
    if name == "RESHAPE":
        _check_reshape(graph, operator)
    if name not in KERNEL_INPUTS or name in ("GATHER", "EMBEDDING_LOOKUP"):
        return 0
    shapes = [_shape(graph, index) for index in operator.inputs]
    output = _shape(graph, operator.outputs[0]) if operator.outputs else ()
    try:
        return _formula(graph, operator, shapes, output)
    except (IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"operator {name} has inputs of shapes that do not fit it; the file is damaged"
        ) from error


def _formula(
    graph: Subgraph,
    operator: Operator,
    inputs: list[tuple[int, ...]],
    output: tuple[int, ...],
) -> int:
    name = operator.name
    if name == "CONV_2D":  # kernel (out, kh, kw, in / groups)
        return _convolved(graph, operator, output) * math.prod(inputs[1][1:])
    if name == "DEPTHWISE_CONV_2D":  # kernel (1, kh, kw, out)
        return _convolved(graph, operator, output) * math.prod(inputs[1][1:3])
    if name == "CONV_3D":  # kernel (kd, kh, kw, in / groups, out)
        return _convolved(graph, operator, output) * math.prod(inputs[1][:4])
    if name == "TRANSPOSE_CONV":  # inputs (output shape, kernel (out, kh, kw, in), x)
        return math.prod(inputs[2]) * math.prod(inputs[1][:3])
    if name == "CONV_3D_TRANSPOSE":  # inputs (output shape, kernel (kd, kh, kw, out, in), x)
        return math.prod(inputs[2]) * math.prod(inputs[1][:4])
    if name == "FULLY_CONNECTED":  # weights (units, in); each input entry meets each unit
        return math.prod(inputs[0]) * inputs[1][0]
    if name == "BATCH_MATMUL":
        summed = inputs[0][-2 if operator.options.get("adj_x") else -1]
        return math.prod(output) * summed
    # Recurrent cells and SVDF multiply their input, or their state, with each kernel once a step;
    # without a kernel of its own a row is (batch, time) or (time, batch).
    kernels = sum(
        math.prod(inputs[position])
        for position in KERNEL_INPUTS[name]
        if position < len(inputs) and operator.inputs[position] >= 0
    )
    return math.prod(inputs[0][:-1]) * kernels


def _convolved(graph: Subgraph, operator: Operator, output: tuple[int, ...]) -> int:
    """Return the output entries of a convolution, without what a dilated one is padded with.

    Dilation may be spelled SPACE_TO_BATCH_ND, convolution, BATCH_TO_SPACE_ND; the last crops.
    """
    index = operator.outputs[0]
    for _ in range(_MAX_VIEWS):
        users = graph.consumers.get(index, [])
        if len(users) != 1 or not users[0].outputs:
            break
        index = users[0].outputs[0]
        if users[0].name == "BATCH_TO_SPACE_ND":
            return math.prod(_shape(graph, index))
        if users[0].name not in ("RESHAPE", "SQUEEZE"):
            break
    return math.prod(output)


def _shape(graph: Subgraph, index: int) -> tuple[int, ...]:
    if index < 0:
        return ()
    tensor = graph.tensors[index]
    if -1 in tensor.signature[1:]:
        raise UnknownShapeError(
            f"tensor '{tensor.name}' has a free dimension, shape {list(tensor.signature)}; "
            "convert with fixed input shapes"
        )
    return tensor.shape


def _check_reshape(graph: Subgraph, operator: Operator) -> None:
    """Refuse a batch, stored as 1, that is merged with other dimensions: shapes then mislead."""
    if not operator.inputs or not operator.outputs:
        return
    given, result = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    if given.entries != result.entries and -1 in (*given.signature, *result.signature):
        raise UnknownShapeError(
            f"tensor '{result.name}' merges a free batch with other dimensions; "
            "convert with batch 1 fixed"
        )


def _trips(model: TfliteModel, graph: Subgraph, loop: Operator) -> int | None:
    """Return how often a WHILE runs, if it counts up by constants to a constant bound."""
    try:
        condition = model.subgraphs[int(loop.options["cond_subgraph_index"])]
        body = model.subgraphs[int(loop.options["body_subgraph_index"])]
        # Keras writes up to three: counter < most trips AND time < time steps.
        if (
            len(condition.operators) > 3
            or len(condition.inputs) > _MAX_LOOP_VARIABLES
            or any(op.name not in ("LESS", "LOGICAL_AND") for op in condition.operators)
        ):
            return None
        bounds = [op for op in condition.operators if op.name == "LESS"]
        counts = [_count(graph, loop, condition, body, bound) for bound in bounds]
    except (IndexError, KeyError, ValueError):
        return None
    known = [count for count in counts if count is not None]
    return min(known) if known and len(known) == len(counts) else None


def _count(
    graph: Subgraph, loop: Operator, condition: Subgraph, body: Subgraph, bound: Operator
) -> int | None:
    def at_start(index: int) -> int | None:
        """Value of a tensor of the condition when the loop begins, if it is a constant."""
        if index in condition.inputs:
            return _scalar(graph.constant(loop.inputs[condition.inputs.index(index)]))
        return _scalar(condition.constant(index))

    counter, limit = bound.inputs
    position = condition.inputs.index(counter)
    start, stop = at_start(counter), at_start(limit)
    step = _step(body, position)
    if limit in condition.inputs:
        slot = condition.inputs.index(limit)
        if body.outputs[slot] != body.inputs[slot]:
            return None
    if start is None or stop is None or step is None or step <= 0:
        return None
    return max(0, -((start - stop) // step))


def _step(body: Subgraph, position: int) -> int | None:
    """Return the constant that one pass adds to a loop variable."""
    operator = body.producers.get(body.outputs[position])
    if operator is None or operator.name != "ADD":
        return None
    others = [index for index in operator.inputs if index != body.inputs[position]]
    return _scalar(body.constant(others[0])) if len(others) == 1 else None


def _scalar(tensor: Tensor | None) -> int | None:
    if tensor is None or tensor.entries != 1 or not tensor.dtype.startswith("int"):
        return None
    return int(tensor.values().reshape(-1)[0])
