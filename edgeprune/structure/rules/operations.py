"""Operations of `keras.ops` that move, sum over, cut or repeat axes; those that work entry by entry
are in `elementwise` and `merging`."""

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes, Ids
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.rules.convolution import channel_axis, only
from edgeprune.structure.rules.merging import operands, product
from edgeprune.structure.rules.shaping import reshaped

_SUMS = ("Sum", "Nansum", "Any", "CountNonzero", "Norm")
_OTHER_REDUCTIONS = (
    *("Mean", "Nanmean", "Max", "Nanmax", "Amax", "Min", "Nanmin", "Amin", "Prod", "Nanprod"),
    *("All", "Var", "Nanvar", "Std", "Nanstd", "Median", "Nanmedian", "Ptp", "Logsumexp"),
    *("Argmax", "Argmin", "Moments"),
)


def _axes_of(value: Any, rank: int) -> list[int]:
    """Return an `axis` argument as a list of axes from 0; None means all."""
    return list(range(rank)) if value is None else [int(a) % rank for a in np.atleast_1d(value)]


def _reduced(call: Call) -> list[int]:
    axes = getattr(call.layer, "axis", None) if hasattr(call.layer, "axis") else call.layer.axes
    return _axes_of(axes, len(call.inputs[0]))


def _without(call: Call, over: Sequence[int]) -> list[Axes]:
    keepdims = getattr(call.layer, "keepdims", False)
    made = tuple(
        None if axis in over else ids
        for axis, ids in enumerate(call.inputs[0])
        if keepdims or axis not in over
    )
    return [made] * len(call.output_shapes)


@rule(*(f"ops.{name}" for name in _SUMS))
def summed(call: Call) -> list[Axes]:
    """Drop the axes summed over, to which a channel that leaves no longer adds."""
    over = _reduced(call)
    plain = getattr(call.layer, "ord", None) in (None, 1, 2, "fro")
    for axis in over:
        if plain:
            call.sees(0, axis)
        else:
            call.freeze(call.inputs[0][axis], "takes a norm over these channels")
    return _without(call, over)


@rule(*(f"ops.{name}" for name in _OTHER_REDUCTIONS))
def reduced(call: Call) -> list[Axes]:
    """Drop the axes reduced over, whose channels stay: each has a part in the result."""
    over = _reduced(call)
    for axis in over:
        call.freeze(call.inputs[0][axis], "reduces over these channels")
    return _without(call, over)


@rule("ops.Normalize")
def normalize(call: Call) -> list[Axes]:
    """Divide by a norm to which a channel that leaves no longer adds."""
    for axis in _reduced(call):
        call.sees(0, axis)
    return [call.inputs[0]]


@rule("ops.Sort", "ops.Argsort", "ops.Cumsum", "ops.Cumprod", "ops.Flip", "ops.Roll")
def along(call: Call) -> list[Axes]:
    """Hand the other axes on; along its own the order of the channels counts."""
    rank = len(call.inputs[0])
    for axis in _axes_of(call.layer.axis, rank):
        call.freeze(call.inputs[0][axis], "works along these channels in their order")
    return [call.inputs[0] if rank == len(call.output_shapes[0]) else (None,)]


@rule("ops.Transpose", "ops.Moveaxis", "ops.Swapaxes")
def transpose(call: Call) -> list[Axes]:
    """Move the axes."""
    layer, given = call.layer, call.inputs[0]
    order = list(range(len(given)))
    kind = type(layer).__name__
    if kind == "Transpose":
        order = order[::-1] if layer.axes is None else list(layer.axes)
    elif kind == "Swapaxes":
        one, other = layer.axis1, layer.axis2
        order[one], order[other] = order[other], order[one]
    else:
        pairs = zip(layer.source, layer.destination, strict=True)
        places = {to % len(given): axis % len(given) for axis, to in pairs}
        others = iter([axis for axis in order if axis not in places.values()])
        order = [places[to] if to in places else next(others) for to in order]
    return [tuple(given[axis] for axis in order)]


@rule("ops.Reshape")
def reshape(call: Call) -> list[Axes]:
    """Follow the channels to the axis on which they lie now."""
    made = reshaped(call, call.inputs[0], call.input_shapes[0], call.output_shapes[0], batch=False)
    for axis, size in enumerate(call.layer.newshape):
        if size not in (-1, None):
            call.counts("newshape", made[axis], axis)
    return [made]


@rule("ops.ExpandDims")
def expand_dims(call: Call) -> list[Axes]:
    """Put in axes of size 1."""
    rank = len(call.output_shapes[0])
    new = _axes_of(call.layer.axis, rank)
    old = iter(call.inputs[0])
    return [tuple(None if axis in new else next(old) for axis in range(rank))]


