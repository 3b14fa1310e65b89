"""Criteria that look at data: gradients and activations."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.structure.evidence import Flow, ReadKey, evidence
from edgeprune.structure.group import PruningGroup

Scores = npt.NDArray[np.float64]


def taylor(group: PruningGroup, model: Any, data: Any) -> Scores:
    """Score each channel by how much the loss changes, to first order, without its weights.

    (sum of gradient x weight)^2 over all weights that make the channel (role ``out``), the mean
    over batches. The loss is the model's own, without regularization; of a model that is not
    compiled, the one that fits its targets.

    Args:
      group: of the model.
      model: the model, which runs in inference mode.
      data: (x, y), or what `Evidence` takes, or `Evidence` itself, which looks at the data once
        for all groups.

    Returns:
      (group.size,) scores.

    Raises:
      InputError: no data or targets, or weights or gradients that are not finite.

    Source: Molchanov et al. 2019, Importance Estimation for Neural Network Pruning,
    arXiv:1906.10771.
    """
    saliency = evidence(model, data, "taylor", group.kind).saliency
    batches = len(next(iter(saliency.values()))[0])
    total = np.zeros((batches, group.size))
    for part in group.slices:
        if part.role == "out":
            along = saliency[id(part.variable)][part.axis]
            total += _by_channel(along, part.positions, part.channels, group.size)
    scores: Scores = np.square(total).mean(0)
    return scores


def taylor_activation(group: PruningGroup, model: Any, data: Any) -> Scores:
    """Score each channel by how much each sample's loss changes, to first order, without it.

    |sum of gradient x activation| over all places where the channel is read, the mean over
    samples. The paper divides by the number of places, which is the same for all channels of a
    layer, and so changes neither ranking of them.

    Args:
      group: of the model.
      model: the model, which runs in inference mode.
      data: as for `taylor`.

    Returns:
      (group.size,) scores.

    Raises:
      InputError: no data or targets, or weights, activations or gradients that are not finite.

    Source: Molchanov et al. 2017, Pruning Convolutional Neural Networks for Resource Efficient
    Inference, arXiv:1611.06440.
    """
    flows = evidence(model, data, "taylor_activation", group.kind).effects
    total: Any = np.zeros(group.size)
    for flow, positions, channels in _reads(group, flows):
        total = total + _by_channel(flow.effect, positions, channels, group.size)
    scores: Scores = np.abs(np.atleast_2d(total)).mean(0)
    return scores


def activation(group: PruningGroup, model: Any, data: Any) -> Scores:
    """Score each channel by its mean absolute activation where it is read.

    Args:
      group: of the model.
      model: the model, which runs in inference mode.
      data: x or (x, y), or as for `taylor`.

    Returns:
      (group.size,) scores.

    Raises:
      InputError: no data, or weights or activations that are not finite.

    Source: Molchanov et al. 2017, Pruning Convolutional Neural Networks for Resource Efficient
    Inference, arXiv:1611.06440.
    """
    flows = evidence(model, data, "activation", group.kind).activations
    total, count = np.zeros(group.size), np.zeros(group.size)
    for flow, positions, channels in _reads(group, flows):
        total += np.bincount(channels, flow.absolute[positions], group.size)
        count += np.bincount(channels, minlength=group.size) * flow.count
    return total / np.maximum(count, 1)


def _reads(
    group: PruningGroup, flows: dict[ReadKey, list[Flow]]
) -> list[tuple[Flow, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Return what flows at each place where the group is read, once where calls are several."""
    found = {}
    for read in group.reads:
        key = (id(read.operation), read.input, read.axis)
        # A layer without weights may be shared by inputs of several sizes.
        large = [flow for flow in flows[key] if len(flow.absolute) > read.positions.max()]
        flow = min(large, key=lambda flow: len(flow.absolute))
        found[key] = (flow, read.positions, read.channels)
    return list(found.values())


def _by_channel(
    along: npt.NDArray[Any],
    positions: npt.NDArray[np.int64],
    channels: npt.NDArray[np.int64],
    size: int,
) -> Scores:
    """Sum the columns of (n, positions of the axis) that belong to each channel, to (n, size)."""
    total = np.zeros((size, len(along)))
    np.add.at(total, channels, along.T[positions].astype(np.float64))
    return total.T
