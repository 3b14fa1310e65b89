"""What one layer's changes cost: figures by hand, and weights that are as they were."""

import importlib
import json
import os
import signal
import threading

import numpy as np
import pytest
from click.testing import CliRunner

from edgeprune import models
from edgeprune.cli import cli
from edgeprune.errors import InputError
from edgeprune.quantization.grid import to_grid
from edgeprune.report.sensitivity import plot_sensitivity
from edgeprune.sensitivity.changes import CHANGES, Change
from edgeprune.sensitivity.measure import Sensitivity, measure_sensitivity

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 6)).astype(np.float32)


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def k(request):
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def keras():
    return importlib.import_module("keras")


def network(k):
    k.utils.set_random_seed(0)
    layers = k.layers
    inputs = k.Input((6,))
    hidden = layers.Dense(8, activation="relu", name="hidden")(inputs)
    return k.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(hidden))


def bits(model):
    return [np.asarray(weight).tobytes() for weight in model.weights]


def kernel_of(model):
    return models.kernels(model)[0]


# Changes


def test_names_and_values(keras):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])
    weights = np.array([[7, 0.3], [-3.4, 0], [1.2, -0.9], [0, 2.1]], np.float32)
    kernel = kernel_of(model)
    # Columns are output channels, of scales 1 and 0.3.
    int4 = Change("quantized", 4)
    assert int4.name == "int4"
    np.testing.assert_allclose(
        int4.apply(kernel, weights), [[7, 0.3], [-3, 0], [1, -0.9], [0, 2.1]], rtol=1e-6
    )
    int8 = Change("quantized", 8).apply(kernel, weights)
    np.testing.assert_array_equal(int8, np.asarray(to_grid(weights, kernel.output_axes)))
    half = Change("pruned", 0.5)
    assert half.name == "0.5 zeros"
    assert half.apply(kernel, weights).tolist() == [
        *([7, 0], [np.float32(-3.4), 0], [np.float32(1.2), 0], [0, np.float32(2.1)])
    ]
    two = Change("clustered", 2)
    assert two.name == "2 values"
    # -3.4 and -0.9 to 2.1 on the one hand, 7 on the other; zeros stay.
    clustered = two.apply(kernel, weights)
    np.testing.assert_array_equal(clustered == 0, weights == 0)
    assert len(np.unique(clustered[clustered != 0])) == 2
    assert clustered[0, 0] == 7


@pytest.mark.parametrize(
    ("kind", "amount"), [("pruned", 80), ("quantized", 3), ("clustered", 1), ("clustered", 2.5)]
)
def test_changes_out_of_range(kind, amount):
    with pytest.raises(InputError):
        Change(kind, amount)


# Figures


def test_the_figures_are_those_of_the_changed_weights(k):
    model = k.Sequential([k.Input((6,)), k.layers.Dense(2, use_bias=False, name="linear")])
    weights = kernel_of(model).variable.numpy()
    found = measure_sensitivity(model, X)
    assert found.drop_of == "arg max agreement"
    (layer,) = found.layers
    assert (layer.name, layer.op, layer.weights) == ("linear", "Dense", 12)
    assert [point.change for point in layer.points] == [change.name for change in CHANGES]
    before = X @ weights
    for change, point in zip(CHANGES, layer.points, strict=True):
        after = X @ change.apply(kernel_of(model), weights)
        flipped = np.mean(after.argmax(1) != before.argmax(1))
        assert point.drop == pytest.approx(flipped, abs=0.01)
        error = np.sqrt(np.mean((after - before) ** 2)) / np.std(before)
        assert point.output_error == pytest.approx(error, rel=1e-3, abs=1e-6)


def test_accuracy_one_layer_at_a_time(k):
    model = network(k)
    y = np.asarray(model(X)).argmax(1)  # right everywhere, so any change is a loss
    found = measure_sensitivity(model, (X, y), changes=[Change("pruned", 0.5)])
    assert (found.drop_of, found.score, found.samples) == ("accuracy", 1.0, 300)
    assert [layer.name for layer in found.layers] == ["hidden", "classes"]
    kernel = models.kernels(model)[1]
    changed = Change("pruned", 0.5).apply(kernel, kernel.variable.numpy())
    kernel.variable.assign(changed)
    after = np.mean(np.asarray(model(X)).argmax(1) == y)
    assert found.layers[1].points[0].drop == pytest.approx(1 - after, abs=0.01)
    assert found.layers[1].points[0].drop > 0


