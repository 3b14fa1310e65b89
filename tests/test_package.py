"""The wheel as it ships: public names, and a clean environment that has it and little else."""

import ast
import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import edgeprune

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", edgeprune.__all__)
def test_every_public_name_is_there(name):
    assert getattr(edgeprune, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'prune'"):
        _ = edgeprune.prune


def test_names_for_type_checkers_are_those_at_run_time():
    tree = ast.parse((ROOT / "edgeprune" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        alias.name: node.module.removeprefix("edgeprune.")
        for node in block.body
        for alias in node.names
    }
    assert declared == edgeprune._HOMES
    assert sorted(declared) == sorted(edgeprune.__all__)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_device_script_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "edgeprune/_shipped/bench_on_device.py" in names
    assert "edgeprune/py.typed" in names
    assert "edgeprune/export/packing/dictionary.bin" in names
    profiles = {f"edgeprune/_shipped/devices/{path.name}" for path in ROOT.glob("devices/*.toml")}
    assert len(profiles) > 10
    assert {name for name in names if name.endswith(".toml")} == profiles
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]


def test_wheel_measures_and_inspects_without_tensorflow(wheel, tmp_path):
    """On a host with only the interpreter, files can still be measured and looked into."""
    import tensorflow as tf

    class Double(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32)])
        def __call__(self, x):
            return x @ tf.constant([[2.0], [0.0], [1.0], [0.0]])

    module = Double()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.__call__.get_concrete_function()], module
    )
    model = tmp_path / "model.tflite"
    model.write_bytes(converter.convert())
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "numpy", "click", "rich", "ai-edge-litert"], check=True)
    subprocess.run([*pip, "--no-deps", wheel], check=True)

    def run(*arguments):
        command = [python, "-m", "edgeprune", *arguments]
        return json.loads(subprocess.check_output(command, cwd=tmp_path, text=True))

    (measured,) = run("benchmark", "--quick", "--json", "model.tflite")
    assert measured["latency_ms"]["runs"] >= 20
    found = run("inspect", "--json", "model.tflite")
    assert found["macs"] == 4
    assert found["sparsity"] == 0.5
    shipped = {path.name.split(".")[0] for path in ROOT.glob("devices/*.toml")}
    known = {device["name"]: device["reachable"] for device in run("devices", "--json")}
    assert set(known) == shipped
    assert known["local"]
    assert not known["cortex-m4"]
