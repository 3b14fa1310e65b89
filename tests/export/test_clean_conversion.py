"""Conversions leave dead channels out, say so, and are still held against what was given."""

import json

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgeprune.errors import InputError
from edgeprune.export import tflite
from edgeprune.export.convert import convert

SAMPLES = np.random.default_rng(1).normal(size=(20, 8, 8, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


def network(keras, second=4):
    """Two convolutions and a classifier; filters 1 and 2 of the first are zero, and one negative.

    Args:
      keras: the module.
      second: filters of the second convolution.
    """
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2), name="image"),
            layers.Conv2D(5, 3, activation="relu", name="first"),
            layers.Conv2D(second, 1, activation="relu", name="second"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(3, name="classes"),
        ],
        name="network",
    )
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    kernel = np.asarray(model.get_layer("second").kernel).copy()
    kernel[:, :, 0] = abs(kernel[:, :, 0])  # every filter fires at times
    model.get_layer("second").kernel.assign(kernel)
    kernel = rng.normal(size=(3, 3, 2, 5))
    kernel[..., 1:3] = 0
    model.get_layer("first").set_weights([kernel, np.array([0.1, 0.2, -0.3, 0.1, 0.1])])
    return model


def kernels(path):
    """Kernels by their rank and size: convolutions (out, h, w, in), the matrix (out, in)."""
    weights = tflite.read(path).weights()
    return [weight.values() for weight in weights]


@pytest.mark.parametrize("mode", ["none", "float16", "dynamic", "int8", "int16x8"])
def test_dead_channels_leave_in_every_mode(keras, tmp_path, mode):
    model = network(keras)
    calibration = SAMPLES if mode.startswith("int") else None
    steps = []
    artifact = convert(
        model,
        tmp_path / "a.tflite",
        quantize=mode,
        calibration=calibration,
        progress=steps.append,
    )
    assert [kernel.shape for kernel in kernels(artifact.path)] == [
        (3, 3, 3, 2),
        (4, 1, 1, 3),
        (3, 4),
    ]
    assert artifact.verification.passed
    assert steps[1:3] == ["clean up", "convert without 2 dead channels"]
    # Kernels of 90, 20 and 12 weights, then of 54, 12 and 12; 36 places.
    line = "2 dead channels removed from 1 layer: parameters 134 -> 88, MACs 3,972 -> 2,388"
    assert line in str(artifact).splitlines()
    record = json.loads(artifact.record_path.read_text())["made_by"]
    assert record["recipe"]["clean"] is True
    assert record["dead_channels"]["channels_removed"] == 2
    assert record["dead_channels"]["layers"] == [
        {"layer": "first", "channels_before": 5, "channels_after": 3}
    ]
    kept = convert(
        model, tmp_path / "b.tflite", quantize=mode, calibration=calibration, clean=False
    )
    assert kernels(kept.path)[0].shape == (5, 3, 3, 2)
    assert kept.dead_channels == {"channels_removed": 0, "reason": "kept, as asked"}
    assert "dead channels" not in str(kept)
    assert model.get_layer("first").filters == 5


# Of the int8 file also leaves what set a scale, for there the scale stays without it.
@pytest.mark.parametrize(("mode", "stay"), [("int16x8", [0, 1, 3, 4]), ("int8", [0, 3, 4])])
def test_the_integers_of_a_trained_grid_stay_the_same(keras, tmp_path, mode, stay):
    model = network(keras)
    rng = np.random.default_rng(2)
    for name in ("first", "second"):
        kernel, bias = (np.asarray(weight) for weight in model.get_layer(name).weights)
        steps = rng.integers(-126, 127, kernel.shape) * (rng.random(kernel.shape) < 0.5)
        if name == "first":
            steps[0, 0, 0] = 127
            steps[..., 1:3] = 0
        else:
            # Of the dead inputs, 1 sets the scale of the last output; 2 sets none.
            steps[0, 0, 0], steps[0, 0, 0, 3], steps[0, 0, 1, 3] = 127, 50, -127
        model.get_layer(name).set_weights([steps * rng.uniform(0.01, 0.02, len(bias)), bias])
    paths = {}
    for clean in (True, False):
        paths[clean] = convert(
            model,
            tmp_path / f"{clean}.tflite",
            quantize=mode,
            calibration=SAMPLES,
            clean=clean,
        ).path
    cleaned, whole = kernels(paths[True]), kernels(paths[False])
    np.testing.assert_array_equal(cleaned[0], whole[0][stay])
    np.testing.assert_array_equal(cleaned[1], whole[1][..., stay])
    np.testing.assert_array_equal(cleaned[2], whole[2])


