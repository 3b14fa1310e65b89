"""The callbacks in `fit`: every case counts zeros."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from edgeprune import models
from edgeprune.errors import InputError
from edgeprune.sparsity.callbacks import MagnitudePruning, PreserveSparsity
from edgeprune.sparsity.patterns import NM, Block
from edgeprune.sparsity.schedules import ConstantSparsity, PolynomialDecay

from .conftest import zeros

# round(0.75 * 72), round(0.75 * 256), round(0.75 * 48)
THREE_QUARTERS = {"conv/kernel": 54, "hidden/kernel": 192, "head/kernel": 36}
HALF = {"conv/kernel": 36, "hidden/kernel": 128, "head/kernel": 24}


def pruning(**arguments):
    """64 samples in batches of 16, twice: 8 steps, at full sparsity from the sixth on."""
    return MagnitudePruning(PolynomialDecay(final_sparsity=0.75), **arguments)


def fit(model, data, *callbacks, epochs=2, **arguments):
    arguments = {"batch_size": 16, "verbose": 0, **arguments}
    return model.fit(*data, epochs=epochs, callbacks=list(callbacks), **arguments)


OPTIMIZERS = {
    "adam": lambda k: k.optimizers.Adam(0.01),
    "sgd with momentum": lambda k: k.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adamw": lambda k: k.optimizers.AdamW(0.01, weight_decay=0.1),
    "ema": lambda k: k.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "ema, overwriting": lambda k: k.optimizers.SGD(
        0.05, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_holds_through_every_optimizer(k, compiled, data, optimizer):
    model = compiled(OPTIMIZERS[optimizer](k))
    fit(model, data, pruning())
    assert zeros(model) == THREE_QUARTERS


MODES = {
    "xla": {"jit_compile": True},
    "steps_per_execution": {"steps_per_execution": 4},
    "steps_per_execution, uneven": {"steps_per_execution": 3},
    "eagerly": {"run_eagerly": True},
}


class CountBatches:
    """Made into a callback of either flavour; counts the zeros that others see."""

    @staticmethod
    def of(k, seen):
        class Count(k.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                seen.append((zeros(self.model), float(logs["sparsity"])))

        return Count()


@pytest.mark.parametrize("mode", MODES)
def test_holds_in_every_mode_and_before_any_callback_looks(k, compiled, data, mode):
    model = compiled(**MODES[mode])
    seen = []
    fit(model, data, CountBatches.of(k, seen), pruning())
    assert zeros(model) == THREE_QUARTERS
    assert all(sum(count.values()) == round(sparsity * 376) for count, sparsity in seen)
    assert seen[-1][1] == pytest.approx(282 / 376)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_holds_in_every_precision(k, compiled, data, policy):
    k.mixed_precision.set_global_policy(policy)
    model = compiled()
    # With float16 the first updates overflow and are left out, so the fit must be longer.
    fit(model, data, pruning(), epochs=8)
    assert zeros(model) == THREE_QUARTERS


def test_holds_between_two_steps_of_one_execution(k, compiled, data):
    """A layer that looks at a kernel in the forward pass sees its zeros at every step."""
    import tensorflow as tf

    model = compiled(steps_per_execution=4)
    counts = []
    step = model.train_step

    def watched(batch):
        kernel = tf.convert_to_tensor(model.get_layer("hidden").kernel)
        tf.py_function(lambda w: counts.append(int((w.numpy() == 0).sum())), [kernel], [])
        return step(batch)

    model.train_step = watched
    fit(model, data, MagnitudePruning(ConstantSparsity(0.5)))
    assert counts == [128] * 8
    assert model.train_step is watched


def test_gradient_accumulation_counts_updates(data):
    import keras

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), keras.layers.Flatten(), keras.layers.Dense(4, name="head")]
    )
    model.compile(keras.optimizers.Adam(0.01, gradient_accumulation_steps=4), "mse")
    history = fit(model, (data[0], np.zeros((64, 4))), pruning(), epochs=4)
    # 16 batches are 4 updates: the ramp goes from 0 over 0.75 * (1 - (2/3)^3) to its end at 3.
    expected = [round(0.75 * (1 - (2 / 3) ** 3) * 288), round(0.75 * (1 - (1 / 3) ** 3) * 288)]
    assert history.history["sparsity"] == pytest.approx(
        [expected[0] / 288, expected[1] / 288, 0.75, 0.75]
    )
    assert zeros(model) == {"head/kernel": 216}


def test_the_schedule_is_followed_step_by_step(k, compiled, data):
    seen = []
    schedule = PolynomialDecay(0.25, 0.75, begin_step=2, end_step=6, power=1, frequency=2)
    fit(compiled(), data, MagnitudePruning(schedule), CountBatches.of(k, seen))
    assert [count["hidden/kernel"] for count, _ in seen] == [0, 64, 64, 128, 128, 192, 192, 192]


def test_masks_are_those_of_the_smallest_weights(k, compiled, data):
    """With a learning rate of 0 the weights do not move, so the masks can be told by hand."""
    model = compiled(k.optimizers.SGD(0.0))
    before = {kernel.name: kernel.variable.numpy() for kernel in models.kernels(model)}
    fit(model, data, pruning())
    for kernel in models.kernels(model):
        weights = before[kernel.name].copy().reshape(-1)
        order = np.argsort(np.abs(weights), kind="stable")
        weights[order[: THREE_QUARTERS[kernel.name]]] = 0
        assert np.array_equal(kernel.variable.numpy().reshape(-1), weights)


def test_blocks(compiled, data):
    model = compiled()
    fit(model, data, pruning(pattern=Block(2, 4), skip="head"))
    hidden = model.get_layer("hidden").kernel.numpy()
    blocks = hidden.reshape(8, 2, 4, 4).transpose(0, 2, 1, 3).reshape(32, 8) == 0
    assert blocks.all(axis=1).sum() == 24
    assert blocks.sum() == 24 * 8


def test_two_of_four(compiled, data):
    model = compiled()
    schedule = PolynomialDecay(final_sparsity=0.5)
    with pytest.warns(UserWarning, match=r"conv/kernel \(32 zeros of 72\)"):
        fit(model, data, MagnitudePruning(schedule, pattern=NM(2, 4)))
    hidden = model.get_layer("hidden").kernel.numpy()
    assert np.all((hidden.reshape(4, 4, 16) == 0).sum(axis=1) == 2)
    # 18 inputs: four groups of four, and two left over, which may both stay.
    conv = model.get_layer("conv").kernel.numpy().reshape(18, 4)
    assert np.all((conv[:16].reshape(4, 4, 4) == 0).sum(axis=1) == 2)
    assert np.all(conv[16:] != 0)


def test_global_ranking(compiled, data):
    model = compiled()
    fit(model, data, pruning(ranking="global"))
    counted = zeros(model)
    assert sum(counted.values()) == round(0.75 * 376)
    assert counted != THREE_QUARTERS


def test_layers_of_their_own_targets(compiled, data):
    model = compiled()
    fit(model, data, pruning(layers={"Conv2D": 0.25, "head": 0.0}))
    assert zeros(model) == {"conv/kernel": 18, "hidden/kernel": 192, "head/kernel": 0}


def test_own_targets_stand_outside_the_global_ranking(compiled, data):
    model = compiled()
    fit(model, data, pruning(ranking="global", layers={"conv": 0.25}))
    counted = zeros(model)
    assert counted.pop("conv/kernel") == 18
    assert sum(counted.values()) == round(0.75 * 304)


def test_frozen_and_skipped_layers_keep_their_weights(compiled, data):
    model = compiled()
    model.get_layer("hidden").trainable = False
    model.compile("adam", model.loss)  # tf_keras goes by what was frozen when it was compiled
    before = model.get_layer("hidden").kernel.numpy()
    fit(model, data, pruning(skip=["head"]))
    assert zeros(model) == {"conv/kernel": 54, "hidden/kernel": 0, "head/kernel": 0}
    assert np.array_equal(model.get_layer("hidden").kernel.numpy(), before)


def test_nested_and_shared_layers(k, data):
    shared = k.layers.Dense(8, name="shared")
    inner_in = k.Input((8,))
    inner = k.Model(inner_in, shared(shared(inner_in)), name="inner")
    outer = k.Sequential([k.Input((6, 6, 2)), k.layers.Flatten(), k.layers.Dense(8), inner])
    outer.compile("adam", "mse")
    fit(outer, (data[0], np.zeros((64, 8))), pruning())
    assert zeros(outer)["inner/shared/kernel"] == 48
    assert sum(zeros(outer).values()) == round(0.75 * 72 * 8) + 48


def test_recurrent_and_attention_kernels(k):
    layers = k.layers
    inputs = k.Input((5, 6))
    x = layers.LSTM(4, return_sequences=True)(inputs)
    x = layers.GRU(4, return_sequences=True)(x)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    model = k.Model(inputs, layers.EinsumDense("abc,cd->abd", output_shape=(None, 2))(x))
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(64, 5, 6)).astype("float32")
    fit(model, (x, x[:, :, :2]), pruning())
    for kernel in models.kernels(model):
        count = int((kernel.variable.numpy() == 0).sum())
        assert count == round(0.75 * count / count * int(np.prod(kernel.variable.shape)))


def test_logs_reach_history_and_a_csv_logger_listed_first(k, compiled, data, tmp_path):
    path = tmp_path / "log.csv"
    history = fit(compiled(), data, k.callbacks.CSVLogger(str(path)), pruning(), epochs=3)
    logged = [float(row["sparsity"]) for row in csv.DictReader(path.open())]
    assert history.history["sparsity"] == logged
    assert logged[-1] == 282 / 376
    assert set(history.history) == {"accuracy", "loss", "sparsity"}


def test_losses_are_logged_as_they_are_without_the_callback(k, compiled, data):
    """An all-dense schedule changes nothing: neither the training nor what is logged of it."""
    runs = []
    for callbacks in ([], [MagnitudePruning(ConstantSparsity(0.0))]):
        k.utils.set_random_seed(3)
        history = fit(compiled(), data, *callbacks, validation_data=data, shuffle=False).history
        history.pop("sparsity", None)
        runs.append(history)
    assert runs[0].keys() == runs[1].keys()
    for key, values in runs[0].items():
        assert runs[1][key] == pytest.approx(values, rel=1e-5)


def test_nothing_is_left_behind(compiled, data):
    model = compiled()
    names = [weight.name for weight in model.weights]
    config = model.get_config()
    fit(model, data, pruning())
    assert "train_step" not in vars(model)
    assert [weight.name for weight in model.weights] == names
    assert model.get_config() == config
    fit(model, data)
    # Training is dense again; only weights of units that never fire have no gradient to leave 0.
    assert zeros(model)["conv/kernel"] == 0
    fit(model, data, pruning())
    assert zeros(model) == THREE_QUARTERS


def test_a_fit_that_dies_does_not_haunt_the_next(k, compiled, data):
    class Stop(k.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = compiled()
    callback = MagnitudePruning(ConstantSparsity(0.5))
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, callback, Stop())
    assert zeros(model) == HALF
    fit(model, data)
    assert zeros(model)["conv/kernel"] == 0
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, callback, Stop())
    fit(model, data, callback)
    assert zeros(model) == HALF
    assert "train_step" not in vars(model)


def test_two_prunings_of_different_layers_in_one_fit(compiled, data):
    model = compiled()
    fit(model, data, pruning(only="hidden", pattern=Block(2, 4)), pruning(skip="hidden"))
    assert zeros(model) == THREE_QUARTERS


def test_an_early_stop_before_the_target_is_told(k, compiled, data):
    class Stop(k.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    with pytest.warns(UserWarning, match="training ended at step 4, before the schedule reached"):
        fit(compiled(), data, Stop(), pruning())


def test_a_kernel_that_cannot_reach_its_target_is_told(k):
    model = k.Sequential([k.Input((1,)), k.layers.Dense(1, name="one"), k.layers.Dense(8)])
    model.compile("sgd", "mse")
    callback = pruning()
    with pytest.warns(UserWarning, match=r"1 kernels cannot.*one/kernel \(0 zeros of 1\)"):
        fit(model, (np.ones((64, 1)), np.ones((64, 8))), callback)
    one, other = callback.report
    assert (one.name, one.size, one.zeros, one.target, one.reached) == (
        "one/kernel", 1, 0, 0.75, False,
    )  # fmt: skip
    assert (other.zeros, other.reached) == (6, True)


@pytest.mark.slow
def test_a_model_saved_midway_loads_where_edgeprune_cannot(k, compiled, data, tmp_path):
    path = tmp_path / "midway.keras"
    model = compiled()

    class Save(k.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if not path.exists():
                self.model.save(str(path))

    fit(model, data, Save(), MagnitudePruning(ConstantSparsity(0.5)))
    code = f"""
