"""Network slimming: train the scales of batch normalization towards zero, to prune by them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.structure.graph import channel_graph
from edgeprune.structure.scope import Selector, selected

keras: Any = models.import_keras()


class SparsityRegularizer(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Adds ``strength * sum |gamma|`` over batch normalizations to the loss during `fit`.

    Channels that the loss can do without get scales near zero; then
    ``prune_channels(model, criterion="bn_scale", ranking="global", ...)`` removes them::

        model.fit(x, y, epochs=40, callbacks=[edgeprune.SparsityRegularizer(1e-4)])

    Only the scales of channels that can be pruned are trained so. The model is neither wrapped
    nor changed: what is saved, during training too, knows nothing of this callback, and after
    training the loss is what it was (after one that is broken off, by an error, call
    `on_train_end` yourself). While it trains, the logged loss includes the penalty, like
    that of any regularizer.

    Args:
      strength: of the penalty; 1e-4 in the paper, up to 1e-3 for short trainings.
      skip: layers whose own channels keep their scales free: names, paths, patterns such as
        ``stem_*``, class names or classes.

    Raises:
      InputError: `strength` is not a positive number; and when training begins, `skip` matches
        nothing, or no scale is left.
      UnsupportedError: when training begins, the model cannot be pruned.

    Source: Liu et al. 2017, Network Slimming, arXiv:1708.06519.
    """

    def __init__(self, strength: float = 1e-4, skip: Selector | Sequence[Selector] = ()) -> None:
        super().__init__()
        if (
            isinstance(strength, bool)
            or not isinstance(strength, int | float)
            or not 0 < strength < math.inf
        ):
            raise InputError(f"strength={strength!r} is not a positive number, such as 1e-4")
        self.strength = float(strength)
        self.skip = (skip,) if isinstance(skip, str | type) else tuple(skip)
        self._scales: list[Any] = []

    def set_model(self, model: Any) -> None:
        """Have `fit` make its steps anew: those of an earlier one know of no penalty."""
        super().set_model(model)
        self._trace_anew()

    def on_train_begin(self, logs: Any = None) -> None:
        """Put the penalty on the scales."""
        self._take_off()
        self._scales = _scales(self.model, self.skip)
        for scale in self._scales:
            before = scale.regularizer
            if isinstance(before, _Penalty):  # of a training that was broken off
                before = before.before
            scale.regularizer = _Penalty(self.strength, before)

    def on_train_end(self, logs: Any = None) -> None:
        """Take the penalty off again."""
        self._take_off()
        self._trace_anew()

    def _take_off(self) -> None:
        for scale in self._scales:
            if isinstance(scale.regularizer, _Penalty):
                scale.regularizer = scale.regularizer.before
        self._scales = []

    def _trace_anew(self) -> None:
        """Let Keras make its steps again, for the loss has changed."""
        self.model.train_function = None
        self.model.test_function = None


class _Penalty:
    """The L1 norm of a variable, beside the regularizer that it had."""

    def __init__(self, strength: float, before: Callable[[Any], Any] | None) -> None:
        self.before = before
        self._strength = strength

    def __call__(self, variable: Any) -> Any:
        # The gradient of |x| is its sign, and 0 at 0: the subgradient of the paper.
        penalty = self._strength * keras.ops.sum(keras.ops.absolute(variable))
        return penalty if self.before is None else penalty + self.before(variable)


def _scales(model: Any, skip: Sequence[Selector]) -> list[Any]:
    """Return the scales of batch normalizations over channels that can leave."""
    graph = channel_graph(model)
    skipped = {index for name in skip for index in selected(model, graph.groups, name, "skip")}
    normalizing = {
        id(layer.gamma)
        for _, layer in models.layers(model)
        if type(layer).__name__ == "BatchNormalization" and layer.gamma is not None
    }
    scales = {
        id(part.variable): part.variable
        for index, group in enumerate(graph.groups)
        if index not in skipped and not group.frozen.all()
        for part in group.slices
        if part.role == "scale" and id(part.variable) in normalizing
    }
    if not scales:
        raise InputError(
            f"model '{model.name}' has no batch normalization with a scale over channels that can "
            "leave; put BatchNormalization behind its convolutions, or prune by another criterion"
        )
    return list(scales.values())
