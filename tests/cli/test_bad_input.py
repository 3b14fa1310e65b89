"""Every bad input ends in one line that says what to do, the right exit code, and no debris."""

import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

from edgeprune.cli import cli


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write a model of 4 inputs and 3 classes, and inputs good and bad."""
    import keras

    folder = tmp_path_factory.mktemp("files")
    layers = keras.layers
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
    model.save(folder / "model.keras")
    odd = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2)])
    odd.save(folder / "lambda.keras")
    whole = (folder / "model.keras").read_bytes()
    (folder / "truncated.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.keras").write_bytes(b"")
    (folder / "text.h5").write_text("not a model")
    (folder / "notes.txt").write_text("not a model")
    (folder / "broken.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(40))
    with zipfile.ZipFile(folder / "hostile.keras", "w") as archive:
        archive.writestr("../../escaped", "x")
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    y = np.arange(20) % 3
    np.savez(folder / "good.npz", x=x, y=y)
    np.savez(folder / "wide.npz", x=np.ones((20, 5), "float32"), y=y)
    np.savez(folder / "nan.npz", x=np.where(x > 1, np.nan, x), y=y)
    np.savez(folder / "pickled.npz", x=np.array([{}, []], dtype=object), y=y)
    (folder / "percent.toml").write_text("[sparsity]\nfinal_sparsity = 80\n")
    return folder


CONVERT = ["convert", "{f}/model.keras", "-o", "{out}/m.tflite"]
COMPRESS = ["compress", "{f}/model.keras", "-o", "{out}/run"]
CASES = {
    "missing model": (["convert", "{f}/no.keras", "-o", "{out}/m.tflite"], 1, "does not exist"),
    "truncated": (["convert", "{f}/truncated.keras", "-o", "{out}/m.tflite"], 1, "truncated.keras"),
    "empty": (["convert", "{f}/empty.keras", "-o", "{out}/m.tflite"], 1, "empty"),
    "h5 of text": (["convert", "{f}/text.h5", "-o", "{out}/m.tflite"], 1, "text.h5"),
    "other kind": (["convert", "{f}/notes.txt", "-o", "{out}/m.tflite"], 1, "notes.txt"),
    "hostile zip": (["convert", "{f}/hostile.keras", "-o", "{out}/m.tflite"], 1, "hostile.keras"),
    "lambda": (["convert", "{f}/lambda.keras", "-o", "{out}/m.tflite"], 1, "--unsafe"),
    "broken tflite": (["convert", "{f}/broken.tflite", "-o", "{out}/m.tflite"], 1, "broken.tflite"),
    "options of a tflite": (
        ["convert", "{f}/broken.tflite", "-o", "{out}/m.tflite", "--keep-dead", "--batch", "2"],
        2,
        "takes no --batch, --keep-dead;",
    ),
    "no calibration": ([*CONVERT, "--quantize", "int8"], 2, "give --calibration"),
    "calibration shape": (
        [*CONVERT, "--quantize", "int8", "--calibration", "{f}/wide.npz"],
        1,
        r"(20, 5)",
    ),
    "calibration nan": (
        [*CONVERT, "--quantize", "int8", "--calibration", "{f}/nan.npz"],
        1,
        "NaN",
    ),
    "calibration pickled": (
        [*CONVERT, "--quantize", "int8", "--calibration", "{f}/pickled.npz"],
        1,
        "pickle",
    ),
    "calibration missing": (
        [*CONVERT, "--quantize", "int8", "--calibration", "{f}/no.npz"],
        1,
        "does not exist",
    ),
    "calibration module": (
        [*CONVERT, "--quantize", "int8", "--calibration", "no_such_module:load"],
        1,
        "no_such_module",
    ),
    "unknown mode": ([*CONVERT, "--quantize", "int3"], 2, "'int3' is not one of"),
    "no output": (["convert", "{f}/model.keras"], 2, "Missing option '-o'"),
    "batch of none": ([*CONVERT, "--batch", "0"], 2, "'dynamic'"),
    "drop without auto": (
        [*CONVERT, "--max-drop", "0.1"],
        2,
        "--max-drop is for --quantize auto, got --quantize none; leave it out",
    ),
    "modes without auto": (
        [*CONVERT, "--quantize", "float16", "--modes", "int8"],
        2,
        "--modes is for --quantize auto, got --quantize float16",
    ),
    "drop of nothing": (
        [*CONVERT, "--quantize", "auto", "--max-drop", "nan"],
        2,
        "'--max-drop': nan is not a number",
    ),
    "drop in percent": ([*CONVERT, "--max-drop", "5"], 2, "Did you mean 0.05?"),
    "int8 io of floats": (
        [*CONVERT, "--io", "int8"],
        2,
        "--io int8 goes with --quantize int8, got --quantize none",
    ),
    "int8 io of layers": (
        [*CONVERT, "--io", "int8", "--quantize-layer", "dense=float16"],
        2,
        "got a mode for each layer",
    ),
    "tolerance": ([*CONVERT, "--tolerance", "nan"], 2, "'--tolerance': nan"),
    "tables of floats": ([*CONVERT, "--look-up-tables"], 2, "got --quantize none"),
    "output of another kind": (["convert", "{f}/model.keras", "-o", "{out}/m.h5"], 2, ".tflite"),
    "calibration of another kind": (
        [*CONVERT, "--quantize", "int8", "--calibration", "data.csv"],
        2,
        "supported: .npz, .npy, module:function",
    ),
    "unknown layer": (
        [*CONVERT, "--quantize-layer", "nope=int4"],
        1,
        "'nope' in the modes by layer matches no layer",
    ),
    "bad shape": ([*CONVERT, "--input-shape", "64x"], 2, "64,64,3"),
    "no folder": (["convert", "{f}/model.keras", "-o", "{out}/no/m.tflite"], 1, "{out}/no"),
    "unwritable": (["convert", "{f}/model.keras", "-o", "/proc/m.tflite"], 1, "/proc"),
    "output a folder": (["convert", "{f}/model.keras", "-o", "{out}"], 2, "{out}"),
    "unknown preset": (
        [*COMPRESS, "--data", "{f}/good.npz", "--recipe", "pqat"],
        2,
        "the presets are prune, int8, pqat-int8",
    ),
    "percent": (
        [*COMPRESS, "--data", "{f}/good.npz", "--recipe", "{f}/percent.toml"],
        1,
        "did you mean 0.8?",
    ),
    "data of the wrong shape": (
        [*COMPRESS, "--data", "{f}/wide.npz", "--recipe", "prune"],
        1,
        "takes samples of shape",
    ),
    "data pickled": ([*COMPRESS, "--data", "{f}/pickled.npz", "--recipe", "prune"], 1, "pickle"),
    "data nan": ([*COMPRESS, "--data", "{f}/nan.npz", "--recipe", "prune"], 1, "NaN"),
    "inspect missing": (["inspect", "{f}/no.tflite"], 1, "no.tflite"),
    "inspect broken": (["inspect", "{f}/broken.tflite"], 1, "broken.tflite"),
    "inspect lambda": (["inspect", "{f}/lambda.keras"], 1, "--unsafe"),
    "benchmark missing": (["benchmark", "{f}/no.tflite"], 1, "no.tflite"),
    "benchmark broken": (["benchmark", "{f}/broken.tflite"], 1, "broken.tflite"),
    "benchmark nothing": (["benchmark"], 2, "Missing argument"),
    "benchmark threads": (["benchmark", "{f}/no.tflite", "--threads", "0"], 2, "threads"),
    "benchmark output": (
        ["benchmark", "{f}/broken.tflite", "-o", "{f}/broken.tflite"],
        2,
        "is one of the models; name another file",
    ),
    "benchmark timeout": (["benchmark", "{f}/no.tflite", "--timeout", "nan"], 2, "--timeout"),
    "sensitivity of no data": (
        ["inspect", "{f}/model.keras", "--sensitivity"],
        2,
        "give --data: samples, alone or with targets",
    ),
    "unknown command": (["shrink"], 2, "No such command 'shrink'"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, files, tmp_path):
    arguments, code, message = CASES[case]
    fill = {"f": files, "out": tmp_path}
    before = sorted(files.iterdir())

    result = CliRunner().invoke(cli, [argument.format(**fill) for argument in arguments])

    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert message.format(**fill) in line
    assert sum("Error" in line for line in result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert not list(tmp_path.rglob("*.*"))
    assert sorted(files.iterdir()) == before
    assert not (tmp_path.parent / "escaped").exists()


def run(*arguments, **options):
    command = [sys.executable, "-m", "edgeprune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_unsafe_allows_a_lambda(files, tmp_path):
    output = tmp_path / "m.tflite"
    ran = run("convert", files / "lambda.keras", "-o", output, "--unsafe")
    assert ran.returncode == 0, ran.stderr
    assert output.exists()


def test_another_backend_says_how_to_go_on(files, tmp_path):
    ran = run(
        "convert",
        files / "model.keras",
        "-o",
        tmp_path / "m.tflite",
        env={**os.environ, "KERAS_BACKEND": "torch"},
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("Error: Keras is set to the torch backend")
    assert "set KERAS_BACKEND=tensorflow" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(files, tmp_path):
    # A limit on the size of files is what a full disk is to the process: write() fails.
    limited = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import edgeprune.export.convert, tensorflow, keras\n"
        "from edgeprune.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "main()\n"
    )
    output = tmp_path / "m.tflite"
    ran = subprocess.run(
        [sys.executable, "-c", limited, "convert", files / "model.keras", "-o", output],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stderr
    assert "Error: " in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compress", "benchmark"])
def test_ctrl_c_ends_in_one_line(command, files, tmp_path):
    if command == "compress":
        (tmp_path / "long.toml").write_text("[sparsity]\nepochs = 100000\n")
        arguments = [files / "model.keras", "--data", files / "good.npz"]
        arguments += ["--recipe", tmp_path / "long.toml", "-o", tmp_path / "run"]
        sign = "sparsity ..."
    else:
        ran = run("convert", files / "model.keras", "-o", tmp_path / "m.tflite")
        assert ran.returncode == 0, ran.stderr
        arguments = [tmp_path / "m.tflite"]
        sign = ""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprune", command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith(sign):
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1].startswith("Error: interrupted")
    assert "Traceback" not in err
    assert out == ""
    hidden = [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert not hidden