import sys
sys.modules["edgeprune"] = None  # makes its import fail
import {k.__name__} as k
model = k.models.load_model({str(path)!r})
print([int((model.get_layer(n).kernel.numpy() == 0).sum()) for n in ("conv", "hidden", "head")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == str(list(HALF.values()))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (PolynomialDecay(0.0, 0.75, 100, 200), "never begins: this fit ends at step 8"),
        (PolynomialDecay(0.0, 0.75, 0, 9), "ends at step 8 with a sparsity of 0, short of"),
        (ConstantSparsity(0.5, begin_step=9), "never begins"),
    ],
)
def test_a_schedule_that_does_not_fit_is_an_error_before_the_first_step(
    compiled, data, schedule, message
):
    model = compiled()
    before = model.get_weights()
    with pytest.raises(InputError, match=message):
        fit(model, data, MagnitudePruning(schedule))
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


def test_one_schedule_over_two_fits(compiled, data):
    model = compiled()
    callback = MagnitudePruning(PolynomialDecay(0.25, 0.75, 0, 16, frequency=4), allow_partial=True)
    assert fit(model, data, callback).history["sparsity"][-1] < 0.75
    fit(model, data, callback)
    assert zeros(model) == THREE_QUARTERS


def test_a_dense_model_whose_optimizer_is_past_the_ramp_is_refused(compiled, data):
    model = compiled()
    fit(model, data)
    callback = MagnitudePruning(PolynomialDecay(0.0, 0.75, 0, 8, frequency=2))
    with pytest.raises(InputError, match="has made 8 steps before this one"):
        fit(model, data, callback)
    fit(model, data, pruning())  # fractions count from where this fit begins
    assert zeros(model) == THREE_QUARTERS


