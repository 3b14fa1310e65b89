"""`compress` for devices: what they choose, what they refuse before training, what they show."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from edgeprune.cli import cli
from edgeprune.cli.outcome import print_outcome
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.export import tflite
from edgeprune.export.sparse_inference import sparse_inference
from edgeprune.models import import_keras
from edgeprune.outcome import CompressionReport
from edgeprune.pipeline import compress
from edgeprune.targets import from_records

pytestmark = pytest.mark.slow

keras = import_keras()
layers = keras.layers
M4, NPU, PI = "cortex-m4", "ethos-u55-128", "raspberry-pi-4"
NAMES = [M4, "small", NPU, PI, "local"]
KEYS = ["output", "rows", "stages", "device_choices", "devices", "dead_channels"]
HALF = "[structure]\ntarget_macs = 0.5\nepochs = 1\n"


@keras.saving.register_keras_serializable("compress_device")
class TopTwo(layers.Layer):
    """Keeps the two largest of its inputs: an operator of TFLite that TFLite Micro lacks."""

    def call(self, x):
        return keras.ops.top_k(x, 2)[0]


@keras.saving.register_keras_serializable("compress_device")
class Telltale(keras.losses.Loss):
    """A mean squared error that remembers whether anything was ever trained with it."""

    used = False

    def call(self, y_true, y_pred):
        Telltale.used = True
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A small classifier, compiled, and its data: three noisy classes in 12 features."""
    folder = tmp_path_factory.mktemp("task")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    x = (rng.normal(size=(3, 12))[y] + 0.3 * rng.normal(size=(240, 12))).astype("float32")
    np.savez(folder / "data.npz", x=x, y=y)
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((12,)), layers.Dense(64, activation="relu"), layers.Dense(3)]
    )
    model.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(x, y, epochs=3, verbose=0)
    model.save(folder / "model.keras")
    (folder / "recipe.toml").write_text(HALF)
    # 12 x 32 + 32 x 3 weights will fit; what a file has beside them shows in the end only.
    (folder / "small.toml").write_text(f'extends = "{M4}"\n[limits]\nflash_bytes = 600\n')
    return folder


def devices(task):
    return [str(task / "small.toml") if name == "small" else name for name in NAMES]


def arguments(task, output):
    return task / "model.keras", task / "data.npz", task / "recipe.toml", output


@pytest.fixture(scope="module")
def whole(task):
    """The report of a run for five devices; one cannot be reached, one is too small."""
    return compress(*arguments(task, task / "whole"), device=devices(task))


def test_the_choices_are_in_the_recipe_that_ran(whole):
    chosen = {choice.name: choice.value for choice in whole.device_choices}
    assert chosen == {
        "round_to": 32,  # of 4, 16, 8 and 32 or 8, the least common multiple
        "quantize": "int8",
        "sparse": "off",
        "rewrite_padding": None,
        "look_up_tables": False,
    }
    recipe = json.loads((whole.output / "run.json").read_text())["identity"]["recipe"]
    assert "round_to = 32" in recipe
    assert 'quantize = "int8"' in recipe
    assert 'sparse = "off"' in recipe
    (weight, _) = tflite.read(whole.output / "model.tflite").weights()
    assert weight.dtype == "int8"
    assert sorted(weight.shape) == [12, 32]


def test_each_device_shows_what_it_can(whole):
    entries = {entry.device: entry for entry in whole.devices}
    assert [(name, entry.kind) for name, entry in entries.items()] == [
        (M4, "simulated"),
        ("small", "simulated"),
        (NPU, "predicted"),
        (PI, "measured"),
        ("local", "measured"),
    ]
    files = ["baseline.tflite", "baseline-int8.tflite", "model.tflite"]
    for name in (M4, "small", NPU, "local"):
        assert [row.model for row in entries[name].results] == files
        assert entries[name].reason is None
    _, int8_baseline, result = entries[M4].results
    assert 0 < result.arena_bytes < int8_baseline.arena_bytes
    assert entries[M4].fits is True
    assert f"flash {whole.rows[-1].bytes:,} of 2,097,152 bytes" in entries[M4].verdict
    assert entries[NPU].results[-1].details["cycles"] > 0
    assert entries[PI].results == ()
    assert entries[PI].verdict.startswith("no figures: no host is set")
    measured = [row.latency_ms for row in whole.rows if row.latency_ms is not None]
    assert [row.latency_ms.median for row in entries["local"].results] == measured