def test_two_kernels_of_a_layer_are_told_apart(keras):
    model = keras.Sequential([keras.Input((8, 8, 2)), keras.layers.SeparableConv2D(3, 3, name="s")])
    x = np.zeros((4, 8, 8, 2), np.float32)
    found = measure_sensitivity(model, x, changes=[Change("quantized", 4)])
    assert [layer.name for layer in found.layers] == ["s/depthwise_kernel", "s/pointwise_kernel"]


def test_held_out_samples_are_taken(keras):
    model = network(keras)
    y = np.zeros(300, int)
    found = measure_sensitivity(model, (X, y, X[:40], y[:40]), changes=[Change("quantized", 8)])
    assert found.samples == 40
    assert measure_sensitivity(model, X, changes=[Change("quantized", 8)], samples=50).samples == 50


def test_a_model_of_one_batch_size_takes_whole_batches(keras):
    inputs = keras.Input(batch_shape=(32, 6))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    one = [Change("quantized", 4)]
    assert measure_sensitivity(model, X, changes=one).samples == 288
    with pytest.raises(InputError, match="takes batches of 32, and there are 20 samples"):
        measure_sensitivity(model, X[:20], changes=one)


def test_several_inputs_and_outputs(keras):
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    joined = keras.layers.Add()([a, b])
    outputs = [keras.layers.Dense(2, name="left")(joined), keras.layers.Dense(1, name="right")(a)]
    model = keras.Model([a, b], outputs)
    found = measure_sensitivity(model, {"a": X, "b": X}, changes=[Change("pruned", 0.5)])
    assert found.drop_of == "output error"
    assert all(layer.points[0].drop == layer.points[0].output_error > 0 for layer in found.layers)


def test_the_model_is_traced_once_for_all_points(keras):
    traces = []

    class Counted(keras.layers.Layer):
        def call(self, inputs):
            traces.append(inputs.shape)
            return inputs

    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4), Counted(), keras.layers.Dense(3)]
    )
    traces.clear()
    measure_sensitivity(model, X)
    assert 1 <= len(traces) <= 3  # a whole batch, the rest of 300, and a free size


# Weights


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_bit_is_as_it_was(keras, dtype):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, dtype=dtype)])
    values = kernel_of(model).variable.numpy()
    values[0] = -0.0
    values[1] = 1e-6
    kernel_of(model).variable.assign(values)
    before = bits(model)
    measure_sensitivity(model, X)
    assert bits(model) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_the_weights(keras, error):
    model = network(keras)
    before = bits(model)

    def stop(stage, fraction, note):
        if fraction > 0:
            raise error

    with pytest.raises(error):
        measure_sensitivity(model, X, progress=stop)
    assert bits(model) == before


def test_ctrl_c_in_the_middle_leaves_the_weights(keras):
    model = network(keras)
    before = bits(model)
    # More changes than there is time for: the signal comes while one is tried.
    many = [Change("pruned", 0.5)] * 100_000
    timers = []

    def begun(stage, fraction, note):
        if not timers:
            timers.append(threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)))
            timers[0].start()

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(model, X, changes=many, progress=begun)
    assert bits(model) == before


# Bad input


