"""The callback that keeps clusters: what was equal is equal, what was zero is zero, all else moves.

In models that train on the int8 grid and in plain ones, of Keras 3 and, plain, of tf_keras.
"""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from edgeprune import (
    InputError,
    MagnitudePruning,
    PreserveClusters,
    PreserveSparsity,
    WeightClustering,
    models,
    quantize_aware,
)
from edgeprune.sparsity.schedules import ConstantSparsity


def fit(model, data, *callbacks, epochs=2, **arguments):
    arguments = {"batch_size": 16, "verbose": 0, **arguments}
    return model.fit(*data, epochs=epochs, callbacks=list(callbacks), **arguments)


def kernels(model):
    return {kernel.name: kernel.variable.numpy() for kernel in models.kernels(model)}


def clustered(model, number=5, sparse=False, per_channel=False):
    """Write clusters into the kernels, half of their weights zero; return what was written."""
    rng = np.random.default_rng(4)
    for kernel in models.kernels(model):
        shape = tuple(kernel.variable.shape)
        channels = shape[-1] if per_channel else 1
        centroids = rng.normal(size=(channels, number)) * 0.2
        values = centroids[np.arange(shape[-1]) % channels, rng.integers(0, number, shape)]
        kernel.variable.assign(np.where(rng.random(shape) < 0.5, 0, values) if sparse else values)
    return kernels(model)


def is_kept(before, after):
    """Tell whether weights that were equal still are, and zeros are zero."""
    _, first, places = np.unique(before.ravel(), return_index=True, return_inverse=True)
    return (
        np.array_equal(after.ravel()[first][places], after.ravel()) and not after[before == 0].any()
    )


def assert_kept(before, model):
    for name, after in kernels(model).items():
        assert is_kept(before[name], after), name
        assert not np.array_equal(before[name], after), name  # it trained


def head():
    return layers.Dense(3, name="head", dtype="float32")


def on_grid(*stack, optimizer="adam"):
    """A compiled quantization-aware model of images to three classes."""
    model = keras.Sequential([layers.Input((6, 6, 2)), *stack, layers.Flatten(), head()])
    aware = quantize_aware(model)
    aware.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return aware


def test_holds_where_several_steps_are_one_execution(compiled, data):
    model = compiled(steps_per_execution=3)
    before = clustered(model, sparse=True)
    callback = PreserveClusters()
    fit(model, data, callback)
    assert_kept(before, model)
    assert [values.name for values in callback.report] == list(before)
    assert [values.zeros for values in callback.report] == [(w == 0).sum() for w in before.values()]
    assert [values.distinct for values in callback.report] == [5, 5, 5]


def test_on_the_grid_clusters_are_lost_without_it(data):
    aware = on_grid(layers.Conv2D(4, 3, name="conv"))
    before = clustered(aware, sparse=True)
    fit(aware, data, PreserveSparsity(), epochs=1)
    assert not any(is_kept(before[name], after) for name, after in kernels(aware).items())


def test_holds_in_mixed_precision_with_moving_averages(data):
    optimizer = keras.optimizers.AdamW(
        0.01, 0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
    )
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        aware = on_grid(layers.Conv2D(4, 3, use_bias=False), optimizer=optimizer)
        before = clustered(aware, per_channel=True, number=4)
        callback = PreserveClusters()
        fit(aware, data, callback)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert_kept(before, aware)
    assert [values.distinct_in_channel for values in callback.report] == [4, 4]
    assert [values.distinct for values in callback.report] == [16, 12]


