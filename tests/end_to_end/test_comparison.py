"""The ways to a pruned model side by side: budgets, seeds, a kill in the middle, the report."""

import json
import signal
import statistics
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from edgeprune.cli import cli
from edgeprune.errors import InputError

pytestmark = pytest.mark.slow

RECIPE = """
[training]
batch_size = 32
seed = 5

[structure]
target_macs = 0.5
round_to = 4
rounds = 2
epochs = 4
dense_epochs = 6
decay = "cosine"

[export]
quantize = "int8"
"""
WIDE = 12 * 32 + 32 * 3  # MACs
MIDDLE = 12 * 24 + 24 * 3
HALF = 12 * 16 + 16 * 3
WAYS = ["dense", "longer", "fine-tune", "during", "scratch-e", "scratch-b"]
STAGES = [
    "unpruned",
    "unpruned, fine-tuned too",
    "trained, pruned, fine-tuned 1/2",
    "trained, pruned, fine-tuned 2/2",
    "pruned during training 1/3",
    "pruned during training 2/3",
    "pruned during training 3/3",
    "scratch-E: same epochs",
    "scratch-B: same compute",
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Write a compiled model that knows nothing yet, its data and a recipe."""
    import keras

    folder = tmp_path_factory.mktemp("task")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    x = (rng.normal(size=(3, 12))[y] + 0.3 * rng.normal(size=(200, 12))).astype("float32")
    np.savez(folder / "data.npz", x=x, y=y)
    model = keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(3)]
    )
    model.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.save(folder / "model.keras")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def arguments(task, output, seeds):
    return [
        *("compress", str(task / "model.keras"), "--data", str(task / "data.npz")),
        *("--recipe", str(task / "recipe.toml"), "-o", str(output)),
        *("--compare-ways", "--seeds", str(seeds)),
    ]


def compare(task, output, seeds, *options):
    result = CliRunner().invoke(cli, [*arguments(task, output, seeds), *options])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def finished(task, tmp_path_factory):
    """A comparison that was killed after a round of its first seed, went on, and got another."""
    output = tmp_path_factory.mktemp("run") / "out"
    command = [sys.executable, "-m", "edgeprune", *arguments(task, output, 1)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("seed 5: trained, pruned, fine-tuned 1/2 done"):
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.keras")}
    assert sorted(before) == [
        "dense-seed-5.keras",
        "fine-tune-seed-5-1.keras",
        "longer-seed-5.keras",
    ]
    resumed = compare(task, output, 1)
    result = compare(task, output, 2, "--json", "--plot", str(output / "plot.svg"))
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before
    return output, json.loads(result.stdout), resumed, result


def test_a_killed_comparison_goes_on_and_takes_more_seeds(finished):
    output, _, resumed, result = finished
    for ran, seed, first in ((resumed, 5, 3), (result, 6, 0)):
        done = [line.split(" done: ")[0] for line in ran.stderr.splitlines() if " done: " in line]
        assert done == [f"seed {seed}: {stage}" for stage in STAGES[first:]]
    record = json.loads((output / "run.json").read_text())
    assert [stage["stage"] for stage in record["stages"]] == [
        f"seed {seed}: {stage}" for seed in (5, 6) for stage in STAGES
    ]


def test_budgets_are_accounted(finished):
    _, report, *_ = finished
    ways = {way["way"]: way for way in report["ways"]}
    assert list(ways) == WAYS
    assert {way: ways[way]["macs"] for way in WAYS} == {
        **dict.fromkeys(("dense", "longer"), WIDE),
        **dict.fromkeys(WAYS[2:], HALF),
    }
    assert ways["dense"]["parameters"] == WIDE + 32 + 3
    assert ways["scratch-b"]["parameters"] == HALF + 16 + 3
    epochs = {way: ways[way]["epochs"] for way in WAYS}
    # 6 of the dense model and 4 more; 6 in three parts; 6; and 6 x 480 / 240.
    assert epochs == {
        "dense": 6,
        "longer": 10,
        "fine-tune": 10,
        "during": 6,
        "scratch-e": 6,
        "scratch-b": 12,
    }
    compute = {way: ways[way]["compute"] for way in WAYS}
    assert compute == pytest.approx(
        {
            "dense": 1,
            "longer": 10 / 6,
            "fine-tune": (6 * WIDE + 2 * MIDDLE + 2 * HALF) / (6 * WIDE),
            "during": (2 * WIDE + 2 * MIDDLE + 2 * HALF) / (6 * WIDE),
            "scratch-e": 0.5,
            "scratch-b": 1,
        }
    )


def test_scores_are_of_the_files_and_compared_seed_by_seed(task, finished):
    import keras

    output, report, *_ = finished
    assert report["seeds"] == [5, 6]
    assert report["score_name"] == "accuracy"
    with np.load(task / "data.npz") as data:
        x, y = data["x"][::10], data["y"][::10]  # what is held out
    for way in report["ways"]:
        assert way["files"] == [f"{way['way']}-seed-{seed}.keras" for seed in (5, 6)]
        scores = [
            float(
                (
                    keras.saving.load_model(output / name).predict(x, verbose=0).argmax(-1) == y
                ).mean()
            )
            for name in way["files"]
        ]
        assert way["scores"] == pytest.approx(scores)
        assert way["mean"] == pytest.approx(sum(scores) / 2)
        assert way["std"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
        dense = report["ways"][0]["scores"]
        differences = [own - whole for own, whole in zip(scores, dense, strict=True)]
        assert way["difference"] == pytest.approx(statistics.mean(differences))
        assert way["difference_std"] == pytest.approx(statistics.stdev(differences))


def test_each_seed_begins_with_other_weights_and_scratch_with_new_ones(finished):
    import keras

    output, *_ = finished

    def kernel(name):
        return keras.saving.load_model(output / name).layers[0].get_weights()[0]

    assert not np.array_equal(kernel("dense-seed-5.keras"), kernel("dense-seed-6.keras"))
    tuned, scratch = kernel("fine-tune-seed-5.keras"), kernel("scratch-e-seed-5.keras")
    assert tuned.shape == scratch.shape == (12, 16)
    # Fine-tuning leaves a channel near to where it was; from scratch, none is.
    dense = kernel("dense-seed-5.keras")
    near = [np.abs(dense.T[:, None] - other.T).max(-1).min(0) for other in (tuned, scratch)]
    assert near[0].max() < near[1].min()


def test_the_table_and_the_plot_show_every_way(task, finished):
    output, report, resumed, _ = finished
    lines = resumed.stdout.splitlines()
    heads = ["way", "accuracy", "spread", "difference", "MACs", "parameters", "epochs", "compute"]
    assert lines[0].split() == heads
    assert [line.split("  ")[0] for line in lines[2:8]] == [way["name"] for way in report["ways"]]
    # One seed has no spread.
    assert lines[2].split("  ")[0] == "unpruned"
    assert lines[2].split()[2:4] == ["-", "-"]
    again = compare(task, output, 2)
    assert "finished before" in again.stderr
    assert "±" in again.stdout
    drawn = (output / "plot.svg").read_text()
    for way in report["ways"]:
        assert way["name"] in drawn
    assert "0.50x MACs · 12 epochs · 1.00x compute" in drawn


def test_compress_and_a_comparison_do_not_mix(task, finished):
    output, *_ = finished
    mixed = CliRunner().invoke(cli, arguments(task, output, 2)[:-3])
    assert mixed.exit_code == 1
    assert "holds another run: its kind and recipe differ; choose another folder" in mixed.stderr


CASES = {
    "nothing to prune": (["--recipe", "int8", "--compare-ways"], 1, "prunes no structure"),
    "seeds without ways": (["--recipe", "structured", "--seeds", "3"], 2, "of --compare-ways"),
    "plot without ways": (["--recipe", "structured", "--plot", "p.png"], 2, "of --compare-ways"),
    "no seeds": (["--recipe", "structured", "--compare-ways", "--seeds", "0"], 2, "x>=1"),
    "plot suffix": (
        ["--recipe", "structured", "--compare-ways", "--plot", "p.gif"],
        2,
        "supported: .png, .svg",
    ),
    "too few epochs": (
        ["--recipe", "{f}/short.toml", "--compare-ways"],
        1,
        "structure.dense_epochs is 4, but 4 rounds by way 'during' need at least 5",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(task, tmp_path, case):
    (task / "short.toml").write_text(
        "[structure]\ntarget_macs = 0.5\nrounds = 4\ndense_epochs = 4\n"
    )
    options, status, message = CASES[case]
    command = ["compress", str(task / "model.keras"), "--data", str(task / "data.npz")]
    command += [option.format(f=task) for option in options]
    result = CliRunner().invoke(cli, [*command, "-o", str(tmp_path / "out")])
    assert result.exit_code == status
    assert message in result.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_model_with_two_outputs_is_refused(task, tmp_path):
    import keras

    from edgeprune.comparison import compare_ways

    inputs = keras.Input((12,))
    model = keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(1)(inputs)])
    with pytest.raises(InputError, match="has 2 outputs; the ways are compared by one score"):
        compare_ways(model, task / "data.npz", "structured", tmp_path / "out")
