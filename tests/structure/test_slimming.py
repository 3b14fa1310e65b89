import numpy as np
import pytest

from edgeprune.errors import InputError, UnsupportedError
from edgeprune.models import import_keras
from edgeprune.sparsity.callbacks import MagnitudePruning
from edgeprune.sparsity.schedules import ConstantSparsity
from edgeprune.structure.pruning import prune_channels
from edgeprune.structure.slimming import SparsityRegularizer

keras = import_keras()
layers = keras.layers


def build(**norm):
    """Eight features, of which two are all that the target depends on."""
    inputs = keras.Input((8,))
    # The first kernel is fixed to the identity: feature i is channel i.
    x = layers.Dense(8, use_bias=False, trainable=False, name="pick")(inputs)
    x = layers.BatchNormalization(name="norm", **norm)(x)
    x = layers.Dense(1, name="head")(x)
    model = keras.Model(inputs, x, name="toy")
    model.get_layer("pick").kernel.assign(np.eye(8))
    return model


def data(n=512):
    x = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    return x, (2 * x[:, 2] - 3 * x[:, 5])[:, None]


def fit(model, callbacks, epochs=25, **how):
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", **how)
    return model.fit(*data(), batch_size=64, epochs=epochs, verbose=0, callbacks=callbacks)


def gammas(model):
    return np.abs(np.asarray(model.get_layer("norm").gamma))


NEEDED, UNNEEDED = [2, 5], [0, 1, 3, 4, 6, 7]


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"run_eagerly": True}, {"jit_compile": True}])
def test_scales_that_are_not_needed_go_to_zero(how):
    model = build()
    fit(model, [SparsityRegularizer(0.05)], **how)
    assert gammas(model)[UNNEEDED].max() < 0.02
    assert gammas(model)[NEEDED].min() > 0.5
    if not how:
        plain = build()
        fit(plain, [])
        assert gammas(plain)[UNNEEDED].min() > 0.1  # it is the penalty that did it


def test_pruning_by_scale_then_removes_just_these():
    model = build()
    fit(model, [SparsityRegularizer(0.05)])
    smaller = prune_channels(model, pruning_ratio=0.75, criterion="bn_scale", round_to=1)
    x, y = data()
    # Channels 2 and 5 of the identity stay.
    np.testing.assert_array_equal(smaller.get_layer("pick").kernel, np.eye(8)[:, NEEDED])
    assert np.mean((smaller.predict(x, verbose=0) - y) ** 2) < 0.05 * np.var(y)


def test_the_step_is_that_of_the_paper():
    model = build()
    model.compile(keras.optimizers.SGD(0.1), lambda y, p: 0 * keras.ops.mean(p))
    start = np.array([0.5, -0.5, 0, 1, -1, 2, -2, 3])
    model.get_layer("norm").gamma.assign(start)
    x, y = data(32)
    callback = SparsityRegularizer(0.25)
    history = model.fit(x, y, batch_size=32, verbose=0, callbacks=[callback])
    # gamma - 0.1 * 0.25 * sign(gamma), and the loss is 0.25 * (0.5 + 0.5 + 1 + 1 + 2 + 2 + 3).
    np.testing.assert_allclose(
        model.get_layer("norm").gamma, start - 0.025 * np.sign(start), rtol=1e-6
    )
    assert history.history["loss"][0] == pytest.approx(2.5)


