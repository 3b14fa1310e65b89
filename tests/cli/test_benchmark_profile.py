"""`edgeprune benchmark --profile`."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from edgeprune.cli import cli

QUICK = ("benchmark", "--quick", "--profile")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import tensorflow as tf

    function = tf.function(
        lambda x: tf.nn.softmax(x @ tf.ones((16, 8))), input_signature=[tf.TensorSpec((1, 16))]
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    path = tmp_path_factory.mktemp("profile") / "model.tflite"
    path.write_bytes(converter.convert())
    return str(path)


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_table_plot_and_file(model, tmp_path):
    done = run(*QUICK, model, "--plot", tmp_path / "plot.svg", "-o", tmp_path / "run.json")
    assert done.exit_code == 0, done.output
    assert "model.tflite by operator, local: measured with" in done.stdout
    for word in ("FULLY_CONNECTED", "SOFTMAX", "measured ms", "sum ", "whole model "):
        assert word in done.stdout
    assert "note: local: each operator timed alone" in done.stdout
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
    (row,) = json.loads((tmp_path / "run.json").read_text())
    assert [one["op"] for one in row["per_operator"]["operators"]] == ["FULLY_CONNECTED", "SOFTMAX"]


@pytest.mark.slow
def test_json_is_all_that_is_printed(model):
    done = run(*QUICK, model, "--json", "--device", "local", "--device", "cortex-m4")
    measured, simulated = json.loads(done.stdout)
    assert measured["per_operator"]["sum_ms"] > 0
    assert simulated["per_operator"] == {}
    assert "has no profiler" in simulated["unavailable"]["per_operator"]


def test_a_plot_without_a_profile_to_draw(model, tmp_path):
    done = run(*QUICK, model, "--device", "cortex-m4", "--plot", tmp_path / "plot.png")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("Error: there is no profile to draw: TFLite")
    # What was found is printed all the same.
    assert "cortex-m4: simulated" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--plot", "p.png"), 2, "--plot draws the profile; give --profile, too"),
        (("--profile", "--compare", "old.json"), 2, "--profile and --compare do not go together"),
        (("--profile", "--plot", "p.svg", "-o", "p.svg"), 2, "name the same file"),
        (("--profile", "--plot", "p.pdf"), 2, "cannot draw a plot as p.pdf; supported: .png, .svg"),
        (("--profile", "--plot", "no/p.png"), 1, "folder no does not exist"),
    ],
)
def test_bad_input(model, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    done = run("benchmark", "--quick", model, *arguments)
    assert done.exit_code == code
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_nothing_is_run(model, tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None; from edgeprune.cli import cli; cli()"
    arguments = [*QUICK, model, "--plot", str(tmp_path / "plot.png")]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: plots are drawn with matplotlib, which is not installed")
    assert list(tmp_path.iterdir()) == []
