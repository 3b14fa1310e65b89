"""Copy a Keras 3 model layer by layer, with some layers replaced and some left out or put in.

Making a model quantization-aware, stripping it again and structured pruning use it. The original
is never touched: every layer is made anew from its config and gets new weights.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from edgeprune import models

keras: Any = models.import_keras()

Replace = Callable[[Any], Any]
"""Old layer -> new layer. None leaves it out: its input passes through."""
After = Callable[[Any, Any, int, Any], Any]
"""(old container, old layer, call, its output) -> a layer to put after that call, or None."""
Before = Callable[[Any, Any, int, Any], Any]
"""(old container, old layer, call, its first input) -> a layer to put before that call, or None."""
Constants = Callable[[Any, int, Any], Any]
"""(node of the old graph, position among its flattened arguments, constant) -> the new constant."""
Bypass = Mapping[int, tuple[Any, Any]]
"""id of a node of the old graph -> (an old tensor that it depends on, a layer or None).

None lets the tensor stand for the node's one output; calls that nobody reads any more are left
out, and so are nested models in which nothing is left. A layer is called with (output, tensor),
and what it returns stands for the output."""


def rebuild(
    model: Any,
    replace: Replace,
    *,
    after: After | None = None,
    before: Before | None = None,
    first: Replace | None = None,
    constants: Constants | None = None,
    bypass: Bypass | None = None,
) -> Any:
    """Copy a built Functional or Sequential model, nested models included.

    Args:
      model: the model; it keeps its layers and weights.
      replace: makes each new layer; `copied` is the plain choice.
      after: what to insert behind a call.
      before: what to insert between a call and the first of its inputs; others that read this
        input do not pass through it.
      first: input tensor of the outermost model -> a layer to put behind it, or None.
      constants: what stands for the arrays that calls are given beside their tensors.
      bypass: calls whose output something earlier stands for.

    Returns:
      A model of the same name, structure and trainable flags, not compiled, with new weights;
      copying their values is the caller's part, since only it knows what a layer became.
    """
    return _Rebuild(replace, after, before, constants, bypass).container(model, None, first)


def duplicate(model: Any, *, bypass: Bypass | None = None) -> Any:
    """Copy a built Functional or Sequential model with the values of its weights.

    Args:
      model: the model; it is not changed.
      bypass: as of `rebuild`.
    """
    pairs: list[tuple[Any, Any]] = []

    def replace(old: Any) -> Any:
        pairs.append((old, copied(old)))
        return pairs[-1][1]

    new = rebuild(model, replace, bypass=bypass)
    copy_weights(pairs)
    return new


def copied(layer: Any) -> Any:
    """Return a new layer or `keras.ops` operation with the same config and no weights yet.

    Raises:
      UnsupportedError: the layer cannot be made again from its config.
    """
    if isinstance(layer, keras.layers.Lambda):
        # Its function is here already; the copy in its config would have lost its globals, and
        # safe mode would refuse it.
        return type(layer)(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            **keras.layers.Layer.get_config(layer),
        )
    if not isinstance(layer, keras.layers.Layer) and layer._auto_config is None:
        return _copied_operation(layer)
    return models.remade(layer)


def _copied_operation(operation: Any) -> Any:
    """Make an operation again that was given NumPy's numbers or arrays, which no config holds."""
    names = list(inspect.signature(type(operation).__init__).parameters)[1:]
    if not all(name == "name" or hasattr(operation, name) for name in names):
        return models.remade(operation)
    plain = {
        name: keras.tree.map_structure(
            lambda value: value.item() if isinstance(value, np.generic) else value,
            getattr(operation, name),
        )
        for name in names
    }
    return type(operation)(**plain)