@rule("ops.Squeeze")
def squeeze(call: Call) -> list[Axes]:
    """Drop axes of size 1."""
    shape, axis = call.input_shapes[0], call.layer.axis
    gone = (
        [index for index, size in enumerate(shape) if size == 1]
        if axis is None
        else _axes_of(axis, len(shape))
    )
    return [tuple(ids for index, ids in enumerate(call.inputs[0]) if index not in gone)]


@rule("ops.Stack")
def stack(call: Call) -> list[Axes]:
    """Put in a new axis, along which the inputs lie; they lose the same channels."""
    made: list[Ids | None] = []
    for met in zip(*call.inputs, strict=True):
        for other in met[1:]:
            call.tie(met[0], other)
        made.append(None if any(ids is None for ids in met) else met[0])
    made.insert(call.layer.axis % (len(made) + 1), None)
    return [tuple(made)]


@rule("ops.Unstack")
def unstack(call: Call) -> list[Axes]:
    """Take an axis apart; each result has the others."""
    axis = call.layer.axis % len(call.inputs[0])
    call.freeze(call.inputs[0][axis], "takes these channels apart")
    made = tuple(ids for index, ids in enumerate(call.inputs[0]) if index != axis)
    return [made] * len(call.output_shapes)


@rule("ops.Split")
def split(call: Call) -> list[Axes]:
    """Cut an axis into pieces: equal ones lose the same channels, others each their own."""
    given, sections = call.inputs[0], call.layer.indices_or_sections
    axis = call.layer.axis % len(given)
    ids = given[axis]
    count = len(call.output_shapes)
    if ids is None:
        return [given] * count
    if isinstance(sections, int):
        pieces = list(ids.reshape(sections, -1))
        for piece in pieces[1:]:
            call.tie(piece, pieces[0])
    else:
        bounds = [0, *sections, len(ids)]
        if bounds != sorted(set(bounds)):
            return list(call.freeze_all("cuts these channels at places that are not in order"))
        for index, bound in enumerate(sections):
            call.counts("indices_or_sections", ids[:bound], index)
        pieces = [_piece(call, ids[a:b]) for a, b in pairwise(bounds)]
    return [(*given[:axis], piece, *given[axis + 1 :]) for piece in pieces]


def _piece(call: Call, ids: Ids) -> Ids:
    """Number a piece of an axis as an axis of its own, so that one channel of it stays."""
    piece = call.new(len(ids))
    call.tie(piece, ids)
    return piece


@rule("ops.GetItem")
def get_item(call: Call) -> list[Axes]:
    """Cut along axes that are no channels, or a piece out of the channels."""
    given, key = call.inputs[0], call.arguments[1:]
    if any(not _is_plain(part) for part in key):
        return list(call.freeze_all("looks up entries by an array"))
    consumed = sum(part is not None and part is not Ellipsis for part in key)
    if Ellipsis not in key:
        key = [*key, Ellipsis]
    made: list[Ids | None] = []
    axis = 0
    for position, part in enumerate(key, 1):
        if part is None:
            made.append(None)
        elif part is Ellipsis:
            passed = len(given) - consumed
            made += given[axis : axis + passed]
            axis += passed
        else:
            ids = given[axis]
            axis += 1
            if isinstance(part, slice):
                made.append(_cut(call, position, part, ids))
            else:
                call.freeze(ids, "takes out one of these channels")
    return [tuple(made)]


def _is_plain(part: Any) -> bool:
    if isinstance(part, slice):
        return all(isinstance(x, int | None) for x in (part.start, part.stop, part.step))
    return part is None or part is Ellipsis or (isinstance(part, int) and type(part) is not bool)


def _cut(call: Call, position: int, part: slice, ids: Ids | None) -> Ids | None:
    if ids is None or part == slice(None):
        return ids
    start, stop, step = part.indices(len(ids))
    if step != 1 or start >= stop:
        call.freeze(ids, "takes some of these channels by their number")
        return None
    call.constant(position, 0, ids)
    return _piece(call, ids[start:stop])


@rule("ops.Take")
def take(call: Call) -> list[Axes]:
    """Hand on the axes that are not looked up in."""
    given, rank = call.inputs[0], len(call.output_shapes[0])
    if call.layer.axis is None or len(call.inputs) > 1:
        return list(call.freeze_all("looks up entries"))
    axis = call.layer.axis % len(given)
    call.freeze(given[axis], "looks up entries along these channels")
    return [(*given[:axis], *[None] * (rank - len(given) + 1), *given[axis + 1 :])]


