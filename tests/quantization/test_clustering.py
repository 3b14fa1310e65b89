"""The clustering callback in `fit`: every case counts values in the kernels themselves."""

import numpy as np
import pytest

from edgeprune import InputError, MagnitudePruning, PreserveSparsity, WeightClustering, models
from edgeprune.sparsity.schedules import ConstantSparsity, PolynomialDecay


def values(model, per_channel=False):
    """Count the values other than zero of every kernel; per channel, the most in any."""
    counted = {}
    for kernel in models.kernels(model):
        weights = kernel.variable.numpy().astype("float64")
        axes = kernel.output_axes if per_channel else ()
        moved = np.moveaxis(weights, axes, range(len(axes)))
        columns = moved.reshape(int(np.prod(moved.shape[: len(axes)])), -1)
        counted[kernel.name] = max(len(np.unique(column[column != 0])) for column in columns)
    return counted


def fit(model, data, *callbacks, epochs=2, **arguments):
    arguments = {"batch_size": 16, "verbose": 0, **arguments}
    return model.fit(*data, epochs=epochs, callbacks=list(callbacks), **arguments)


FIVE = {"conv/kernel": 5, "hidden/kernel": 5, "head/kernel": 5}


class Count:
    """Made into a callback of either flavour; counts the values that others see."""

    @staticmethod
    def of(k, seen):
        class Callback(k.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                seen.append(values(self.model))

        return Callback()


@pytest.mark.parametrize(
    "mode", [{"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}]
)
def test_holds_in_every_mode_and_before_any_callback_looks(k, compiled, data, mode):
    model, seen = compiled(**mode), []
    before = model.get_weights()
    fit(model, data, Count.of(k, seen), WeightClustering(5, frequency=3), epochs=1)
    assert seen[-1] == FIVE
    assert all(number <= 5 for counted in seen for number in counted.values())
    assert not np.array_equal(model.get_weights()[0], before[0])


OPTIMIZERS = {
    "adamw": lambda k: k.optimizers.AdamW(0.01, weight_decay=0.1),
    "ema": lambda k: k.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "ema, overwriting": lambda k: k.optimizers.SGD(
        0.05, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("frequency", [None, 2])
def test_holds_through_every_optimizer(k, compiled, data, optimizer, frequency):
    model = compiled(OPTIMIZERS[optimizer](k))
    callback = WeightClustering(5, per_channel=True, frequency=frequency)
    fit(model, data, callback)
    assert values(model, per_channel=True) == FIVE
    assert [kernel.distinct for kernel in callback.report] == [5, 5, 5]


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16", "float64"])
def test_holds_in_every_precision(k, compiled, data, policy):
    k.mixed_precision.set_global_policy(policy)
    model = compiled()
    fit(model, data, WeightClustering(5), epochs=3)
    assert values(model) == FIVE


def test_gradient_accumulation(data):
    import keras

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), keras.layers.Flatten(), keras.layers.Dense(4, name="head")]
    )
    model.compile(keras.optimizers.Adam(0.01, gradient_accumulation_steps=4), "mse")
    seen = []
    fit(model, (data[0], np.zeros((64, 4))), Count.of(keras, seen), WeightClustering(5), epochs=4)
    assert seen == [{"head/kernel": 5}] * 16


def single(k, weights, slope):
    """One unit whose loss is its output: the gradient of each weight is its input."""
    model = k.Sequential([k.Input((4,)), k.layers.Dense(1, use_bias=False, name="unit")])
    model.compile(k.optimizers.SGD(0.1), lambda y, p: p)
    model.get_layer("unit").kernel.assign(np.reshape(weights, (4, 1)))
    return model, (np.array([slope], "float32"), np.zeros((1, 1)))


def kernel_of(model):
    return model.get_layer("unit").kernel.numpy().ravel().tolist()


def test_members_take_the_mean_of_what_they_moved_by(k):
    # 1 and 2 are 1.5, and move by -0.1 and -0.3; 10 and 11 are 10.5, and move by 0.2 and 0.6.
    model, data = single(k, [1, 2, 10, 11], [1, 3, -2, -6])
    fit(model, data, WeightClustering(2), epochs=1)
    assert kernel_of(model) == pytest.approx([1.3, 1.3, 10.9, 10.9], rel=1e-6)


def test_weights_change_to_the_nearest_cluster_where_that_is_due(k):
    # By itself the second would move from 2 to 10: 1.5 becomes 5.5, and parts from 10.5 at 8.
    model, data = single(k, [1, 2, 10, 11], [0, -80, 0, 0])
    fit(model, data, WeightClustering(2, frequency=None), epochs=1)
    assert kernel_of(model) == pytest.approx([5.5, 5.5, 10.5, 10.5])
    model, data = single(k, [1, 2, 10, 11], [0, -80, 0, 0])
    fit(model, data, WeightClustering(2, frequency=1), epochs=1)
    assert kernel_of(model) == pytest.approx([5.5, 10.5, 10.5, 10.5])
    # It moves on by 8, and its cluster of three by 8 / 3.
    model, data = single(k, [1, 2, 10, 11], [0, -80, 0, 0])
    fit(model, data, WeightClustering(2, frequency=1, end_step=1), epochs=2)
    assert kernel_of(model) == pytest.approx([5.5, 39.5 / 3, 39.5 / 3, 39.5 / 3])


def test_a_cluster_that_never_had_members_gets_none(k):
    # The second moves to where an empty cluster would have to be.
    model, data = single(k, [-4, -4, 4, 4], [0, -40, 0, 0])
    fit(model, data, WeightClustering(3, frequency=1), epochs=1)
    assert kernel_of(model) == pytest.approx([-2, -2, 4, 4])


def test_zero_stays_zero_and_is_no_member(k):
    # 0 is nearer to 1 than anything; what would move it is nobody's.
    model, data = single(k, [1, 0, 10, 11], [1, -500, 2, -6])
    fit(model, data, WeightClustering(2), epochs=1)
    assert kernel_of(model) == pytest.approx([0.9, 0, 10.7, 10.7])


def test_centroids_that_do_not_move_stay_to_the_bit(k, compiled, data):
    """As those of a model that was clustered before."""
    model = compiled()
    fit(model, data, WeightClustering(5))
    before = model.get_weights()
    model.compile(k.optimizers.SGD(0.0), model.loss)
    fit(model, data, WeightClustering(7, frequency=2))
    for kernel, old in zip((0, 5, 7), (before[0], before[5], before[7]), strict=True):
        assert np.array_equal(model.get_weights()[kernel], old)


@pytest.mark.parametrize("order", ["pruning first", "clustering first"])
def test_pruning_in_the_same_fit(k, compiled, data, order):
    """The masks grow while clusters train."""
    model, seen = compiled(), []
    pruning = MagnitudePruning(PolynomialDecay(final_sparsity=0.75, frequency=1))
    clustering = WeightClustering(5, frequency=2)
    callbacks = [pruning, clustering] if order == "pruning first" else [clustering, pruning]
    history = fit(model, data, *callbacks, Count.of(k, seen))
    assert all(number <= 5 for counted in seen for number in counted.values())
    zeros = [int((kernel.variable.numpy() == 0).sum()) for kernel in models.kernels(model)]
    assert zeros == [54, 192, 36]
    assert [kernel.zeros for kernel in clustering.report] == zeros
    assert history.history["sparsity"][-1] == 0.75


def test_a_fixed_mask_in_the_same_fit(compiled, data):
    model = compiled()
    hidden = model.get_layer("hidden").kernel
    hidden.assign(np.where(np.arange(256).reshape(16, 16) % 2, hidden.numpy(), 0))
    fit(model, data, WeightClustering(5), PreserveSparsity())
    assert np.array_equal(hidden.numpy().ravel() == 0, np.arange(256) % 2 == 0)
    assert values(model) == FIVE


def test_it_begins_when_told_to(k, compiled, data):
    model, seen = compiled(steps_per_execution=2), []
    fit(model, data, WeightClustering(5, begin_step=0.5), Count.of(k, seen))
    assert [counted["hidden/kernel"] for counted in seen] == [256, 5, 5, 5]  # steps 2, 4, 6, 8
    model = compiled()
    with pytest.raises(InputError, match="never begins: this fit ends at step 8, and begin_step 8"):
        fit(model, data, WeightClustering(5, begin_step=8))


def test_a_fit_that_ends_before_it_begins_is_told(k, compiled, data):
    class Stop(k.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    with pytest.warns(UserWarning, match="ended at step 4, before step 6, at which the clustering"):
        fit(compiled(), data, Stop(), WeightClustering(5, begin_step=6))


def every_kind(k):
    layers = k.layers
    return k.Sequential(
        [
            k.Input((8, 8, 3)),
            layers.Conv2D(4, 1, name="pointwise"),
            layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
            layers.SeparableConv2D(6, 3, name="separable"),
            layers.Conv2DTranspose(3, 3, name="transposed"),
            layers.Reshape((36, 3)),
            layers.LSTM(4, name="memory"),
            layers.Dense(5, name="head"),
        ]
    )


@pytest.mark.parametrize("per_channel", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_kind_of_kernel(k, per_channel):
    model = every_kind(k)
    model.compile(k.optimizers.Adam(0.01, use_ema=True), "mse")
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
    callback = WeightClustering(
        3, per_channel=per_channel, include_depthwise=True, layers={"depthwise": 2}
    )
    fit(model, (x, np.ones((32, 5))), callback)
    counted = values(model, per_channel)
    assert counted.pop(next(name for name in counted if name.startswith("depthwise"))) == 2
    assert set(counted.values()) == {3}
    assert len(counted) == 7
    assert [kernel.clusters for kernel in callback.report] == [3, 2, 3, 3, 3, 3, 3, 3]


def test_large_kernels_are_held_by_xla(k):
    model = k.Sequential([k.Input((128,)), k.layers.Dense(128), k.layers.Dense(4)])
    model.compile(k.optimizers.SGD(0.01), "mse")
    x = np.random.default_rng(0).normal(size=(32, 128)).astype("float32")
    kernel = models.kernels(model)[0].variable
    kernel.assign(np.where(np.arange(128) % 3, kernel.numpy(), 0))
    before = kernel.numpy()
    fit(model, (x, x[:, :4]), WeightClustering(16, frequency=1))
    after = kernel.numpy()
    assert len(np.unique(after[after != 0])) == 16
    assert np.array_equal(after == 0, before == 0)
    # No negative zeros: they would be other bytes to a compressor.
    assert not np.signbit(after[after == 0]).any()


def test_what_is_left_out_and_what_has_few_values_is_reported(compiled, data):
    model = compiled()
    hidden = model.get_layer("hidden").kernel
    hidden.assign(np.where(hidden.numpy() > 0, 0.5, -0.5))
    callback = WeightClustering(16, skip="head", layers={"Conv2D": 4})
    fit(model, data, callback)
    assert values(model) == {"conv/kernel": 4, "hidden/kernel": 2, "head/kernel": 48}
    conv, hidden = callback.report
    assert (conv.name, conv.size, conv.zeros, conv.clusters, conv.distinct) == (
        "conv/kernel", 72, 0, 4, 4,
    )  # fmt: skip
    assert (hidden.clusters, hidden.distinct) == (16, 2)


def test_a_model_without_weights_before_fit(k, data):
    layers = k.layers
    model = k.Sequential([layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)])
    model.compile("adam", k.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, data, WeightClustering(4), epochs=1)
    assert set(values(model).values()) == {4}


@pytest.mark.parametrize("listed", ["before", "after"])
def test_weights_restored_from_before_it_began_are_clustered_and_told(k, compiled, data, listed):
    best = k.callbacks.EarlyStopping("loss", mode="max", patience=9, restore_best_weights=True)
    model, clustering = compiled(), WeightClustering(5, begin_step=6)
    callbacks = [best, clustering] if listed == "before" else [clustering, best]
    with pytest.warns(UserWarning, match=r"had up to 256 values \(hidden/kernel\), not 5; they"):
        fit(model, data, *callbacks, epochs=3)
    assert values(model) == FIVE
    assert [kernel.distinct for kernel in clustering.report] == [5, 5, 5]


def test_weights_restored_from_since_it_began_stay_to_the_bit(k, compiled, data, recwarn):
    kept = []

    class Keep(k.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept.append(self.model.get_weights())

    best = k.callbacks.EarlyStopping("loss", mode="max", patience=9, restore_best_weights=True)
    model = compiled()
    fit(model, data, WeightClustering(5, frequency=1), best, Keep(), epochs=3)
    assert not [w for w in recwarn if "weights set" in str(w.message)]
    for restored, own in zip(model.get_weights(), kept[0], strict=True):
        assert np.array_equal(restored, own)
    assert values(model) == FIVE


def test_a_killed_fit_goes_on_from_its_backup_as_if_nothing_had_been(k, compiled, data, tmp_path):
    class Kill(k.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations.numpy()) == 6:
                raise KeyboardInterrupt

    def run(folder, *others):
        k.utils.set_random_seed(3)
        model = compiled()
        backup = k.callbacks.BackupAndRestore(str(folder))
        clustering = WeightClustering(5, frequency=None)
        fit(model, data, backup, clustering, *others, epochs=3, shuffle=False)
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Kill())
    resumed = run(tmp_path / "killed")
    assert values(resumed) == FIVE
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


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

    pruning, clustering = MagnitudePruning(ConstantSparsity(0.5)), WeightClustering(5)
    with pytest.raises(InputError, match=r"needs start\(model, optimizer\)"):
        clustering.step()
    pruning.start(model, optimizer, total_steps=4)
    clustering.start(model, optimizer, total_steps=4)
    for start in range(0, 64, 16):
        train(data[0][start : start + 16], data[1][start : start + 16])
        pruning.step()
        clustering.step()
        assert values(model) == FIVE
    pruning.finish()
    clustering.finish()
    assert [(kernel.distinct, kernel.zeros) for kernel in clustering.report] == [
        (5, 36), (5, 128), (5, 24),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightClustering(1), "clusters is a whole number, 2 or more; got 1"),
        (lambda: WeightClustering(0), "got 0"),
        (lambda: WeightClustering(True), "got True"),
        (lambda: WeightClustering(16.0), r"got 16\.0"),
        (lambda: WeightClustering(layers={"conv": 1}), r"layers\['conv'\] is a whole number"),
        (lambda: WeightClustering(initial="kmeans++"), "'linear', 'density', 'random'; got 'k"),
        (
            lambda: WeightClustering(frequency=None, end_step=0.5),
            "with frequency=None they never do",
        ),
        (lambda: WeightClustering(frequency=0), "frequency must be 1 or more; got 0"),
        (lambda: WeightClustering(begin_step=1.5), "a fraction of the fit's steps"),
        (lambda: WeightClustering(begin_step=9, frequency=1, end_step=3), "lies after end_step 3"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            lambda: WeightClustering(49),
            r"fewer weights than clusters: head/kernel \(48 weights\); skip them",
        ),
        # Before any table of that size is made.
        (lambda: WeightClustering(10**12), "fewer weights than clusters: "),
        (
            lambda: WeightClustering(17, per_channel=True),
            r"clusters: hidden/kernel \(16 weights a channel\), head/kernel \(16 weights a ch",
        ),
        (lambda: WeightClustering(skip="dense"), "skip='dense' matches no kernel"),
        (lambda: WeightClustering(skip="*"), "nothing to cluster in model"),
    ],
)
def test_refuses_before_the_first_step(k, cnn, callback, message):
    model = cnn()
    before = model.get_weights()
    with pytest.raises(InputError, match=message):
        callback().start(model, k.optimizers.Adam(), total_steps=4)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(k, cnn, wrong):
    model = cnn()
    kernel = model.get_layer("hidden").kernel
    kernel.assign(np.where(np.arange(256).reshape(16, 16) == 7, wrong, kernel.numpy()))
    with pytest.raises(InputError, match="hidden/kernel has NaN or infinite weights"):
        WeightClustering(4).start(model, k.optimizers.Adam(), total_steps=4)


def test_training_that_diverged_is_told(compiled, data):
    callback = WeightClustering(4)
    with pytest.warns(UserWarning, match="training diverged: .* ended with NaN or inf") as told:
        fit(compiled(), (data[0] * np.nan, data[1]), callback)
    assert len([one for one in told if "diverged" in str(one.message)]) == 1
    assert callback.report == ()
