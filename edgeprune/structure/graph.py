"""Find the groups of a Functional or Sequential model by following its channels."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune import models
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError
from edgeprune.modelfiles import first_line
from edgeprune.rebuild import calls, is_container
from edgeprune.structure.call import Call, Record
from edgeprune.structure.channels import Axes, Channels, Ids, connected
from edgeprune.structure.group import PruningGroup, Read, Slice
from edgeprune.structure.registry import Rule, is_own, rule_for

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Refusal:
    """Channels that stay: the layer that makes them, and why."""

    layer: str
    reason: str


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """A model, what its layers said of their channels, and the groups that follow.

    Attributes:
      model: the Keras 3 model.
      record: axes of weights, entries of configs and constants that shrink.
      groups: all groups, in the order of their first layers; some are frozen in whole or part.
    """

    model: Any
    record: Record
    groups: tuple[PruningGroup, ...]
    roots: Ids
    """For each channel the one that stands for it; `removed` marks these."""
    members: tuple[Ids, ...]
    """For each group the channels that stand for its own."""

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """Which layers keep channels that could have left, and why."""
        return tuple(
            Refusal(group.name, "; ".join(group.reasons)) for group in self.groups if group.reasons
        )

    def kept(self, removed: dict[int, npt.NDArray[np.integer[Any]]]) -> Bools:
        """Turn {position of a group: its channels that leave} into a mask over all channels."""
        stays = np.ones(len(self.roots), bool)
        for index, leaving in removed.items():
            stays[self.members[index][leaving]] = False
        kept: Bools = stays[self.roots]
        return kept


def channel_graph(model: Any) -> ChannelGraph:
    """Follow the channels of a model from the layers that make them to those that read them.

    Args:
      model: a built Keras 3 Functional or Sequential model, nested models included.

    Raises:
      UnsupportedError: a subclassed or tf_keras model.
      InputError: it has no weights yet.
    """
    check_model(model)
    record = Record()
    ends = _Trace(record).container(model, [_fixed(tensor) for tensor in model.inputs], "")
    for tensor, axes in zip(model.outputs, ends, strict=True):
        for ids in axes:
            if ids is not None:
                name = tensor._keras_history.operation.name
                record.channels.freeze(ids, f"'{name}' is an output of the model")
    return _grouped(model, record)


def check_model(model: Any) -> None:
    """Refuse what has no graph of layers to follow."""
    if models.flavour(model) == "tf_keras":
        raise UnsupportedError(
            f"model '{model.name}' is a tf_keras model; structured pruning supports Keras 3: build "
            "it with keras instead of tf_keras, load its weights, and prune that"
        )
    if not is_container(model):
        raise UnsupportedError(
            f"model '{model.name}' is a subclassed model ({type(model).__name__}), whose graph "
            "cannot be read; supported: Functional and Sequential models. If its call is made of "
            "Keras layers, wrap it: inputs = keras.Input(shape); "
            "keras.Model(inputs, model.call(inputs))"
        )
    if not model.built or not model.inputs:
        raise InputError(
            f"model '{model.name}' has no weights yet; build it first, for example by calling it "
            "on one batch"
        )


def _fixed(tensor: Any) -> Axes:
    return (None,) * len(tensor.shape)


class _Trace:
    """One pass over a model's calls, nested models where they are called."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._given: dict[int, Sequence[Axes]] = {}

    def container(self, container: Any, inputs: Sequence[Axes], path: str) -> list[Axes]:
        graph = container if hasattr(container, "_nodes_by_depth") else container._functional
        known = {id(tensor): axes for tensor, axes in zip(graph.inputs, inputs, strict=True)}
        for node, _ in calls(graph):
            read = [known[id(tensor)] for tensor in node.input_tensors]
            made = self._call(node, read, path + node.operation.name)
            known |= {id(tensor): axes for tensor, axes in zip(node.outputs, made, strict=True)}
        return [known[id(tensor)] for tensor in graph.outputs]

    def _call(self, node: Any, inputs: list[Axes], name: str) -> Sequence[Axes]:
        operation = node.operation
        call = Call(
            self._record,
            operation,
            name,
            inputs,
            [tuple(tensor.shape) for tensor in node.input_tensors],
            [tuple(tensor.shape) for tensor in node.outputs],
            node.arguments._flat_arguments,
            node,
        )
        if is_container(operation):
            # A mask comes along as one argument more.
            for ids in (ids for axes in inputs[len(operation.inputs) :] for ids in axes):
                call.freeze(ids, "takes a mask over these channels")
            inputs = inputs[: len(operation.inputs)]
            # It is made anew once, for inputs of one size.
            first = self._given.setdefault(id(operation), inputs)
            for before, now in zip(first, inputs, strict=True):
                for one, other in zip(before, now, strict=True):
                    call.tie(one, other)
            return self.container(operation, inputs, name + "/")
        rule = rule_for(operation)
        if rule is None:
            return call.freeze_all(
                "has no rule, so these channels are kept; register_pruning_rule adds one"
            )
        reads = len(self._record.reads)
        own = is_own(rule) and type(operation).__module__.startswith("keras.")
        made = rule(call) if own else _checked(rule, call)
        read = {(tensor, axis) for _, tensor, axis, _ in self._record.reads[reads:]}
        self._record.ended += _ended(self._record.channels, inputs, made, read)
        return made


