"""`edgeprune benchmark`: the exit code tells whether all models can run on all devices."""

import json

import pytest
from click.testing import CliRunner

from edgeprune.cli import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that TFLite Micro runs, and one that it does not."""
    import tensorflow as tf

    functions = {"good": lambda x: tf.nn.softmax(x @ tf.ones((16, 8)))}
    functions["bad"] = lambda x: tf.tile(x, (2, 2))
    folder = tmp_path_factory.mktemp("exit")
    for name, function in functions.items():
        concrete = tf.function(function, input_signature=[tf.TensorSpec((1, 16))])
        concrete = concrete.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        (folder / f"{name}.tflite").write_bytes(converter.convert())
    (folder / "tiny.toml").write_text(
        'description = "tiny"\nextends = "cortex-m4"\n[limits]\nflash_bytes = 100\n'
    )
    return folder


def run(*arguments):
    done = CliRunner().invoke(cli, ["benchmark", *map(str, arguments)])
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return done, errors


def test_all_is_well(folder):
    done, errors = run(folder / "good.tflite", "--device", "cortex-m4")
    assert (done.exit_code, errors) == (0, [])


def test_a_model_that_a_device_refuses(folder, tmp_path):
    output = tmp_path / "run.json"
    models = folder / "good.tflite", folder / "bad.tflite"
    done, (error,) = run(*models, "--device", "cortex-m4", "-o", output)
    assert done.exit_code == 1
    assert error.startswith("Error: cortex-m4: bad.tflite: TFLite Micro has no kernel for TILE")
    # What was found is printed and kept all the same, and the refusal told once.
    assert "cortex-m4: simulated" in done.stdout
    assert "no kernel for" not in done.stdout
    assert [row["arena_bytes"] is None for row in json.loads(output.read_text())] == [False, True]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_model_that_does_not_fit(folder, as_json):
    devices = ("--device", folder / "tiny.toml", "--device", "cortex-m4")
    done, (error,) = run(folder / "good.tflite", *devices, *["--json"] * as_json)
    assert done.exit_code == 1
    assert error.startswith("Error: tiny: good.tflite does not fit: it needs ")
    if as_json:
        assert [row["details"]["fits"] for row in json.loads(done.stdout)] == [False, True]
    else:
        assert "does not fit" not in done.stdout
        assert "tiny: simulated" in done.stdout


def test_devices_that_fail(folder):
    (folder / "off.toml").write_text(
        'description = "off"\nbackend = "ssh"\n[reach]\nhost = "127.0.0.1"\nport = 1\n'
    )
    devices = ("--device", folder / "off.toml", "--device", "cortex-m4")
    done, (error,) = run(folder / "good.tflite", *devices)
    assert done.exit_code == 1
    assert error.startswith("Error: off: 127.0.0.1 is there, but no ssh server answers (")
    assert "cortex-m4: simulated" in done.stdout
    # None at all: a line, and nothing else.
    done, (error,) = run(folder / "good.tflite", *devices[:2])
    assert (done.exit_code, done.stdout) == (1, "")
