"""Layers that move, merge, split or drop axes, or work along axes that are no channels."""

import math
from collections.abc import Sequence

import numpy as np

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes, Ids
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.rules.convolution import channel_axis, only

Shape = Sequence[int | None]


@rule(
    *(f"{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
    *(f"Adaptive{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
    *(f"{kind}{n}D" for kind in ("ZeroPadding", "Cropping", "UpSampling") for n in (1, 2, 3)),
    *("Resizing", "CenterCrop", "ops.MaxPool", "ops.AveragePool", "ops.AdaptiveMaxPool"),
    *("ops.AdaptiveAveragePool", "ops.Resize"),
)
def spatial(call: Call) -> list[Axes]:
    """Hand the channels on."""
    # One-dimensional padding, cropping and upsampling know only channels last.
    axis = channel_axis(call) if getattr(call.layer, "data_format", None) else -1
    return only(call, axis, call.inputs[0][axis])


@rule(*(f"Global{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)))
def global_pooling(call: Call) -> list[Axes]:
    """Hand the channels on."""
    axis = channel_axis(call)
    ids = call.inputs[0][axis]
    only(call, axis, None)
    made: list[Ids | None] = [None] * len(call.output_shapes[0])
    made[axis if call.layer.keepdims else -1] = ids
    return [tuple(made)]


@rule("Permute")
def permute(call: Call) -> list[Axes]:
    """Move the axes."""
    given = call.inputs[0]
    return [(given[0], *(given[axis] for axis in call.layer.dims))]


@rule("RepeatVector")
def repeat_vector(call: Call) -> list[Axes]:
    """Put a new axis before the channels."""
    batch, ids = call.inputs[0]
    return [(batch, None, ids)]


@rule("Flatten")
def flatten(call: Call) -> list[Axes]:
    """Let each channel be as many positions of one axis as it has entries."""
    given, shape = call.inputs[0], call.input_shapes[0]
    order = list(range(len(given)))
    if call.layer.data_format == "channels_first" and len(order) > 2:
        order.append(order.pop(1))
    return [
        reshaped(
            call,
            [given[axis] for axis in order],
            [shape[axis] for axis in order],
            call.output_shapes[0],
        )
    ]


@rule("Reshape")
def reshape(call: Call) -> list[Axes]:
    """Follow the channels to the axis on which they lie now."""
    made = reshaped(call, call.inputs[0], call.input_shapes[0], call.output_shapes[0])
    for axis, size in enumerate(call.layer.target_shape):
        if size != -1:
            call.counts("target_shape", made[axis + 1], axis)
    return [made]


def reshaped(
    call: Call, given: Sequence[Ids | None], source: Shape, target: Shape, batch: bool = True
) -> Axes:
    """Return the axes of a tensor that is given another shape, its entries in the same order.

    Each followed axis is spread over all entries; where it comes to lie along one new axis alone,
    that one is followed. Where it is split over several, the last is, and those channels are tied
    that lie at the same place of it.

    Args:
      call: the call, whose channels may be tied or frozen.
      given: channels along each axis before.
      source: sizes before, None where unknown.
      target: sizes after.
      batch: whether the first axis is the batch's and stays what it is.
    """
    # Leading axes that stay the same need not be solved for, nor known.
    same = int(batch)
    while same < min(len(source), len(target)) and source[same] == target[same]:
        behind = _product(source[same + 1 :])
        if source[same] is None and (behind is None or behind != _product(target[same + 1 :])):
            break
        same += 1
    made: list[Ids | None] = [*given[:same], *[None] * (len(target) - same)]
    rest = [(axis, ids) for axis, ids in enumerate(given) if axis >= same and ids is not None]
    sizes = _sizes(source[same:], target[same:]) if rest else None
    taken: set[int] = set()
    for axis, ids in rest:
        found = None if sizes is None else _landed(call, ids, axis - same, *sizes)
        if found is None:
            call.freeze(ids, "reshapes them in a way that depends on an unknown size")
            continue
        index, landed = found
        if target[same + index] is None or index in taken:
            call.freeze(ids, "reshapes them onto an axis with others")
            call.freeze(made[same + index], "reshapes them onto an axis with others")
            made[same + index] = None
            continue
        taken.add(index)
        made[same + index] = landed
    return tuple(made)


def _landed(
    call: Call, ids: Ids, axis: int, source: list[int], target: list[int], known: bool
) -> tuple[int, Ids] | None:
    """Return (new axis, channels along it) of one axis of a reshaped tensor."""
    shape = [1] * len(source)
    shape[axis] = -1
    spread = np.broadcast_to(ids.reshape(shape), source).reshape(target)
    wide = [index for index, size in enumerate(target) if size > 1] or [len(target) - 1]
    for index in reversed(wide):
        along = np.moveaxis(spread, index, 0).reshape(target[index], -1)
        if (along == along[:, :1]).all():
            return index, along[:, 0].copy()
    if not known:
        return None
    along = np.moveaxis(spread, wide[-1], 0).reshape(target[wide[-1]], -1)
    first = np.broadcast_to(along[:, :1], along.shape)
    call.tie(first.ravel(), along.ravel())
    return wide[-1], along[:, 0].copy()


def _product(shape: Shape) -> int | None:
    return None if None in shape else math.prod(size or 0 for size in shape)


def _sizes(source: Shape, target: Shape) -> tuple[list[int], list[int], bool] | None:
    """Return whole sizes for both shapes, and whether they are the only ones possible.

    Unknown sizes become such as fit. None where the shapes say too little.
    """
    unknown = list(source).count(None), list(target).count(None)
    one, other = (math.prod(size for size in shape if size) for shape in (source, target))
    if unknown[0] <= 1 and not unknown[1]:
        filled = [other // one if size is None else size for size in source]
        return filled, [size or 0 for size in target], True
    if not unknown[0] or unknown[1] != 1:
        return None
    # The first unknown size is such that the target's comes out whole, and greater than 1.
    filled, fit = [], 2 * other // math.gcd(other, one)
    for size in source:
        filled.append(fit if size is None else size)
        fit = 2 if size is None else fit
    rest = math.prod(filled) // other
    return filled, [rest if size is None else size for size in target], False