def test_the_penalty_counts_after_an_earlier_fit_and_is_gone_afterwards():
    model = build()
    x, y = data(64)
    model.compile(keras.optimizers.SGD(0.0), "mse", steps_per_execution=2)
    fitted = [
        model.fit(x, y, batch_size=64, verbose=0, callbacks=own, validation_data=(x, y)).history
        for own in ([], [SparsityRegularizer(1.0)], [], [SparsityRegularizer(1.0)])
    ]
    # Eight scales of 1 and a learning rate of 0: nothing but the penalty changes the loss.
    losses = [history["loss"][0] for history in fitted]
    assert losses[1] == pytest.approx(losses[0] + 8, rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert losses[3] == pytest.approx(losses[1], rel=1e-5)
    # Validation moves with the statistics, but not by 8.
    validation = [history["val_loss"][0] for history in fitted]
    assert validation[1] > validation[0] + 7
    assert validation[2] < validation[1] - 7
    assert model.evaluate(x, y, verbose=0) == pytest.approx(validation[3] - 8, rel=1e-3)


def test_a_regularizer_of_the_model_stays(tmp_path):
    model = build(gamma_regularizer=keras.regularizers.L2(0.125))
    own = model.get_layer("norm").gamma.regularizer
    saved = tmp_path / "during.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(str(saved))
    history = fit(model, [SparsityRegularizer(0.5), checkpoint], epochs=1)
    assert history.history["loss"][0] > 4
    assert model.get_layer("norm").gamma.regularizer is own
    loaded = keras.saving.load_model(saved)
    assert loaded.get_layer("norm").get_config() == model.get_layer("norm").get_config()


def test_a_training_that_was_broken_off_is_not_penalized_twice():
    model = build()

    class Boom(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("stop")

    callback = SparsityRegularizer(1.0)
    with pytest.raises(RuntimeError, match="stop"):
        fit(model, [callback, Boom()], epochs=1)
    x, y = data(64)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    again = model.fit(x, y, batch_size=64, verbose=0, callbacks=[SparsityRegularizer(1.0)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    plain = model.fit(x, y, batch_size=64, verbose=0)
    scale = gammas(model).sum()
    assert again.history["loss"][0] == pytest.approx(plain.history["loss"][0] + scale, rel=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
def test_it_works_beside_magnitude_pruning(reverse):
    model = build()
    callbacks = [SparsityRegularizer(0.05), MagnitudePruning(ConstantSparsity(0.5), only="head")]
    fit(model, callbacks[:: -1 if reverse else 1])
    assert (np.asarray(model.get_layer("head").kernel) == 0).sum() == 4
    assert np.median(gammas(model)[UNNEEDED]) < 0.02


def test_mixed_precision_trains_the_scales():
    inputs = keras.Input((8,))
    x = layers.Dense(8, use_bias=False, trainable=False, name="pick", dtype="mixed_float16")(inputs)
    x = layers.BatchNormalization(name="norm", dtype="mixed_float16")(x)
    model = keras.Model(inputs, layers.Dense(1, dtype="float32")(x))
    model.get_layer("pick").kernel.assign(np.eye(8))
    keras.utils.set_random_seed(0)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.02))
    model.compile(optimizer, "mse")
    model.fit(*data(), batch_size=64, epochs=25, verbose=0, callbacks=[SparsityRegularizer(0.1)])
    assert gammas(model)[UNNEEDED].max() < 0.1
    assert gammas(model)[NEEDED].min() > 0.3


def test_skip_leaves_scales_free():
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="first_norm")(layers.Dense(4, name="first")(inputs))
    x = layers.BatchNormalization(name="second_norm")(layers.Dense(4, name="second")(x))
    x = layers.Dense(2, name="head")(x)
    # Its channels are the model's outputs, so that its scales are none to prune by.
    model = keras.Model(inputs, layers.BatchNormalization(name="last_norm")(x))
    model.compile(keras.optimizers.SGD(1.0), lambda y, p: 0 * keras.ops.mean(p))
    x, y = np.ones((8, 4), np.float32), np.ones((8, 2), np.float32)
    model.fit(x, y, verbose=0, callbacks=[SparsityRegularizer(0.25, skip="sec*")])
    for name, expected in {"first_norm": 0.75, "second_norm": 1, "last_norm": 1}.items():
        np.testing.assert_allclose(model.get_layer(name).gamma, expected)


@pytest.mark.parametrize("strength", [0, -1e-4, float("nan"), float("inf"), "1e-4", True, None])
def test_a_bad_strength_is_refused(strength):
    with pytest.raises(InputError, match="strength"):
        SparsityRegularizer(strength)


def test_what_cannot_be_slimmed_is_refused():
    x, y = data(8)
    model = build()
    model.compile("sgd", "mse")
    with pytest.raises(InputError, match="'nor'` matches no layer"):
        model.fit(x, y, verbose=0, callbacks=[SparsityRegularizer(skip="nor")])
    with pytest.raises(InputError, match="no batch normalization"):
        model.fit(x, y, verbose=0, callbacks=[SparsityRegularizer(skip="pick")])

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(1)

        def call(self, x):
            return self.head(x)

    model = Own()
    model.compile("sgd", "mse")
    with pytest.raises(UnsupportedError, match="subclassed"):
        model.fit(x, y, verbose=0, callbacks=[SparsityRegularizer()])
