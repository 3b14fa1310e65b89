"""How well a model does without some of its blocks, without building a model for each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeprune import models
from edgeprune.errors import ArgumentError, InputError
from edgeprune.modelfiles import first_line
from edgeprune.rebuild import duplicate
from edgeprune.structure.blocks import Block
from edgeprune.structure.evidence import Evidence

keras: Any = models.import_keras()


def by_loss(
    model: Any,
    blocks: Sequence[Block],
    count: int,
    data: Any,
    batches: int,
    batch_size: int,
    greedy: bool,
) -> tuple[list[int], list[float]]:
    """Choose the blocks without which the loss is lowest.

    One copy of the model has a switch behind every block, so that it is traced once.

    Args:
      model: the model; it is not changed.
      blocks: of the model, those that may leave.
      count: how many are chosen.
      data: what `Evidence` takes.
      batches: how many batches of it.
      batch_size: samples a batch.
      greedy: choose one at a time, and weigh the others again without it.

    Returns:
      Positions of the chosen blocks, in the order in which they were chosen, and the loss without
      each block: without it alone, or with `greedy` without those chosen before it too.

    Raises:
      InputError: there are no data, or no finite loss on them.
    """
    if data is None:
        raise ArgumentError(
            "`criterion='loss'` needs `data`, x and y; give them, or take one that needs none: "
            "position, last, magnitude"
        )
    evidence = Evidence(model, data, batches, batch_size)
    if next(iter(evidence))[1] is None:
        raise InputError(
            "`criterion='loss'` needs targets, and the data have none: give `data` with y"
        )
    trial = _Trial(model, blocks, evidence)
    scores = [trial.loss({index}) for index in range(len(blocks))]
    if not greedy:
        return sorted(range(len(blocks)), key=lambda index: (scores[index], index))[:count], scores
    chosen: list[int] = []
    while len(chosen) < count:
        left = [index for index in range(len(blocks)) if index not in chosen]
        if chosen:
            for index in left:
                scores[index] = trial.loss({*chosen, index})
        chosen.append(min(left, key=lambda index: (scores[index], index)))
    return chosen, scores


class _Switch(keras.layers.Layer):  # type: ignore[misc]  # keras has no types
    """Passes on its first input, or the second while it is off."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.on = self.add_weight(shape=(), initializer="ones", dtype="bool", trainable=False)

    def call(self, made: Any, passed: Any) -> Any:
        return keras.ops.where(self.on, made, passed)


class _Trial:
    """A copy of a model in which each block can be switched off."""

    def __init__(self, model: Any, blocks: Sequence[Block], evidence: Evidence) -> None:
        import tensorflow as tf

        self._model = model
        self._switches = [_Switch(dtype=block.entry.dtype) for block in blocks]
        bypass = {
            id(block.exit): (block.entry, switch)
            for block, switch in zip(blocks, self._switches, strict=True)
        }
        trial = duplicate(model, bypass=bypass)
        loss_of = evidence.loss()
        self._batches = list(evidence)
        form = getattr(model, "_functional", model)._inputs_struct

        def step(x: Any, y: Any) -> Any:
            return loss_of(y, trial(keras.tree.pack_sequence_as(form, x), training=False))

        self._step = tf.function(step, reduce_retracing=True)

    def loss(self, without: set[int]) -> float:
        """Return the mean loss of a sample without some of the blocks."""
        import tensorflow as tf

        for index, switch in enumerate(self._switches):
            switch.on.assign(index not in without)
        sizes = [len(x[0]) for x, _ in self._batches]
        try:
            losses = [float(self._step(x, y)) for x, y in self._batches]
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise InputError(
                f"model '{self._model.name}' cannot be run on the data: {first_line(error)}; check "
                "that inputs, targets and loss belong together"
            ) from error
        value = float(np.average(losses, weights=sizes))
        if not np.isfinite(value):
            raise InputError(
                f"the loss of model '{self._model.name}' on the data is {value}; check the data, "
                "the targets and the loss"
            )
        return value