def test_what_is_not_cleaned_is_said(keras, tmp_path):
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    assert "tf_keras" in convert(model, tmp_path / "a.tflite").dead_channels["reason"]
    network(keras).export(tmp_path / "saved", verbose=False)
    reason = convert(tmp_path / "saved", tmp_path / "a.tflite").dead_channels["reason"]
    assert "SavedModel" in reason
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert convert(dense, tmp_path / "a.tflite").dead_channels["reason"] == "none found"

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(2)

        def call(self, x):
            return self.inner(x)

    own = Own()
    own(np.zeros((1, 3), np.float32))
    assert convert(own, tmp_path / "a.tflite").dead_channels["reason"] == "none found"


def run(path, sample):
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("mode", ["none", "int8"])
def test_a_tflite_file_loses_its_dead_channels(keras, tmp_path, mode):
    # 64 filters read two channels that leave: more bytes than any padding takes.
    given = convert(
        network(keras, second=64),
        tmp_path / "given.tflite",
        quantize=mode,
        calibration=SAMPLES,
        clean=False,
        sparse="off",
    )
    artifact = convert(given.path, tmp_path / "a.tflite")
    assert kernels(artifact.path)[0].shape == (3, 3, 3, 2)
    assert artifact.bytes < given.bytes
    assert artifact.sparsity < given.sparsity
    assert artifact.gzip_bytes < given.gzip_bytes
    assert artifact.verification.passed
    assert artifact.verification.max_abs_error <= (1e-5 if mode == "none" else 0)
    assert artifact.quantization == "unchanged"
    assert "2 dead channels removed" in str(artifact)
    record = json.loads(artifact.record_path.read_text())["made_by"]
    assert record["source"] == {"model": "given.tflite", "sha256": given.sha256}
    assert record["dead_channels"]["channels_removed"] == 2
    for sample in SAMPLES[:5]:
        want, got = run(given.path, sample[None]), run(artifact.path, sample[None])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 if mode == "none" else 0)
    again = convert(artifact.path, tmp_path / "b.tflite", verify=False)
    assert again.sha256 == artifact.sha256
    assert again.verification is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"quantize": "int8"}, "`quantize`"),
        ({"calibration": SAMPLES, "io": "int8"}, "`calibration`, `io`"),
        ({"batch": 4}, "`batch`"),
        ({"clean": False}, "`clean=False`"),
        ({"sparse": "on", "tolerance": 0.1}, "`sparse`, `tolerance`"),
        ({"unsafe": True}, "`unsafe`"),
    ],
)
def test_a_tflite_file_takes_no_other_options(tmp_path, options, named):
    (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3")
    with pytest.raises(InputError, match=f"already a .tflite file, which takes no {named};"):
        convert(tmp_path / "m.tflite", tmp_path / "a.tflite", **options)
    assert not (tmp_path / "a.tflite").exists()


def test_broken_and_missing_tflite_files(tmp_path):
    (tmp_path / "broken.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(40))
    with pytest.raises(InputError, match=r"broken\.tflite"):
        convert(tmp_path / "broken.tflite", tmp_path / "a.tflite")
    with pytest.raises(InputError, match=r"missing\.tflite cannot be read: No such file"):
        convert(tmp_path / "missing.tflite", tmp_path / "a.tflite")
    with pytest.raises(InputError, match="is the model itself"):
        convert(tmp_path / "broken.tflite", tmp_path / "broken.tflite")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.tflite"]
