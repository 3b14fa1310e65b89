"""quantize_aware on tf_keras: TFMOT quantizes what it can, and zeros reach the .tflite file."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from edgeprune import InputError, PreserveSparsity, UnsupportedError, models, quantize_aware, strip
from edgeprune.quantization.qat import float_layers

rng = np.random.default_rng(3)


def residual_cnn():
    inputs = layers.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.Conv2D(6, 3, padding="same", name="conv_2")(x)
    y = layers.BatchNormalization(name="norm_2")(y)
    x = layers.Activation("relu", name="sum_relu")(layers.Add(name="sum")([x, y]))
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = layers.Flatten(name="flat")(x)
    return tf_keras.Model(inputs, layers.Dense(3, activation="softmax", name="out")(x), name="net")


def pruned(model):
    """Zero seven of ten weights of every kernel; return the places, by layer."""
    zeros = {}
    for kernel in models.kernels(model):
        zeros[kernel.layer.name] = rng.random(kernel.variable.shape) < 0.7
        kernel.variable.assign(kernel.variable.numpy() * ~zeros[kernel.layer.name])
    return zeros


def samples():
    return rng.normal(size=(64, 8, 8, 3)).astype("float32")


def fit(aware, callbacks=()):
    aware.compile("adam", "sparse_categorical_crossentropy")
    aware.fit(samples(), rng.integers(0, 3, 64), epochs=3, verbose=0, callbacks=callbacks)
    return aware


def test_pqat_keeps_every_zero_to_the_file_and_strip_gives_the_plain_model(to_int8):
    model = residual_cnn()
    zeros = pruned(model)
    config = model.get_config()
    aware = fit(quantize_aware(model), [PreserveSparsity()])
    assert model.get_config() == config
    plain = strip(aware)
    assert [x.name for x in plain.layers] == [x.name for x in model.layers]
    assert [type(x) for x in plain.layers] == [type(x) for x in model.layers]
    assert plain.get_layer("conv").activation is tf_keras.activations.linear
    assert plain.get_layer("out").activation is tf_keras.activations.softmax
    assert {k.layer.name for k in models.kernels(plain)} == set(zeros)
    moved = 0
    for kernel in models.kernels(plain):
        assert not kernel.variable.numpy()[zeros[kernel.layer.name]].any()
        original = model.get_layer(kernel.layer.name).weights[0].numpy()
        moved += (kernel.variable.numpy() != original).sum()
    assert moved > 0  # it did train
    file = to_int8(plain, samples())
    first, second = file.weights("CONV_2D")
    (depthwise,) = file.weights("DEPTHWISE_CONV_2D")
    (out,) = file.weights("FULLY_CONNECTED")
    assert {w.dtype.name for w in (first, second, depthwise, out)} == {"int8"}
    assert not first[np.moveaxis(zeros["conv"], -1, 0)].any()
    assert not second[np.moveaxis(zeros["conv_2"], -1, 0)].any()
    assert not depthwise[zeros["depthwise"].reshape(depthwise.shape)].any()
    assert not out[zeros["out"].T].any()


def test_convolutions_have_tfmots_own_integers_in_the_file(to_int8):
    aware = fit(quantize_aware(residual_cnn()))
    file = to_int8(strip(aware), samples())
    for name, found in zip(("conv", "conv_2"), file.weights("CONV_2D"), strict=True):
        wrapper = aware.get_layer(f"quant_{name}")
        (weight, quantizer, state), *_ = wrapper._weight_vars
        # TFMOT rounds with the range of the weights as they are when it trains the next step.
        rounded = quantizer(weight.value(), True, weights=state).numpy()
        scale = np.abs(weight.numpy()).max(axis=(0, 1, 2)) / 127
        np.testing.assert_array_equal(
            np.abs(found), np.abs(np.moveaxis(np.round(rounded / scale), -1, 0))
        )


def test_the_stripped_model_computes_what_the_aware_one_does():
    aware = fit(quantize_aware(residual_cnn()))
    values = samples()
    difference = aware.predict(values, verbose=0) - strip(aware).predict(values, verbose=0)
    assert np.abs(difference).max() < 0.05  # activations are rounded in the aware model only


def test_layers_that_tfmot_refuses_are_left_in_float_and_named(caplog):
    inputs = layers.Input((12, 4), name="series")
    x = layers.Conv1D(5, 3, activation="relu", name="conv1d")(inputs)
    x = layers.LSTM(4, return_sequences=True, name="memory")(x)
    x = layers.SeparableConv1D(4, 3, name="separable")(x)
    x = layers.Dense(3, name="dense")(layers.Flatten(name="flat")(x))
    with caplog.at_level(logging.WARNING, "edgeprune"):
        aware = quantize_aware(tf_keras.Model(inputs, x))
    left = ("conv1d (Conv1D)", "memory (LSTM)", "separable (SeparableConv1D)")
    assert float_layers(aware) == left
    (record,) = [r for r in caplog.records if r.name.startswith("edgeprune")]
    assert all(name in record.getMessage() for name in left)
    plain = strip(aware)
    assert [x.name for x in plain.layers] == [
        "series",
        "conv1d",
        "memory",
        "separable",
        "flat",
        "dense",
    ]


def test_a_residual_separable_network_is_quantized_as_far_as_tfmot_can():
    inputs = layers.Input((8, 8, 4), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    y = layers.SeparableConv2D(4, 3, padding="same", name="separable")(x)
    y = layers.BatchNormalization(name="norm")(y)
    x = layers.Add(name="sum")([x, y])
    x = layers.Dense(2, name="out")(layers.GlobalAveragePooling2D(name="mean")(x))
    model = tf_keras.Model(inputs, x)
    aware = quantize_aware(model)
    aware.compile("sgd", "mse")
    values = rng.normal(size=(16, 8, 8, 4)).astype("float32")
    aware.fit(values, rng.normal(size=(16, 2)), verbose=0)
    plain = strip(aware)
    assert plain.count_params() == model.count_params()
    assert not [x for x in plain.layers if "tensorflow_model_optimization" in type(x).__module__]


def test_skipped_layers_and_models_inside_stay_as_they_are():
    inside = tf_keras.Sequential([layers.Input((4,)), layers.Dense(4)], name="inside")
    inputs = layers.Input((6,))
    x = layers.Dense(4, name="one")(inputs)
    x = layers.Dense(2, name="two")(inside(x))
    aware = quantize_aware(tf_keras.Model(inputs, x), skip=["one"])
    assert float_layers(aware) == ("one (Dense)", "inside (Sequential)")


def test_sequential_stays_sequential():
    model = tf_keras.Sequential(
        [
            layers.Input((6,), name="in"),
            layers.Dense(4, "relu", name="a"),
            layers.Dense(2, name="b"),
        ]
    )
    plain = strip(quantize_aware(model))
    assert isinstance(plain, tf_keras.Sequential)
    assert [layer.name for layer in plain.layers] == ["a", "b"]


def test_importing_tfmot_leaves_tf_keras_and_the_environment_to_the_user():
    code = (
        "import os, tensorflow as tf\n"
        "from edgeprune.models import import_tfmot\n"
        "import_tfmot()\n"
        "print(os.environ.get('TF_USE_LEGACY_KERAS'), tf.keras.__version__.split('.')[0])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "3"]


def test_a_subclassed_model_is_refused():
    class Own(tf_keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.dense = layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Own()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(UnsupportedError, match=r"model 'own' is a subclassed model \(Own\)"):
        quantize_aware(model)


def test_an_unbuilt_an_aware_and_an_unknown_name_are_refused():
    with pytest.raises(InputError, match="has no weights yet"):
        quantize_aware(tf_keras.Sequential([layers.Dense(2)]))
    model = tf_keras.Sequential([layers.Input((6,)), layers.Dense(2, name="dense")])
    with pytest.raises(InputError, match="skip='three' matches no layer"):
        quantize_aware(model, skip=["three"])
    with pytest.raises(InputError, match="wrapped by TensorFlow Model Optimization already"):
        quantize_aware(quantize_aware(model))


def test_a_model_that_tfmot_cannot_quantize_at_all_is_refused():
    model = tf_keras.Sequential([layers.Input((12, 4)), layers.LSTM(3)])
    with pytest.raises(UnsupportedError, match="no layer that TensorFlow Model Optimization can"):
        quantize_aware(model)


class Scaling(layers.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def test_a_layer_of_the_users_own_stays_in_float_and_the_rest_is_quantized():
    model = tf_keras.Sequential(
        [layers.Input((4,)), Scaling(3.0, name="own"), layers.Dense(2, name="dense")]
    )
    aware = quantize_aware(model)
    assert float_layers(aware) == ("own (Scaling)",)
    plain = strip(aware)
    assert plain.get_layer("own").factor == 3.0
    values = rng.normal(size=(8, 4)).astype("float32")
    np.testing.assert_allclose(plain(values), model(values), atol=0.2)


def test_a_layer_that_cannot_be_made_again_is_named():
    class Closed(layers.Layer):
        def __init__(self, secret):
            super().__init__(name="closed")

        def get_config(self):
            raise NotImplementedError("no config")

        def call(self, inputs):
            return inputs

    model = tf_keras.Sequential([layers.Input((4,)), Closed(3), layers.Dense(2)])
    with pytest.raises(UnsupportedError, match=r"layer 'closed' \(Closed\) cannot be made again"):
        quantize_aware(model)