def test_shared_nested_and_separable_layers_on_the_grid(data):
    inside = keras.Sequential(
        [layers.Input((4, 4, 4)), layers.Conv2D(4, 3, padding="same", name="twice")], name="inside"
    )
    inputs = layers.Input((6, 6, 2))
    x = layers.SeparableConv2D(4, 3, name="separable")(inputs)
    x = inside(inside(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.EinsumDense("abcd,dhe->abche", (2, 2, 2, 3), bias_axes="he", name="heads")(x)
    aware = quantize_aware(keras.Model(inputs, head()(layers.Flatten()(x))))
    aware.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = clustered(aware, number=3)
    fit(aware, data, PreserveClusters())
    assert len(before) == 6
    assert_kept(before, aware)


def test_kernels_that_are_not_clustered_train_freely_and_are_named(data, caplog):
    """Depthwise ones are not named: `WeightClustering` leaves them out on purpose."""
    model = on_grid(
        layers.Conv2D(4, 3, name="conv"),
        layers.Conv2D(4, 1, name="hidden"),
        layers.DepthwiseConv2D(3, name="depthwise"),
    )
    free = [model.get_layer(name).layer.kernel for name in ("hidden", "depthwise")]
    own = [kernel.numpy() for kernel in free]
    before = clustered(model)
    for kernel, weights in zip(free, own, strict=True):
        kernel.assign(weights)
    model.get_layer("head").trainable = False
    callback = PreserveClusters()
    with caplog.at_level(logging.WARNING, "edgeprune"):
        fit(model, data, callback)
    (record,) = [one for one in caplog.records if one.name.startswith("edgeprune")]
    assert record.getMessage().endswith("are not clustered, and train freely: hidden")
    assert [values.name for values in callback.report] == ["conv/conv/kernel"]
    after = kernels(model)
    assert is_kept(before["conv/conv/kernel"], after["conv/conv/kernel"])
    assert np.array_equal(before["head/head/kernel"], after["head/head/kernel"])
    assert np.unique(after["hidden/hidden/kernel"]).size == 16


def test_zeros_that_pruning_makes_leave_their_clusters(data):
    model = on_grid(layers.Conv2D(4, 3))
    before = clustered(model)
    callback = PreserveClusters()
    fit(model, data, MagnitudePruning(ConstantSparsity(0.5)), callback)
    assert [values.zeros for values in callback.report] == [36, 96]
    for name, after in kernels(model).items():
        assert is_kept(np.where(after == 0, 0, before[name]), after)


def test_restored_weights_stay_to_the_bit(data, recwarn):
    kept = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept.append(self.model.get_weights())

    best = keras.callbacks.EarlyStopping("loss", mode="max", patience=9, restore_best_weights=True)
    model = on_grid()
    clustered(model)
    fit(model, data, PreserveClusters(), best, Keep())
    assert not [one for one in recwarn if "weights set" in str(one.message)]
    for restored, own in zip(model.get_weights(), kept[0], strict=True):
        assert np.array_equal(restored, own)


def test_weights_that_another_callback_sets_take_the_means_of_their_clusters(k, compiled, data):
    model = compiled()
    before = clustered(model, sparse=True)
    noise = np.random.default_rng(1).normal(size=(16, 16)).astype("float32")

    class Set(k.callbacks.Callback):
        def on_train_end(self, logs=None):
            model.get_layer("hidden").kernel.assign(noise)

    callback = PreserveClusters()
    with pytest.warns(UserWarning, match="did not share the values of hidden/kernel; they took"):
        fit(model, data, callback, Set(), epochs=1)
    after = kernels(model)["hidden/kernel"]
    for value in np.unique(before["hidden/kernel"]):
        members = before["hidden/kernel"] == value
        expected = noise[members].mean() if value else 0
        np.testing.assert_allclose(after[members], expected, atol=1e-6)
        assert np.unique(after[members]).size == 1
    assert [values.distinct for values in callback.report] == [5, 5, 5]


def test_a_killed_fit_goes_on_from_its_backup_as_if_nothing_had_been(data, tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations.numpy()) == 6:
                raise KeyboardInterrupt

    def run(folder, *others):
        keras.utils.set_random_seed(3)
        aware = on_grid()
        before = clustered(aware, sparse=True)
        backup = keras.callbacks.BackupAndRestore(str(folder))
        fit(aware, data, backup, PreserveClusters(), *others, epochs=3, shuffle=False)
        assert_kept(before, aware)
        return aware

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Kill())
    resumed = run(tmp_path / "killed")
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_custom_loop(data):
    aware, optimizer = on_grid(layers.Conv2D(4, 3, name="conv")), keras.optimizers.Adam(0.01)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def train(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, aware(x, training=True))
        optimizer.apply(tape.gradient(loss, aware.trainable_variables), aware.trainable_variables)

    before, callback = clustered(aware), PreserveClusters()
    with pytest.raises(InputError, match=r"needs start\(model, optimizer\)"):
        callback.step()
    callback.start(aware, optimizer)
    for start in range(0, 64, 16):
        train(data[0][start : start + 16], data[1][start : start + 16])
        callback.step()
        assert_kept(before, aware)
    callback.finish()
    assert [values.distinct for values in callback.report] == [5, 5]


def test_clustering_on_the_grid_keeps_what_is_clustered_already(data):
    """More clusters than there are make none; fewer make fewer."""
    aware = on_grid()
    before = clustered(aware, number=5)
    more = WeightClustering(8, frequency=None)
    fit(aware, data, more, epochs=1)
    assert [(kernel.clusters, kernel.distinct) for kernel in more.report] == [(8, 5)]
    assert_kept(before, aware)
    fewer = WeightClustering(3)
    fit(aware, data, fewer, epochs=1)
    assert [(kernel.clusters, kernel.distinct) for kernel in fewer.report] == [(3, 3)]


def broken():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(8, name="one"), layers.Dense(2)])
    clustered(model, number=2)
    model.get_layer("one").kernel.assign(np.full((4, 8), np.nan))
    return model


def frozen():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(8)], name="frozen")
    model.trainable = False
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: on_grid(layers.Conv2D(4, 3, name="conv")),
            r"no kernel of model '.*' is clustered: head/head/kernel has 192 values in 192 weights"
            "; train it with WeightClustering first, or leave PreserveClusters out",
        ),
        (broken, "one/kernel has NaN or infinite weights, which cannot be clustered"),
        (frozen, "model 'frozen' has no kernels with weights that training may change"),
        (
            lambda: keras.Sequential([layers.Dense(2)], name="unbuilt"),
            "model 'unbuilt' has no weights yet",
        ),
    ],
)
def test_refuses_before_the_first_step(make, message):
    with pytest.raises(InputError, match=message):
        PreserveClusters().start(make(), keras.optimizers.Adam())


def test_training_that_diverged_is_told(data):
    model = keras.Sequential([layers.Input((6, 6, 2)), layers.Flatten(), head()])
    callback = PreserveClusters()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    clustered(model)
    with pytest.warns(UserWarning, match="training diverged: .* ended with NaN or inf"):
        fit(model, (data[0] * np.nan, data[1]), callback, epochs=1)
    assert callback.report == ()
