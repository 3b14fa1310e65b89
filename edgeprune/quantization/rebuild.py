"""Copy a Keras 3 model layer by layer, with some layers replaced and some left out or put in.

Both directions use it: making a model quantization-aware, and stripping it again. The original
is never touched: every layer is made anew from its config and gets a copy of the weights.
"""

from collections.abc import Callable
from typing import Any

from edgeprune import models
from edgeprune.quantization.placement import calls, is_container

keras: Any = models.import_keras()

Replace = Callable[[Any], Any]
"""Old layer -> new layer. None leaves it out: its input passes through."""
After = Callable[[Any, Any, int, Any], Any]
"""(old container, old layer, call, its output) -> a layer to put after that call, or None."""


def rebuild(model: Any, replace: Replace, after: After, first: Replace | None = None) -> Any:
    """Copy a built Functional or Sequential model, nested models included.

    Args:
      model: the model; it keeps its layers and weights.
      replace: makes each new layer; `copied` is the plain choice.
      after: what to insert behind a call.
      first: input tensor of the outermost model -> a layer to put behind it, or None.

    Returns:
      A model of the same name, structure and trainable flags, not compiled, with new weights;
      copying their values is the caller's part, since only it knows what a layer became.
    """
    return _Rebuild(replace, after).container(model, first or (lambda _: None))


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
    return models.remade(layer)


class _Rebuild:
    def __init__(self, replace: Replace, after: After) -> None:
        self._replace = replace
        self._after = after
        self._made: dict[int, Any] = {}

    def container(self, old: Any, first: Replace) -> Any:
        if isinstance(old, keras.Sequential):
            new = self._sequential(old, first)
        else:
            new = self._functional(old, first)
        if not old.trainable:  # True must not wake the frozen layers inside
            new.trainable = False
        return new

    def _layer(self, old: Any) -> Any:
        if id(old) not in self._made:
            self._made[id(old)] = (
                self.container(old, lambda _: None) if is_container(old) else self._replace(old)
            )
        return self._made[id(old)]

    def _sequential(self, old: Any, first: Replace) -> Any:
        source = old.inputs[0]
        behind = [_input_like(source), first(source)]
        output = source
        for layer in old.layers:
            output = layer.compute_output_spec(output)
            behind += [self._layer(layer), self._after(old, layer, 0, output)]
        return keras.Sequential([layer for layer in behind if layer is not None], name=old.name)

    def _functional(self, old: Any, first: Replace) -> Any:
        sources = keras.tree.map_structure(_input_like, old._inputs_struct)
        known = {}
        for tensor, source in zip(old.inputs, keras.tree.flatten(sources), strict=True):
            inserted = first(tensor)
            known[id(tensor)] = source if inserted is None else inserted(source)
        for node, call in calls(old):
            layer = node.operation
            args, kwargs = node.arguments.fill_in(known)
            new = self._layer(layer)
            made = known[id(node.input_tensors[0])] if new is None else new(*args, **kwargs)
            behind = self._after(old, layer, call, made)
            made = made if behind is None else behind(made)
            for tensor, value in zip(node.outputs, keras.tree.flatten(made), strict=True):
                known[id(tensor)] = value
        ends = keras.tree.map_structure(lambda tensor: known[id(tensor)], old._outputs_struct)
        return _class_of(old)(sources, ends, name=old.name)


def _input_like(tensor: Any) -> Any:
    layer = tensor._keras_history.operation  # the InputLayer, with its name and options
    return type(layer).from_config(layer.get_config()).output


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
