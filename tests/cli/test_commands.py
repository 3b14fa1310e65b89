"""The commands as processes: what they print, where, and what they load."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "edgeprune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import keras

    folder = tmp_path_factory.mktemp("commands")
    layers = keras.layers
    # The converter drops biases that are all zero.
    model = keras.Sequential([keras.Input((8, 8, 2))])
    model.add(layers.Conv2D(4, 3, bias_initializer="ones"))
    model.add(layers.Flatten())
    model.add(layers.Dense(3, bias_initializer="ones"))
    model.save(folder / "model.keras")
    np.save(folder / "samples.npy", np.random.default_rng(0).normal(size=(32, 8, 8, 2)))
    return folder


@pytest.fixture(scope="module")
def converted(folder):
    calibration = ("--calibration", folder / "samples.npy")
    output = folder / "model.tflite"
    ran = run(
        "convert",
        folder / "model.keras",
        "-o",
        output,
        "--quantize",
        "int8",
        *calibration,
        "--json",
    )
    assert ran.returncode == 0, ran.stderr
    return ran


def test_convert_prints_the_contract_and_nothing_else(folder, converted):
    document = json.loads(converted.stdout)
    assert converted.stderr == ""
    assert list(document) == [
        "output",
        "bytes",
        "gzip_bytes",
        "quantization",
        "sparsity",
        "dead_channels",
        "verification",
        "candidates",
    ]
    assert document["candidates"] == []
    assert document["output"] == str(folder / "model.tflite")
    assert document["bytes"] == (folder / "model.tflite").stat().st_size
    assert document["quantization"] == "int8"
    assert list(document["verification"]) == [
        "samples",
        "random",
        "max_abs_error",
        "argmax_agreement",
        "passed",
        "notes",
    ]
    assert document["verification"]["passed"] is True
    assert document["verification"]["random"] is False


def test_convert_says_what_it_did(folder):
    ran = run("convert", folder / "model.keras", "-o", folder / "float.tflite")
    assert ran.returncode == 0
    assert ran.stderr == ""
    first, second = ran.stdout.splitlines()
    assert first.startswith(f"{folder}/float.tflite: ")
    assert second.startswith("verified on 256 random samples: max abs error ")


def test_inspect_of_tflite(folder, converted):
    ran = run("inspect", folder / "model.tflite", "--json")
    document = json.loads(ran.stdout)
    # Conv: 6 * 6 outputs of 4 channels, 3 * 3 * 2 products each; Dense: 144 * 3.
    assert document["macs"] == 6 * 6 * 4 * 18 + 144 * 3
    # 4 * 18 + 4 and 144 * 3 + 3
    assert document["parameters"] == 76 + 435
    table = run("inspect", folder / "model.tflite")
    assert table.returncode == 0
    assert "CONV_2D" in table.stdout
    assert "FULLY_CONNECTED" in table.stdout


def test_inspect_of_keras_agrees(folder, converted):
    ran = run("inspect", folder / "model.keras", "--json")
    document = json.loads(ran.stdout)
    assert document["macs"] == 6 * 6 * 4 * 18 + 144 * 3
    assert document["parameters"] == 76 + 435


def test_benchmark_prints_a_table_and_json(folder, converted):
    ran = run("benchmark", "--quick", "--json", folder / "model.tflite", folder / "model.tflite")
    first, second = json.loads(ran.stdout)
    assert first["relative_latency"] == 1.0
    assert second["relative_latency"] > 0
    assert first["kind"] == "measured"
    table = run("benchmark", "--quick", folder / "model.tflite")
    assert table.returncode == 0
    assert "model.tflite" in table.stdout
    assert "local: measured with" in table.stdout


@pytest.mark.slow
def test_doctor_finds_this_environment_sound():
    ran = run("doctor", "--json")
    assert ran.returncode == 0, ran.stdout
    checks = {check["name"]: check for check in json.loads(ran.stdout)}
    assert checks["convert and run"]["ok"] is True
    assert checks["tensorflow"]["found"].startswith("2.")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["convert", "--help"], ["compress", "--help"], ["--version"]]
)
def test_help_loads_neither_tensorflow_nor_rich(arguments):
    code = (
        "import sys\n"
        "from edgeprune.cli import cli\n"
        f"cli.main({arguments!r}, standalone_mode=False)\n"
        "print('loaded', sorted({'tensorflow', 'keras', 'rich', 'numpy'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "loaded []"


def test_inspect_of_tflite_loads_no_tensorflow(folder, converted):
    code = (
        "import sys, edgeprune\n"
        f"edgeprune.inspect({str(folder / 'model.tflite')!r})\n"
        "print(sorted({'tensorflow', 'keras', 'tf_keras'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_importing_edgeprune_loads_no_tensorflow():
    code = "import sys, edgeprune; dir(edgeprune); print('tensorflow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_the_readme_holds_the_commands_help():
    script = ROOT / "tools" / "command_reference.py"
    ran = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, "run: python tools/command_reference.py"
