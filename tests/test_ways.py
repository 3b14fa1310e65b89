"""The ways to a pruned model: their epochs, rates, seeds and initial weights."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.data import Dataset
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.recipe import StructureSpec, TrainingSpec
from edgeprune.ways import (
    Leg,
    Trainer,
    check_structure,
    legs,
    own_seeds,
    plan_share,
    renewed,
    scratch_epochs,
)


def spec(**given):
    return StructureSpec(target_macs=0.5, **given)


def test_fine_tuning_is_shared_out_over_the_rounds():
    assert legs("fine-tune", spec(rounds=1, epochs=10)) == [Leg(1.0, 0, 10)]
    assert legs("fine-tune", spec(rounds=3, epochs=10)) == [
        Leg(1 / 3, 0, 3),
        Leg(2 / 3, 3, 6),
        Leg(1.0, 6, 10),
    ]


def test_pruning_during_training_takes_the_dense_epochs_and_begins_whole():
    assert legs("during", spec(rounds=4, dense_epochs=30)) == [
        Leg(0.0, 0, 6),
        Leg(0.25, 6, 12),
        Leg(0.5, 12, 18),
        Leg(0.75, 18, 24),
        Leg(1.0, 24, 30),
    ]


def test_scratch_e_takes_the_dense_epochs():
    assert legs("scratch-e", spec(dense_epochs=30)) == [Leg(1.0, 0, 30)]


@given(st.sampled_from(["fine-tune", "during"]), st.integers(1, 9), st.integers(0, 50))
def test_legs_follow_each_other_and_train_after_every_round(way, rounds, more):
    parts = legs(way, spec(rounds=rounds, epochs=rounds + more, dense_epochs=rounds + 1 + more))
    total = rounds + more + (way == "during")
    assert [part.begin for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert parts[-1].end == total
    assert all(part.end > part.begin for part in parts)
    assert parts[-1].share == 1
    lengths = [part.end - part.begin for part in parts]
    assert max(lengths) - min(lengths) <= 1
    shares = [part.share for part in parts]
    assert shares == pytest.approx(
        [number / rounds for number in range(way == "fine-tune", rounds + 1)]
    )


@pytest.mark.parametrize(
    ("dense", "before", "after", "expected"),
    [
        (30, 1000, 400, 75),  # 2.5 times fewer MACs, 2.5 times the epochs
        (4, 673_088, 253_680, 11),  # 10.61
        (30, 1000, 1000, 30),
        (7, 1000, 990, 7),  # 7.07
        (30, 1000, 1200, 30),  # never fewer
    ],
)
def test_scratch_b_spends_the_same_compute(dense, before, after, expected):
    assert scratch_epochs(dense, before, after) == expected


SAMPLES, BATCH = 32, 8  # four steps an epoch
ONES = Dataset(*(np.ones((SAMPLES, 1), "float32") for _ in range(4)), "the same")


def descent(rate, parts, *, tuning=False, **given):
    """How far the weight of y = w x falls while its loss is y at x = 1: the sum of all rates."""
    import keras

    def mean(targets, outputs):
        return keras.ops.mean(outputs)

    like = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    like.compile(keras.optimizers.SGD(rate), mean)
    model = renewed(like, 0)
    before = model.get_weights()[0].item()
    trainer = Trainer(like, ONES, spec(**given), TrainingSpec(batch_size=BATCH), None)
    for part in parts:
        trainer.train(model, part, parts[-1].end, "test", tuning=tuning)
    return before - model.get_weights()[0].item()


def test_a_constant_rate_stays_or_is_replaced():
    assert descent(0.01, [Leg(1, 0, 2)]) == pytest.approx(8 * 0.01, abs=1e-5)
    for tuning, rate in ((True, 0.1), (False, 0.01)):
        fallen = descent(0.01, [Leg(1, 0, 2)], tuning=tuning, learning_rate=0.1)
        assert fallen == pytest.approx(8 * rate, abs=1e-5)


@pytest.mark.parametrize("parts", [[Leg(1, 0, 3)], [Leg(0.5, 0, 1), Leg(1, 1, 3)]])
def test_a_cosine_falls_over_all_legs_together(parts):
    expected = sum(0.1 * 0.5 * (1 + math.cos(math.pi * step / 12)) for step in range(12))
    assert descent(0.1, parts, decay="cosine") == pytest.approx(expected, abs=1e-5)


def test_a_cosine_begins_again_with_each_round_of_fine_tuning():
    def cosine(steps):
        return sum(0.1 * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps))

    parts = [Leg(0.5, 0, 1), Leg(1, 1, 3)]
    fallen = descent(0.1, parts, tuning=True, decay="cosine")
    assert fallen == pytest.approx(cosine(4) + cosine(8), abs=1e-5)


def test_a_compiled_schedule_is_stretched_to_the_training():
    import keras

    # 0.1 up to and with step 4, then 0.01; made for 2 epochs of 4 steps.
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.1, 0.01])
    dense = descent(schedule, [Leg(0, 0, 2)], dense_epochs=2)
    assert dense == pytest.approx(5 * 0.1 + 3 * 0.01, abs=1e-5)
    # Over 4 epochs every step counts half: up to and with step 8.
    longer = descent(schedule, [Leg(1, 0, 4)], dense_epochs=2)
    assert longer == pytest.approx(9 * 0.1 + 7 * 0.01, abs=1e-5)
    legs_apart = descent(schedule, [Leg(0.5, 0, 3), Leg(1, 3, 4)], dense_epochs=2)
    assert legs_apart == pytest.approx(longer, abs=1e-5)
    replaced = descent(schedule, [Leg(1, 0, 4)], tuning=True, dense_epochs=2, learning_rate=0.05)
    assert replaced == pytest.approx(16 * 0.05, abs=1e-5)


def test_a_cosine_begins_at_a_schedules_first_rate():
    import keras

    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.1, 0.01])
    expected = sum(0.1 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8))
    assert descent(schedule, [Leg(0, 0, 2)], decay="cosine") == pytest.approx(expected, abs=1e-5)


def small_model():
    import keras

    layers = keras.layers
    scaled = layers.Normalization(name="scaled")
    scaled.adapt(np.arange(60, dtype="float32").reshape(10, 6))
    model = keras.Sequential(
        [
            keras.Input((6,)),
            scaled,
            layers.Dense(16, name="hidden"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Dense(16, name="frozen", trainable=False),
            layers.Dense(2, name="logits"),
        ]
    )
    keras.utils.set_random_seed(9)
    for layer in model.layers[2:]:
        layer.set_weights([np.random.normal(size=w.shape) ** 2 for w in layer.get_weights()])
    return model


def values(model, layer):
    return [np.asarray(weight) for weight in model.get_layer(layer).weights]


def same(one, other, layer):
    return all(map(np.array_equal, values(one, layer), values(other, layer)))


def test_new_initial_weights_follow_the_seed():
    model = small_model()
    one, again, other = renewed(model, 1), renewed(model, 1), renewed(model, 2)
    for layer in ("hidden", "logits"):
        assert same(one, again, layer)
        assert not same(one, other, layer)
        assert not same(one, model, layer)
    gamma, beta, mean, variance = values(one, "norm")
    assert (gamma == 1).all()
    assert (variance == 1).all()
    assert not beta.any()
    assert not mean.any()


def test_what_no_training_gives_back_is_kept():
    model = small_model()
    new = renewed(model, 1)
    assert same(model, new, "scaled")
    assert values(new, "scaled")[0].any()
    assert same(model, new, "frozen")
    assert not new.get_layer("frozen").trainable


def test_initializers_with_seeds_of_their_own_are_named():
    import keras

    held = keras.initializers.HeNormal(seed=3)
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="held", kernel_initializer=held)], name="inner"
    )
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="drawn"), inner, layers.BatchNormalization()]
    )
    assert own_seeds(model) == ["inner/held"]


def test_planning_leaves_the_users_model_as_it_is():
    import keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(32), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    optimizer = model.optimizer
    # 6 x 32 + 32 x 2 = 256 MACs; 16 channels are half of them.
    plan = plan_share(model, model, model, spec(), 1.0, None, 0)
    assert (plan.macs_before, plan.macs_after) == (256, 128)
    assert model.optimizer is optimizer
    assert model.count_params() == 6 * 32 + 32 + 32 * 2 + 2


def test_rounds_end_at_the_budget_of_the_original():
    import keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(64), keras.layers.Dense(2)])
    sizes = []
    smaller = model
    for share in (0.25, 0.5, 0.75, 1.0):
        plan = plan_share(model, smaller, model, StructureSpec(pruning_ratio=0.5), share, None, 0)
        smaller = plan.apply()
        sizes.append(smaller.layers[0].units)
    assert sizes == [56, 48, 40, 32]


def test_no_group_is_emptied_to_come_nearer_to_a_target():
    import keras

    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    stem = layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
    x = layers.Conv2D(32, 3, padding="same", name="expand")(stem)
    x = layers.Add()([stem, layers.Conv2D(16, 3, padding="same", name="project")(x)])
    # Few MACs are here, so that cutting it does little harm to the count, and much to the model.
    x = layers.Conv2D(32, 3, strides=2, padding="same", name="down")(x)
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    asked = StructureSpec(target_macs=0.4, round_to=4)
    first = plan_share(model, model, model, asked, 0.5, None, 0)
    second = plan_share(model, first.apply(), model, asked, 1.0, None, 0)
    sizes = (16, 32, 32)
    for plan in (first, second):
        lost = [
            1 - group.channels_after / size for size, group in zip(sizes, plan.groups, strict=False)
        ]
        # One step of the smallest group is a quarter of it.
        assert max(lost) - min(lost) <= 0.25
    assert 0.36 < second.macs_after / first.macs_before <= 0.4


def test_models_that_cannot_be_pruned_are_refused_before_any_work():
    import keras
    import tf_keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, name="logits")])
    check_structure(model, spec())
    with pytest.raises(InputError, match="skip='conv'` matches no layer"):
        check_structure(model, spec(skip=("conv",)))
    free = keras.Sequential([keras.Input((None, 3)), keras.layers.Conv1D(8, 3)])
    check_structure(free, StructureSpec(pruning_ratio=0.5))
    with pytest.raises(UnsupportedError, match=r"counted in MACs, but .*free dimension"):
        check_structure(free, StructureSpec(pruning_ratio=0.5, way="scratch-b"))
    legacy = tf_keras.Sequential([tf_keras.layers.Input((6,)), tf_keras.layers.Dense(2)])
    with pytest.raises(UnsupportedError, match="is a tf_keras model"):
        check_structure(legacy, spec())