class _Rebuild:
    def __init__(
        self,
        replace: Replace,
        after: After | None,
        before: Before | None,
        constants: Constants | None,
        bypass: Bypass | None,
    ) -> None:
        self._replace = replace
        self._after = after or (lambda *_: None)
        self._before = before or (lambda *_: None)
        self._constants = constants
        self._bypass = bypass or {}
        self._made: dict[int, Any] = {}

    def container(self, old: Any, given: Any, first: Replace | None = None) -> Any:
        """Copy a container that is called on `given`; None for the outermost."""
        make = self._sequential if isinstance(old, keras.Sequential) else self._functional
        new = make(old, given, first or (lambda _: None))
        if new is not None and not old.trainable:  # True must not wake the frozen layers inside
            new.trainable = False
        return new

    def _layer(self, old: Any, given: Any) -> Any:
        if id(old) not in self._made:
            self._made[id(old)] = (
                self.container(old, given) if is_container(old) else self._replace(old)
            )
        return self._made[id(old)]

    def _sequential(self, old: Any, given: Any, first: Replace) -> Any:
        tensor = old.inputs[0]
        source = _input_like(tensor, given)
        behind = [source._keras_history.operation, first(tensor)]
        output = source if behind[1] is None else behind[1](source)
        for layer in old.layers:
            ahead = self._before(old, layer, 0, output)
            output = output if ahead is None else ahead(output)
            new = self._layer(layer, output)
            output = output if new is None else new(output)
            inserted = self._after(old, layer, 0, output)
            output = output if inserted is None else inserted(output)
            behind += [ahead, new, inserted]
        if given is not None and self._bypass and behind[1:] == [None] * (len(behind) - 1):
            return None
        return keras.Sequential([layer for layer in behind if layer is not None], name=old.name)

    def _functional(self, old: Any, given: Any, first: Replace) -> Any:
        tensors = [None] * len(old.inputs) if given is None else keras.tree.flatten(given)
        entries = {
            id(tensor): _input_like(tensor, value)
            for tensor, value in zip(old.inputs, tensors, strict=True)
        }
        known = {}
        for tensor in old.inputs:
            inserted = first(tensor)
            source = entries[id(tensor)]
            known[id(tensor)] = source if inserted is None else inserted(source)
        for node, call in self._needed(old):
            passed, choose = self._bypass.get(id(node), (None, None))
            if passed is not None and choose is None:
                known[id(node.outputs[0])] = known[id(passed)]
                continue
            layer = node.operation
            args, kwargs = self._arguments(node, known)
            ahead = self._before(old, layer, call, args[0] if args else None)
            if ahead is not None:
                args = (ahead(args[0]), *args[1:])
            new = self._layer(layer, args[0] if args else None)
            made = known[id(node.input_tensors[0])] if new is None else new(*args, **kwargs)
            behind = self._after(old, layer, call, made)
            made = made if behind is None else behind(made)
            made = made if passed is None else choose(made, known[id(passed)])
            for tensor, value in zip(node.outputs, keras.tree.flatten(made), strict=True):
                known[id(tensor)] = value
        sources = keras.tree.map_structure(lambda tensor: entries[id(tensor)], old._inputs_struct)
        ends = keras.tree.map_structure(lambda tensor: known[id(tensor)], old._outputs_struct)
        if given is not None and self._bypass and ends is entries[id(old.inputs[0])]:
            return None
        return _class_of(old)(sources, ends, name=old.name)

    def _needed(self, old: Any) -> list[tuple[Any, int]]:
        """Return the calls of a Functional model that its outputs depend on."""
        if not self._bypass:
            return list(calls(old))
        read = {id(tensor) for tensor in old.outputs}
        needed = []
        for node, call in reversed(list(calls(old))):
            if not any(id(tensor) in read for tensor in node.outputs):
                continue
            needed.append((node, call))
            passed, choose = self._bypass.get(id(node), (None, None))
            if passed is not None:
                read.add(id(passed))
            if passed is None or choose is not None:
                read.update(id(tensor) for tensor in node.input_tensors)
        return needed[::-1]

    def _arguments(self, node: Any, known: dict[int, Any]) -> Any:
        filled = node.arguments.fill_in(known)
        if self._constants is None:
            return filled
        given = [node.arguments.args, node.arguments.kwargs]
        new = [
            self._constants(node, position, value) if old is value else value
            for position, (old, value) in enumerate(
                zip(keras.tree.flatten(given), keras.tree.flatten(list(filled)), strict=True)
            )
        ]
        return keras.tree.pack_sequence_as(given, new)


def _input_like(tensor: Any, given: Any) -> Any:
    """Make an input like the one that gave `tensor`; of `given`'s sizes, in a nested model."""
    layer = tensor._keras_history.operation  # the InputLayer, with its name and options
    config = layer.get_config()
    if given is not None:
        config["batch_shape"] = tuple(
            size and new for size, new in zip(tensor.shape, given.shape, strict=True)
        )
    return type(layer).from_config(config).output


def _class_of(model: Any) -> Any:
    """Keep a user's subclass of Model (its train_step) if it is made like a plain one."""
    from keras.src.models.functional import functional_like_constructor

    return type(model) if functional_like_constructor(type(model)) else keras.Model


def copy_weights(pairs: list[tuple[Any, Any]]) -> None:
    """Give each new layer the values of its old layer's weights.

    Args:
      pairs: (old, new) layers of the same class, both built. Operations have no weights.
    """
    for old, new in pairs:
        for source, target in zip(
            getattr(old, "weights", ()), getattr(new, "weights", ()), strict=True
        ):
            target.assign(source)
        settle(new)


def settle(layer: Any) -> None:
    """Let a layer derive what it keeps beside its weights, now that they have their values."""
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()


def calls(container: Any) -> Iterator[tuple[Any, int]]:
    """Yield a Functional model's calls, each after those that it reads from.

    Yields:
      The node (its `operation` is the layer), and which call of that layer it is.
    """
    # Private, but the one record of the calls in an order in which they can be repeated.
    by_depth = container._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        numbered = [
            (node, node.operation._inbound_nodes.index(node))
            for node in by_depth[depth]
            if not node.is_input
        ]
        yield from sorted(numbered, key=lambda pair: pair[1])


def is_container(layer: Any) -> bool:
    """Tell whether a layer is a model whose graph of layers is known."""
    from keras import Sequential
    from keras.src.models.functional import Functional

    return isinstance(layer, Sequential | Functional)
