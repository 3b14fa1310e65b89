"""Multiply-accumulates of a Keras model, counted in the graph that it traces to.

Counting in the traced graph, rather than layer class by layer class, sees what a layer really
does: a layer called twice counts twice, nested and subclassed models, custom layers and
`keras.ops` count like any other. `macs.py` says which products count.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from edgeprune.errors import UnsupportedError
from edgeprune.macs import Macs, UnknownShapeError
from edgeprune.models import flavour, layers
from edgeprune.subclassed import each_input, recorded_inputs

Shape = tuple[int, ...]


def keras_macs(model: Any) -> Macs:
    """Count the multiply-accumulates of one inference of a Keras 3 or tf_keras model.

    The batch counts as 1 unless the model fixes another; `by_layer` is keyed by the path of the
    innermost layer, a recurrent layer's cells counted with it. No total, but a reason, where an
    input has another free dimension or was never given a shape.

    Source: TensorFlow's shape rules for each operator (tensorflow/core/ops/nn_ops.cc,
    math_ops.cc, linalg_ops.cc).

    Raises:
      UnsupportedError: the model cannot be traced.
    """
    import tensorflow as tf

    notes: dict[str, None] = {}
    try:
        inputs = _input_specs(model)
        owners: dict[tuple[int, str], str] = {}
        with _recorded(model, owners):
            concrete = tf.function(lambda given: model(given, training=False))
            graph = concrete.get_concrete_function(inputs).graph
        by_layer: dict[int | str, int] = {}
        for operation, count in _counts(graph, notes):
            owner = owners.get((id(graph), operation.name), model.name)
            by_layer[owner] = by_layer.get(owner, 0) + count
    except UnknownShapeError as unknown:
        return Macs(None, reason=str(unknown))
    except (ValueError, TypeError, NotImplementedError, tf.errors.OpError) as error:
        first = str(error).strip().split("\n", 1)[0]
        raise UnsupportedError(
            f"model '{model.name}' cannot be traced at its input shape: {first}"
        ) from error
    return Macs(sum(by_layer.values()), by_layer, None, tuple(notes))


def _input_specs(model: Any) -> Any:
    """Return the structure of tensor specifications to call the model with, batch 1."""
    import tensorflow as tf

    def spec(tensor: Any) -> Any:
        shape = tuple(tensor.shape)
        fixed = (1 if shape and shape[0] is None else shape[0], *shape[1:]) if shape else ()
        if None in fixed:
            name = str(tensor.name).partition(":")[0]
            raise UnknownShapeError(
                f"input '{name}' has a free dimension, shape {list(shape)}; "
                "give the model a fixed input shape"
            )
        return tf.TensorSpec(fixed, tensor.dtype)

    if getattr(model, "inputs", None):
        # Functional models keep the structure that they are called with (a dict, say).
        private = "_inputs_struct" if flavour(model) == "keras" else "_nested_inputs"
        structure = getattr(model, private, None)
        if structure is None:
            structure = model.inputs[0] if len(model.inputs) == 1 else list(model.inputs)
        if isinstance(structure, list | tuple) and len(structure) == 1:
            structure = structure[0]
        return tf.nest.map_structure(spec, structure)
    recorded = recorded_inputs(model)
    if recorded is None:
        raise UnknownShapeError(
            f"model '{model.name}' has no recorded input shape; call it on one batch first, or "
            "wrap it: keras.Model(inputs, model(inputs))"
        )

    def called(shape: tuple[int | None, ...], dtype: str, _: str | None) -> Any:
        if None in shape[1:]:
            raise UnknownShapeError(
                f"model '{model.name}' was built with a free dimension, shape {list(shape)}"
            )
        return tf.TensorSpec((1, *shape[1:]), dtype)

    return each_input(recorded, called)


@contextmanager
def _recorded(model: Any, owners: dict[tuple[int, str], str]) -> Iterator[None]:
    """Note, while the model is called, which layer makes each operation of the graph.

    For that, every layer's `call` is shadowed for the time of the trace; nothing else changes.
    """
    import tensorflow as tf

    def recording(path: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            graph = tf.compat.v1.get_default_graph()
            before = len(graph.get_operations())
            result = call(*args, **kwargs)
            for operation in graph.get_operations()[before:]:
                owners.setdefault((id(graph), operation.name), path)  # the innermost is first
            return result

        return recorded

    shadowed = []
    recurrent: list[str] = []
    try:
        for path, layer in layers(model):
            if any(path.startswith(outer) for outer in recurrent):
                continue
            if hasattr(layer, "cell"):
                recurrent.append(path + "/")
            if "call" not in vars(layer):
                object.__setattr__(layer, "call", recording(path, layer.call))
                shadowed.append(layer)
        yield
    finally:
        for layer in shadowed:
            object.__delattr__(layer, "call")


def _counts(graph: Any, notes: dict[str, None]) -> Iterator[tuple[Any, int]]:
    """Yield (operation, products) for those that the graph's outputs depend on."""
    needed: set[str] = set()
    waiting = [tensor.op for tensor in graph.outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name not in needed:
            needed.add(operation.name)
            waiting.extend(tensor.op for tensor in operation.inputs)
    for operation in graph.get_operations():
        if operation.name in needed and (count := _count(graph, operation, notes)):
            yield operation, count


def _total(graph: Any, notes: dict[str, None]) -> int:
    return sum(count for _, count in _counts(graph, notes))


def _count(graph: Any, operation: Any, notes: dict[str, None]) -> int:
    kind = operation.type
    if kind in ("While", "StatelessWhile"):
        body = _body(graph, operation, "body")
        once = _total(body, notes)
        trips = _trips(operation, _body(graph, operation, "cond"), body) if once else 0
        if trips is None:
            notes["a loop of unknown length was counted as one pass"] = None
            return once
        return once * trips
    if kind in ("If", "StatelessIf"):
        sides = [
            _total(_body(graph, operation, f"{side}_branch"), notes) for side in ("then", "else")
        ]
        if sides[0] != sides[1]:
            notes["of a branch, the side with more products was counted"] = None
        return max(sides)
    if kind in ("PartitionedCall", "StatefulPartitionedCall"):
        body = _body(graph, operation, "f")
        for inner, outer in zip(body.outputs, operation.outputs, strict=False):
            # A function traced for any batch is called here with a known one.
            while inner.op.type == "Identity":
                inner.set_shape(outer.shape)
                inner = inner.op.inputs[0]
            inner.set_shape(outer.shape)
        return _total(body, notes)
    formula = _FORMULAS.get(kind)
    return formula(operation) if formula else 0


def _body(graph: Any, operation: Any, attribute: str) -> Any:
    return graph._get_function(operation.get_attr(attribute).name).graph


def _shape(tensor: Any) -> Shape:
    if not tensor.shape.is_fully_defined():
        raise UnknownShapeError(
            f"tensor '{tensor.name}' has a free dimension, shape {tensor.shape}; "
            "give the model a fixed input shape"
        )
    return tuple(tensor.shape.as_list())


def _convolution(operation: Any) -> int:
    """Kernel (..., in / groups, out): each output entry sums over all but the last axis."""
    return _convolved(operation) * math.prod(_shape(operation.inputs[1])[:-1])


def _depthwise(operation: Any) -> int:
    """Kernel (kh, kw, in, multiplier)."""
    return _convolved(operation) * math.prod(_shape(operation.inputs[1])[:2])


def _convolved(operation: Any) -> int:
    """Return the output entries, without what a dilated convolution is padded with."""
    output = operation.outputs[0]
    while len(users := output.consumers()) == 1:
        output = users[0].outputs[0]
        if users[0].type == "BatchToSpaceND":
            return math.prod(_shape(output))
        if users[0].type not in ("Squeeze", "Reshape", "Identity"):
            break
    return math.prod(_shape(operation.outputs[0]))


def _transposed(operation: Any) -> int:
    """Inputs (output shape, kernel (..., out, in), x): x meets all but the kernel's last axis."""
    _, kernel, given = operation.inputs
    return math.prod(_shape(given)) * math.prod(_shape(kernel)[:-1])


def _matrix_product(operation: Any) -> int:
    transposed = "transpose_a" if operation.type == "MatMul" else "adj_x"
    summed = _shape(operation.inputs[0])[-2 if operation.get_attr(transposed) else -1]
    return math.prod(_shape(operation.outputs[0])) * summed


def _einsum(operation: Any) -> int:
    """Sum the products over every letter; nothing if no letter is summed away."""
    left, _, right = operation.get_attr("equation").decode().partition("->")
    terms = left.split(",")
    if len(terms) < 2:
        return 0
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, operation.inputs, strict=True):
        shape = _shape(tensor)
        before, dots, after = term.partition("...")
        sizes |= dict(zip(before, shape, strict=False))
        if after:
            sizes |= dict(zip(after, shape[-len(after) :], strict=True))
        if dots:
            broadcast = math.prod(shape[len(before) : len(shape) - len(after)])
            sizes["..."] = max(sizes.get("...", 1), broadcast)
    if all(letter in right for letter in sizes if letter != "..."):
        return 0
    return math.prod(sizes.values())


