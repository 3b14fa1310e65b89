import inspect

import numpy as np
import pytest
from structure.law import randomize

from edgeprune.errors import InputError, UnsupportedError
from edgeprune.keras_macs import keras_macs
from edgeprune.models import import_keras
from edgeprune.structure.plan import plan_channels
from edgeprune.structure.pruning import prune_channels

keras = import_keras()
layers = keras.layers


def build(policy=None):
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(32, 3, padding="same", name="first", dtype=policy)(inputs)
    x = layers.BatchNormalization(name="norm", dtype=policy)(x)
    x = layers.ReLU(name="relu", dtype=policy)(x)
    y = layers.Conv2D(32, 3, padding="same", name="second", dtype=policy, trainable=False)(x)
    x = layers.Add(name="add", dtype=policy)([x, y])
    x = layers.GlobalAveragePooling2D(name="pool", dtype=policy)(x)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x), name="small")
    randomize(model)
    return model


def data(n=32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8, 8, 3)).astype(np.float32), rng.integers(0, 4, n)


def shapes(model):
    return [tuple(weight.shape) for weight in model.weights]


def test_what_comes_out_is_a_plain_model(tmp_path):
    model = build("mixed_float16")
    smaller = prune_channels(model, pruning_ratio=0.5)
    assert type(smaller) is type(model)
    assert smaller.name == "small"
    assert not smaller.compiled
    for old, new in zip(model.layers, smaller.layers, strict=True):
        assert (type(new), new.name, new.trainable) == (type(old), old.name, old.trainable)
        assert new.dtype_policy.name == old.dtype_policy.name
    assert smaller.get_layer("first").filters == 16
    x, y = data()
    smaller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    smaller.fit(x, y, verbose=0)
    smaller.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), smaller.predict(x, verbose=0))


def test_it_equals_the_plan_applied():
    model = build()
    arguments = {"pruning_ratio": 0.5, "criterion": "l1", "skip": "second", "round_to": 4}
    plan = plan_channels(model, **arguments)
    for one, other in zip(
        prune_channels(model, **arguments).weights, plan.apply().weights, strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_compiled_model_gives_a_compiled_one():
    model = build()
    x, y = data()
    rate = keras.optimizers.schedules.CosineDecay(0.01, 100)
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        loss_weights=[2.0],
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="hits")],
        steps_per_execution=2,
    )
    model.fit(x, y, verbose=0)
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    smaller = prune_channels(model, pruning_ratio=0.5)
    optimizer = smaller.optimizer
    assert optimizer is not model.optimizer
    assert type(optimizer) is keras.optimizers.AdamW
    assert int(optimizer.iterations) == 0
    assert optimizer.weight_decay == 0.02
    assert optimizer.get_config()["learning_rate"] == model.optimizer.get_config()["learning_rate"]
    assert smaller.steps_per_execution == 2
    logits = smaller.predict(x, verbose=0)
    got = smaller.evaluate(x, y, verbose=0, return_dict=True)
    shifted = logits - logits.max(-1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(y)), y]
    assert got["loss"] == pytest.approx(2 * losses.mean(), rel=1e-4)
    assert got["hits"] == pytest.approx((logits.argmax(-1) == y).mean())
    # The original's metrics and optimizer are its own still.
    assert model.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(before)
    assert int(model.optimizer.iterations) == 1


def test_loss_scaling_is_wrapped_once():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build()
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        smaller = prune_channels(model, pruning_ratio=0.5)
    finally:
        keras.config.set_dtype_policy(policy)
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    assert type(smaller.optimizer).__name__ == "LossScaleOptimizer"
    assert type(smaller.optimizer.inner_optimizer).__name__ == "Adam"
    smaller.fit(*data(), verbose=0)


def test_metrics_that_cannot_be_made_again_are_left_out():
    class Own(keras.metrics.Mean):
        def __init__(self, needed):
            super().__init__(name="own")

    model = build()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=[Own(1)])
    with pytest.warns(UserWarning, match="metrics of model 'small' cannot be made again"):
        smaller = prune_channels(model, pruning_ratio=0.5)
    assert smaller.compiled