@rule("ops.Pad")
def pad(call: Call) -> list[Axes]:
    """Pad axes that are no channels, or the channels with zeros, which stay."""
    width = call.layer.pad_width
    widths = list(width) * len(call.inputs[0]) if len(width) == 1 else width
    made: list[Ids | None] = []
    for ids, (before, after) in zip(call.inputs[0], widths, strict=True):
        if ids is None or not before + after:
            made.append(ids)
        elif call.layer.mode != "constant":
            call.freeze(ids, "pads with copies of these channels")
            made.append(None)
        else:
            ends = [call.new(size, "fixed") for size in (before, after)]
            for end in ends:
                call.freeze(end, "pads the channels")
            made.append(np.concatenate([ends[0], ids, ends[1]]))
    return [tuple(made)]


@rule("ops.BroadcastTo")
def broadcast_to(call: Call) -> list[Axes]:
    """Spread axes of size 1 and put new ones in front."""
    shape, new = call.input_shapes[0], len(call.output_shapes[0]) - len(call.inputs[0])
    made: list[Ids | None] = [None] * new
    for axis, (ids, size) in enumerate(zip(call.inputs[0], shape, strict=True), new):
        spread = size != call.output_shapes[0][axis]
        made.append(None if spread else ids)
        call.counts("shape", made[-1], axis)
    return [tuple(made)]


@rule("ops.Repeat")
def repeat(call: Call) -> list[Axes]:
    """Repeat each entry along an axis."""
    given, repeats = call.inputs[0], call.layer.repeats
    if call.layer.axis is None:
        return list(call.freeze_all("flattens them"))
    axis = call.layer.axis % len(given)
    ids = given[axis]
    if ids is not None and not isinstance(repeats, int):
        call.freeze(ids, "repeats each of these channels a number of times of its own")
        ids = None
    made = None if ids is None else ids.repeat(repeats)
    return [(*given[:axis], made, *given[axis + 1 :])]


@rule("ops.Tile")
def tile(call: Call) -> list[Axes]:
    """Repeat whole axes."""
    rank = len(call.output_shapes[0])
    repeats = np.atleast_1d(call.layer.repeats).tolist()
    repeats = [1] * (rank - len(repeats)) + repeats
    given: list[Ids | None] = [*[None] * (rank - len(call.inputs[0])), *call.inputs[0]]
    return [
        tuple(
            None if ids is None else np.tile(ids, times)
            for ids, times in zip(given, repeats, strict=True)
        )
    ]


@rule("ops.Matmul")
def matmul(call: Call) -> list[Axes]:
    """Sum over the last axis of one and the last but one of the other."""
    given = operands(call)
    batches = [[("batch", axis) for axis in range(2 - len(one.shape), 0)] for one in given]
    rows: list[Hashable] = ["row"] if len(given[0].shape) > 1 else []
    columns: list[Hashable] = ["column"] if len(given[1].shape) > 1 else []
    labels: list[list[Hashable]] = [
        [*batches[0], *rows, "summed"],
        [*batches[1], "summed", *columns],
    ]
    return [product(call, given, labels, [*max(batches, key=len), *rows, *columns])]


@rule("ops.Einsum")
def einsum(call: Call) -> list[Axes]:
    """Tie axes of the same letter; sum over those that the result lacks."""
    given = operands(call)
    equation = call.layer.subscripts.replace(" ", "")
    terms, arrow, result = equation.partition("->")
    sides = [*terms.split(","), result]
    letters = [side.replace("...", "") for side in sides]
    if not arrow or any(len(set(side)) < len(side) for side in letters):
        return list(call.freeze_all(f"computes '{equation}'"))
    ranks = [len(one.shape) for one in given]
    spread = [
        rank - len(side) if "..." in whole else 0
        for rank, side, whole in zip(ranks, letters, sides, strict=False)
    ]
    labels = [
        _labels(side, count) for side, count in zip(sides, [*spread, max(spread)], strict=True)
    ]
    return [product(call, given, labels[:-1], labels[-1])]


def _labels(side: str, count: int) -> list[Hashable]:
    before, dots, after = side.partition("...")
    middle = [("batch", axis) for axis in range(-count, 0)] if dots else []
    return [*before, *middle, *after]


@rule("ops.DepthToSpace")
def depth_to_space(call: Call) -> list[Axes]:
    """Tie the channels that become neighbours in space."""
    axis, ids = channel_axis(call), call.inputs[0][channel_axis(call)]
    if ids is None:
        return only(call, axis, None)
    rows = ids.reshape(call.layer.block_size**2, -1)
    for row in rows[1:]:
        call.tie(row, rows[0])
    return only(call, axis, rows[0])


@rule("ops.SpaceToDepth")
def space_to_depth(call: Call) -> list[Axes]:
    """Let each channel be one for every place in a block."""
    axis, ids = channel_axis(call), call.inputs[0][channel_axis(call)]
    return only(call, axis, None if ids is None else np.tile(ids, call.layer.block_size**2))
