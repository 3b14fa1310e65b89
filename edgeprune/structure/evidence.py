"""What a model does on data: activations and gradients, gathered once for all its groups."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgeprune import models
from edgeprune.data import Dataset
from edgeprune.errors import ArgumentError, InputError
from edgeprune.inputs import inputs_of
from edgeprune.modelfiles import first_line
from edgeprune.rebuild import calls, is_container
from edgeprune.structure.graph import ChannelGraph, channel_graph
from edgeprune.structure.samples import Array, arrays, each
from edgeprune.training import check_labels, fitting_loss

keras: Any = models.import_keras()

ReadKey = tuple[int, int, int]
"""(id of the operation, tensor argument, axis)."""
Look = Callable[[Any, int, Any], Any]
"""(operation, tensor argument, tensor) -> the tensor to call it with instead."""


@dataclass(frozen=True, eq=False)
class Flow:
    """What flows along one axis where one operation reads it, over all its calls of one size.

    Attributes:
      absolute: (size of the axis,) absolute values, summed over samples and the other axes.
      count: of how many values each of these is the sum.
      effect: (samples, size of the axis) activation x gradient of each sample's loss, summed
        over the other axes; (samples, 0) where no gradient was asked for.
    """

    absolute: Array
    count: int
    effect: Array

    def plus(self, other: "Flow") -> "Flow":
        """Return what flows in both calls together."""
        return Flow(
            self.absolute + other.absolute, self.count + other.count, self.effect + other.effect
        )


class Evidence:
    """Batches of data for one model, and what it does on them.

    Criteria are given this as their `data`. Each kind of statistics is gathered once, in one pass
    over the batches, for all groups; iterating yields the batches themselves.

    Args:
      model: a built Keras 3 Functional or Sequential model.
      data: (x, y), with one array or several as the model's own `fit` takes them; x alone, which
        is enough for activations; an `edgeprune.data.Dataset`; an .npz file or
        ``module:function``; a `tf.data.Dataset` or another iterable of batches (x, y).
      batches: how many; samples are taken evenly spaced, so that sorted data do no harm.
      batch_size: samples a batch, unless the model fixes it.
      graph: of the model, if it is at hand.

    Raises:
      InputError: the data cannot be read or do not fit the model.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        batches: int = 8,
        batch_size: int = 32,
        graph: ChannelGraph | None = None,
    ) -> None:
        for name, count in {"batches": batches, "batch_size": batch_size}.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise InputError(f"{name}={count!r} is not a whole number from 1 on")
        self.model = model
        self._graph = graph or channel_graph(model)
        fixed = model.inputs[0].shape[0]
        size = fixed or batch_size
        x, y = arrays(model, data, batches * size)
        total = len(x[0])
        if total < (fixed or 1):
            raise InputError(
                f"the data have {total} samples, and model '{model.name}' takes {fixed} at once; "
                "give at least as many"
            )
        self._used = total - total % (fixed or 1)
        self._batches = -(-self._used // size)
        self._x, self._y = x, y

    def __iter__(self) -> Iterator[tuple[list[Array], Any]]:
        """Yield (arrays in the order of the model's inputs, targets or None) of each batch."""
        for batch in range(self._batches):
            # Strided, so that every batch spans all of the data.
            yield self._part(slice(batch, self._used, self._batches))

    def _part(self, own: slice) -> tuple[list[Array], Any]:
        y = None if self._y is None else each(lambda part: part[own], self._y)
        return [column[own] for column in self._x], y

    @cached_property
    def saliency(self) -> dict[int, list[Array]]:
        """Of each weight (the id of its variable), for each axis: weight x gradient of the loss.

        Each is (batches, size of the axis), summed over the other axes.
        """
        import tensorflow as tf

        self._check_weights()
        loss_of = self.loss()
        owners = {
            id(variable): (path, variable)
            for path, layer in models.layers(self.model)
            for variable in layer.weights
            if "float" in str(variable.dtype)
        }
        values = [variable.value for _, variable in owners.values()]

        def step(x: Any, y: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                loss = loss_of(y, _run(self.model, x, lambda _, __, tensor: tensor))
            slopes = tape.gradient(loss, values, unconnected_gradients="zero")
            return [
                _along_each(tf.convert_to_tensor(value) * tf.convert_to_tensor(slope))
                for value, slope in zip(values, slopes, strict=True)
            ]

        found = self._over_batches(step)
        result = {}
        for number, (key, (path, _)) in enumerate(owners.items()):
            axes = [np.stack(parts) for parts in zip(*(one[number] for one in found), strict=True)]
            if not all(np.isfinite(axis).all() for axis in axes):
                raise InputError(
                    f"layer '{path}' has NaN or infinite gradients on the data; check the loss "
                    "and the targets, or give a criterion without gradients, such as l2"
                )
            result[key] = axes
        return result

    @cached_property
    def activations(self) -> dict[ReadKey, list[Flow]]:
        """What flows where channels are read, without gradients."""
        return self._flows(gradients=False)

    @cached_property
    def effects(self) -> dict[ReadKey, list[Flow]]:
        """What flows where channels are read, with activation x gradient of each sample's loss."""
        return self._flows(gradients=True)

    def _flows(self, gradients: bool) -> dict[ReadKey, list[Flow]]:
        import tensorflow as tf

        self._check_weights()
        loss_of = self.loss() if gradients else None
        axes: dict[tuple[int, int], set[int]] = {}
        for operation, tensor, axis, _ in self._graph.record.reads:
            axes.setdefault((id(operation), tensor), set()).add(axis)
        seen: list[tuple[Any, int, Any]] = []

        def look(operation: Any, position: int, tensor: Any) -> Any:
            if (id(operation), position) not in axes:
                return tensor
            # A tensor of its own for each call that reads it: what it does there alone.
            own = tf.identity(tensor)
            if (mask := getattr(tensor, "_keras_mask", None)) is not None:
                own._keras_mask = mask
            tape.watch(own)
            seen.append((operation, position, own))
            return own

        tape: Any = None

        def step(x: Any, y: Any) -> Any:
            nonlocal tape
            seen.clear()
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                outputs = _run(self.model, x, look)
                loss = None if loss_of is None else loss_of(y, outputs)
            read = [tensor for *_, tensor in seen]
            slopes: list[Any] = [None] * len(read)
            if loss is not None:
                slopes = tape.gradient(loss, read, unconnected_gradients="zero")
            return [
                _flow(tensor, slope, axis)
                for (operation, position, tensor), slope in zip(seen, slopes, strict=True)
                for axis in sorted(axes[id(operation), position])
            ]

        found = self._over_batches(step)
        places = [
            (operation, position, axis)
            for operation, position, _ in seen
            for axis in sorted(axes[id(operation), position])
        ]
        flows: dict[ReadKey, list[Flow]] = {}
        for number, (operation, position, axis) in enumerate(places):
            absolute, count, effect = zip(*(one[number] for one in found), strict=True)
            flow = Flow(np.sum(absolute, 0), int(np.sum(count)), np.concatenate(effect))
            _check_flow(flow, operation)
            alike = flows.setdefault((id(operation), position, axis), [])
            for index, other in enumerate(alike):
                if len(other.absolute) == len(flow.absolute):
                    alike[index] = other.plus(flow)
                    break
            else:
                alike.append(flow)
        return flows

    def _over_batches(self, step: Callable[[Any, Any], Any]) -> list[Any]:
        """Return what a step gives for every batch."""
        import tensorflow as tf

        compiled = tf.function(step, autograph=False, reduce_retracing=True)
        try:
            return [
                tf.nest.map_structure(lambda tensor: tensor.numpy(), compiled(x, y))
                for x, y in self
            ]
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise InputError(
                f"model '{self.model.name}' cannot be run on the data: {first_line(error)}; check "
                "that inputs, targets and loss belong together"
            ) from error
        finally:
            self.model._clear_losses()  # symbolic ones, of layers that add losses in their calls

    def loss(self) -> Callable[[Any, Any], Any]:
        """Return (targets, outputs) -> the loss on data alone, without regularization."""
        if self._y is None:
            raise InputError(
                "this criterion needs targets, and the data have none: give `data` with y; or take "
                "the criterion 'activation', which needs x alone"
            )
        from keras.src.trainers.compile_utils import CompileLoss

        loss = getattr(self.model, "loss", None)
        weights = None
        if loss is None:
            if not isinstance(self._y, np.ndarray) or len(self.model.outputs) > 1:
                raise InputError(
                    f"model '{self.model.name}' has several outputs and is not compiled, so its "
                    "loss is unknown; compile it with the loss that it was trained with"
                )
            names = [spec.name for spec in inputs_of(self.model)]
            x = self._x[0] if len(names) == 1 else dict(zip(names, self._x, strict=True))
            loss = fitting_loss(self.model, Dataset(x, self._y, x, self._y, ""))
        else:
            check_labels(self.model, loss, self._y)
            weights = self.model._compile_loss._user_loss_weights
        # One of its own: the model's keeps metrics.
        loss_of: Any = CompileLoss(
            loss, weights, output_names=getattr(self.model, "output_names", None)
        )

        def called(y: Any, outputs: Any) -> Any:
            return loss_of(y, outputs)

        return called

    def _check_weights(self) -> None:
        for path, layer in models.layers(self.model):
            for variable in layer.weights:
                if (
                    "float" in str(variable.dtype)
                    and not np.isfinite(np.asarray(variable, np.float32)).all()
                ):
                    raise InputError(
                        f"layer '{path}' has NaN or infinite weights; train it with a smaller "
                        "learning rate, or load a sound checkpoint"
                    )


# Criteria that need no data, by the kind of the groups that they score.
_BY_WEIGHTS = {
    "channels": ("l1", "l2", "bn_scale", "fpgm", "random"),
    "heads": ("l1", "l2", "fpgm", "random"),
}


def evidence(model: Any, data: Any, criterion: str, kind: str) -> Evidence:
    """Return data as evidence about a model; evidence is returned as it is.

    Args:
      model: the model.
      data: what `Evidence` takes.
      criterion: that asks.
      kind: of the group that is scored.

    Raises:
      InputError: there are no data, or they do not fit.
    """
    if data is None:
        raise ArgumentError(
            f"`criterion='{criterion}'` needs `data`, x and y; give them, or take one that needs "
            f"none: {', '.join(_BY_WEIGHTS[kind])}"
        )
    return data if isinstance(data, Evidence) else Evidence(model, data)


def _run(container: Any, inputs: Any, look: Look) -> Any:
    """Call a model layer by layer for inference, looking at every tensor argument."""
    from keras.src.models.functional import operation_fn

    graph = container if hasattr(container, "_nodes_by_depth") else container._functional
    flat = keras.tree.flatten(inputs)
    known = {id(tensor): value for tensor, value in zip(graph.inputs, flat, strict=True)}
    for node, _ in calls(graph):
        operation = node.operation
        args, kwargs = node.arguments.fill_in(known)
        if is_container(operation):
            made = _run(operation, args, look)
        else:
            given = keras.tree.flatten([args, kwargs])
            old = keras.tree.flatten([node.arguments.args, node.arguments.kwargs])
            tensors = [i for i, value in enumerate(old) if hasattr(value, "_keras_history")]
            for position, index in enumerate(tensors):
                given[index] = look(operation, position, given[index])
            args, kwargs = keras.tree.pack_sequence_as([args, kwargs], given)
            made = operation_fn(operation, training=False)(*args, **kwargs)
        known |= {
            id(tensor): value
            for tensor, value in zip(node.outputs, keras.tree.flatten(made), strict=True)
        }
    return keras.tree.map_structure(lambda tensor: known[id(tensor)], graph._outputs_struct)


def _along_each(product: Any) -> list[Any]:
    """Return for each axis of a weight the sums over the other axes, in float32."""
    import tensorflow as tf

    rank = len(product.shape)
    product = tf.cast(product, "float32")
    return [
        tf.reduce_sum(product, [other for other in range(rank) if other != axis])
        for axis in range(rank)
    ]


def _flow(tensor: Any, slope: Any, axis: int) -> Any:
    """Return the sum, the count and the effect of a `Flow` on one batch."""
    import tensorflow as tf

    rank = len(tensor.shape)
    tensor = tf.cast(tensor, "float32")
    others = [other for other in range(rank) if other != axis]
    count = tf.size(tensor) // tf.shape(tensor)[axis]
    absolute = tf.reduce_sum(tf.abs(tensor), others)
    samples = tf.shape(tensor)[0]
    if slope is None:
        return absolute, count, tf.zeros([samples, 0])
    # The loss is a mean over the samples, so each one's own is as many times steeper.
    product = tensor * tf.cast(slope, "float32") * tf.cast(samples, "float32")
    return absolute, count, tf.reduce_sum(product, [other for other in others if other != 0])


def _check_flow(flow: Flow, operation: Any) -> None:
    for what, values in {"activations": flow.absolute, "gradients": flow.effect}.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"layer '{operation.name}' reads NaN or infinite {what} on the data; check data "
                "and loss, or give a criterion that looks at the weights alone, such as l2"
            )