def test_a_fit_of_unknown_length(k, compiled, data):
    import tensorflow as tf

    def batches():
        for start in range(0, 64, 16):
            yield data[0][start : start + 16], data[1][start : start + 16]

    signature = (tf.TensorSpec((16, 6, 6, 2)), tf.TensorSpec((16,), tf.int64))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    with pytest.raises(InputError, match="give steps_per_epoch to fit, or whole steps"):
        compiled().fit(dataset, epochs=2, verbose=0, callbacks=[pruning()])
    model = compiled()
    callback = MagnitudePruning(PolynomialDecay(0.0, 0.75, 0, 6))
    model.fit(dataset, epochs=2, verbose=0, callbacks=[callback])
    assert zeros(model) == THREE_QUARTERS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MagnitudePruning(0.8), "schedule is 0.8; give a schedule"),
        (lambda: pruning(ranking="all"), "ranking is 'layer' or 'global'; got 'all'"),
        (lambda: pruning(pattern=NM(2, 4)), "ends at a sparsity of 0.5; got a target of 0.75"),
        (lambda: pruning(layers={"conv": 50}), "did you mean 0.5"),
        (
            lambda: MagnitudePruning(ConstantSparsity(0.5), NM(2, 4), ranking="global"),
            "use ranking='layer'",
        ),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_preserve_sparsity_keeps_every_zero_of_every_kind(k, data):
    model = k.Sequential(
        [
            k.Input((6, 6, 2)),
            k.layers.DepthwiseConv2D(3, name="depthwise"),
            k.layers.SeparableConv2D(4, 3, name="separable"),
            k.layers.Flatten(),
            k.layers.Dense(3, name="head"),
        ]
    )
    model.compile(
        k.optimizers.AdamW(0.01, use_ema=True),
        k.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rng = np.random.default_rng(0)
    before = {}
    for kernel in models.kernels(model):
        weights = kernel.variable.numpy() * (rng.random(kernel.variable.shape) > 0.6)
        kernel.variable.assign(weights)
        before[kernel.name] = weights
    history = fit(model, data, PreserveSparsity())
    for kernel in models.kernels(model):
        after = kernel.variable.numpy()
        assert np.array_equal(after == 0, before[kernel.name] == 0)
        assert not np.array_equal(after, before[kernel.name])
    zero = sum(int((weights == 0).sum()) for weights in before.values())
    size = sum(weights.size for weights in before.values())
    assert history.history["sparsity"] == [zero / size] * 2


def test_preserve_sparsity_tells_where_there_is_nothing_to_keep(compiled, data):
    with pytest.warns(UserWarning, match="found no zeros"):
        fit(compiled(), data, PreserveSparsity())


def test_custom_loop(k, cnn, data):
    import tensorflow as tf

    model, optimizer = cnn(), k.optimizers.Adam(0.01)
    loss_of = k.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def train(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    callback = pruning()
    with pytest.raises(InputError, match=r"needs start\(model, optimizer\)"):
        callback.step()
    callback.start(model, optimizer, total_steps=8)
    for _ in range(2):
        for start in range(0, 64, 16):
            train(data[0][start : start + 16], data[1][start : start + 16])
            sparsity = callback.step()
            assert sum(zeros(model).values()) == round(sparsity * 376)
    callback.finish()
    assert zeros(model) == THREE_QUARTERS
    assert all(kernel.reached for kernel in callback.report)


def test_custom_loop_within_a_function_is_refused(k, compiled):
    import tensorflow as tf

    callback = pruning()
    callback.start(compiled(), total_steps=8)
    with pytest.raises(InputError, match=r"inside a tf\.function"):
        tf.function(callback.step, autograph=False)()


def test_large_kernels_are_held_by_xla_and_small_ones_without(k):
    """Kernels on both sides of the size from which on a fused pass is used, two of one shape."""
    model = k.Sequential(
        [k.Input((512,)), *(k.layers.Dense(512) for _ in range(2)), k.layers.Dense(8)]
    )
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(64, 512)).astype("float32")
    fit(model, (x, x[:, :8]), pruning())
    assert list(zeros(model).values()) == [196608, 196608, 3072]
    # No negative zeros: they would be other bytes to a compressor.
    for kernel in models.kernels(model):
        weights = kernel.variable.numpy()
        assert not np.signbit(weights[weights == 0]).any()
