"""Matrix products along any axes, written as an equation."""

from typing import Any

from edgeprune.structure.call import Call
from edgeprune.structure.channels import Axes, Ids
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.rules.dense import refused
from edgeprune.structure.rules.elementwise import activated


@rule("EinsumDense")
def einsum(call: Call) -> list[Axes]:
    """Read the letters that the kernel sums over, make those that are its own, hand on the rest.

    In ``abc,cde->abde`` c is read, d and e are made (each is a group of its own), a and b are
    handed on. A letter in all three, as c in ``abc,cd->acd``, has one part of the kernel for each
    of its channels.
    """
    layer = call.layer
    if reason := refused(layer):
        return list(call.freeze_all(reason))
    given, _, written = layer.equation.partition("->")
    read, own = given.split(",")
    if any(len(set(part)) < len(part) for part in map(_letters, (read, own, written))):
        return list(call.freeze_all("repeats a letter within one part of its equation"))
    source = _axes_of(read, len(call.input_shapes[0]))
    target = _axes_of(written, len(call.output_shapes[0]))
    known: dict[str, Ids | None] = {letter: call.inputs[0][axis] for letter, axis in source.items()}
    for axis, letter in enumerate(own):
        if letter not in source:
            known[letter] = call.new(layer.kernel.shape[axis])
            call.makes(layer.kernel, axis, known[letter])
        elif letter in target:
            call.carries(layer.kernel, axis, known[letter])
        else:
            call.reads(layer.kernel, axis, input_axis=source[letter])
    for letter, axis in source.items():
        if letter not in own and letter not in target:
            call.sees(0, axis)  # it is summed over
    made = tuple(known[letter] for letter in target)
    if layer.bias is not None:
        for axis in range(-1, -len(layer.bias.shape) - 1, -1):
            if layer.bias.shape[axis] != 1:
                call.carries(layer.bias, axis, made[axis], "bias")
        if misplaced(layer.bias):
            for ids in made:
                call.freeze(ids, "adds a bias that Keras puts on another axis of the same size")
    # The config leaves out the batch and what the ellipsis stands for.
    stated = len(layer.partial_output_shape)
    first = 1 if written.endswith("...") else len(made) - stated
    for index, size in enumerate(layer.partial_output_shape):
        if size is not None:
            call.counts("output_shape", made[first + index], index)
    return [activated(call, layer.activation, made)]


def misplaced(bias: Any) -> bool:
    """Tell whether Keras may take a bias for one along another axis.

    `keras.ops.add` of 3.15 on TensorFlow adds any vector, whatever ones stand behind its axis, to
    the last axis or the one after the batch if one of these is as long as the vector. So no axis
    may come to be that long.
    """
    return bool(bias.shape[-1] == 1 and sum(size != 1 for size in bias.shape) == 1)


def _letters(part: str) -> str:
    return part.replace("...", "")


def _axes_of(part: str, rank: int) -> dict[str, int]:
    """Return letter -> axis, in order; the axes of the ellipsis get names of their own."""
    letters = _letters(part)
    hidden = [f"...{index}" for index in range(rank - len(letters))]
    names = [*letters, *hidden] if part.endswith("...") else [*hidden, *letters]
    return {name: axis for axis, name in enumerate(names)}
