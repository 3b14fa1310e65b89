"""`edgeprune prune`: what it writes, what it prints, and what it refuses."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

from edgeprune.cli import cli

KEYS = {
    "output",
    "parameters_before",
    "parameters_after",
    "macs_before",
    "macs_after",
    "groups",
    "refused",
    "notes",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write models of 6 inputs and 3 classes, and data of three noisy classes."""
    import keras
    import tf_keras

    folder = tmp_path_factory.mktemp("files")
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    stem = layers.Dense(32, activation="relu", name="stem")(inputs)
    inner = layers.Dense(64, activation="relu", name="inner")(stem)
    joined = layers.Add(name="join")([stem, layers.Dense(32, name="back")(inner)])
    model = keras.Model(inputs, layers.Dense(3, name="logits")(joined), name="small")
    model.compile(
        keras.optimizers.Adam(0.01, name="adam"),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.normal(size=(3, 6))[y] + 0.3 * rng.normal(size=(120, 6))).astype("float32")
    np.savez(folder / "data.npz", x=x, y=y)
    model.fit(x, y, epochs=10, verbose=0)
    model.save(folder / "model.keras")
    model.get_layer("inner").kernel.assign(np.full((32, 64), np.nan))
    model.save(folder / "nan.keras")

    @keras.saving.register_keras_serializable("test_prune")
    class Subclassed(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    subclassed = Subclassed()
    subclassed(x[:1])
    subclassed.save(folder / "subclassed.keras")
    legacy = tf_keras.Sequential([tf_keras.layers.Input((6,)), tf_keras.layers.Dense(3)])
    legacy.save(folder / "legacy.keras")
    (folder / "notes.txt").write_text("not a model")
    np.savez(folder / "labels.npz", x=x, y=np.where(y == 2, 99, y))
    straight = keras.Sequential([keras.Input((6,)), layers.Dense(3)], name="straight")
    straight.save(folder / "straight.keras")
    inputs = keras.Input((5, 8))
    keras.Model(inputs, layers.MultiHeadAttention(2, 4)(inputs, inputs)).save(
        folder / "attentive.keras"
    )
    with (
        zipfile.ZipFile(folder / "subclassed.keras") as whole,
        zipfile.ZipFile(folder / "unknown.keras", "w") as unknown,
    ):
        for name in whole.namelist():
            unknown.writestr(name, whole.read(name).replace(b"Subclassed", b"Elsewhere"))
    return folder


def prune(*arguments):
    result = CliRunner().invoke(cli, ["prune", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.slow
def test_half_the_channels_leave_and_plain_keras_loads_the_rest(files, tmp_path):
    command = [sys.executable, "-m", "edgeprune", "prune", str(files / "model.keras")]
    command += ["--ratio", "0.5", "-o", str(tmp_path / "out.keras"), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(ran.stdout)
    assert set(report) == KEYS
    assert report["output"] == str(tmp_path / "out.keras")
    # (6 + 1) 32 + (32 + 1) 64 + (64 + 1) 32 + (32 + 1) 3, and with half of the 32 and the 64
    assert report["parameters_before"] == 224 + 2112 + 2080 + 99
    assert report["parameters_after"] == 7 * 16 + 17 * 32 + 33 * 16 + 17 * 3
    assert report["macs_before"] == 6 * 32 + 32 * 64 + 64 * 32 + 32 * 3
    assert report["macs_after"] == 6 * 16 + 16 * 32 + 32 * 16 + 16 * 3
    groups = {group["name"]: group for group in report["groups"]}
    assert groups["stem"]["layers"] == ["stem", "back"]
    assert (groups["stem"]["channels_before"], groups["stem"]["channels_after"]) == (32, 16)
    assert (groups["inner"]["channels_before"], groups["inner"]["channels_after"]) == (64, 32)
    (refused,) = report["refused"]
    assert set(refused) == {"layer", "reason"}
    assert refused["layer"] == "logits"
    check = (
        "import sys, warnings, keras, numpy as np\n"
        "warnings.simplefilter('error', UserWarning)\n"
        f"model = keras.saving.load_model({report['output']!r})\n"
        "print(model.count_params(), model.optimizer.name, model.loss.name)\n"
        "print(model.predict(np.ones((2, 6)), verbose=0).shape, 'edgeprune' in sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout
    assert shown.splitlines() == [
        f"{report['parameters_after']} adam sparse_categorical_crossentropy",
        "(2, 3) False",
    ]


def test_the_table_tells_what_each_group_lost_and_what_was_kept(files, tmp_path):
    result = prune(files / "model.keras", "--target-macs", "0.5", "-o", tmp_path / "out.keras")
    lines = [line.split("  ") for line in result.stdout.splitlines()]
    rows = {line[0]: [cell.strip() for cell in line if cell.strip()] for line in lines}
    assert rows["stem and 1 more"][1] == "32"
    assert int(rows["stem and 1 more"][2]) % 8 == 0
    assert rows["logits"] == ["logits", "'logits' is an output of the model"]
    (macs,) = [line for line in result.stdout.splitlines() if line.startswith("MACs: ")]
    before, after = (int(part.replace(",", "")) for part in macs[6:].split(" (")[0].split(" -> "))
    assert before == 4384
    assert 0 < after <= before / 2
    assert result.stdout.endswith(f"File: {tmp_path / 'out.keras'}\n")
    assert result.stderr.startswith("planning ...\nplanning done: 4,515 -> ")


def test_a_dry_run_shows_the_plan_and_writes_nothing(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in files.iterdir())
    stamp = (files / "model.keras").stat().st_mtime_ns
    dry = prune(files / "model.keras", "--ratio", "0.5", "--dry-run", "--json")
    report = json.loads(dry.stdout)
    assert report["output"] is None
    assert report["parameters_after"] == 1235
    assert prune(files / "model.keras", "--ratio", "0.5", "--dry-run").stdout.endswith(
        "\nNo model was written.\n"
    )
    assert not list(tmp_path.iterdir())
    assert sorted(path.name for path in files.iterdir()) == before
    assert (files / "model.keras").stat().st_mtime_ns == stamp


def test_rounds_are_fine_tuned_and_told_of_as_one(files, tmp_path):
    result = prune(
        *(files / "model.keras", "--ratio", "0.5", "--rounds", "2", "--epochs", "5"),
        *("--data", files / "data.npz", "--criterion", "taylor", "-o", tmp_path / "out.keras"),
        "--json",
    )
    report = json.loads(result.stdout)
    assert set(report) == KEYS | {*("score_name", "score_before", "score_after", "validation")}
    assert report["validation"] == "every 10th sample (12 of 120), held out"
    assert (report["parameters_before"], report["parameters_after"]) == (4515, 1235)
    assert (report["macs_before"], report["macs_after"]) == (4384, 1168)
    assert [group["channels_before"] for group in report["groups"]] == [32, 64, 3]
    assert [group["channels_after"] for group in report["groups"]] == [16, 32, 3]
    assert report["score_name"] == "accuracy"
    assert report["score_before"] > 0.9
    assert report["score_after"] > 0.9
    # A quarter of the channels leave in each round.
    assert [line for line in result.stderr.splitlines() if not line.endswith("...")] == [
        f"planning 1/2 done: 4,515 -> {7 * 24 + 25 * 48 + 49 * 24 + 25 * 3:,} parameters",
        "fine-tuning 1/2 done",
        f"planning 2/2 done: {7 * 24 + 25 * 48 + 49 * 24 + 25 * 3:,} -> 1,235 parameters",
        "fine-tuning 2/2 done",
    ]


def test_targets_that_have_no_one_figure_are_trained_on_unscored(files, tmp_path):
    import keras

    def third(targets, outputs):
        return keras.ops.mean(keras.ops.square(targets[:, 2:] - outputs))

    keras.saving.register_keras_serializable("test_prune")(third)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16), keras.layers.Dense(1)])
    model.compile("sgd", third)
    model.save(tmp_path / "model.keras")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(40, 6)), y=rng.normal(size=(40, 3)))
    result = prune(
        *(tmp_path / "model.keras", "--ratio", "0.5", "--data", tmp_path / "data.npz"),
        *("--epochs", "1", "-o", tmp_path / "out.keras", "--json"),
    )
    report = json.loads(result.stdout)
    assert set(report) == KEYS
    assert report["parameters_after"] == 7 * 8 + 9


