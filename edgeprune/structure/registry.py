"""The table of rules: how channels pass through each type of layer or operation."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes

Rule = Callable[[Call], Sequence[Axes]]
_RULES: dict[Any, Rule] = {}
_OWN = (
    *("elementwise", "convolution", "dense", "normalization", "merging", "shaping", "operations"),
    *("einsum", "transposed", "embedding", "recurrent", "wrappers", "attention"),
)


def register_pruning_rule(*types: Any) -> Callable[[Rule], Rule]:
    """Teach structured pruning how channels pass through a layer of your own.

    For a layer that scales each channel with a weight of its own::

        @edgeprune.register_pruning_rule(MyScale)
        def my_scale(call):
            channels = call.inputs[0][-1]
            call.carries(call.layer.scale, 0, channels)
            return [call.inputs[0]]

    A layer that computes each entry from the same entry of its input alone needs no more than
    ``register_pruning_rule(MyActivation)(edgeprune.structure.rules.elementwise.unary)``.

    Args:
      types: layer or operation classes. Keras's own are named by strings in edgeprune:
        ``Conv2D``, and ``ops.Add`` for an operation of `keras.ops`.

    Returns:
      A decorator. The rule gets a `Call` and returns the axes of each output.
    """

    def add(rule: Rule) -> Rule:
        if not all(isinstance(kind, str) for kind in types):
            _load()  # so that what a user says of one of Keras's own classes comes last
        _RULES.update((kind if isinstance(kind, str) else type_key(kind), rule) for kind in types)
        return rule

    return add


def rule_for(operation: Any) -> Rule | None:
    """Return the rule of a layer's or operation's exact type; None if there is none.

    A subclass may compute anything, so it does not inherit its parent's rule.
    """
    _load()
    return _RULES.get(type_key(type(operation)))


@cache
def _load() -> None:
    for module in _OWN:
        import_module(f"edgeprune.structure.rules.{module}")


def type_key(kind: type[Any]) -> Any:
    """Return what the table calls a type."""
    module = kind.__module__
    if module.startswith("keras.src.ops."):
        return f"ops.{kind.__name__}"
    if module.startswith("keras.src.applications."):
        return f"applications.{kind.__name__}"
    return kind.__name__ if module.startswith("keras.src.layers.") else kind
