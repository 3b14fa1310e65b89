import numpy as np
import pytest
import tensorflow as tf
from structure.law import random_inputs, randomize
from structure.residual_models import keras, layers, nested, resnet_v1, transformer

import edgeprune
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.structure.depth import prune_layers
from edgeprune.structure.layerdrop import LayerDrop, layer_drop


def adding(*shifts, dtype=None):
    """A chain of blocks that each add a power of two: the output tells which were there."""
    x = inputs = keras.Input((1,))
    for number in range(len(shifts)):
        x = layers.Add(name=f"b{number}")([x, layers.Dense(1, name=f"dense{number}")(x)])
    model = keras.Model(inputs, x)
    for number, shift in enumerate(shifts):
        model.get_layer(f"dense{number}").set_weights([np.zeros((1, 1)), np.array([shift])])
    return model


def gates(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, LayerDrop)]


def test_each_block_is_dropped_as_a_whole_in_each_step_at_its_rate():
    model = layer_drop(adding(1, 2, 4, 8), rate=0.3, seed=1)
    steps, batch = 1000, 3
    step = tf.function(lambda x: model(x, training=True))
    sums = np.array([step(tf.zeros((batch, 1))) for _ in range(steps)])[..., 0]
    assert (sums == sums[:, :1]).all()  # one draw for the whole batch
    kept = (sums[:, :1].astype(int) >> np.arange(4)) & 1
    # Four standard errors of a mean of 1000 draws are 0.058.
    np.testing.assert_allclose(1 - kept.mean(0), 0.3, atol=0.058)
    # Blocks are dropped independently of one another, and steps of the steps before.
    assert np.abs(np.corrcoef(kept.T) - np.eye(4)).max() < 4 / steps**0.5
    for block in kept.T:
        assert abs(np.corrcoef(block[1:], block[:-1])[0, 1]) < 4 / steps**0.5


def test_the_seed_makes_the_draws_the_same():
    def draws(seed):
        model = layer_drop(adding(1, 2, 4, 8), rate=0.5, seed=seed)
        return [float(model(np.zeros((1, 1)), training=True)[0, 0]) for _ in range(20)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    keras.utils.set_random_seed(0)
    first = draws(None)
    keras.utils.set_random_seed(0)
    assert draws(None) == first


@pytest.mark.parametrize(
    "build", [resnet_v1, nested, transformer, lambda: transformer(post_norm=True)]
)
@pytest.mark.parametrize("granularity", ["block", "branch"])
def test_inference_is_the_same_and_the_weights_are_shared(build, granularity):
    model = build()
    randomize(model)
    training = layer_drop(model, 0.9, granularity=granularity, seed=0)
    assert {id(weight) for weight in model.trainable_weights} == {
        id(weight) for weight in training.trainable_weights
    }
    assert len(gates(training)) > 0
    assert not gates(model)
    (data,) = random_inputs(model)
    np.testing.assert_array_equal(training(data), model(data))
    weight = model.trainable_weights[0]
    weight.assign(weight + 1)
    np.testing.assert_array_equal(training(data), model(data))


def test_a_dropped_encoder_layer_passes_on_what_it_was_given():
    model = transformer(("e0", "e1"), post_norm=True)
    randomize(model)
    training = layer_drop(model, 0.5, skip=["e0*"], seed=0)
    assert [gate.name for gate in gates(training)] == ["e1_norm2_drop"]
    model.get_layer("e0_dropout").rate = model.get_layer("e1_dropout").rate = 0
    (data,) = random_inputs(model)
    smaller = prune_layers(model, names=["e1*"])
    with_it, without = np.asarray(model(data)), np.asarray(smaller(data))
    seen = {"with": 0, "without": 0}
    for _ in range(20):
        output = np.asarray(training(data, training=True))
        near = {"with": with_it, "without": without}
        (which,) = [name for name, want in near.items() if np.abs(want - output).max() < 1e-5]
        seen[which] += 1
    assert min(seen.values()) >= 3


def test_no_gradient_reaches_a_dropped_block():
    model = adding(1, 2)
    training = layer_drop(model, 0.5, seed=0)
    states = set()
    for _ in range(20):
        with tf.GradientTape() as tape:
            output = training(tf.ones((1, 1)), training=True)
        slopes = tape.gradient(output, model.trainable_weights, unconnected_gradients="none")
        kept = [bool(int(output[0, 0] - 1) >> number & 1) for number in range(2)]
        for number in range(2):
            kernel, bias = slopes[2 * number : 2 * number + 2]
            assert (np.any(kernel) and np.any(bias)) == kept[number]
            assert (np.any(kernel) or np.any(bias)) == kept[number]
        states.add(tuple(kept))
    assert len(states) == 4


def test_a_dropped_block_may_overflow():
    model = adding(np.inf)
    training = layer_drop(model, 0.5, seed=0)
    outputs = {float(training(np.zeros((1, 1)), training=True)[0, 0]) for _ in range(20)}
    assert outputs == {0.0, np.inf}


@pytest.mark.parametrize(
    "options", [{}, {"jit_compile": True}, {"steps_per_execution": 2}, {"run_eagerly": True}]
)
def test_fit_trains_the_original(options):
    model = transformer(("e0", "e1"))
    before = model.get_weights()
    training = layer_drop(model, 0.3, seed=0)
    training.compile("adam", "mse", **options)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 5, 8)), rng.normal(size=(32, 3))
    training.fit(x, y, batch_size=4, epochs=2, verbose=0)
    changed = [np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True)]
    # Softmax does not see what the keys' biases add to all scores alike.
    names = [weight.path for weight in model.weights]
    assert all(c or "key/bias" in name for c, name in zip(changed, names, strict=True))
    np.testing.assert_allclose(training(x), model(x), atol=1e-6)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = resnet_v1()
    finally:
        keras.config.set_dtype_policy("float32")
    training = layer_drop(model, 0.3, seed=0)
    assert {gate.compute_dtype for gate in gates(training)} == {"float16"}
    training.compile(keras.optimizers.Adam(), "mse")
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3))
    training.fit(x, np.zeros((8, 3)), verbose=0)
    np.testing.assert_array_equal(training(x), model(x))


