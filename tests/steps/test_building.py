"""Models that have no weights before `fit`, which makes them with the first batch."""

import numpy as np
import pytest
import tensorflow as tf

from edgeprune.errors import InputError
from edgeprune.sparsity.callbacks import MagnitudePruning, PreserveSparsity
from edgeprune.sparsity.schedules import ConstantSparsity, PolynomialDecay

from .conftest import zeros


def loss_of(k):
    return k.losses.SparseCategoricalCrossentropy(from_logits=True)


def sequential(k):
    """Kernels of 3*3*2*4 = 72, 64*8 = 512 and 8*3 = 24 weights."""
    layers = k.layers
    return k.Sequential(
        [
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(8, name="hidden"),
            layers.Dense(3, name="head"),
        ]
    )


def subclassed(k):
    """Trains with another head, of 24 weights, beside the one it predicts with."""

    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.body = sequential(k)
            self.body.pop()
            self.head = k.layers.Dense(3, name="head")
            self.other = k.layers.Dense(3, name="other")

        def call(self, x, training=False):
            x = self.body(x, training=training)
            return self.head(x) + self.other(x) if training else self.head(x)

    return Net()


def called(k):
    """Called once, which made all weights but those of the other head."""
    net = subclassed(k)
    net(np.zeros((1, 6, 6, 2), np.float32))
    return net


def parts(k):
    """Never called as a whole: its training step calls its part."""

    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.body = sequential(k)

        def train_step(self, data):
            x, y = data[:2]
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(y, self.body(x, training=True))
                )
            variables = self.body.trainable_variables
            gradients = tape.gradient(loss, variables)
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return {"loss": loss}

    return Net()


PRUNED = [54, 384, 18]  # three quarters of 72, 512 and 24


@pytest.mark.parametrize(
    ("make", "modes", "expected"),
    [
        (sequential, {}, PRUNED),
        (sequential, {"jit_compile": True}, PRUNED),
        (sequential, {"steps_per_execution": 3}, PRUNED),
        (sequential, {"run_eagerly": True}, PRUNED),
        (subclassed, {}, [*PRUNED, 18]),
        (called, {}, [*PRUNED, 18]),
        (parts, {}, PRUNED),
    ],
)
def test_prunes_what_the_first_batch_would_make(k, data, make, modes, expected):
    model = make(k)
    model.compile(k.optimizers.Adam(0.01, use_ema=True), loss_of(k), **modes)
    callback = MagnitudePruning(PolynomialDecay(final_sparsity=0.75))
    weighted = {} if make is parts else {"sample_weight": np.ones(64)}
    model.fit(*data, batch_size=16, epochs=2, verbose=0, callbacks=[callback], **weighted)
    assert list(zeros(model).values()) == expected
    assert [kernel.zeros for kernel in callback.report] == expected


def test_training_is_what_it_is_without_the_callback(k, data):
    """An all-dense schedule: building ahead neither draws other weights nor makes a step."""
    runs = []
    for callbacks in ([], [MagnitudePruning(ConstantSparsity(0.0))]):
        k.utils.set_random_seed(3)
        model = sequential(k)
        model.compile("adam", loss_of(k), metrics=["accuracy"])
        fitted = model.fit(
            *data, batch_size=24, epochs=2, shuffle=False, verbose=0, callbacks=callbacks
        )
        runs.append((fitted.history["loss"], model.get_weights()))
        assert int(model.optimizer.iterations.numpy()) == 6
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-5)
    for dense, held in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_allclose(held, dense, rtol=1e-4, atol=1e-6)


def test_a_schedule_that_does_not_fit_is_an_error_before_the_first_step(k, data):
    model = sequential(k)
    model.compile("adam", loss_of(k))
    callback = MagnitudePruning(PolynomialDecay(0.0, 0.75, 100, 200))
    with pytest.raises(InputError, match="never begins: this fit ends at step 8"):
        model.fit(*data, batch_size=16, epochs=2, verbose=0, callbacks=[callback])
    assert int(model.optimizer.iterations.numpy()) == 0


def test_data_that_do_not_fit_raise_what_fit_raises(k, data):
    messages = []
    for callbacks in ([], [MagnitudePruning(ConstantSparsity(0.5))]):
        model = k.Sequential([k.layers.Conv3D(4, 3, name="conv"), k.layers.Flatten()])
        model.compile("adam", loss_of(k))
        with pytest.raises(ValueError, match="expected min_ndim=5, found ndim=4") as raised:
            model.fit(*data, batch_size=16, verbose=0, callbacks=callbacks)
        messages.append(type(raised.value))
    assert messages[0] is messages[1]


def test_a_step_that_runs_only_eagerly_is_told(k, data):
    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.head = k.layers.Dense(3)

        def train_step(self, data):
            float(np.mean(data[0].numpy()))
            return super().train_step(data)

        def call(self, x):
            return self.head(tf.reshape(x, (-1, 72)))

    model = Net()
    model.compile("adam", loss_of(k), run_eagerly=True)
    callback = MagnitudePruning(ConstantSparsity(0.5))
    with pytest.raises(InputError, match=r"runs only eagerly.*call the model on one batch before"):
        model.fit(*data, batch_size=16, verbose=0, callbacks=[callback])
    model(data[0][:1])
    model.fit(*data, batch_size=16, verbose=0, callbacks=[callback])
    assert list(zeros(model).values()) == [108]


def test_preserve_sparsity_finds_no_zeros_in_new_weights(k, data):
    model = sequential(k)
    model.compile("adam", loss_of(k))
    with pytest.warns(UserWarning, match="found no zeros"):
        model.fit(*data, batch_size=16, verbose=0, callbacks=[PreserveSparsity()])
