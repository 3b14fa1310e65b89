"""The one idea of structured pruning: slices of weights that must leave together."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Role = Literal["out", "in", "bias", "scale", "shift", "statistic", "other"]
"""What a weight's axis is to its channels: ``out`` makes them (a kernel's output axis), ``in``
reads them, ``bias``, ``scale`` (gamma), ``shift`` (beta) and ``statistic`` (a moving mean or
variance) go along with them."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Where a group's channels lie along one axis of one weight.

    Attributes:
      layer: path of the layer that owns the weight.
      variable: the `keras.Variable`.
      axis: of the variable, counted from 0.
      role: what this axis is to the channels.
      positions: (n,) indices along the axis.
      channels: (n,) the group's channel at each of them, in [0, size).
    """

    layer: str
    variable: Any
    axis: int
    role: Role
    positions: npt.NDArray[np.int64]
    channels: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Read:
    """A call that reads a group's channels: where to look at their activations.

    Attributes:
      operation: the layer (or `keras.ops` operation) that reads.
      input: which of its tensor arguments, flattened.
      axis: of that tensor, the batch's included.
      positions: (n,) indices along the axis.
      channels: (n,) the group's channel at each of them.
    """

    operation: Any
    input: int
    axis: int
    positions: npt.NDArray[np.int64]
    channels: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PruningGroup:
    """All the slices that must leave together, for each of `size` channels.

    Take three layers, and let channel 2 leave::

        conv1 = Conv2D(4, 3)          kernel (3, 3, 3, 4), bias (4,)
        norm  = BatchNormalization()  gamma, beta, moving mean and variance (4,)
        conv2 = Conv2D(8, 3)          kernel (3, 3, 4, 8), bias (8,)

    conv1 makes the channel: its kernel loses [:, :, :, 2], its bias [2]. The normalization
    scales it: each of its four vectors loses [2]. conv2 reads it: its kernel loses [:, :, 2, :],
    and nothing else, for its own eight outputs are channels of another group. So this group has
    seven slices, each an (axis of a weight, channel at each position of the axis), and to prune it
    is to delete along them. What comes out is what conv2 would have computed had that channel of
    its input been zero.

    What lies between only changes the map from positions to channels. Flatten of (7, 7, 4) lets
    conv2 be a Dense layer with 196 inputs, of which 49 belong to each channel; concatenation
    shifts the positions; an addition ties the channels of two producers, which then are one group
    and leave in pairs; a depthwise convolution has one kernel a channel, and hands it on.

    Attributes:
      name: path of the first layer that makes its channels.
      kind: ``channels`` or ``heads``.
      size: how many channels there are; each may be several positions of an axis.
      slices: where they are, in every weight.
      reads: the calls that read them.
      widths: (axes, size) how many of each producing axis's channels leave with each channel.
      layers: path of the layer that makes each of these axes.
      frozen: (size,) bool, True for those that must stay.
      reasons: why, if any must.

    Source: Fang et al. 2023, DepGraph, arXiv:2301.12900.
    """

    name: str
    kind: str
    size: int
    slices: tuple[Slice, ...]
    reads: tuple[Read, ...]
    widths: npt.NDArray[np.int64]
    layers: tuple[str, ...]
    frozen: npt.NDArray[np.bool_]
    reasons: tuple[str, ...] = field(default=())