def test_a_model_that_cannot_be_compiled_again_is_left_uncompiled():
    class Own(keras.Model):
        def compile(self, mine, **how):
            super().compile(**how)

    inputs = keras.Input((4,))
    model = Own(inputs, layers.Dense(2)(layers.Dense(16)(inputs)), name="own")
    model.compile(1, optimizer="sgd", loss="mse")
    with pytest.warns(UserWarning, match="'own' cannot be compiled again as it is .*yourself"):
        smaller = prune_channels(model, pruning_ratio=0.5)
    assert not smaller.compiled


@pytest.mark.parametrize(
    "budget",
    [
        {"pruning_ratio": 0.75},
        {"target_macs": 0.3},
        {"target_parameters": 0.4, "ranking": "global"},
        {"pruning_ratio": 0.5, "ratios": {"second": 0.75}},
    ],
)
def test_rounds_end_at_the_budget(budget):
    model = build()
    seen = []

    def fine_tune(smaller, number):
        seen.append((number, smaller.count_params()))

    smaller = prune_channels(model, rounds=3, fine_tune=fine_tune, round_to=4, **budget)
    assert [number for number, _ in seen] == [0, 1, 2]
    sizes = [model.count_params(), *(size for _, size in seen)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == smaller.count_params()
    assert len(set(sizes)) == 4  # each round removes something
    at_once = plan_channels(model, round_to=4, **budget)
    if "pruning_ratio" in budget:
        assert shapes(smaller) == shapes(at_once.apply())
    if "target_parameters" in budget:
        assert smaller.count_params() <= 0.4 * model.count_params()
    if "target_macs" in budget:
        assert keras_macs(smaller).total <= 0.3 * at_once.macs_before


def test_a_budget_that_is_not_met_is_warned_of():
    with pytest.warns(UserWarning, match=r"target_parameters=0.01` is not met: 0.\d+ stays"):
        prune_channels(build(), target_parameters=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pruning_ratio": 0.5, "max_ratio": 0.2}, "`pruning_ratio=0.5`: nothing leaves"),
        ({"pruning_ratio": 0.5, "skip": "*", "rounds": 2}, "`pruning_ratio=0.5`: nothing leaves"),
        ({"target_macs": 0.5, "min_channels": 32}, "target_macs=0.5` is not met: 1.000 stays"),
        ({"target_macs": 0.95, "round_to": 16}, "target_macs=0.95` was asked, 0.2.* `round_to`"),
    ],
)
def test_nothing_or_far_too_much_is_warned_of(arguments, message):
    with pytest.warns(UserWarning, match=message):
        prune_channels(build(), **arguments)


def test_what_left_in_an_earlier_round_is_not_nothing(recwarn):
    prune_channels(build(), pruning_ratio=0.5, round_to=16, rounds=2)
    assert not [warning for warning in recwarn if "nothing leaves" in str(warning.message)]


def cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", name="c1"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", name="c2"),
            layers.Flatten(),
            layers.Dense(32, name="d1"),
            layers.Dense(10, name="logits"),
        ]
    )


@pytest.mark.parametrize("ranking", ["group", "global"])
@pytest.mark.parametrize(
    # (16, 32, 32) channels are 64 * 9 * 16 + 16 * 9 * 16 * 32 + 512 * 32 + 320 = 99,648 MACs.
    ("target", "macs"),
    [
        (0.7, 4608 + 36864 + 16384 + 320),  # (8, 32, 32)
        (0.5, 4608 + 27648 + 12288 + 320),  # (8, 24, 32)
        (0.4, 4608 + 27648 + 6144 + 160),  # (8, 24, 16)
    ],
)
def test_rounds_end_no_farther_from_a_target_than_one_cut(ranking, target, macs):
    model = cnn()
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            layer.bias.assign(rng.uniform(1, 1.2, layer.bias.shape))

    def fixed(group, model, data):
        # The bias goes along with its channel: what leaves changes no score of what stays.
        return np.asarray(model.get_layer(group.name).bias)

    once, *left = (
        keras_macs(
            prune_channels(
                model, target_macs=target, ranking=ranking, criterion=fixed, rounds=rounds
            )
        ).total
        for rounds in (1, 2, 4)
    )
    if ranking == "group":
        assert once == macs
    assert all(once <= count <= target * 99648 for count in left)