def test_what_does_not_fit_in_the_end_is_said(whole):
    entry = whole.devices[1]
    size = whole.rows[-1].bytes
    assert entry.fits is False
    assert f"the result does not fit: flash {size:,} of 600 bytes (simulated)" in entry.verdict
    assert entry.results[-1].details["room"]["flash"]["spare_bytes"] == 600 - size


def test_the_same_run_again_is_shown_and_another_devices_is_not(task, whole):
    stamp = (whole.output / "structured.keras").stat().st_mtime_ns
    again = compress(*arguments(task, whole.output), device=devices(task))
    assert again == whole
    assert (whole.output / "structured.keras").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match=r"holds another run: its devices differ"):
        compress(*arguments(task, whole.output), device=["local", M4, NPU])
    with pytest.raises(InputError, match=r"holds another run: its recipe and devices differ"):
        compress(*arguments(task, whole.output))


@pytest.mark.parametrize("damaged", [1, [{}], [{"results": [], "more": 1}]])
def test_a_damaged_record_of_devices_is_refused(whole, damaged):
    record = json.loads((whole.output / "run.json").read_text())["stages"][-1]["devices"]
    assert from_records(record, "run.json") == whole.devices
    with pytest.raises(InputError, match=r"^run\.json holds no results of devices"):
        from_records(damaged, "run.json")


def test_the_command_prints_choices_and_results(task, whole):
    command = ["compress", str(task / "model.keras"), "--data", str(task / "data.npz")]
    command += ["--recipe", str(task / "recipe.toml"), "-o", str(whole.output)]
    for name in devices(task):
        command += ["--device", name]
    ran = CliRunner().invoke(cli, command)
    assert ran.exit_code == 0, ran.output
    table = ran.stdout.partition(f"Chosen for {', '.join(NAMES)}\n")[2]
    rows = [line.split(maxsplit=2) for line in table.splitlines()[1:8]]
    assert rows[0] == ["choice", "value", "because"]
    assert rows[2][:2] == ["round_to", "32"]
    assert rows[3][:2] == ["quantize", "int8"]
    assert rows[3][2].startswith("smaller, and faster on cortex-m4, small, ethos-u55-128, rasp")
    assert "cortex-m4: simulated with tflite-micro" in ran.stdout
    npu = next(entry for entry in whole.devices if entry.device == NPU).results[-1]
    weights = npu.details["weights"]
    assert weights["original_bytes"] == 12 * 32 + 32 * 3
    assert (
        f"ethos-u55-128: Vela encodes the 480 bytes of weights in {weights['encoded_bytes']:,}; "
        f"gzip makes {whole.rows[-1].gzip_bytes:,} of the file's {whole.rows[-1].bytes:,}\n"
    ) in ran.stdout
    assert "ethos-u55-128: predicted with ethos-u-vela" in ran.stdout
    assert "cortex-m4: the result fits: flash" in ran.stdout
    assert "small: the result does not fit: flash" in ran.stdout
    assert "raspberry-pi-4: no figures: no host is set" in ran.stdout


def test_json_has_choices_with_reason_and_source(whole):
    document = json.loads(whole.to_json())
    assert list(document) == KEYS
    for choice in document["device_choices"].values():
        assert list(choice) == ["value", "reason", "source"]
        assert set(choice["source"]) == set(NAMES)
        assert choice["reason"]
    assert list(document["devices"][0]) == ["device", "kind", "fits", "reason", "results"]
    assert all("devices" not in stage for stage in document["stages"])