def test_save_load_and_strip(tmp_path):
    model = nested()
    randomize(model)
    training = layer_drop(model, 0.4, seed=3)
    training.compile("adam", "mse")
    (data,) = random_inputs(model)
    training.fit(data, np.zeros((2, 3)), verbose=0)
    training.save(tmp_path / "training.keras")
    loaded = edgeprune.load_model(tmp_path / "training.keras")
    assert [(gate.rate, gate.seed) for gate in gates(loaded)] == [(0.4, 3), (0.4, 4), (0.4, 5)]
    np.testing.assert_allclose(loaded(data), model(data), atol=1e-6)
    loaded.fit(data, np.zeros((2, 3)), verbose=0)
    plain = edgeprune.strip(loaded)
    assert not gates(plain)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    np.testing.assert_allclose(plain(data), loaded(data), atol=1e-6)


def test_a_training_model_converts_like_a_plain_one(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    model = transformer(("e0", "e1"))
    randomize(model)
    training = layer_drop(model, 0.5)
    artifact = edgeprune.convert(training, tmp_path / "training.tflite")
    plain = edgeprune.convert(model, tmp_path / "plain.tflite")
    operators = [
        [details["op_name"] for details in Interpreter(str(made.path))._get_ops_details()]
        for made in (artifact, plain)
    ]
    assert operators[0] == operators[1]


def test_frozen_layers_stay_as_they_were():
    model = nested()
    model.get_layer("part").trainable = False
    model.get_layer("part").layers[1].trainable = True  # thawed again, inside a frozen model
    flags = [layer.trainable for layer in model._flatten_layers()]
    training = layer_drop(model, 0.2)
    assert [layer.trainable for layer in model._flatten_layers()] == flags
    assert len(training.trainable_weights) == len(model.trainable_weights)


def separable(count, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, count)
    angle = rng.uniform(0, 3 * np.pi, count)
    turned = angle + y * np.pi / 2
    x = np.stack([angle * np.cos(turned), angle * np.sin(turned)], -1) / 5
    return (x + rng.normal(0, 0.02, x.shape)).astype(np.float32), y


def spirals_model():
    x = inputs = keras.Input((2,))
    x = layers.Dense(32, activation="relu")(x)
    for _ in range(8):
        h = layers.LayerNormalization()(x)
        x = x + layers.Dense(32)(layers.Dense(32, activation="relu")(h))
    return keras.Model(inputs, layers.Dense(4)(layers.LayerNormalization()(x)))


@pytest.mark.slow
def test_after_training_with_layer_drop_half_of_the_blocks_can_leave():
    x, y = separable(2000)
    x_val, y_val = separable(1000, seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = {}
    for rate in (0.0, 0.5):
        losses[rate] = []
        for seed in range(3):
            keras.utils.set_random_seed(seed)
            model = spirals_model()
            training = layer_drop(model, rate, seed=seed)
            training.compile("adam", loss)
            training.fit(x, y, batch_size=50, epochs=30, verbose=0)
            smaller = prune_layers(model, pruning_ratio=0.5)
            whole, half = float(loss(y_val, model(x_val))), float(loss(y_val, smaller(x_val)))
            losses[rate].append((half, half - whole))
    # On every seed half of the blocks do better, and cost less, than without.
    for with_it, without in zip(
        zip(*losses[0.5], strict=True), zip(*losses[0.0], strict=True), strict=True
    ):
        assert max(with_it) < min(without)


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_bad_rates(rate):
    with pytest.raises(InputError, match=r"is outside \[0, 1\)"):
        layer_drop(adding(1), rate)


def test_bad_models():
    inputs = keras.Input((2,))
    plain = keras.Model(inputs, layers.Dense(1)(inputs))
    with pytest.raises(InputError, match="has no block that can be dropped"):
        layer_drop(plain)
    projected = layers.Add(name="sum")([layers.Dense(3)(inputs), layers.Dense(3)(inputs)])
    with pytest.raises(InputError, match=r"can be dropped \('sum': it adds"):
        layer_drop(keras.Model(inputs, projected))
    training = layer_drop(adding(1))
    for stage in (layer_drop, lambda model: prune_layers(model, count=1)):
        with pytest.raises(InputError, match=r"LayerDrop layers.*edgeprune.strip\(model\)"):
            stage(training)
    with pytest.raises(InputError, match="skip='b7'` matches no block"):
        layer_drop(adding(1), skip=["b7"])

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(UnsupportedError, match="subclassed"):
        layer_drop(Own())
