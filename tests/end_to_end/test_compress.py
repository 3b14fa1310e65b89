"""`compress` on a user's model: every stage, a kill in the middle, and what is refused."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from edgeprune.errors import InputError
from edgeprune.export import tflite

RECIPE = """
[training]
batch_size = 16
seed = 3

[sparsity]
final_sparsity = 0.75
epochs = 3

[quantization]
epochs = 2

[export]
quantize = "int8"
sparse = "off"
"""


def make_task(folder):
    """Write a small compiled model, its data and a recipe: three noisy classes in 12 features."""
    import keras

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 12))
    y = rng.integers(0, 3, 240)
    x = (centres[y] + 0.3 * rng.normal(size=(240, 12))).astype("float32")
    np.savez(folder / "data.npz", x=x, y=y)
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(3)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=5, verbose=0)
    model.save(folder / "model.keras")
    (folder / "recipe.toml").write_text(RECIPE)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    make_task(folder)
    return folder


@pytest.fixture(scope="module")
def whole(task):
    """The report of a run that nothing interrupted."""
    from edgeprune.pipeline import compress

    return compress(task / "model.keras", task / "data.npz", task / "recipe.toml", task / "whole")


def test_every_stage_leaves_its_model_and_its_figures(whole):
    assert [stage["stage"] for stage in whole.stages] == [
        "baseline",
        "sparsity",
        "quantization",
        "export",
        "benchmark",
    ]
    assert [row.name for row in whole.rows] == [
        "Keras baseline",
        "float baseline",
        "int8 baseline",
        "pruned (Keras)",
        "int8 grid (Keras)",
        "pruned int8",
    ]
    for row in whole.rows:
        assert (whole.output / row.file).stat().st_size == row.bytes
        assert row.score_name == "accuracy"
        assert row.score > 0.9
        assert (row.latency_ms is None) == row.file.endswith(".keras")


def test_zeros_are_in_the_file(whole):
    # Kernels of 12 x 32 and 32 x 3 weights: 288 + 72 of 480 are zero, and rounding adds to them.
    # Units with nothing but zeros on one side are not in the file at all.
    weights = tflite.read(whole.output / "model.tflite").weights()
    zeros = sum(int(np.count_nonzero(weight.data == 0)) for weight in weights)
    total = sum(weight.data.size for weight in weights)
    assert total < 480
    assert total - zeros <= 120
    assert whole.rows[-1].sparsity == pytest.approx(zeros / total)
    pruned = next(row for row in whole.rows if row.name == "pruned (Keras)")
    assert pruned.sparsity == 0.75


def test_baseline_is_the_model_as_it_came(task, whole):
    import keras

    before = keras.saving.load_model(task / "model.keras").get_weights()
    after = keras.saving.load_model(whole.output / "baseline.keras").get_weights()
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def command(task, output, *options):
    return [
        sys.executable,
        *("-m", "edgeprune", "compress", str(task / "model.keras")),
        *("--data", str(task / "data.npz"), "--recipe", str(task / "recipe.toml")),
        *("-o", str(output), *options),
    ]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(task, whole, tmp_path):
    output = tmp_path / "out"
    process = subprocess.Popen(command(task, output), stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("sparsity done"):
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    finished = json.loads((output / "run.json").read_text())["stages"]
    assert [stage["stage"] for stage in finished] == ["baseline", "sparsity"]
    stamps = {
        name: (output / name).stat().st_mtime_ns for name in ("baseline.tflite", "sparse.keras")
    }

    resumed = subprocess.run(
        command(task, output, "--json"), capture_output=True, text=True, check=True
    )

    report = json.loads(resumed.stdout)
    assert [row["name"] for row in report["rows"]] == [row.name for row in whole.rows]
    assert {name: (output / name).stat().st_mtime_ns for name in stamps} == stamps
    assert "sparsity ..." not in resumed.stderr
    assert "quantization done: accuracy" in resumed.stderr


@pytest.mark.slow
def test_int4_weights_in_the_file(task, tmp_path):
    from edgeprune.pipeline import compress
    from edgeprune.recipe import ExportSpec, Recipe

    recipe = Recipe(export=ExportSpec(quantize="int4"))
    report = compress(task / "model.keras", task / "data.npz", recipe, tmp_path / "out")
    assert [row.name for row in report.rows] == ["Keras baseline", "float baseline", "int4"]
    weights = tflite.read(report.output / "model.tflite").weights()
    assert {weight.dtype for weight in weights} == {"int4"}
    assert report.rows[-1].score > 0.9


def test_another_run_is_not_mixed_in(task, whole):
    from edgeprune.pipeline import compress

    with pytest.raises(InputError, match="holds another run: its recipe differs; choose another"):
        compress(task / "model.keras", task / "data.npz", "prune", whole.output)


def test_a_damaged_record_is_refused(task, tmp_path):
    from edgeprune.pipeline import compress

    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is not a record of edgeprune"):
        compress(task / "model.keras", task / "data.npz", "prune", tmp_path)


def test_a_record_with_other_rows_is_refused(task, whole, tmp_path):
    from edgeprune.pipeline import compress

    record = json.loads((whole.output / "run.json").read_text())
    record["rows"][0]["more"] = 1
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"run\.json is not a record of edgeprune"):
        compress(task / "model.keras", task / "data.npz", task / "recipe.toml", tmp_path)


def test_labels_beyond_the_outputs_are_refused_before_training(task, tmp_path):
    from edgeprune.pipeline import compress

    with np.load(task / "data.npz") as data:
        np.savez(tmp_path / "data.npz", x=data["x"], y=data["y"] + 1)
    with pytest.raises(InputError, match="labels run from 1 to 3, but the model has 3 outputs"):
        compress(task / "model.keras", tmp_path / "data.npz", "prune", tmp_path / "out")


@pytest.mark.slow
def test_a_tf_keras_model_goes_the_same_way(task, tmp_path):
    import tf_keras

    from edgeprune.pipeline import compress

    tf_keras.utils.set_random_seed(1)
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Input((12,)),
            layers.Dense(32, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    with np.load(task / "data.npz") as data:
        model.fit(data["x"], data["y"], epochs=5, verbose=0)
    report = compress(model, task / "data.npz", task / "recipe.toml", tmp_path / "out")
    assert report.rows[-1].score > 0.9
    # Of 480 weights, 360 zeros; channels that are dead by them are not in the file at all.
    weights = tflite.read(report.output / "model.tflite").weights()
    assert sum(int(np.count_nonzero(weight.data)) for weight in weights) <= 120


def test_targets_that_the_loss_does_not_take(task, tmp_path):
    from edgeprune.pipeline import compress

    with np.load(task / "data.npz") as data:
        np.savez(tmp_path / "data.npz", x=data["x"], y=np.eye(3, dtype="float32")[data["y"]])
    with pytest.raises(InputError, match=r"cannot be trained on targets of shape .* with its loss"):
        compress(task / "model.keras", tmp_path / "data.npz", "prune", tmp_path / "out")


def test_a_model_with_two_outputs_is_refused(task, tmp_path):
    import keras

    from edgeprune.pipeline import compress

    inputs = keras.Input((12,))
    model = keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(1)(inputs)])
    with pytest.raises(InputError, match="has 2 outputs; compress takes one"):
        compress(model, task / "data.npz", "prune", tmp_path / "out")


@pytest.mark.slow
def test_restart_removes_what_the_other_run_left(task, tmp_path):
    from edgeprune.pipeline import compress

    (tmp_path / "one.toml").write_text("[sparsity]\nepochs = 1\n[training]\nbatch_size = 8\n")
    (tmp_path / "mine.txt").write_text("the user's own")
    compress(task / "model.keras", task / "data.npz", tmp_path / "one.toml", tmp_path)
    assert (tmp_path / "sparse.keras").exists()
    compress(task / "model.keras", task / "data.npz", "int8", tmp_path, restart=True)
    assert not (tmp_path / "sparse.keras").exists()
    assert (tmp_path / "mine.txt").read_text() == "the user's own"


@pytest.mark.slow
def test_a_run_that_finished_nothing_is_no_hindrance(task, tmp_path):
    from edgeprune.pipeline import compress

    with np.load(task / "data.npz") as data:
        np.savez(tmp_path / "bad.npz", x=data["x"], y=data["y"] + 1)
    with pytest.raises(InputError, match="labels run from 1 to 3"):
        compress(task / "model.keras", tmp_path / "bad.npz", "int8", tmp_path / "out")
    report = compress(task / "model.keras", task / "data.npz", "int8", tmp_path / "out")
    assert [row.name for row in report.rows] == ["Keras baseline", "float baseline", "int8"]


def test_a_learning_rate_replaces_a_compiled_schedule(task):
    import keras

    from edgeprune.data import load_training_data
    from edgeprune.training import compile_like, plain_copy

    original = keras.saving.load_model(task / "model.keras")
    schedule = keras.optimizers.schedules.CosineDecay(0.5, 10)
    original.compile(keras.optimizers.SGD(schedule, momentum=0.75), original.loss)
    copy = plain_copy(original)
    compile_like(copy, original, load_training_data(task / "data.npz"), 0.125)
    assert float(copy.optimizer.learning_rate) == 0.125
    assert copy.optimizer.momentum == 0.75
    assert copy.loss is original.loss


def test_files_of_the_users_are_not_replaced(task, tmp_path):
    from edgeprune.pipeline import compress

    mine = (task / "model.keras").read_bytes()
    (tmp_path / "baseline.keras").write_bytes(mine)
    for restart in (False, True):
        with pytest.raises(InputError, match=r"holds baseline\.keras, which no run of compress"):
            compress(task / "model.keras", task / "data.npz", "int8", tmp_path, restart=restart)
    assert [path.name for path in tmp_path.iterdir()] == ["baseline.keras"]
    assert (tmp_path / "baseline.keras").read_bytes() == mine


@pytest.mark.slow
def test_a_tampered_record_removes_nothing_outside(task, whole, tmp_path):
    from edgeprune.pipeline import compress

    (tmp_path / "precious.txt").write_text("kept")
    folder = tmp_path / "run"
    folder.mkdir()
    record = json.loads((whole.output / "run.json").read_text())
    record["rows"][0]["file"] = "../precious.txt"
    (folder / "run.json").write_text(json.dumps(record))
    compress(task / "model.keras", task / "data.npz", "int8", folder, restart=True)
    assert (tmp_path / "precious.txt").read_text() == "kept"
