"""The verification passes ordinary conversions and catches broken ones."""

import functools

import numpy as np
import pytest
from reference_models import build_autoencoder, build_ds_cnn, build_resnet8

from edgeprune.errors import InputError, UnsupportedError, VerificationError
from edgeprune.export import tflite
from edgeprune.export.converter import to_tflite
from edgeprune.export.program import program_of
from edgeprune.export.verify import (
    Interpreter,
    reference,
    run_tflite,
    verification_samples,
    verify,
)

MODES = ("none", "float16", "dynamic", "int8", "int16x8")


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


def with_statistics(keras, model, seed=0):
    """Give BatchNorm layers values as after training, negative gammas included."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.gamma.assign(
                rng.choice([-1, 1], size, p=[0.2, 0.8]) * rng.uniform(0.5, 1.5, size)
            )
            layer.beta.assign(rng.normal(0, 0.3, size))
            layer.moving_mean.assign(rng.normal(0, 0.3, size))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, size))
    return model


def token_classifier(keras):
    inputs = keras.Input((12,), dtype="int32")
    x = keras.layers.Embedding(40, 16)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(16, activation="relu")(x))
    return keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(x))


def transformer(keras):
    inputs = keras.Input((8, 16))
    x = keras.layers.MultiHeadAttention(2, 8)(inputs, inputs)
    x = keras.layers.LayerNormalization()(x + inputs)
    x = keras.layers.LayerNormalization()(x + keras.layers.Dense(16, activation="gelu")(x))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalMaxPooling1D()(x)))


def segmenter(keras):
    layers = keras.layers
    inputs = keras.Input((16, 16, 3))
    a = layers.Conv2D(8, 3, padding="same", activation="swish")(inputs)
    b = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(a)
    c = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(b)
    joined = layers.Concatenate()([a, c])
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(joined))


BUILDERS = {
    "resnet8": build_resnet8,
    "ds_cnn": build_ds_cnn,
    "autoencoder": build_autoencoder,
    "tokens": token_classifier,
    "transformer": transformer,
    "segmenter": segmenter,
}


@functools.cache
def converted(keras, name, mode, statistics=False):
    """Convert once for all tests; who changes the model's weights must put them back."""
    keras.utils.set_random_seed(1)
    model = BUILDERS[name](keras)
    if statistics:
        with_statistics(keras, model)
    program = program_of(model).fixed(1, None)
    samples = [column[:24] for column in verification_samples(program, None, 40)]
    content = to_tflite(program, mode, samples, integer_io=False, allow_select_ops=False)
    return program, samples, content


@pytest.mark.parametrize(
    ("name", "mode", "statistics"),
    [("ds_cnn", mode, True) for mode in MODES]
    + [pytest.param("ds_cnn", mode, False, marks=pytest.mark.slow) for mode in MODES]
    + [("autoencoder", mode, True) for mode in MODES]
    + [("resnet8", mode, trained) for mode in ("none", "int8") for trained in (False, True)]
    + [(name, mode, False) for name in ("transformer", "segmenter") for mode in ("none", "int8")]
    + [("tokens", mode, False) for mode in ("none", "dynamic", "int8")],
)
def test_ordinary_models_pass(keras, name, mode, statistics):
    program, samples, content = converted(keras, name, mode, statistics)
    result = verify(program, Interpreter(content), samples, reference(program, samples), mode)
    assert result.passed, result
    assert result.samples == 24