def test_help_shows_what_plan_channels_takes():
    own = inspect.signature(prune_channels).parameters
    assert list(own) == [
        "model", "rounds", "fine_tune", *list(inspect.signature(plan_channels).parameters)[1:]
    ]  # fmt: skip
    assert own["round_to"].default == 8


def test_rounds_tell_groups_of_one_name_apart():
    # One layer makes two groups: the states of each direction end in different places.
    inputs = keras.Input((5, 4))
    ahead, back = keras.ops.split(
        layers.Bidirectional(layers.GRU(16, return_sequences=True), name="both")(inputs), 2, -1
    )
    x = layers.Concatenate()([layers.Dense(8)(ahead), layers.Dense(24)(back)])
    model = keras.Model(inputs, layers.Dense(2)(x))
    arguments = {"pruning_ratio": 0.5, "round_to": 1, "criterion": "random"}
    smaller = prune_channels(model, rounds=3, **arguments)
    assert shapes(smaller) == shapes(prune_channels(model, **arguments))


def test_importance_is_measured_anew_every_round():
    model = build()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = data()
    calls = []

    def criterion(group, model, data):
        calls.append(model.count_params())
        return np.abs(np.asarray(model.get_layer("first").kernel)).sum((0, 1, 2))

    def fine_tune(smaller, number):
        # The channels that matter now are those that mattered least.
        kernel = smaller.get_layer("first").kernel
        kernel.assign(1 / np.asarray(kernel))
        return smaller.fit(x, y, verbose=0, epochs=1)  # a History, which counts as None

    before = np.abs(np.asarray(model.get_layer("first").kernel)).sum((0, 1, 2))
    prune_channels(
        model, pruning_ratio=0.5, rounds=2, criterion=criterion, fine_tune=fine_tune, data=(x, y)
    )
    assert calls[0] == model.count_params() > calls[-1]
    assert len(before) == 32


def test_data_criteria_work_in_rounds():
    model = build()
    x, y = data()
    smaller = prune_channels(
        model, pruning_ratio=0.5, criterion="taylor", data=(x, y), batches=2, rounds=2
    )
    assert smaller.get_layer("first").filters == 16


def test_a_model_that_fine_tuning_returns_goes_on():
    model = build()
    made = []

    def fine_tune(smaller, number):
        made.append(keras.models.clone_model(smaller))
        made[-1].set_weights(smaller.get_weights())
        return made[-1]

    smaller = prune_channels(model, pruning_ratio=0.5, rounds=2, fine_tune=fine_tune)
    assert smaller is made[-1]
    with pytest.raises(InputError, match="fine_tune returned str; it must return None"):
        prune_channels(model, pruning_ratio=0.5, fine_tune=lambda *_: "done")


@pytest.mark.parametrize("rounds", [0, -1, 1.5, True, "2"])
def test_bad_rounds_are_refused(rounds):
    with pytest.raises(InputError, match=r"rounds=.* is not a whole number"):
        prune_channels(build(), pruning_ratio=0.5, rounds=rounds)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="give exactly one of `pruning_ratio`"):
        prune_channels(build())
    with pytest.raises(InputError, match=r"no argument 'pruning_rate'; .*pruning_ratio"):
        prune_channels(build(), pruning_rate=0.5)
    with pytest.raises(InputError, match="no argument 'kind'"):
        prune_channels(build(), pruning_ratio=0.5, kind="heads")
    with pytest.raises(InputError, match=r"fine_tune=3 is not a function"):
        prune_channels(None, pruning_ratio=0.5, fine_tune=3)  # before any work
    tf_keras = pytest.importorskip("tf_keras")
    legacy = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    with pytest.raises(UnsupportedError, match="tf_keras model; structured pruning supports"):
        prune_channels(legacy, pruning_ratio=0.5)
