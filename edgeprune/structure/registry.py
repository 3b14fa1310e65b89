"""The table of rules: how channels pass through each type of layer or operation."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any

from edgeprune.errors import InputError
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

    Raises:
      InputError: no type was given, or something that is no class of layers or operations.
    """
    if not types or not all(isinstance(kind, str | type) for kind in types):
        got = ", ".join(getattr(kind, "__name__", repr(kind)) for kind in types) or "nothing"
        raise InputError(
            f"register_pruning_rule got {got}; name the types whose rule it is: "
            "@edgeprune.register_pruning_rule(MyLayer)"
        )

    def add(rule: Rule) -> Rule:
        if not is_own(rule) or _load.cache_info().currsize:
            _load()  # so that what a user says of one of Keras's own classes comes last
            for kind in types:
                _check_kind(kind)
        _RULES.update((kind if isinstance(kind, str) else type_key(kind), rule) for kind in types)
        return rule

    return add


def is_own(rule: Rule) -> bool:
    """Tell whether a rule is one of edgeprune's."""
    return str(getattr(rule, "__module__", "")).startswith("edgeprune.")


def _check_kind(kind: str | type[Any]) -> None:
    from keras import Operation

    known: list[Any] = [Operation]
    for parent in known:  # it grows on the way
        known += parent.__subclasses__()
    if isinstance(kind, type):
        if not issubclass(kind, Operation):
            raise InputError(
                f"register_pruning_rule got {kind.__name__}, which is no layer or operation of "
                "Keras 3; name the layer's class"
            )
    elif kind not in map(type_key, known):
        near = get_close_matches(
            kind, [key for key in map(type_key, known) if isinstance(key, str)]
        )
        raise InputError(
            f"register_pruning_rule got {kind!r}, which is no layer of Keras's"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + "; give the class itself of a layer of your own"
        )


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