def _checked(rule: Rule, call: Call) -> Sequence[Axes]:
    """Return what a rule of the user's says, after checking that it can be meant."""
    name = getattr(rule, "__name__", type(rule).__name__)
    which = f"the pruning rule {name}() of layer '{call.name}' ({type(call.layer).__name__})"
    try:
        made = rule(call)
    except EdgepruneError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"{which} failed with {type(error).__name__}: {first_line(error)}; mend it"
        ) from error
    shapes = call.output_shapes
    if not isinstance(made, list | tuple) or len(made) != len(shapes):
        got = f"{len(made)} of them" if isinstance(made, list | tuple) else repr(made)
        raise InputError(
            f"{which} returned {got}; return a list with the axes of each output, here "
            f"{len(shapes)}: [call.inputs[0]], say"
        )
    for axes, shape in zip(made, shapes, strict=True):
        if not isinstance(axes, list | tuple) or len(axes) != len(shape):
            got = f"{len(axes)} axes" if isinstance(axes, list | tuple) else repr(axes)
            raise InputError(
                f"{which} returned {got} for an output of shape {shape}; return None or channel "
                f"numbers for each of its {len(shape)} axes, the batch's included"
            )
        for axis, (ids, size) in enumerate(zip(axes, shape, strict=True)):
            if ids is not None and (not isinstance(ids, np.ndarray) or len(ids) != size):
                got = f"{len(ids)} channels" if isinstance(ids, np.ndarray) else repr(ids)
                raise InputError(
                    f"{which} returned {got} for axis {axis} of an output of shape {shape}; "
                    "return None or as many channel numbers as the axis has entries"
                )
    return made


def _ended(
    channels: Channels,
    inputs: Sequence[Axes],
    made: Sequence[Axes],
    read: Collection[tuple[int, int]],
) -> Iterator[Ids]:
    """Yield the channels along those axes of the inputs that the outputs do not have.

    Args:
      channels: of the model.
      inputs: axes of a call's inputs.
      made: axes of its outputs.
      read: (input, axis) that it reads.
    """
    after = [ids for axes in made for ids in axes if ids is not None]
    for index, axes in enumerate(inputs):
        for axis, ids in enumerate(axes):
            if ids is None or (index, axis) in read or any(other is ids for other in after):
                continue
            roots, others = channels.roots(ids), [channels.roots(other) for other in after]
            # A single channel may be spread over an axis of others, with itself among them.
            handed_on = (
                any((other == roots).all() for other in others)
                if len(ids) == 1
                else bool(others) and np.isin(roots, np.concatenate(others)).all()
            )
            if not handed_on:
                yield ids


