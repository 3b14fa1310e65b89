"""strip: the plain model out of aware and TFMOT-wrapped ones, of both flavours."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers

from edgeprune import InputError, UnsupportedError, models, quantize_aware, strip
from edgeprune.models import import_tfmot
from edgeprune.quantization import grid

rng = np.random.default_rng(5)


def keras_model():
    inside = keras.Sequential(
        [layers.Input((8,)), layers.Dense(6, name="deep"), layers.ReLU()], name="inside"
    )
    inputs = keras.Input((8,), name="in")
    shared = layers.Dense(8, name="shared")
    x = layers.Add()([inside(shared(shared(inputs))), layers.Dense(6, name="side")(inputs)])
    return keras.Model(inputs, layers.Dense(2, activation="tanh", name="out")(x), name="net")


def trained_aware():
    aware = quantize_aware(keras_model())
    aware.compile("adam", "mse")
    aware.fit(rng.normal(size=(16, 8)), rng.normal(size=(16, 2)), verbose=0)
    return aware


def test_the_plain_model_has_the_originals_config_and_kernels_on_the_grid():
    model = keras_model()
    aware = quantize_aware(model)
    aware.compile("adam", "mse")
    aware.fit(rng.normal(size=(16, 8)), rng.normal(size=(16, 2)), verbose=0)
    plain = strip(aware)
    assert plain.get_config() == model.get_config()
    assert type(plain) is type(model)
    trained = {k.layer.name: k.variable.numpy() for k in models.kernels(aware)}
    assert set(trained) == {"shared", "deep", "side", "out"}
    for kernel in models.kernels(plain):
        expected = grid.to_grid(trained[kernel.layer.name], (1,))
        np.testing.assert_array_equal(kernel.variable.numpy(), expected)
        assert len(np.unique(expected)) > 5
    bias = aware.get_layer("side").layer.bias.numpy()
    assert bias.any()
    np.testing.assert_array_equal(plain.get_layer("side").bias.numpy(), bias)


def test_stripping_leaves_the_aware_model_as_it_was():
    aware = trained_aware()
    before = [weights.copy() for weights in aware.get_weights()]
    strip(aware)
    for old, new in zip(before, aware.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    aware.fit(rng.normal(size=(16, 8)), rng.normal(size=(16, 2)), verbose=0)


def test_the_plain_model_loads_where_edgeprune_is_not(tmp_path):
    plain = strip(trained_aware())
    plain.save(tmp_path / "plain.keras")
    values = rng.normal(size=(4, 8)).astype("float32")
    np.save(tmp_path / "values.npy", values)
    code = (
        "import sys; sys.modules['edgeprune'] = None\n"
        "import keras, numpy as np\n"
        f"model = keras.models.load_model({str(tmp_path / 'plain.keras')!r})\n"
        f"values = np.load({str(tmp_path / 'values.npy')!r})\n"
        f"np.save({str(tmp_path / 'found.npy')!r}, model.predict(values, verbose=0))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), plain.predict(values, verbose=0))


def test_an_aware_model_that_was_saved_and_loaded_is_stripped_alike(tmp_path):
    aware = trained_aware()
    aware.save(tmp_path / "aware.keras")
    again = strip(keras.models.load_model(tmp_path / "aware.keras"))
    for old, new in zip(strip(aware).get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "model",
    [keras_model(), tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])],
    ids=["keras", "tf_keras"],
)
def test_a_plain_model_comes_back_as_it_is(model):
    assert strip(model) is model


def test_what_is_no_model_is_refused():
    with pytest.raises(InputError, match="got str; supported: a Keras 3 or tf_keras model"):
        strip("model.keras")


def test_a_subclassed_model_around_an_aware_one_is_refused():
    class Around(keras.Model):
        def __init__(self):
            super().__init__(name="around")
            self.inside = quantize_aware(keras_model())

        def call(self, inputs):
            return self.inside(inputs)

    with pytest.raises(UnsupportedError, match=r"model 'around' is a subclassed model \(Around\)"):
        strip(Around())


def tf_keras_model():
    inputs = tf_keras.layers.Input((8, 8, 3), name="in")
    x = tf_keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = tf_keras.layers.BatchNormalization(name="norm")(x)
    x = tf_keras.layers.ReLU(name="relu")(x)
    x = tf_keras.layers.Flatten(name="flat")(x)
    return tf_keras.Model(inputs, tf_keras.layers.Dense(2, "relu", name="out")(x), name="net")


def images():
    return rng.normal(size=(16, 8, 8, 3)).astype("float32")


def same_layers(plain, model):
    assert [x.name for x in plain.layers] == [x.name for x in model.layers]
    assert plain.get_config() == model.get_config()


def test_pruning_wrappers_of_tfmot_are_taken_off_and_their_masks_applied():
    tfmot = import_tfmot()
    model = tf_keras_model()
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(
        model, tfmot.sparsity.keras.ConstantSparsity(0.75, 0, frequency=1)
    )
    wrapped.compile("adam", "mse")
    wrapped.fit(
        images(),
        rng.normal(size=(16, 2)),
        epochs=2,
        verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    )
    plain = strip(wrapped)
    same_layers(plain, model)
    reference = tfmot.sparsity.keras.strip_pruning(wrapped)
    for old, new in zip(reference.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for name in ("conv", "out"):
        kernel = plain.get_layer(name).kernel.numpy()
        assert (kernel == 0).mean() == pytest.approx(0.75, abs=0.01)


def test_models_quantized_by_tfmot_itself_are_stripped():
    tfmot = import_tfmot()
    model = tf_keras_model()
    expected = model.get_config()
    quantized = tfmot.quantization.keras.quantize_model(model)
    quantized.compile("adam", "mse")
    quantized.fit(images(), rng.normal(size=(16, 2)), verbose=0)
    plain = strip(quantized)
    assert plain.get_config() == expected
    kernel = plain.get_layer("conv").kernel.numpy()
    np.testing.assert_allclose(grid.to_grid(kernel, (3,)), kernel, atol=1e-7)
    # TFMOT gives a Dense kernel one scale in all.
    kernel = plain.get_layer("out").kernel.numpy()
    np.testing.assert_allclose(grid.to_grid(kernel, ()), kernel, atol=1e-7)
    mean = plain.get_layer("norm").moving_mean.numpy()
    assert mean.any()
    np.testing.assert_array_equal(quantized.get_layer("quant_norm").layer.moving_mean, mean)


def test_a_tfmot_model_that_was_saved_and_loaded_is_stripped_alike(tmp_path):
    tfmot = import_tfmot()
    quantized = tfmot.quantization.keras.quantize_model(tf_keras_model())
    quantized.save(tmp_path / "quantized.h5")
    with tfmot.quantization.keras.quantize_scope():
        again = tf_keras.models.load_model(tmp_path / "quantized.h5")
    for old, new in zip(strip(quantized).get_weights(), strip(again).get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_subclassed_model_around_tfmots_layers_is_refused():
    class Around(tf_keras.Model):
        def __init__(self):
            super().__init__(name="around")
            self.inside = import_tfmot().quantization.keras.quantize_model(tf_keras_model())

        def call(self, inputs):
            return self.inside(inputs)

    with pytest.raises(UnsupportedError, match=r"model 'around' is a subclassed model \(Around\)"):
        strip(Around())