def test_what_is_skipped_stays(files):
    dry = ("--ratio", "0.5", "--dry-run", "--json", "--skip", "inner")
    report = json.loads(prune(files / "model.keras", *dry).stdout)
    assert [group["channels_after"] for group in report["groups"]] == [16, 64, 3]


def test_the_plot_shows_the_groups(files, tmp_path):
    result = prune(
        files / "model.keras", "--ratio", "0.5", "--dry-run", "--plot", tmp_path / "plot.svg"
    )
    assert result.exit_code == 0
    drawn = (tmp_path / "plot.svg").read_text()
    for text in ("stem", "inner", "32 → 16", "64 → 32", "4,515 → 1,235 parameters"):
        assert text in drawn


def test_heads_and_layers_leave_too(tmp_path):
    import keras

    layers = keras.layers
    inputs = x = keras.Input((5, 16))
    for number in range(4):
        attention = layers.MultiHeadAttention(4, 4, name=f"attention_{number}")
        x = layers.Add(name=f"add_{number}")([x, attention(x, x)])
    x = layers.GlobalAveragePooling1D()(x)
    keras.Model(inputs, layers.Dense(2)(x)).save(tmp_path / "model.keras")
    dry = ("--ratio", "0.5", "--dry-run", "--json")
    heads = json.loads(prune(tmp_path / "model.keras", "--what", "heads", *dry).stdout)
    assert set(heads) == KEYS
    assert [
        (group["kind"], group["channels_before"], group["channels_after"])
        for group in heads["groups"]
    ] == [("heads", 4, 2)] * 4
    # Each head of 4 has 3 kernels of 16 x 4 with biases of 4, and one of 4 x 16.
    assert heads["parameters_before"] - heads["parameters_after"] == 8 * (3 * 68 + 64)
    blocks = json.loads(prune(tmp_path / "model.keras", "--what", "layers", *dry).stdout)
    assert set(blocks) == KEYS
    assert sum(group["removed"] for group in blocks["groups"]) == 2
    assert blocks["parameters_before"] - blocks["parameters_after"] == 2 * (4 * 268 + 16)
    shown = prune(tmp_path / "model.keras", "--what", "layers", "--ratio", "0.5", "--dry-run")
    rows = [line.split() for line in shown.stdout.splitlines()[2:6]]
    assert rows == [
        ["attention_0", "2", "-", "stays"],
        ["attention_1", "2", "-", "leaves"],
        ["attention_2", "2", "-", "stays"],
        ["attention_3", "2", "-", "leaves"],
    ]
    half = ("--ratio", "0.4", "--dry-run")
    for what, note in (
        ("layers", "Note: blocks leave whole: 0.4 of 4 is 1.6, and 2 leave\n"),
        ("heads", "Note: heads leave whole: 0.4 of 4 is 1.6, and 2 leave\n"),
    ):
        assert note in prune(tmp_path / "model.keras", "--what", what, *half).stdout