def _grouped(model: Any, record: Record) -> ChannelGraph:
    """Sort the channels into groups: producing axes that share a channel belong together."""
    channels = record.channels
    everything = np.arange(channels.count)
    roots = channels.roots(everything)
    owner = np.repeat(
        np.arange(len(channels.made)), [stop - start for start, stop, _, _ in channels.made]
    )
    part = connected(len(channels.made), owner, owner[roots])
    group_of = part[owner] if len(owner) else owner
    # `order` numbers each group's own channels from 0.
    standing = np.flatnonzero(roots == everything)
    order = np.zeros(channels.count, np.int64)
    members: dict[int, Ids] = {}
    by_group = standing[np.argsort(group_of[standing], kind="stable")]
    starts = np.flatnonzero(np.diff(group_of[by_group], prepend=-1))
    for block in np.split(by_group, starts[1:]) if len(by_group) else ():
        members[int(group_of[block[0]])] = block
        order[block] = np.arange(len(block))
    builders = {key: _Builder(len(own)) for key, own in members.items()}
    for axis, (start, stop, layer, kind) in enumerate(channels.made):
        builders[int(part[axis])].axis(order[roots[start:stop]], layer, kind)
    for weight in record.parts.values():
        for axis, (ids, role) in weight.axes.items():
            if ids is None:
                continue
            for key, positions, own in _split(roots[ids], group_of, order):
                builders[key].slices.append(
                    Slice(weight.layer, weight.variable, axis, role, positions, own)
                )
    for operation, tensor, axis, ids in record.reads:
        for key, positions, own in _split(roots[ids], group_of, order):
            builders[key].reads.append(Read(operation, tensor, axis, positions, own))
    for ids, reason in channels.frozen:
        for key, _, own in _split(roots[ids], group_of, order):
            builders[key].freeze(own, reason)
    chosen = sorted(key for key, builder in builders.items() if builder.kind != "fixed")
    return ChannelGraph(
        model,
        record,
        tuple(builders[key].build() for key in chosen),
        roots,
        tuple(members[key] for key in chosen),
    )


def _split(
    standing: Ids, group_of: Ids, order: Ids
) -> list[tuple[int, npt.NDArray[np.int64], Ids]]:
    """Return (group, positions, the group's channels there) of each group along one axis."""
    owners = group_of[standing]
    if not len(owners) or (owners == owners[0]).all():
        return [(int(owners[0]), np.arange(len(owners)), order[standing])] if len(owners) else []
    sorted_positions = np.argsort(owners, kind="stable")
    starts = np.flatnonzero(np.diff(owners[sorted_positions]))
    return [
        (int(owners[positions[0]]), positions, order[standing[positions]])
        for positions in np.split(sorted_positions, starts + 1)
    ]


class _Builder:
    """A group while its slices are collected."""

    def __init__(self, size: int) -> None:
        self.kind = "fixed"
        self.slices: list[Slice] = []
        self.reads: list[Read] = []
        self._size = size
        self._layers: list[str] = []
        self._widths: list[Ids] = []
        self._frozen = np.zeros(size, bool)
        self._reasons: dict[str, None] = {}  # an ordered set

    def axis(self, own: Ids, layer: str, kind: str) -> None:
        if kind == "fixed":
            return
        if self.kind not in ("fixed", kind):
            self.freeze(np.arange(len(self._frozen)), f"'{layer}' ties heads to channels")
        self.kind = kind
        self._layers.append(layer)
        self._widths.append(np.bincount(own, minlength=self._size))

    def freeze(self, own: Ids, reason: str) -> None:
        self._frozen[own] = True
        self._reasons[reason] = None

    def build(self) -> PruningGroup:
        return PruningGroup(
            name=self._layers[0],
            kind=self.kind,
            size=self._size,
            slices=tuple(self.slices),
            reads=tuple(self.reads),
            widths=np.stack(self._widths),
            layers=tuple(self._layers),
            frozen=self._frozen,
            reasons=tuple(self._reasons),
        )