def test_what_cannot_be_measured(keras, tmp_path):
    model = network(keras)
    for data, message in (
        (None, "sensitivity is measured on data; give `data`"),
        (X[:, :3], r"takes samples of shape \(6,\), got"),
        ((X, np.arange(300)), "labels run from 0 to 299"),
        ("nothing.npz", "nothing.npz does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            measure_sensitivity(model, data)
    with pytest.raises(InputError, match=r"m\.tflite is a \.tflite file; give the \.keras"):
        measure_sensitivity(tmp_path / "m.tflite", X)
    with pytest.raises(InputError, match="samples must be at least 1"):
        measure_sensitivity(model, X, samples=0)
    with pytest.raises(InputError, match="changes is empty"):
        measure_sensitivity(model, X, changes=[])
    pooling = keras.Sequential([keras.Input((6,)), keras.layers.ReLU()])
    with pytest.raises(InputError, match="has no kernels"):
        measure_sensitivity(pooling, X)


def test_weights_that_are_no_numbers(keras):
    model = network(keras)
    values = kernel_of(model).variable.numpy()
    values[0, :2] = np.nan, np.inf
    kernel_of(model).variable.assign(values)
    with pytest.raises(InputError, match="'hidden/kernel' holds 2 NaN or infinite weights of 48"):
        measure_sensitivity(model, X)


# Command and plot


@pytest.fixture
def files(keras, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network(keras).save("m.keras")
    np.savez("d.npz", x=X, y=RNG.integers(0, 3, 300))
    return tmp_path


@pytest.mark.parametrize(
    ("drop_of", "samples", "told"),
    [
        ("accuracy", 1, ["on 1 sample", "note: one sample is a drop of 1.000; more tell more"]),
        ("accuracy", 99, ["on 99 samples", "note: one sample is a drop of 0.010; more tell more"]),
        ("accuracy", 1024, ["on 1,024 samples; one sample is 0.0010"]),
        ("R2", 1, ["on 1 sample"]),
    ],
)
def test_few_samples_are_warned_of(drop_of, samples, told):
    first, *notes = Sensitivity(drop_of, 0.5, samples, ()).summary().splitlines()
    assert [first.partition("changed, ")[2], *notes] == told


def test_the_command_prints_a_table_or_json(files):
    before = (files / "m.keras").read_bytes()
    asked = ["inspect", "m.keras", "--sensitivity", "--data", "d.npz"]
    ran = CliRunner().invoke(cli, [*asked, "--plot", "s.svg"])
    assert ran.exit_code == 0, ran.output
    assert "0.95 zeros" in ran.stdout
    assert "accuracy lost against the unchanged model" in ran.stdout
    assert "on 300 samples" in ran.stdout
    assert (files / "s.svg").read_text().count("hidden") == 1
    told = CliRunner().invoke(cli, [*asked, "--json"])
    document = json.loads(told.stdout)
    assert set(document) == {"drop_of", "score", "samples", "layers"}
    assert set(document["layers"][0]) == {"name", "op", "weights", "points"}
    assert set(document["layers"][0]["points"][0]) == {"change", "drop", "output_error"}
    assert (files / "m.keras").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--sensitivity"], 2, "sensitivity is measured on data"),
        (["--data", "d.npz"], 2, "--data is for --sensitivity"),
        (["--plot", "s.png"], 2, "--plot is for --sensitivity"),
        (["--sensitivity", "--data", "d.npz", "--plot", "s.pdf"], 2, "cannot draw a plot as s.pdf"),
    ],
)
def test_the_command_refuses(files, options, code, message):
    ran = CliRunner().invoke(cli, ["inspect", "m.keras", *options])
    assert (ran.exit_code, message in ran.output) == (code, True), ran.output


def test_a_tflite_file_is_refused_with_the_way_out(files):
    (files / "a.tflite").write_bytes(b"....TFL3")
    ran = CliRunner().invoke(cli, ["inspect", "a.tflite", "--sensitivity", "--data", "d.npz"])
    assert ran.exit_code == 1
    assert "give the .keras or .h5 file that it was made from" in ran.output


def test_a_plot_of_what_is_infinite(tmp_path):
    from edgeprune.sensitivity.measure import LayerSensitivity, Point

    points = (Point("int8", 0.0, 0.0), Point("0.9 zeros", float("inf"), float("inf")))
    found = Sensitivity("accuracy", 1.0, 10, (LayerSensitivity("conv1", "Conv2D", 9, points),))
    plot_sensitivity(found, tmp_path / "a.svg")
    assert "NaN" in (tmp_path / "a.svg").read_text()
    assert json.loads(found.to_json())["layers"][0]["points"][1]["drop"] is None
