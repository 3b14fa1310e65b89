"""Weights that are no numbers are told by layer, whoever meets them."""

import keras
import numpy as np
import pytest

import edgeprune
from edgeprune.devices.advise import advise
from edgeprune.errors import InputError, VerificationError
from edgeprune.export.finite import in_words, not_finite


def network(**broken):
    """A convolution of 18 and a dense layer of 48 + 3 weights, some of them set."""
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(2, 3, use_bias=False, name="conv")], name="inner"
    )
    inputs = keras.Input((6, 6, 1))
    x = layers.AveragePooling2D(1, 1)(inner(inputs))
    x = layers.Flatten()(layers.Cropping2D(((0, 0), (0, 0)))(x))
    model = keras.Model(inputs, layers.Dense(3, bias_initializer="ones", name="head")(x))
    for name, values in broken.items():
        layer = model.get_layer("inner").get_layer("conv") if name == "conv" else None
        kernel = (layer or model.get_layer(name)).kernel
        changed = np.array(kernel)
        changed.flat[: len(values)] = values
        kernel.assign(changed)
    return model


def test_a_sound_model_has_none():
    assert not_finite(network()) == ()


def test_layers_are_named_with_how_many_of_their_weights():
    found = not_finite(network(conv=[np.nan, np.nan], head=[np.inf, np.nan, -np.inf]))
    # 3 x 3 x 1 x 2 weights; 4 x 4 x 2 inputs of 3 units, and their biases.
    assert in_words(found) == (
        "layer 'inner/conv' has 2 NaN of 18 weights, "
        "layer 'head' has 1 NaN and 2 infinite of 99 weights"
    )


@pytest.mark.parametrize("verify", [True, False])
def test_convert_refuses_nan_and_names_the_layer(tmp_path, verify):
    with pytest.raises(InputError, match=r"^layer .head. has 1 NaN of 99 weights; train it"):
        edgeprune.convert(network(head=[np.nan]), tmp_path / "a.tflite", verify=verify)
    assert not list(tmp_path.iterdir())


def test_convert_names_the_layer_that_makes_outputs_infinite(tmp_path):
    model = network(head=[np.inf])
    with pytest.raises(VerificationError, match="compared: layer 'head' has 1 infinite of 99"):
        edgeprune.convert(model, tmp_path / "a.tflite", clean=False)


def test_inspect_tells_of_a_keras_model():
    note = "layer 'head' has 1 infinite of 99 weights"
    assert note in edgeprune.inspect(network(head=[np.inf])).notes


def test_inspect_and_advise_tell_of_a_file(tmp_path):
    file = tmp_path / "a.tflite"
    edgeprune.convert(network(head=[123.25]), file, clean=False)
    content = file.read_bytes()
    mark, nan = (np.float32(value).tobytes() for value in (123.25, np.nan))
    assert content.count(mark) == 1
    file.write_bytes(content.replace(mark, nan))  # the record no longer fits
    (note,) = edgeprune.inspect(file).notes
    assert note.replace("head_1", "head") == "layer 'head' has 1 NaN of 99 weights"
    assert note in advise(file, "cortex-m4").notes


def test_inspect_names_layers_of_a_file_as_keras_does(tmp_path):
    artifact = edgeprune.convert(network(), tmp_path / "a.tflite")
    assert [layer.name for layer in edgeprune.inspect(artifact).layers] == ["conv", "head"]
    # Without the record a call's number cannot be told from a name's own.
    artifact.record_path.unlink()
    names = [layer.name for layer in edgeprune.inspect(artifact).layers]
    assert [name.removesuffix("_1") for name in names] == ["conv", "head"]
