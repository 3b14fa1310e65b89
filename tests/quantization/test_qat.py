"""quantize_aware on Keras 3: structures, what is kept, what is refused, and agreement."""

import logging

import keras
import numpy as np
import pytest
from keras import layers

from edgeprune import InputError, PreserveSparsity, UnsupportedError, models, quantize_aware, strip
from edgeprune.quantization import grid
from edgeprune.quantization.layers import ActivationRange, GridLayer
from edgeprune.quantization.qat import float_layers


def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8, 1) / 16).astype("float32"), labels


def small_residual_cnn():
    """Every kind of int8 operator a small vision model has, in 14k weights."""

    def block(x, filters, name, relu=True, **options):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name, **options)(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
        return layers.ReLU(name=f"{name}_relu")(x) if relu else x

    inputs = keras.Input((8, 8, 1), name="image")
    x = shortcut = block(inputs, 16, "c1")
    x = block(block(x, 16, "c2"), 16, "c3", relu=False)
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, shortcut]))
    x = layers.Concatenate()([layers.MaxPooling2D()(x), block(x, 8, "c4", strides=2)])
    x = layers.SeparableConv2D(24, 3, padding="same", activation="swish", name="sep")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(24, 1, activation="sigmoid", name="gate")(gate)
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.DepthwiseConv2D(3, activation="relu6", name="depthwise")(x)
    x = layers.Dense(10, activation="softmax", name="out")(layers.Flatten()(x))
    return keras.Model(inputs, x, name="small")


@pytest.fixture(scope="module")
def trained():
    """A float model trained on half of the digits to well above 90 %."""
    keras.utils.set_random_seed(1)
    images, labels = digits()
    model = small_residual_cnn()
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(images[:1000], labels[:1000], batch_size=32, epochs=10, verbose=0)
    return model


def fit(aware, callbacks=(), epochs=2):
    images, labels = digits()
    aware.compile(keras.optimizers.Adam(2e-4), "sparse_categorical_crossentropy")
    aware.fit(
        images[:1000], labels[:1000], batch_size=32, epochs=epochs, verbose=0, callbacks=callbacks
    )
    return aware


@pytest.fixture(scope="module")
def aware_and_file(trained, to_int8):
    images, _ = digits()
    aware = fit(quantize_aware(trained))
    return aware, to_int8(strip(aware), images[:1000])


def test_the_aware_model_computes_what_the_int8_file_computes(aware_and_file):
    aware, file = aware_and_file
    images, labels = digits()
    held, wanted = images[1000:], labels[1000:]
    expected = aware.predict(held, verbose=0)
    found = file.run(held)
    assert (expected.argmax(-1) == wanted).mean() > 0.9
    assert (expected.argmax(-1) == found.argmax(-1)).mean() >= 0.985
    assert np.abs(expected - found).mean() < 4e-3  # outputs come in steps of 1/256


def test_every_rounded_activation_is_a_tensor_of_the_int8_file_with_about_that_range(
    aware_and_file,
):
    aware, file = aware_and_file
    outputs = [o for op in file.operators for o in op.outputs if o["dtype"] == np.int8]
    scales = [o["quantization_parameters"]["scales"][0] for o in outputs]
    ranges = [x for x in aware._flatten_layers() if isinstance(x, ActivationRange)]
    assert len(ranges) == 15
    for layer in ranges:
        scale = float(layer.maximum - layer.minimum) / 255
        # Batches of 32 on average, against the extremes of all calibration samples.
        nearest = min(scales, key=lambda found: abs(np.log(found / scale)))
        assert 0.5 < nearest / scale < 2, layer.path


def test_pqat_ends_with_the_zeros_it_began_with_counted_in_the_file(trained, to_int8):
    images, _ = digits()
    pruned = keras.models.clone_model(trained)
    pruned.set_weights(trained.get_weights())
    zeros = {}
    for kernel in models.kernels(pruned):
        weights = np.abs(kernel.variable.numpy())
        zeros[kernel.name] = weights <= np.quantile(weights, 0.7)
        kernel.variable.assign(kernel.variable.numpy() * ~zeros[kernel.name])
    aware = fit(quantize_aware(pruned), [PreserveSparsity()])
    plain = strip(aware)
    for kernel in models.kernels(plain):
        assert not kernel.variable.numpy()[zeros[kernel.name]].any()
    file = to_int8(plain, images[:200])
    in_file = {
        "CONV_2D": ["c1", "c2", "c3", "c4", "sep", "gate"],
        "DEPTHWISE_CONV_2D": ["sep", "depthwise"],
        "FULLY_CONNECTED": ["out"],
    }
    counted = 0
    for operator, names in in_file.items():
        for name, weights in zip(names, file.weights(operator), strict=True):
            (began,) = [
                mask
                for path, mask in zeros.items()
                if path.startswith(f"{name}/")
                and ("depthwise" not in path.split("/")[1] or operator.startswith("DEPTH"))
                and ("pointwise" not in path.split("/")[1] or operator == "CONV_2D")
            ]
            if operator == "DEPTHWISE_CONV_2D":
                began = began.reshape(weights.shape)
            else:
                began = np.moveaxis(began, -1, 0)
            assert weights.dtype == np.int8
            assert not weights[began].any()
            counted += began.sum()
    assert counted == sum(mask.sum() for mask in zeros.values())


