"""`compress` with structured pruning: its rounds, a kill between them, and its ways."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from edgeprune.errors import InputError, UnsupportedError
from edgeprune.export import tflite

RECIPE = """
[training]
batch_size = 32

[structure]
target_macs = 0.5
rounds = 2
epochs = 4

[export]
quantize = "int8"
"""
WIDE = 12 * 64 + 64 * 3  # MACs, and weights without biases
HALF = 12 * 32 + 32 * 3


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Write a small compiled model, its data and a recipe: three noisy classes in 12 features."""
    import keras

    folder = tmp_path_factory.mktemp("task")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    x = (rng.normal(size=(3, 12))[y] + 0.3 * rng.normal(size=(240, 12))).astype("float32")
    np.savez(folder / "data.npz", x=x, y=y)
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(3)]
    )
    model.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(x, y, epochs=5, verbose=0)
    model.save(folder / "model.keras")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def resumed(task, tmp_path_factory):
    """A run that was killed after its first round, and its report once it went on."""
    output = tmp_path_factory.mktemp("run") / "out"
    command = [sys.executable, "-m", "edgeprune", "compress", str(task / "model.keras")]
    command += ["--data", str(task / "data.npz"), "--recipe", str(task / "recipe.toml")]
    command += ["-o", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("structure 1/2 done"):
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    stamp = (output / "structured-1.keras").stat().st_mtime_ns
    ran = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert (output / "structured-1.keras").stat().st_mtime_ns == stamp
    return output, json.loads(ran.stdout), ran.stderr, command


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_next_round(resumed):
    _, report, told, _ = resumed
    assert "baseline ..." not in told
    assert "structure 1/2 ..." not in told
    assert "structure ...\nstructure done: accuracy " in told
    stages = {stage["stage"]: stage for stage in report["stages"]}
    assert list(stages) == ["baseline", "structure 1/2", "structure", "export", "benchmark"]
    # Half of the way is three quarters of the MACs, and channels come in eights.
    assert stages["structure 1/2"]["macs"] == 12 * 48 + 48 * 3
    assert stages["structure 1/2"]["file"] == "structured-1.keras"
    assert stages["structure"]["macs"] == HALF
    (hidden, logits) = stages["structure"]["groups"]
    assert (hidden["channels_before"], hidden["channels_after"]) == (48, 32)
    assert (logits["channels_before"], logits["channels_after"]) == (3, 3)
    assert [refusal["layer"] for refusal in stages["structure"]["refused"]] == [logits["name"]]


def test_rows_have_sizes_and_the_result_is_small_and_good(resumed):
    output, report, _, _ = resumed
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [
        "Keras baseline",
        "float baseline",
        "int8 baseline",
        "structured (Keras)",
        "structured int8",
    ]
    for name, row in rows.items():
        small = name.startswith("structured")
        assert row["macs"] == (HALF if small else WIDE)
        assert row["parameters"] == (HALF + 32 + 3 if small else WIDE + 64 + 3)
        assert row["score"] > 0.9
    weights = tflite.read(output / "model.tflite").weights()
    assert sorted(weight.data.size for weight in weights) == [32 * 3, 12 * 32]


def test_the_table_shows_macs(resumed):
    *_, command = resumed
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    head = shown.splitlines()[0]
    assert head.split()[-2:] == ["MACs", "parameters"]
    (last,) = [line for line in shown.splitlines() if line.startswith("structured int8")]
    assert last.split()[-2:] == ["480", "515"]


@pytest.mark.slow
def test_restart_removes_the_rounds_too(task, resumed, tmp_path):
    from edgeprune.pipeline import compress

    output, *_ = resumed
    for name in ("run.json", "structured-1.keras", "structured.keras"):
        (tmp_path / name).write_bytes((output / name).read_bytes())
    compress(task / "model.keras", task / "data.npz", "int8", tmp_path, restart=True)
    assert not list(tmp_path.glob("structured*"))


def run(task, folder, text):
    """Run a recipe; return its report and the number of training steps of its structure stages."""
    from edgeprune.pipeline import compress
    from edgeprune.recipe import Recipe

    recipe = folder / "recipe.toml"
    recipe.write_text(text)
    steps = []

    def progress(stage, fraction, note):
        if stage.startswith("structure") and 0 < fraction < 1:
            steps.append(fraction)

    report = compress(
        task / "model.keras",
        task / "data.npz",
        Recipe.load(recipe),
        folder / "out",
        progress=progress,
    )
    return report, len(steps)


STEPS = 7  # 216 samples in batches of 32


@pytest.mark.slow
def test_pruned_during_training(task, tmp_path):
    text = "[training]\nbatch_size = 32\n[structure]\ntarget_parameters = 0.5\nway = 'during'\n"
    report, steps = run(task, tmp_path, text + "rounds = 1\ndense_epochs = 8\n")
    assert steps == 8 * STEPS
    assert [stage["stage"] for stage in report.stages] == [
        *("baseline", "structure 1/2", "structure", "export", "benchmark")
    ]
    assert [stage["macs"] for stage in report.stages[:3]] == [WIDE, WIDE, 12 * 24 + 24 * 3]
    assert report.rows[-1].score > 0.9


@pytest.mark.slow
def test_scratch_b_trains_longer_what_is_smaller(task, tmp_path):
    import keras

    text = "[training]\nbatch_size = 32\n[structure]\ntarget_macs = 0.5\nway = 'scratch-b'\n"
    report, steps = run(task, tmp_path, text + "dense_epochs = 3\n")
    assert steps == 2 * 3 * STEPS
    assert report.rows[-1].macs == HALF
    assert keras.saving.load_model(report.output / "structured.keras").layers[0].units == 32


@pytest.mark.slow
def test_pruning_without_training_keeps_the_largest_channels(task, tmp_path):
    import keras

    text = "[structure]\npruning_ratio = 0.75\nepochs = 0\n"
    report, steps = run(task, tmp_path, text)
    assert steps == 0
    model = keras.saving.load_model(task / "model.keras")
    kernel = model.layers[0].get_weights()[0]
    largest = np.sort(np.argsort(np.linalg.norm(kernel, axis=0))[-16:])
    small = keras.saving.load_model(report.output / "structured.keras")
    np.testing.assert_array_equal(small.layers[0].get_weights()[0], kernel[:, largest])


def test_what_cannot_be_pruned_is_refused_before_the_first_stage(task, tmp_path):
    import keras
    import tf_keras

    from edgeprune.pipeline import compress
    from edgeprune.recipe import Recipe, StructureSpec

    legacy = tf_keras.Sequential([tf_keras.layers.Input((12,)), tf_keras.layers.Dense(3)])
    with pytest.raises(UnsupportedError, match="is a tf_keras model"):
        compress(legacy, task / "data.npz", "structured", tmp_path / "out")
    model = keras.saving.load_model(task / "model.keras")
    recipe = Recipe(structure=StructureSpec(target_macs=0.5, skip=("convolution",)))
    with pytest.raises(InputError, match="skip='convolution'` matches no layer"):
        compress(model, task / "data.npz", recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
