"""The two callbacks: one makes zeros during training, one keeps those there are."""

import bisect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.sparsity.holding import MaskingCallback
from edgeprune.sparsity.masks import HeldMasks
from edgeprune.sparsity.patterns import Mask, Pattern, Unstructured
from edgeprune.sparsity.saliency import Ranked, Ranking, choose_masks
from edgeprune.sparsity.schedules import Schedule, check_sparsity
from edgeprune.steps.scope import Scope, Selector, several


@dataclass(frozen=True)
class KernelSparsity:
    """How sparse a kernel became, and was to become.

    Attributes:
      name: the kernel's.
      size: its weights.
      zeros: those that are zero, counted in the kernel itself.
      target: the sparsity asked for; None where kernels are ranked together.
      reached: False where the kernel cannot be that sparse, as one of a single weight.
    """

    name: str
    size: int
    zeros: int
    target: float | None
    reached: bool


class MagnitudePruning(MaskingCallback):
    """Prunes the weights of least magnitude during `fit`, step by step, and holds the zeros.

    Works with Keras 3 (on TensorFlow) and tf_keras, any optimizer and data, without wrapping or
    changing the model: what is saved at any moment loads without edgeprune. In `fit` the model
    need not be built. Each epoch's logs get `sparsity`, the fraction of zeros over the kernels in
    scope, which History, CSVLogger and TensorBoard show (the last needs the package tensorboard,
    which TensorFlow no longer brings).

    In `fit`::

        pruning = MagnitudePruning(PolynomialDecay(final_sparsity=0.8))
        model.fit(data, epochs=10, callbacks=[pruning])

    In a custom loop::

        pruning.start(model, optimizer, total_steps=len(data) * epochs)
        for batch in data.repeat(epochs):
            train_step(batch)
            pruning.step()
        pruning.finish()

    A weight once pruned stays zero while the sparsity rises. A killed run that goes on from a
    checkpoint of weights and optimizer (`BackupAndRestore`) chooses the same masks as one that
    was not.

    The order of callbacks does not matter. Where one sets weights at the end of training, as
    ``EarlyStopping(restore_best_weights=True)`` does, the zeros are made again after it, and a
    warning tells when the weights come from before the target was reached. Its `start_from_epoch`
    keeps it from choosing those. (A `History` of your own must be listed after such a callback.)

    Args:
      schedule: the sparsity at each step: `PolynomialDecay` or `ConstantSparsity`.
      pattern: `Unstructured()`, `Block(rows, cols)` or `NM(keep, of)`.
      ranking: ``layer``: each kernel gets the schedule's sparsity; ``global``: all kernels
        together do, and the largest weights stay wherever they are.
      skip: what not to prune: names (of a kernel, layer or path such as ``encoder/conv1``, with
        ``*`` and ``?``), layer class names, or layer classes. Nested layers are included.
      only: likewise, all that is pruned. `skip` wins.
      layers: targets of their own: {name, class name or class: sparsity}; the first match counts.
        These kernels are ranked each by itself.
      include_embeddings: also prune Embedding tables.
      include_depthwise: also prune depthwise kernels.
      allow_partial: accept a schedule that goes on after this fit (or ended before it), as where
        one schedule spans several fits.

    Attributes:
      report: after training, a `KernelSparsity` for each kernel in scope.

    Raises:
      InputError: an argument is out of range or matches nothing; and before the first step, where
        the schedule would never begin, end after this fit, or jump far ahead at once.

    Source: Zhu & Gupta 2017, arXiv:1710.01878.
    """

    def __init__(
        self,
        schedule: Schedule,
        pattern: Pattern | None = None,
        ranking: Ranking = "layer",
        skip: Selector | Sequence[Selector] = (),
        only: Selector | Sequence[Selector] = (),
        layers: Mapping[Selector, float] | None = None,
        include_embeddings: bool = False,
        include_depthwise: bool = False,
        allow_partial: bool = False,
    ) -> None:
        super().__init__()
        if not hasattr(schedule, "last_due"):
            raise InputError(
                f"schedule is {schedule!r}; give a schedule such as "
                "PolynomialDecay(final_sparsity=0.8) or ConstantSparsity(0.8)"
            )
        if ranking not in get_args(Ranking):
            raise InputError(f"ranking is 'layer' or 'global'; got {ranking!r}")
        self.schedule = schedule
        self.pattern: Pattern = Unstructured() if pattern is None else pattern
        if ranking == "global" and not hasattr(self.pattern, "units"):
            raise InputError(
                f"{self.pattern} fixes the sparsity of every kernel, so there is nothing to rank "
                "globally; use ranking='layer'"
            )
        self.ranking = ranking
        self.allow_partial = allow_partial
        self.report: tuple[KernelSparsity, ...] = ()
        targets = tuple((layers or {}).items())
        self.pattern.check(schedule.target)
        for selector, target in targets:
            check_sparsity(f"layers[{selector!r}]", target)
            if target > 0:
                self.pattern.check(target)
        self._scope = Scope(
            verb="prune",
            skip=several(skip),
            only=several(only),
            layers=targets,
            include_embeddings=include_embeddings,
            include_depthwise=include_depthwise,
        )
        self._schedule = schedule
        self._own: list[float | None] = []
        self._first_step = 0
        self._total_steps: int | None = None

    def _begin(self, model: Any, done_steps: int, total_steps: int | None) -> HeldMasks:
        chosen = self._scope.select(model)
        first_step = max(0, self._step - done_steps)
        self._first_step, self._total_steps = first_step, total_steps
        self._schedule = self.schedule.resolve(first_step, total_steps)
        self._own = [own for _, own in chosen]
        if total_steps is not None and not self.allow_partial:
            self._check_reach(first_step + total_steps)
        masks = HeldMasks(
            [kernel for kernel, _ in chosen], self._optimizer, model.distribute_strategy
        )
        due = self._schedule.last_due(self._step)
        if due is not None:
            values = self._choose(masks, due)
            self._check_jump(masks, values, due)
            masks.set(values)
        return masks

    def _advance(self, masks: HeldMasks, previous_step: int, step: int) -> None:
        if self._schedule.is_due(previous_step, step):
            due = self._schedule.last_due(step)
            if due is not None:
                masks.set(self._choose(masks, due))

    def _end(self, masks: HeldMasks) -> None:
        self.report = tuple(
            KernelSparsity(
                name=kernel.name,
                size=weights.size,
                zeros=(zeros := int(np.count_nonzero(weights == 0))),
                target=(target := self._target(own)),
                # Half a weight: the rounding of an exact count.
                reached=target is None or zeros >= target * weights.size - 0.5,
            )
            for kernel, weights, own in zip(masks.kernels, masks.weights(), self._own, strict=True)
        )
        if not self._is_full(self._step):
            if not self.allow_partial:
                sparsity = sum(kernel.zeros for kernel in self.report) / masks.size
                epoch = self._first_full_epoch()
                advice = f"; if EarlyStopping ended it, give that start_from_epoch={epoch}"
                warnings.warn(
                    f"training ended at step {self._step}, before the schedule reached its target: "
                    f"sparsity is {sparsity:.4g}, not {self._schedule.target:g}"
                    f"{advice if epoch else ''}",
                    stacklevel=2,
                )
            return
        short = [kernel for kernel in self.report if not kernel.reached]
        if short:
            named = ", ".join(
                f"{kernel.name} ({kernel.zeros} zeros of {kernel.size})" for kernel in short[:8]
            )
            warnings.warn(
                f"{len(short)} kernels cannot be as sparse as asked for: {named}; see .report",
                stacklevel=2,
            )

    def _choose(self, masks: HeldMasks, step: int) -> list[Mask]:
        """Rank the weights as they are now, zeros included, for the sparsity of `step`."""
        ranked = [
            Ranked(
                weights,
                (self._schedule if own is None else self._schedule.with_target(own)).sparsity(step),
                kernel.output_axes,
            )
            for weights, own, kernel in zip(masks.weights(), self._own, masks.kernels, strict=True)
        ]
        values: dict[int, Mask] = {}
        together = [index for index, own in enumerate(self._own) if own is None]
        alone = [index for index, own in enumerate(self._own) if own is not None]
        for indices, ranking in ((together, self.ranking), (alone, "layer")):
            chosen = choose_masks([ranked[i] for i in indices], self.pattern, ranking)
            values.update(zip(indices, chosen, strict=True))
        return [values[index] for index in range(len(ranked))]

    def _target(self, own: float | None) -> float | None:
        if own is not None:
            return own
        return None if self.ranking == "global" else self._schedule.target

    def _is_full(self, step: int) -> bool:
        """Tell whether the masks of a step are those of the target."""
        due = self._schedule.last_due(step)
        return due is not None and self._schedule.sparsity(due) == self._schedule.target

    def _first_full_epoch(self) -> int | None:
        total, epochs = self._total_steps, (self.params or {}).get("epochs")
        if not total or not epochs:
            return None
        steps = bisect.bisect_left(
            range(total + 1), True, key=lambda done: self._is_full(self._first_step + done)
        )
        return None if steps > total else max(0, steps - 1) * epochs // total

    def _check_reach(self, last_step: int) -> None:
        due = self._schedule.last_due(last_step)
        if due is None:
            raise InputError(
                f"the schedule never begins: this fit ends at step {last_step}, before "
                f"{self._schedule}; train longer, begin earlier, leave begin_step and end_step "
                "out, or pass allow_partial=True"
            )
        if self._schedule.sparsity(due) != self._schedule.target:
            raise InputError(
                f"this fit ends at step {last_step} with a sparsity of "
                f"{self._schedule.sparsity(due):.4g}, short of the target "
                f"{self._schedule.target:g} of {self._schedule}; train longer, end earlier, "
                "leave begin_step and end_step out, or pass allow_partial=True"
            )

    def _check_jump(self, masks: HeldMasks, values: Sequence[Mask], due: int) -> None:
        """Refuse to prune a dense model at once because its optimizer has made steps before.

        A resumed model brings the zeros that the schedule expects; a model that was trained
        dense with the same optimizer does not.
        """
        initial = self._schedule.last_due(due - 1)
        if initial is None or self._schedule.sparsity(initial) == self._schedule.sparsity(due):
            return
        expected = sum(mask.size - int(np.count_nonzero(mask)) for mask in values)
        actual = sum(int(np.count_nonzero(weights == 0)) for weights in masks.weights())
        if actual < expected / 2:
            raise InputError(
                f"the optimizer has made {self._step} steps before this one, and {self._schedule} "
                f"expects a sparsity of {expected / masks.size:.4g} by now, but the model's is "
                f"{actual / masks.size:.4g}; steps count optimizer.iterations: compile the model "
                "anew to count from 0, or leave begin_step and end_step out"
            )


class PreserveSparsity(MaskingCallback):
    """Keeps every zero that the kernels have at the first step, to the end of training.

    For fine-tuning a pruned model, and for quantization-aware training that keeps its zeros
    (PQAT). Holds kernels of every kind, depthwise and embeddings too. Logs `sparsity`, over the
    kernels that it holds: those with zeros. `start`, `step` and `finish` serve a custom loop.
    """

    def _begin(self, model: Any, done_steps: int, total_steps: int | None) -> HeldMasks:
        trainable = {id(variable) for variable in model.trainable_variables}
        kernels = [
            kernel
            for kernel in models.kernels(model)
            if id(kernel.variable) in trainable and not np.all(kernel.variable.numpy())
        ]
        masks = HeldMasks(kernels, self._optimizer, model.distribute_strategy)
        masks.set([weights != 0 for weights in masks.weights()])
        if not kernels:
            warnings.warn(
                f"PreserveSparsity found no zeros in the kernels of model '{model.name}' that "
                "training may change: there is nothing to keep",
                stacklevel=2,
            )
        return masks
