"""`quantize="auto"`: all modes tried on samples of their own, the smallest file kept."""

import numpy as np
import pytest

from edgeprune.data import Samples
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.export.auto import split
from edgeprune.export.convert import convert
from edgeprune.export.post_training import MODES
from edgeprune.export.verify import run_tflite


@pytest.fixture(scope="module")
def task():
    """A classifier of points by their nearest of four centres, and samples with labels."""
    import keras

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    x = (rng.normal(size=(4, 16))[y] + 0.8 * rng.normal(size=(400, 16))).astype(np.float32)
    model = keras.Sequential(
        [
            keras.Input((16,), name="point"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=8, verbose=0)
    return model, x, y


def by_mode(artifact):
    return {one.quantization: one for one in artifact.candidates}


@pytest.mark.slow
def test_the_smallest_within_the_drop_is_kept(task, tmp_path):
    model, x, y = task
    artifact = convert(
        model, tmp_path / "a.tflite", quantize="auto", calibration=(x, y), max_drop=0.05
    )
    tried = by_mode(artifact)
    assert tuple(tried) == MODES
    within = [one for one in tried.values() if one.drop is not None and one.drop <= 0.05]
    smallest = min(within, key=lambda one: one.bytes)
    assert [one for one in tried.values() if one.kept] == [smallest]
    assert artifact.quantization == smallest.quantization
    assert artifact.bytes == smallest.bytes
    assert artifact.gzip_bytes == smallest.gzip_bytes
    # Every second sample was measured on, and its accuracy is what a user would count.
    held_out = x[1::2], y[1::2]
    before = np.mean(model.predict(held_out[0], verbose=0).argmax(-1) == held_out[1])
    after = np.mean(run_tflite(artifact.path, held_out[0]).argmax(-1) == held_out[1])
    assert smallest.drop == pytest.approx(before - after, abs=1e-9)
    assert {(one.drop_of, one.measured_on) for one in tried.values()} == {("accuracy", 200)}
    assert artifact.made_by["calibration_samples"] == 200
    alone = convert(model, tmp_path / "b.tflite", quantize="int8", calibration=x[0::2])
    assert (alone.bytes, alone.gzip_bytes) == (tried["int8"].bytes, tried["int8"].gzip_bytes)
    assert tried["none"].drop == 0
    text = str(artifact)
    assert "accuracy lost against the Keras model, on 200 samples that nothing was" in text
    assert text.count("kept: smallest within 0.05") == 1


def test_without_labels_agreement_is_measured(task, tmp_path):
    model, x, _ = task
    artifact = convert(
        model, tmp_path / "a.tflite", quantize="auto", calibration=x, modes=("float16", "int8")
    )
    assert list(by_mode(artifact)) == ["float16", "int8"]
    assert artifact.candidates[0].drop_of == "arg max agreement"
    assert "whose arg max is another" in str(artifact)


@pytest.mark.slow
def test_a_regression_is_measured_by_its_output(tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    alone = convert(model, tmp_path / "a.tflite", quantize="auto", calibration=x, max_drop=0.5)
    assert alone.candidates[0].drop_of == "output error"
    y = np.asarray(model(x))
    told = convert(
        model, tmp_path / "b.tflite", quantize="auto", calibration=(x, y), modes=["none", "int4"]
    )
    first, second = told.candidates
    assert first.drop_of == "R2"
    # The model is right everywhere, so what is lost of R2 is the squared relative error.
    error = run_tflite(tmp_path / "b.tflite", x[1::2]) - y[1::2]
    kept = second if second.kept else first
    assert kept.drop == pytest.approx(np.mean(error**2) / np.var(y[1::2]), rel=1e-3, abs=1e-9)


def test_nothing_within_the_drop(tmp_path):
    """The first weights are large and meet noughts; the others decide, and vanish in int4."""
    import keras

    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(2, use_bias=False)])
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(16, 2)).astype(np.float32)
    kernel[0] = 1000
    model.layers[0].set_weights([kernel])
    x = rng.normal(size=(100, 16)).astype(np.float32)
    x[:, 0] = 0
    with pytest.raises(UnsupportedError, match=r"no quantization has a drop of accuracy within"):
        convert(
            model,
            tmp_path / "a.tflite",
            quantize="auto",
            calibration=(x, np.asarray(model(x)).argmax(-1)),
            modes=["int4"],
            verify=False,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "auto quantization needs calibration data"),
        ({"calibration": np.zeros((5, 3), "f4")}, r"takes samples of shape \(16,\), got"),
        ({"calibration": np.zeros((1, 16), "f4")}, "others to measure on; got one"),
        ({"calibration": np.zeros((4, 16), "f4"), "max_drop": 1.5}, r"in \[0, 1\), got 1.5"),
        ({"calibration": np.zeros((4, 16), "f4"), "modes": ["int3"]}, "unknown quantization"),
        ({"calibration": np.zeros((4, 16), "f4"), "modes": []}, "`modes` is a list of one"),
        ({"calibration": np.zeros((4, 16), "f4"), "io": "int8"}, "goes with `quantize='int8'`"),
        ({"calibration": (np.zeros((4, 16), "f4"), [0, 1])}, "'x' has 4 samples and 'y' has 2"),
        ({"calibration": (np.zeros((4, 16), "f4"), [0, 1, 2, 9])}, "labels run from"),
        ({"quantize": "int8", "max_drop": 0.1}, "`max_drop` is for `quantize='auto'`"),
        ({"quantize": "int8", "modes": ["none"]}, "`modes` is for `quantize='auto'`"),
    ],
)
def test_bad_input(task, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        convert(task[0], tmp_path / "a.tflite", **{"quantize": "auto", **options})
    assert list(tmp_path.iterdir()) == []


def test_a_mode_that_fails_is_told_and_passed_over(tmp_path):
    """int16x8 has no range for integer inputs; the table says so, briefly."""
    import keras

    inputs = keras.Input((8,), dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(50, 16)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    tokens = np.random.default_rng(0).integers(0, 50, (40, 8)).astype(np.int32)
    artifact = convert(
        model,
        tmp_path / "a.tflite",
        quantize="auto",
        calibration=tokens,
        modes=["float16", "int16x8"],
    )
    passed_over = by_mode(artifact)["int16x8"]
    assert (passed_over.bytes, passed_over.drop, passed_over.kept) == (None, None, False)
    assert "has no range" in passed_over.reason
    assert artifact.quantization == "float16"
    assert max(map(len, str(artifact).splitlines()[3:7])) < 120


def test_splits_share_no_sample():
    samples = Samples([np.arange(3001)[:, None]], np.arange(3001))
    calibrating, measuring = split(samples, None)
    first, second = (set(part.columns[0][:, 0].tolist()) for part in (calibrating, measuring))
    assert not first & second
    assert (len(calibrating), len(measuring)) == (512, 1500)
    assert all(part.targets.tolist() == part.columns[0][:, 0].tolist() for part in (measuring,))
    aside = Samples([np.arange(5000)[:, None]], None)
    calibrating, measuring = split(samples, aside)
    assert (len(calibrating), len(measuring)) == (512, 2048)
