"""LayerDrop: train a model with its layers dropped at random, so that they can leave later."""

from collections.abc import Sequence
from typing import Any

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.rebuild import rebuild
from edgeprune.structure.graph import check_model
from edgeprune.structure.residual import Granularity, find_blocks

keras: Any = models.import_keras()


@keras.saving.register_keras_serializable(package="edgeprune")
class LayerDrop(keras.layers.Layer):  # type: ignore[misc]  # keras has no types
    """Drops a whole block at random in training: passes on what the block was given instead.

    It is called on (what the block returned, what it was given). In each training step one
    number is drawn for the whole batch; with probability `rate` the block's input takes the place
    of its output, and no gradient reaches the block. For a residual branch this multiplies the
    branch by a gate that is 0 or 1. Nothing is rescaled, in training or after, as in the paper.
    In inference the block's output passes unchanged.

    Args:
      rate: probability of dropping the block, in [0, 1).
      seed: of its draws; None takes one from Keras's global seed.

    Source: Fan, Grave & Joulin 2020, Reducing Transformer Depth on Demand with Structured
    Dropout, arXiv:1909.11556.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise InputError(f"rate={rate} is outside [0, 1); it is a probability, 0.2 for a fifth")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        self.built = True

    def call(self, returned: Any, given: Any, training: bool = False) -> Any:
        """Return one of the two tensors, both of the same shape."""
        if not training or self.rate == 0:
            return returned
        draw = keras.random.uniform((), dtype="float32", seed=self.seed_generator)
        # Chosen, not multiplied: zero times an overflow would be NaN.
        return keras.ops.where(draw >= self.rate, returned, given)

    def compute_output_shape(self, returned_shape: Any, given_shape: Any) -> Any:
        return returned_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def layer_drop(
    model: Any,
    rate: float = 0.2,
    *,
    granularity: Granularity = "block",
    seed: int | None = None,
    skip: Sequence[str] = (),
) -> Any:
    """Return a model that trains `model` with its blocks dropped at random.

    The two share their layers and weights: compile and fit the model that this returns, and
    `model` is trained, and stays plain. `prune_layers` then takes from it what it can do without::

        training = edgeprune.layer_drop(model, rate=0.2)
        training.compile("adam", "sparse_categorical_crossentropy")
        training.fit(x, y, epochs=10)
        smaller = edgeprune.prune_layers(model, pruning_ratio=0.5)

    A dropped block is still computed, so a step takes as long as before, and BatchNormalization
    layers inside go on counting. A saved training model loads with `edgeprune.load_model`, or with
    Keras once `edgeprune.structure.layerdrop` is imported; `edgeprune.strip` makes it plain.

    Args:
      model: a built Keras 3 Functional or Sequential model, nested models included.
      rate: probability of dropping each block in each step, in [0, 1). Fan et al. train with
        0.2, and with 0.5 for very small models.
      granularity: ``block``: encoder layers whole; ``branch``: each residual branch by itself.
      seed: makes the draws the same in every run; None takes them from Keras's global seed.
      skip: blocks that are never dropped: names, paths or patterns of blocks or layers in them.

    Returns:
      A model with a `LayerDrop` layer behind each block, not compiled.

    Raises:
      InputError: a bad argument, or a model without blocks that can leave.
      UnsupportedError: a subclassed or tf_keras model.

    Source: Fan, Grave & Joulin 2020, arXiv:1909.11556.
    """
    check_plain(model)
    blocks = find_blocks(model, granularity)
    skipped = blocks.named(skip, "skip")
    dropped = [block for index, block in enumerate(blocks.found) if index not in skipped]
    if not dropped:
        more = blocks.refused[0] if blocks.refused else None
        raise InputError(
            f"model '{model.name}' has no block that can be dropped"
            + (f" ('{more.layer}': {more.reason})" if more and not skip else "")
        )
    taken = {layer.name for _, layer in models.layers(model)}
    bypass = {}
    for number, block in enumerate(dropped):
        name = f"{block.exit.operation.name}_drop"
        while name in taken:
            name += "_"
        taken.add(name)
        own = None if seed is None else seed + number
        gate = LayerDrop(rate, own, name=name, dtype=block.entry.dtype)
        bypass[id(block.exit)] = (block.entry, gate)
    # A frozen nested model freezes what is put into its copy, which here is the model's own.
    flags = [(layer, layer.trainable) for _, layer in models.layers(model)]
    training = rebuild(model, lambda layer: layer, bypass=bypass)
    for layer, flag in flags:
        if layer.trainable != flag:
            layer.trainable = flag
    return training


def check_plain(model: Any) -> None:
    """Refuse a model of `layer_drop`: its gates read what goes around the blocks.

    Raises:
      InputError: it is one, or has no weights yet.
      UnsupportedError: a subclassed or tf_keras model.
    """
    check_model(model)
    if any(isinstance(layer, LayerDrop) for _, layer in models.layers(model)):
        raise InputError(
            f"model '{model.name}' holds LayerDrop layers, which only training needs; give the "
            "model that layer_drop was given, or edgeprune.strip(model)"
        )