def test_what_an_uncompiled_model_was_trained_with_is_said(files, tmp_path):
    import keras

    model = keras.models.load_model(files / "model.keras", compile=False)
    model.save(tmp_path / "model.keras")
    result = prune(
        *(tmp_path / "model.keras", "--ratio", "0.5", "--data", files / "data.npz"),
        *("--epochs", "1", "-o", tmp_path / "out.keras"),
    )
    assert (
        "Note: the model is not compiled: it was fine-tuned with Adam, learning rate 0.001, and "
        "the loss sparse_categorical_crossentropy\n"
    ) in result.stdout
    assert " on validation data: every 10th sample (12 of 120), held out\n" in result.stdout


def test_files_and_figures_are_checked_before_tensorflow_loads(files, tmp_path):
    out = str(tmp_path / "out.keras")
    model, data = str(files / "model.keras"), ["--data", "no.npz", "--epochs", "1"]
    for status, arguments in (
        (2, [model, "--ratio", "50", "-o", out]),
        (2, [model, "--ratio", "0.5", "-o", out + ".tflite"]),
        (2, [model, "--ratio", "0.5", "-o", model]),
        (1, [model, "--ratio", "0.5", "-o", str(tmp_path / "no" / "out.keras")]),
        (1, [model, "--ratio", "0.5", "-o", out, *data]),
        (1, [str(files / "no.keras"), "--ratio", "0.5", "-o", out]),
    ):
        check = (
            "import sys\n"
            "from edgeprune.cli import cli\n"
            "try: cli(['prune', *sys.argv[1:]])\n"
            "except SystemExit as end: print(end.code, 'tensorflow' in sys.modules)\n"
        )
        command = [sys.executable, "-c", check, *arguments]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.stdout == f"{status} False\n", arguments


