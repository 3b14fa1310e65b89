"""The ways to a structurally pruned model: how it is trained before, between and after pruning."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from edgeprune.data import Dataset
from edgeprune.errors import UnsupportedError
from edgeprune.keras_macs import keras_macs
from edgeprune.models import import_keras, layers, remade
from edgeprune.recipe import BUDGETS, StructureSpec, TrainingSpec, Way
from edgeprune.structure.plan import PruningPlan, plan, plan_channels
from edgeprune.structure.pruning import compile_as
from edgeprune.structure.request import PruningRequest
from edgeprune.training import LEARNING_RATE, Progress, compile_like, fit

keras: Any = import_keras()


@dataclass(frozen=True)
class Leg:
    """Part of a training: channels leave, then it goes on for some epochs.

    Attributes:
      share: how far on its way to the budget the model is during this leg, in [0, 1].
      begin: epochs trained before it, over all legs of the training.
      end: epochs trained after it.
    """

    share: float
    begin: int
    end: int


def legs(way: Way, spec: StructureSpec) -> list[Leg]:
    """Divide a way's training, from where it starts, into its legs.

    ``fine-tune`` prunes before each of its `rounds` legs. ``during`` has one leg more: it trains
    the whole model first. The legs are of equal length, as far as whole epochs can be. Ways from
    scratch have one leg, of an architecture that is pruned already; `scratch_epochs` says how
    long ``scratch-b`` takes.
    """
    if way == "fine-tune":
        ends = [number * spec.epochs // spec.rounds for number in range(spec.rounds + 1)]
        first = 1
    elif way == "during":
        parts = spec.rounds + 1
        ends = [number * spec.dense_epochs // parts for number in range(parts + 1)]
        first = 0
    else:
        return [Leg(1.0, 0, spec.dense_epochs)]
    return [
        Leg((number + first) / spec.rounds, begin, end)
        for number, (begin, end) in enumerate(pairwise(ends))
    ]


def scratch_epochs(dense_epochs: int, macs_before: int, macs_after: int) -> int:
    """Return how many epochs of the smaller model cost what `dense_epochs` of the larger do.

    To the nearest whole epoch, and never fewer than `dense_epochs`.

    Source: Liu et al. 2019, scratch-B, arXiv:1810.05270.
    """
    return max(dense_epochs, round(dense_epochs * macs_before / macs_after))


def macs_of(model: Any) -> int:
    """Return a model's multiply-accumulates.

    Raises:
      UnsupportedError: they cannot be known.
    """
    macs = keras_macs(model)
    if macs.total is None:
        raise UnsupportedError(f"training budgets are counted in MACs, but {macs.reason}")
    return macs.total


def check_structure(model: Any, spec: StructureSpec) -> None:
    """Refuse, before any training, a model or names of layers that pruning would refuse.

    Raises:
      InputError: `skip` names no layer, or the model has no weights yet.
      UnsupportedError: a subclassed or tf_keras model, or one whose MACs are needed and unknown.
    """
    plan_channels(model, pruning_ratio=0.0, criterion="random", skip=spec.skip)
    if spec.target_macs is not None or spec.way == "scratch-b":
        macs_of(model)


def plan_share(
    original: Any,
    model: Any,
    like: Any,
    spec: StructureSpec,
    share: float,
    data: Dataset | None,
    seed: int,
) -> PruningPlan:
    """Plan what leaves `model` to bring it a share of the way to the budget of `original`.

    Args:
      original: the model that budgets are fractions of.
      model: what is left of it; it is compiled as `like` is, for criteria that look at the loss.
      like: the user's model.
      spec: budget, criterion and limits.
      share: of the way, in (0, 1].
      data: for criteria that look at some.
      seed: of the criterion ``random``.
    """
    if model is not like:
        compile_as(model, like)
    first = None
    if model is not original:
        first = plan_channels(original, pruning_ratio=0.0, criterion="random")
    request = PruningRequest(
        **{name: getattr(spec, name) for name in BUDGETS},
        criterion=spec.criterion,
        ranking=spec.ranking,
        data=data,
        round_to=spec.round_to,
        min_channels=spec.min_channels,
        max_ratio=spec.max_ratio,
        skip=spec.skip,
        seed=seed,
    )
    return plan(model, request, first, share)


def renewed(model: Any, seed: int) -> Any:
    """Return the same architecture with new initial weights.

    Layers that are not trainable, and those that were adapted to data (Normalization), keep what
    they hold: no training would give it back to them.

    Args:
      model: a Keras 3 model.
      seed: of the initial weights. An initializer that has a seed of its own in the model's
        config gives the same weights for every seed.
    """
    keras.utils.set_random_seed(seed)
    new = remade(model)
    for (_, old), (_, fresh) in zip(layers(model), layers(new), strict=True):
        if hasattr(old, "adapt") or (old.weights and not old.trainable):
            fresh.set_weights(old.get_weights())
    return new


def own_seeds(model: Any) -> list[str]:
    """Name the layers whose initial weights no seed changes."""
    one, two = (dict(layers(renewed(model, seed))) for seed in (0, 1))
    held = []
    for path, layer in one.items():
        first, second = layer.trainable_weights, two[path].trainable_weights
        drawn = [np.asarray(values) for values in first if np.asarray(values).std() > 0]
        same = all(map(np.array_equal, map(np.asarray, first), map(np.asarray, second)))
        if drawn and same and not list(layers(layer)):
            held.append(path)
    return held


class Trainer:
    """Trains models as the user's own would be: its loss and optimizer, one data set, one seed."""

    def __init__(
        self,
        like: Any,
        data: Dataset,
        spec: StructureSpec,
        training: TrainingSpec,
        progress: Progress | None,
    ) -> None:
        """Take what every training shares.

        Args:
          like: the user's model.
          data: to train on.
          spec: how rates decay.
          training: batch size, rate and seed.
          progress: as `fit` calls it.
        """
        self.data = data
        self._like = like
        self._spec = spec
        self._training = training
        self._progress = progress

    def train(self, model: Any, leg: Leg, epochs: int, stage: str, tuning: bool = False) -> None:
        """Train a model in place for one leg of a training; it is compiled anew.

        Args:
          model: to be trained.
          leg: which part of the training.
          epochs: of the whole training.
          stage: what to call it to `progress`.
          tuning: it is fine-tuned, at that rate. Each leg then is a training of its own to the
            rate's decay: a network from which channels were cut has to move again
            (Renda et al. 2020, learning rate rewinding, arXiv:2003.02389).
        """
        if leg.begin == leg.end:
            return
        rate = self._spec.learning_rate if tuning else None
        rate = self._training.learning_rate if rate is None else rate
        steps = -(-len(self.data.y) // self._training.batch_size)
        begin, span = (0, leg.end - leg.begin) if tuning else (leg.begin, epochs)
        schedule = _learning_rate(self._like, rate, self._spec, begin, span, steps)
        compile_like(model, self._like, self.data, schedule)
        # Every leg shuffles in an order of its own.
        seed = int(np.random.SeedSequence([self._training.seed, leg.begin]).generate_state(1)[0])
        training = replace(self._training, seed=seed)
        fit(model, self.data, leg.end - leg.begin, training, [], stage, self._progress)


def _learning_rate(
    like: Any, rate: float | None, spec: StructureSpec, begin: int, epochs: int, steps: int
) -> Any:
    """Return the rate of a training from epoch `begin` on: a number, a schedule, or None as is."""
    compiled: Any = None
    if rate is None and getattr(like, "optimizer", None) is not None:
        optimizer = getattr(like.optimizer, "inner_optimizer", like.optimizer)
        compiled = optimizer.get_config()["learning_rate"]
    scheduled = isinstance(compiled, dict)
    if scheduled:
        compiled = keras.optimizers.schedules.deserialize(compiled)
    if spec.decay == "cosine":
        top = rate or (float(compiled(0)) if scheduled else compiled) or LEARNING_RATE
        cosine = keras.optimizers.schedules.CosineDecay(top, epochs * steps)
        return _Part(cosine, begin * steps, 1.0)
    return _Part(compiled, begin * steps, spec.dense_epochs / epochs) if scheduled else rate


class _Part(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # untyped
    """A schedule from some step on, stretched in time."""

    def __init__(self, schedule: Any, begin: int, speed: float) -> None:
        super().__init__()
        self._schedule = schedule
        self._begin = begin
        self._speed = speed

    def __call__(self, step: Any) -> Any:
        step = keras.ops.cast(step, "float32")
        return self._schedule((self._begin + step) * self._speed)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self._schedule, "begin": self._begin, "speed": self._speed}