_FORMULAS: dict[str, Callable[[Any], int]] = {
    "Conv": _convolution,
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "Conv2DBackpropInput": _transposed,
    "Conv3DBackpropInputV2": _transposed,
    "MatMul": _matrix_product,
    "BatchMatMul": _matrix_product,
    "BatchMatMulV2": _matrix_product,
    "BatchMatMulV3": _matrix_product,
    "Einsum": _einsum,
}


def _trips(loop: Any, condition: Any, body: Any) -> int | None:
    """Return how often a loop runs, if it counts up by constants to constant bounds."""
    inputs = {tensor.name: index for index, tensor in enumerate(condition.inputs)}
    bounds, waiting = [], [condition.outputs[0].op]
    while waiting:
        operation = waiting.pop()
        if operation.type == "Less":
            bounds.append(operation)
        elif operation.type in ("Identity", "LogicalAnd"):
            waiting.extend(tensor.op for tensor in operation.inputs)
        else:
            return None
    counts = []
    for bound in bounds:
        counter, limit = bound.inputs
        if counter.name not in inputs:
            return None
        slot = inputs[counter.name]
        start = _static(loop.inputs[slot])
        stop = _static(loop.inputs[inputs[limit.name]] if limit.name in inputs else limit)
        step = _step(body, slot)
        if start is None or stop is None or step is None or step <= 0:
            return None
        counts.append(max(0, -((start - stop) // step)))
    return min(counts, default=None)


def _static(tensor: Any) -> int | None:
    import tensorflow as tf

    while tensor.op.type in ("Identity", "Max") and tensor.op.inputs[0].shape.rank == 0:
        tensor = tensor.op.inputs[0]
    if tensor.op.type == "StridedSlice" and tensor.shape.rank == 0:  # tf.shape(x)[axis]
        vector, begin = (tf.get_static_value(given) for given in tensor.op.inputs[:2])
        return None if vector is None or begin is None else int(vector[begin[0]])
    value = tf.get_static_value(tensor)
    return None if value is None or value.size != 1 else int(value)


def _step(body: Any, slot: int) -> int | None:
    tensor = body.outputs[slot]
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    if tensor.op.type != "AddV2":
        return None
    others = [given for given in tensor.op.inputs if given.name != body.inputs[slot].name]
    return _static(others[0]) if len(others) == 1 else None