def test_a_device_gives_the_multiple(files, tmp_path):
    profile = tmp_path / "wide.toml"
    profile.write_text('extends = "cortex-m4"\nchannel_multiple = 64\n')
    options = (files / "model.keras", "--ratio", "0.4", "--dry-run", "--json")
    kept = {}
    for name, device in (("default", ()), ("wide", ("--device", profile))):
        groups = json.loads(prune(*options, *device).stdout)["groups"]
        kept[name] = {group["name"]: group["channels_after"] for group in groups}
    assert kept["default"]["inner"] == 40  # 38.4 stay, to the nearest multiple of 8
    assert kept["wide"]["inner"] == 32  # of an axis no larger than the multiple, half


OUT = ("-o", "{out}/out.keras")
MODEL = "{f}/model.keras"
DATA = ("--data", "{f}/data.npz")
CASES = {
    "ratio in percent": (
        [MODEL, "--ratio", "50", *OUT],
        2,
        "Error: Invalid value for '--ratio': 50.0 is not in the range 0<=x<1. Did you mean 0.5?",
    ),
    "ratio of all": ([MODEL, "--ratio", "1", *OUT], 2, "1.0 is not in the range 0<=x<1."),
    "ratio below": ([MODEL, "--ratio", "-0.1", *OUT], 2, "-0.1 is not in the range"),
    "ratio nan": ([MODEL, "--ratio", "nan", *OUT], 2, "nan is not a number"),
    "target in percent": ([MODEL, "--target-macs", "40", *OUT], 2, "Did you mean 0.4?"),
    "target of nothing": (
        [MODEL, "--target-parameters", "0", *OUT],
        2,
        "0.0 is not in the range 0<x<=1",
    ),
    "no budget": ([MODEL, *OUT], 2, "give exactly one of --ratio, --target-macs,"),
    "two budgets": ([MODEL, "--ratio", "0.5", "--target-macs", "0.5", *OUT], 2, "exactly one"),
    "no output": ([MODEL, "--ratio", "0.5"], 2, "-o OUT.keras; or take --dry-run"),
    "output suffix": (
        [MODEL, "--ratio", "0.5", "-o", "{out}/out.tflite"],
        2,
        "out.tflite; supported: .keras, .h5",
    ),
    "output folder": ([MODEL, "--ratio", "0.5", "-o", "{out}/no/m.keras"], 1, "does not exist"),
    "output is the input": (
        [MODEL, "--ratio", "0.5", "-o", "{f}/../{name}/model.keras"],
        2,
        "is the model to prune; name another file",
    ),
    "missing model": (["{f}/no.keras", "--ratio", "0.5", *OUT], 1, "does not exist"),
    "not a model": (["{f}/notes.txt", "--ratio", "0.5", *OUT], 1, "notes.txt"),
    "subclassed": (["{f}/subclassed.keras", "--ratio", "0.5", *OUT], 1, "subclassed model"),
    "tf_keras": (["{f}/legacy.keras", "--ratio", "0.5", *OUT], 1, "is a tf_keras model"),
    "nan weights": (["{f}/nan.keras", "--ratio", "0.5", *OUT], 1, "NaN"),
    "criterion": (
        [MODEL, "--ratio", "0.5", "--criterion", "l3", *OUT],
        2,
        "--criterion l3 is unknown",
    ),
    "criterion without data": (
        [MODEL, "--ratio", "0.5", "--criterion", "taylor", *OUT],
        2,
        "taylor needs --data, x and y; give them, or take one that needs none: l1, l2, bn_scale,",
    ),
    "skip": (
        [MODEL, "--ratio", "0.5", "--skip", "conv", *OUT],
        1,
        "--skip conv matches no layer of model 'small'; its layers are",
    ),
    "round to": ([MODEL, "--ratio", "0.5", "--round-to", "0", *OUT], 2, "--round-to"),
    "round to and device": (
        [MODEL, "--ratio", "0.5", "--round-to", "8", "--device", "local", *OUT],
        2,
        "give --round-to or --device",
    ),
    "device": ([MODEL, "--ratio", "0.5", "--device", "toaster", *OUT], 1, "unknown device"),
    "max ratio": ([MODEL, "--ratio", "0.5", "--max-ratio", "90", *OUT], 2, "Did you mean 0.9?"),
    "epochs without data": ([MODEL, "--ratio", "0.5", "--epochs", "2", *OUT], 2, "--data"),
    "rate without epochs": (
        [MODEL, "--ratio", "0.5", "--learning-rate", "0.1", "--data", "{f}/data.npz", *OUT],
        2,
        "--learning-rate is of fine-tuning; give --data and --epochs with it",
    ),
    "fine-tuning that diverges": (
        [MODEL, "--ratio", "0.5", "--learning-rate", "1e30", "--epochs", "2", *DATA, *OUT],
        1,
        "smaller learning rate",
    ),
    "labels beyond the classes": (
        [MODEL, "--ratio", "0.5", "--epochs", "1", "--data", "{f}/labels.npz", *OUT],
        1,
        "y holds 99, and model 'small' has 3 classes",
    ),
    "skip of no block": (
        [MODEL, "--ratio", "0.5", "--what", "layers", "--skip", "logits", *OUT],
        1,
        "--skip logits ",
    ),
    "layers of none": (
        ["{f}/straight.keras", "--ratio", "0.5", "--what", "layers", *OUT],
        1,
        "model 'straight' has no block that can leave",
    ),
    "gate without data": (
        ["{f}/attentive.keras", "--ratio", "0.5", "--what", "heads", "--criterion", "gate", *OUT],
        2,
        "gate needs --data, x and y; give them, or take one that needs none: l1, l2, fpgm, random",
    ),
    "code that is not there": (
        ["{f}/unknown.keras", "--ratio", "0.5", *OUT],
        1,
        "pruned as edgeprune.prune_channels(keras.Model(inputs, model.call(inputs)), ...)",
    ),
    "rounds without epochs": (
        [MODEL, "--ratio", "0.5", "--rounds", "3", "--data", "{f}/data.npz", *OUT],
        2,
        "--epochs, at least 3",
    ),
    "data missing": (
        [MODEL, "--ratio", "0.5", "--data", "{f}/no.npz", "--epochs", "1", *OUT],
        1,
        "does not exist",
    ),
    "plot suffix": (
        [MODEL, "--ratio", "0.5", "--plot", "{out}/plot.pdf", *OUT],
        2,
        "supported: .png, .svg",
    ),
    "no heads": ([MODEL, "--ratio", "0.5", "--what", "heads", *OUT], 1, "no attention heads"),
    "heads by macs": (
        [MODEL, "--target-macs", "0.5", "--what", "heads", *OUT],
        2,
        "--target-macs has no meaning with --what heads",
    ),
    "layers ranked": (
        [MODEL, "--ratio", "0.5", "--what", "layers", "--ranking", "global", *OUT],
        2,
        "--ranking has no meaning with --what layers",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(files, tmp_path, case):
    arguments, status, message = CASES[case]
    before = sorted(path.name for path in files.iterdir())
    result = prune(*(part.format(f=files, out=tmp_path, name=files.name) for part in arguments))
    assert result.exit_code == status
    error = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert result.stderr.splitlines()[-1] == error[0]
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())
    assert sorted(path.name for path in files.iterdir()) == before