def corrupted(content, weight, change):
    """Change one weight buffer inside a .tflite file."""
    start = weight.data.__array_interface__["data"][0]
    base = np.frombuffer(content, np.uint8)
    offset = start - base.__array_interface__["data"][0]
    dtype = {"float32": np.float32, "float16": np.float16}.get(weight.dtype, np.int8)
    damaged = bytearray(content)
    values = np.frombuffer(damaged, dtype, weight.data.size // np.dtype(dtype).itemsize, offset)
    values[:] = change(values)
    return bytes(damaged)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "change",
    [np.zeros_like, np.negative, lambda v: v[::-1].copy()],
    ids=["zero", "negative", "reversed"],
)
def test_a_damaged_kernel_is_caught(keras, mode, change):
    program, samples, content = converted(keras, "autoencoder", mode)
    expected = reference(program, samples)
    graph = tflite.read(content)
    weights = graph.weights()
    for weight in (weights[0], weights[len(weights) // 2], weights[-1]):
        damaged = corrupted(graph.content, weight, change)
        result = verify(program, Interpreter(damaged), samples, expected, mode)
        assert not result.passed, (weight.name, result)


@pytest.mark.parametrize("mode", ["none", "int8"])
def test_wrong_batch_norm_is_caught(keras, mode):
    program, samples, content = converted(keras, "resnet8", mode, True)
    interpreter = Interpreter(content)
    assert verify(program, interpreter, samples, reference(program, samples), mode).passed
    # The file keeps the old statistics, the model gets others: as if folding had gone wrong.
    with_statistics(keras, program.owner, seed=7)
    other = reference(program, samples)
    with_statistics(keras, program.owner)
    assert not verify(program, interpreter, samples, other, mode).passed


def test_not_a_number_never_passes(keras):
    program, samples, content = converted(keras, "autoencoder", "none")
    expected = reference(program, samples)
    weight = tflite.read(content).weights()[0]
    damaged = corrupted(content, weight, lambda v: np.full_like(v, np.nan))
    assert not verify(program, Interpreter(damaged), samples, expected, "none").passed


def test_a_keras_model_that_gives_nan_is_said_so(keras):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.layers[-1].bias.assign(np.full(3, np.nan))
    program = program_of(model).fixed(1, None)
    samples = verification_samples(program, None, 2)
    with pytest.raises(VerificationError, match=r"the Keras model itself gives .* NaN"):
        reference(program, samples)


def test_tolerance_is_relative_to_the_spread(keras):
    """An error of a known size: the classifier's bias, 0.1 more in the file."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    program = program_of(model).fixed(1, None)
    samples = verification_samples(program, None, 2)
    expected = reference(program, samples)
    model.layers[-1].bias.assign(np.full(3, 0.1))
    content = to_tflite(program, "none", None, integer_io=False, allow_select_ops=False)
    (values,) = expected.values()
    ratio = 0.1 / values.std()
    for tolerance, passes in ((ratio * 1.01, True), (ratio * 0.99, False)):
        result = verify(program, Interpreter(content), samples, expected, "none", tolerance)
        assert result.passed is passes
        assert result.max_abs_error == pytest.approx(0.1, rel=1e-4)


def test_argmax_is_compared_in_classifiers_only(keras):
    for name, classifier in (("ds_cnn", True), ("autoencoder", False), ("segmenter", False)):
        program, samples, content = converted(keras, name, "none")
        result = verify(program, Interpreter(content), samples, reference(program, samples), "none")
        assert (result.argmax_agreement is not None) is classifier
        assert result.argmax_agreement in (None, 1.0)


def test_a_given_tolerance_is_the_only_one(keras):
    """Errors of float rounding: 0 lets none pass, the mode's own all."""
    program, samples, content = converted(keras, "autoencoder", "none")
    interpreter, expected = Interpreter(content), reference(program, samples)
    assert verify(program, interpreter, samples, expected, "none").passed
    result = verify(program, interpreter, samples, expected, "none", 0.0)
    assert 0 < result.max_abs_error < 1e-4
    assert not result.passed
    assert "or max" not in result.tolerance


def lost(keras, signal):
    """Compare logits 50 + signal (the right class) and 50 - signal with a file that gives 50.

    What counts as rounding is a thousandth of the largest, 0.05.
    """
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])
    bias = np.full(4, 50, np.float32)
    model.layers[-1].set_weights([np.zeros((5, 4), np.float32), bias])
    program = program_of(model).fixed(1, None)
    content = to_tflite(program, "none", None, integer_io=False, allow_select_ops=False)
    model.layers[-1].set_weights([signal * np.eye(5, 4, dtype=np.float32), bias])
    samples = [np.float32(2 * np.eye(4, 5) - 1)[np.arange(40) % 4]]
    return verify(program, Interpreter(content), samples, reference(program, samples), "int8")


def test_passing_within_rounding_only_is_noted(keras):
    result = lost(keras, 0.02)  # the classes are 0.04 apart
    assert result.passed
    assert result.argmax_agreement == 0.25
    assert result.notes == (
        "output 'output_0' varies by 0.04 from sample to sample, and is off by up to 0.02: it is "
        "the same only within rounding",
        "the arg max is the same on only 25.0% of the samples",
    )
    assert str(result).splitlines()[1:] == [f"note: {note}" for note in result.notes]


def test_a_classifier_that_loses_more_than_rounding_fails(keras):
    result = lost(keras, 0.04)  # the error would pass, but the classes are 0.08 apart
    assert result.max_abs_error < 0.05
    assert not result.passed
    assert "arg max the same on 50% of the 40 samples decided by more than 0.05: 25.0%" in (
        result.tolerance
    )


