"""Share a model's sparsity out among its layers by how much each one's weights matter."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.drop import Yardstick
from edgeprune.errors import InputError
from edgeprune.models import Kernel
from edgeprune.sensitivity.changes import Change
from edgeprune.sensitivity.measure import keras_model
from edgeprune.sensitivity.trial import Array, Progress, Trial, check_weights, judge_each
from edgeprune.sparsity.schedules import check_sparsity
from edgeprune.steps.scope import Scope, Selector, several

Floats = npt.NDArray[np.float64]

# Each kernel is measured at so many sparsities, from dense to the highest that it may have.
_LEVELS = 10
# The fewest weights that a kernel keeps, as a share of the fraction that all keep.
_LEAST_KEPT = 1 / 5
_NO_PROBABILITY = 1e-12


def allocate_sparsity(
    model: Any,
    data: Any,
    sparsity: float = 0.8,
    *,
    max_sparsity: float | None = None,
    skip: Selector | Sequence[Selector] = (),
    only: Selector | Sequence[Selector] = (),
    include_embeddings: bool = False,
    include_depthwise: bool = False,
    samples: int = 512,
    unsafe: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Give each kernel a sparsity of its own, so that all together have the one asked for.

    ::

        layers = ep.allocate_sparsity(model, data, sparsity=0.9)
        pruning = ep.MagnitudePruning(ep.PolynomialDecay(final_sparsity=0.9), layers=layers)

    Each kernel alone is pruned further and further, and how far the outputs diverge is measured.
    Then weights are taken where the next ones cost least, as long as any are to go.

    Args:
      model: trained: a .keras or .h5 file of Keras 3 or tf_keras, or such a model. Its weights are
        afterwards as they were, to the bit.
      data: samples to measure on; targets are not needed. See `edgeprune.data.load_samples`.
      sparsity: fraction of the weights of all kernels in scope that are to be zero, in [0, 1).
      max_sparsity: that no kernel exceeds; None lets each keep at least a fifth of the fraction
        that all keep.
      skip, only, include_embeddings, include_depthwise: as in `MagnitudePruning`, which must be
        given the same.
      samples: as many are used, evenly spaced.
      unsafe: load a .keras file that carries Python code.
      progress: called with (stage, fraction done, note).

    Returns:
      Sparsity by kernel name, for `layers` of `MagnitudePruning`. The zeros are as many as asked
      for, to within one a kernel, where the pattern is `Unstructured`.

    Raises:
      InputError: a sparsity is out of range, nothing is in scope, weights are NaN, or data are
        missing or do not fit.

    Source: the lower convex hull of each kernel's costs, and the steepest descent over all of
    them, are the allocation of bits among quantizers by Shoham & Gersho 1988
    (doi:10.1109/29.90373).
    """
    check_sparsity("sparsity", sparsity)
    most = 1 - (1 - sparsity) * _LEAST_KEPT if max_sparsity is None else max_sparsity
    check_sparsity("max_sparsity", most)
    if most < sparsity:
        raise InputError(
            f"max_sparsity {most:g} is below sparsity {sparsity:g}, so all kernels together cannot "
            "reach it; raise max_sparsity or lower sparsity"
        )
    loaded = keras_model(model, unsafe)
    scope = Scope[float](
        verb="prune",
        skip=several(skip),
        only=several(only),
        include_embeddings=include_embeddings,
        include_depthwise=include_depthwise,
    )
    kernels = [kernel for kernel, _ in scope.select(loaded)]
    check_weights(kernels)
    trial = Trial.of(loaded, data, samples)
    levels = 1 - np.geomspace(1, 1 - most, _LEVELS)

    def pruned(kernel: Kernel, weights: Array) -> Iterator[Array]:
        for level in levels[1:]:
            yield Change("pruned", float(level)).apply(kernel, weights)

    before = trial.run()
    costs = judge_each(kernels, pruned, lambda: divergence(before, trial.run()), progress)
    sizes = [int(np.prod(kernel.variable.shape)) for kernel in kernels]
    shares = allocate(levels, np.array([[0.0, *own] for own in costs]), sizes, sparsity)
    return {kernel.name: share for kernel, share in zip(kernels, shares, strict=True)}


def divergence(before: Sequence[Array], after: Sequence[Array]) -> float:
    """Measure how far outputs have moved, so that the moves of several kernels roughly add up.

    Returns:
      Of one output of probabilities the mean Kullback-Leibler divergence, in nats; of others the
      squared output error.
    """
    first = before[0].astype(np.float64)
    classes = len(before) == 1 and first.ndim > 1 and first.shape[-1] > 1 and first.min() >= 0
    if classes and np.allclose(first.sum(-1), 1, atol=1e-3):
        want, got = (
            np.maximum(one.astype(np.float64), _NO_PROBABILITY) for one in (first, after[0])
        )
        return float(np.mean(np.sum(want * np.log(want / got), axis=-1)))
    return Yardstick(before, None).error(after) ** 2


def allocate(levels: Floats, costs: Floats, sizes: Sequence[int], sparsity: float) -> list[float]:
    """Choose each kernel's sparsity so that the costs are least and the total is as asked for.

    Args:
      levels: (l,) sparsities, ascending from 0.
      costs: (kernels, l) of each kernel at each level; where one is not finite, it is never taken
        before the others.
      sizes: weights of each kernel.
      sparsity: of all weights together, at most the last level.

    Returns:
      A sparsity a kernel, between 0 and the last level.
    """
    finite = costs[np.isfinite(costs)]
    worst = 10 * (1 + float(np.max(finite, initial=0.0)))
    # What was measured on few samples may fall again; more zeros are never taken to be better.
    rising = np.maximum.accumulate(np.where(np.isfinite(costs), costs, worst), axis=1)
    steps = [
        ((rising[row, end] - rising[row, start]) / ((levels[end] - levels[start]) * size), row, end)
        for row, size in enumerate(sizes)
        for start, end in _hull(levels, rising[row])
    ]
    chosen = [0.0] * len(sizes)
    left = sparsity * sum(sizes)
    # Along a hull the slopes rise, so each kernel's steps come in their order.
    for _, row, end in sorted(steps):
        taken = min(float(levels[end]) - chosen[row], left / sizes[row])
        chosen[row] += taken
        left = max(0.0, left - taken * sizes[row])
    return chosen


def _hull(levels: Floats, costs: Floats) -> list[tuple[int, int]]:
    """Return the edges of the lower convex hull of costs over levels, as pairs of indices."""
    corners: list[int] = []
    for end in range(len(levels)):
        while len(corners) > 1:
            first, middle = corners[-2:]
            before = (costs[middle] - costs[first]) * (levels[end] - levels[first])
            if before < (costs[end] - costs[first]) * (levels[middle] - levels[first]):
                break
            corners.pop()
        corners.append(end)
    return list(pairwise(corners))