def tiny_cnn():
    return keras.Sequential(
        [
            layers.Input((4, 4, 2), name="image"),
            layers.Conv2D(3, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flat"),
            layers.Dense(2, activation="swish", name="dense"),
        ]
    )


def test_the_original_is_not_touched_and_shares_nothing():
    model = tiny_cnn()
    before = [weights.copy() for weights in model.get_weights()]
    config = model.get_config()
    aware = quantize_aware(model)
    aware.compile("sgd", "mse")
    one_step(aware, np.random.default_rng(0).normal(size=(8, 4, 4, 2)))
    assert model.get_config() == config
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not {id(w) for w in model.weights} & {id(w) for w in aware.weights}
    assert all(len(layer._inbound_nodes) == 1 for layer in model.layers)


def test_an_aware_model_saves_and_loads_and_goes_on_training(tmp_path):
    samples = np.random.default_rng(0).normal(size=(8, 4, 4, 2))
    aware = quantize_aware(tiny_cnn())
    aware.compile("sgd", "mse")
    one_step(aware, samples)
    aware.save(tmp_path / "aware.keras")
    again = keras.models.load_model(tmp_path / "aware.keras")
    np.testing.assert_array_equal(
        aware.predict(samples, verbose=0), again.predict(samples, verbose=0)
    )
    one_step(again, samples)
    assert float(again.layers[0].batches) == 2
    assert [x.name for x in strip(again).layers] == [x.name for x in tiny_cnn().layers]


def dense_stack(*, trainable=True):
    model = keras.Sequential(
        [
            layers.Input((8,)),
            layers.Dense(4, name="one"),
            layers.ReLU(),
            layers.Dense(2, name="two"),
        ]
    )
    model.get_layer("one").trainable = trainable
    return model


def one_step(aware, samples=None):
    samples = np.random.default_rng(0).normal(size=(8, 8)) if samples is None else samples
    outputs = aware.predict(samples, verbose=0)
    aware.fit(samples, keras.tree.map_structure(np.ones_like, outputs), verbose=0)
    return aware


def test_frozen_layers_stay_frozen():
    aware = quantize_aware(dense_stack(trainable=False))
    before = aware.get_layer("one").layer.kernel.numpy()
    aware.compile("sgd", "mse")
    one_step(aware)
    np.testing.assert_array_equal(aware.get_layer("one").layer.kernel.numpy(), before)
    assert [layer.trainable for layer in strip(aware).layers] == [False, True, True]


def test_it_trains_under_xla():
    aware = quantize_aware(dense_stack())
    aware.compile("sgd", "mse", jit_compile=True)
    before = aware.get_layer("two").layer.kernel.numpy()
    one_step(aware)
    assert (aware.get_layer("two").layer.kernel.numpy() != before).any()
    assert float(aware.layers[0].batches) == 1


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_it_trains_in_mixed_precision_and_keeps_the_policies(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = dense_stack()
        aware = quantize_aware(model)
        aware.compile("sgd", "mse")
        one_step(aware)
        plain = strip(aware)
    finally:
        keras.config.set_dtype_policy("float32")
    assert [x.dtype_policy.name for x in plain.layers] == [
        x.dtype_policy.name for x in model.layers
    ]
    kernel = plain.get_layer("one").kernel
    assert kernel.dtype == "float32"
    np.testing.assert_allclose(grid.to_grid(kernel.value, (1,)), kernel.numpy(), atol=1e-6)


def test_dictionaries_of_inputs_and_outputs_are_kept():
    first, second = keras.Input((4,), name="first"), keras.Input((3,), name="second")
    x = layers.Dense(3)(layers.Concatenate()([first, second]))
    model = keras.Model({"first": first, "second": second}, {"a": x, "b": layers.Dense(1)(x)})
    aware = quantize_aware(model)
    aware.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    one_step(aware, {"first": rng.normal(size=(8, 4)), "second": rng.normal(size=(8, 3))})
    assert set(strip(aware).output) == {"a", "b"}
    assert strip(aware).get_config() == model.get_config()


def test_a_subclass_of_model_with_its_own_step_keeps_its_class():
    class Counting(keras.Model):
        steps = 0

        def train_step(self, data):
            type(self).steps += 1
            return super().train_step(data)

    inputs = keras.Input((8,))
    aware = quantize_aware(Counting(inputs, layers.Dense(2)(inputs)))
    aware.compile("sgd", "mse")
    one_step(aware)
    assert isinstance(aware, Counting)
    assert Counting.steps > 0


@keras.saving.register_keras_serializable(package="test")
class Doubling(layers.Layer):
    def call(self, inputs):
        return inputs * 2


def test_layers_without_an_int8_form_run_in_float_and_are_named(caplog):
    inputs = keras.Input((6, 8))
    x = layers.LayerNormalization(name="norm")(inputs)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.Dense(8, name="dense")(Doubling(name="custom")(x))
    x, *_ = layers.LSTM(4, return_state=True, name="memory")(x)
    with caplog.at_level(logging.WARNING, "edgeprune"):
        aware = quantize_aware(keras.Model(inputs, layers.Dense(2)(x)))
    expected = (
        "norm (LayerNormalization)",
        "attention (MultiHeadAttention)",
        "custom (Doubling)",
        "memory (LSTM)",
    )
    assert float_layers(aware) == expected
    (record,) = [r for r in caplog.records if r.name.startswith("edgeprune")]
    assert all(name in record.getMessage() for name in expected)
    aware.compile("sgd", "mse")
    one_step(aware, np.random.default_rng(0).normal(size=(8, 6, 8)))


def test_batch_statistics_are_trained_and_handed_on():
    inputs = keras.Input((4, 4, 2))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(3, 3)(inputs))
    aware = quantize_aware(keras.Model(inputs, x))
    aware.compile("sgd", "mse")
    one_step(aware, np.random.default_rng(0).normal(size=(8, 4, 4, 2)) + 3)
    trained_mean = aware.get_layer("norm").moving_mean.numpy()
    assert (trained_mean != 0).all()
    np.testing.assert_array_equal(strip(aware).get_layer("norm").moving_mean, trained_mean)


def test_an_unbuilt_model_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"^model 'late' has no weights yet; build it first.*$"):
        quantize_aware(keras.Sequential([layers.Dense(2)], name="late"))