def test_outputs_of_few_quantization_steps_are_noted(keras):
    """An untrained classifier in int8: softmax has 256 steps, of which it uses one or two."""
    program, samples, content = converted(keras, "ds_cnn", "int8")
    result = verify(program, Interpreter(content), samples, reference(program, samples), "int8")
    assert result.passed
    assert "varies by less than 1 quantization steps" in result.notes[0]


def test_small_steps_beside_a_large_bias_are_noted(keras):
    """Softmax of logits 2 apart, plus or minus 0.001: one sample is as good as all of them."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.layers[-1].set_weights([np.full((4, 2), [[0.001, 0]]), np.array([2.0, 0])])
    program = program_of(model).fixed(1, None)
    samples = [np.float32(2 * np.eye(4) - 1)[np.arange(16) % 4]]
    samples[0][::2] *= -1
    content = to_tflite(program, "int8", samples, integer_io=False, allow_select_ops=False)
    result = verify(program, Interpreter(content), samples, reference(program, samples), "int8")
    assert result.passed
    (note,) = result.notes
    assert "varies by less than 1 quantization steps" in note
    assert note.endswith(": this proves little")


def test_outputs_that_do_not_vary_are_noted(keras):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer="zeros")])
    program = program_of(model).fixed(1, None)
    content = to_tflite(program, "none", None, integer_io=False, allow_select_ops=False)
    for count, note in ((9, "gives the same values for every sample"), (1, "on one sample only")):
        samples = [np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)]
        result = verify(program, Interpreter(content), samples, reference(program, samples), "none")
        assert result.passed
        assert [note in found for found in result.notes] == [True]


def test_what_varies_and_agrees_needs_no_note(keras):
    program, samples, content = converted(keras, "resnet8", "int8", True)
    result = verify(program, Interpreter(content), samples, reference(program, samples), "int8")
    assert result.passed
    assert result.notes == ()


def test_agreement_counts_samples(keras):
    """Identity logits; the file's first class gets a head start of 1."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.layers[-1].set_weights([np.eye(4, 3), np.array([1.0, 0, 0])])
    program = program_of(model).fixed(1, None)
    content = to_tflite(program, "none", None, integer_io=False, allow_select_ops=False)
    model.layers[-1].bias.assign(np.zeros(3))
    samples = [np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0.5, 0, 0], [0, 0, 0.5, 0]], np.float32)]
    result = verify(program, Interpreter(content), samples, reference(program, samples), "none")
    assert result.argmax_agreement == 0.5
    assert result.max_abs_error == 1.0


def test_random_samples_are_seeded_and_fit_the_inputs(keras):
    inputs = [keras.Input((3,)), keras.Input((2,), dtype="int32"), keras.Input((1,), dtype="bool")]
    model = keras.Model(inputs, [keras.layers.Dense(1)(inputs[0]), inputs[1], inputs[2]])
    program = program_of(model).fixed(1, None)
    first, again = (verification_samples(program, None, 7) for _ in range(2))
    for a, b, spec in zip(first, again, program.inputs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == spec.dtype
    assert first[1].min() >= 0
    assert first[1].max() == 6
    assert len(first[0]) == 256


def test_few_samples_of_large_inputs(keras):
    large = keras.Sequential([keras.Input((1024, 1024, 3)), keras.layers.Flatten()])
    assert len(verification_samples(program_of(large).fixed(1, None), None, 2)[0]) == 8


def test_run_tflite(keras):
    program, samples, content = converted(keras, "autoencoder", "int8")
    outputs = run_tflite(content, samples[0].astype(np.float64))
    assert outputs.shape == (24, 640)
    (expected,) = reference(program, samples).values()
    assert np.abs(outputs - expected).mean() < 0.1 * expected.std()
    with pytest.raises(InputError, match=r"samples of shape \(640,\)"):
        run_tflite(content, np.zeros((2, 639)))


def test_garbage_in_place_of_a_model():
    with pytest.raises(InputError, match=r"not a \.tflite model|is damaged"):
        Interpreter(b"\0" * 100)


def test_select_operators_cannot_be_compared(keras):
    import tensorflow as tf

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: tf.math.erf(x))(inputs))
    program = program_of(model).fixed(1, None)
    with pytest.raises(UnsupportedError, match=r"TFLite lacks: Erf; .*`allow_select_ops"):
        to_tflite(program, "none", None, integer_io=False, allow_select_ops=False)
    content = to_tflite(program, "none", None, integer_io=False, allow_select_ops=True)
    with pytest.raises(UnsupportedError, match=r"select operators \(FlexErf\).*`verify=False`"):
        Interpreter(content)