def test_json_has_the_same_keys_without_devices(whole):
    document = json.loads(CompressionReport(whole.output, whole.rows, whole.stages).to_json())
    assert list(document) == KEYS
    assert (document["device_choices"], document["devices"]) == ({}, [])


def telltale(*inner, units):
    """A model of two outputs, and data for it, whose loss tells whether it was trained."""
    Telltale.used = False
    model = keras.Sequential([keras.Input((12,)), *map(layers.Dense, units), *inner])
    model.compile("adam", Telltale())
    return model


@pytest.fixture
def regression(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "regression.npz"
    np.savez(
        path,
        x=rng.normal(size=(64, 12)).astype("float32"),
        y=rng.normal(size=(64, 2)).astype("float32"),
    )
    return path


def test_an_operator_that_is_lacking_is_refused_before_training(regression, tmp_path):
    (tmp_path / "recipe.toml").write_text("[sparsity]\nepochs = 1\n[training]\nbatch_size = 8\n")
    recipe, told = tmp_path / "recipe.toml", []
    model = telltale(TopTwo(name="best"), units=[8])

    class Enough(Exception):  # noqa: N818  # no error
        """What follows the training is of no interest here."""

    def tell(stage, fraction, note):
        told.append(stage)
        if stage == "export":
            raise Enough

    with pytest.raises(UnsupportedError, match=r"cortex-m4 cannot run the model: best \(TOPK_V2\)"):
        compress(model, regression, recipe, tmp_path / "out", device=M4, progress=tell)
    assert not Telltale.used
    assert told == []
    assert not (tmp_path / "out").exists()
    # The same model trains where no device objects, and the loss tells.
    with pytest.raises(Enough):
        compress(model, regression, recipe, tmp_path / "out", progress=tell)
    assert Telltale.used
    assert "sparsity" in told


def test_a_model_over_the_flash_is_refused_before_training(regression, tmp_path):
    # 12 x 1400 + 1400 x 1500 + 1500 x 2 weights of a byte each; the flash has 2,097,152.
    model = telltale(units=[1400, 1500, 2])
    message = r"cortex-m4 cannot hold the model, .* take 2,119,800 bytes \(int8, zeros included\)"
    with pytest.raises(UnsupportedError, match=message):
        compress(model, regression, "pqat-int8", tmp_path / "out", device=[PI, M4])
    assert not Telltale.used
    assert not (tmp_path / "out").exists()


def test_an_arena_too_small_is_refused_before_training(regression, tmp_path):
    board = tmp_path / "board.toml"
    board.write_text(f'extends = "{M4}"\n[limits]\narena_bytes = 300\n')
    (tmp_path / "recipe.toml").write_text('[quantization]\n[export]\nquantize = "int8"\n')
    model = telltale(units=[16, 2])
    with pytest.raises(UnsupportedError, match=r"needs an arena of [\d,]+ bytes, and the largest"):
        compress(model, regression, tmp_path / "recipe.toml", tmp_path / "out", device=board)
    assert not Telltale.used


def test_a_contradiction_is_refused_before_training(regression, tmp_path):
    (tmp_path / "recipe.toml").write_text('[sparsity]\n[export]\nsparse = "on"\n')
    model = telltale(units=[8, 2])
    with pytest.raises(InputError, match=r"sparse is 'on', but cortex-m4 cannot take it"):
        compress(model, regression, tmp_path / "recipe.toml", tmp_path / "out", device=M4)
    assert not Telltale.used


def test_clustered_weights_go_into_look_up_tables_for_a_microcontroller(task, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[clustering]\nclusters = 3\nepochs = 1\n")
    keras.utils.set_random_seed(1)
    wide = keras.Sequential(
        [keras.Input((12,)), layers.Dense(96, activation="relu"), layers.Dense(96), layers.Dense(3)]
    )
    wide.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    report = compress(wide, task / "data.npz", recipe, tmp_path / "out", device=[M4, "local"])
    (choice,) = (one for one in report.device_choices if one.name == "look_up_tables")
    assert choice.value is True
    plain, tables = report.rows[-2:]
    assert (plain, tables) == (report.result, report.tables)
    assert (plain.file, tables.file) == ("model.tflite", "model.lut.tflite")
    assert tables.name == "clustered int8, look-up tables"
    assert tables.bytes == (report.output / tables.file).stat().st_size
    assert tables.bytes < plain.bytes - 96 * 96 // 2
    assert (tables.score, tables.sparsity, tables.latency_ms) == (plain.score, plain.sparsity, None)
    assert plain.latency_ms > 0
    m4, local = report.devices
    assert [row.model for row in m4.results][-2:] == ["model.tflite", "model.lut.tflite"]
    assert [row.model for row in local.results][-1] == "model.tflite"
    told = report.stages[-2]["look_up_tables"]
    assert m4.results[-1].arena_bytes == told["arena_bytes"] > told["plain_arena_bytes"]
    assert m4.fits is True
    assert f"the result fits: flash {plain.bytes:,} of" in m4.verdict
    assert f"the result with look-up tables fits: flash {tables.bytes:,} of" in m4.verdict
    print_outcome(report, False)
    printed = capsys.readouterr().out
    assert "(result: model.tflite; for TFLite Micro: model.lut.tflite)" in printed
    assert "look_up_tables   yes" in printed
    assert f"model.lut.tflite needs an arena of {told['arena_bytes']:,} bytes, model" in printed


def test_padding_is_rewritten_and_zeros_encoded_for_sparse_inference(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 16, 16, 3)).astype("float32"), rng.integers(0, 3, 64)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    inputs = keras.Input((16, 16, 3))
    z = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(inputs)
    z = layers.Conv2D(96, 1, activation="relu")(z)
    z = layers.GlobalAveragePooling2D()(layers.Conv2D(96, 1)(z))
    model = keras.Model(inputs, layers.Dense(3)(z))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    (tmp_path / "recipe.toml").write_text(
        "[training]\nbatch_size = 8\n[sparsity]\nfinal_sparsity = 0.9\nepochs = 2\n"
        '[export]\nsparse = "on"\n'
    )
    recipe = tmp_path / "recipe.toml"
    report = compress(model, tmp_path / "data.npz", recipe, tmp_path / "out", device=PI)
    chosen = {choice.name: choice.value for choice in report.device_choices}
    assert (chosen["quantize"], chosen["rewrite_padding"]) == ("none", True)
    for name, rewritten in (("baseline.tflite", False), ("model.tflite", True)):
        file = tflite.read(report.output / name)
        assert sparse_inference(file).eligible is rewritten
        # 'on' is for the result: nothing of the baseline is zero.
        assert any(weight.sparsity is not None for weight in file.weights()) is rewritten


def test_padding_that_cannot_be_rewritten_is_refused_before_training(task, tmp_path):
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Input((12,)), tf_keras.layers.Dense(3)])
    (tmp_path / "recipe.toml").write_text("[sparsity]\nrewrite_padding = true\n")
    with pytest.raises(UnsupportedError, match="tf_keras"):
        compress(model, task / "data.npz", tmp_path / "recipe.toml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--device", "pdp-11"], 1, "unknown device 'pdp-11'; known:"),
        (["--device", M4, "--device", M4], 1, "device 'cortex-m4' is named twice"),
        (["--device", "absent.toml"], 1, "absent.toml does not exist"),
        (["--device", M4, "--compare-ways"], 2, "--device has no meaning with --compare-ways"),
    ],
)
def test_bad_devices_are_refused_by_name(task, tmp_path, options, code, message):
    command = ["compress", str(task / "model.keras"), "--data", str(task / "data.npz")]
    command += ["--recipe", "int8", "-o", str(tmp_path / "out"), *options]
    ran = CliRunner().invoke(cli, command)
    assert ran.exit_code == code
    assert message in " ".join(ran.output.split())
    assert not (tmp_path / "out").exists()