def test_an_aware_model_is_refused():
    with pytest.raises(InputError, match=r"is quantization-aware already"):
        quantize_aware(quantize_aware(dense_stack()))


def test_an_unknown_name_to_skip_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match=r"skip='three' matches no layer .* one, re_lu.*, two"):
        quantize_aware(dense_stack(), skip=["three"])


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Own()
    model(np.ones((1, 3)))
    with pytest.raises(UnsupportedError, match=r"is a subclassed model \(Own\)"):
        quantize_aware(model)


def test_a_model_with_nothing_to_quantize_is_refused():
    model = keras.Sequential([layers.Input((3, 4)), layers.LSTM(2)])
    with pytest.raises(UnsupportedError, match="no layer that can be trained on the int8 grid"):
        quantize_aware(model)


def test_a_layer_that_cannot_be_made_again_is_named():
    class Closed(layers.Layer):
        def __init__(self, secret):
            super().__init__(name="closed")
            self.secret = secret

        def call(self, inputs):
            return inputs

    model = keras.Sequential([layers.Input((4,)), Closed(3), layers.Dense(2)])
    with pytest.raises(UnsupportedError, match=r"layer 'closed' \(Closed\) cannot be made again"):
        quantize_aware(model)


def test_a_lambda_keeps_its_function_and_what_it_refers_to():
    factor = 3.0
    model = keras.Sequential(
        [
            layers.Input((4,)),
            layers.Lambda(lambda x, plus: x * factor + np.pi + plus, arguments={"plus": 1.0}),
            layers.Dense(2, name="dense"),
        ]
    )
    plain = strip(quantize_aware(model))
    values = np.ones((2, 4), "float32")
    np.testing.assert_allclose(plain.layers[0](values), values * (3 + np.pi + 1), rtol=1e-6)


def test_wrapped_layers_are_found_by_models_kernels():
    aware = quantize_aware(dense_stack())
    assert isinstance(aware.get_layer("one"), GridLayer)
    assert [kernel.name for kernel in models.kernels(aware)] == [
        "one/one/kernel",
        "two/two/kernel",
    ]
