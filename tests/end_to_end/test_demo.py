"""The demo, from the command line to the zeros in the file."""

import json
import subprocess
import sys

import numpy as np
import pytest

from edgeprune.export import tflite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "edgeprune", "demo", "-o", str(folder), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return folder, json.loads(ran.stdout), command


def test_pruned_int8_keeps_the_accuracy_of_the_float_baseline(demo):
    _, report, _ = demo
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["float baseline"]["score"] > 0.95
    assert rows["pruned int8"]["score"] >= rows["float baseline"]["score"] - 0.01
    assert rows["pruned int8"]["gzip_bytes"] < rows["int8 baseline"]["gzip_bytes"]


def test_four_fifths_of_the_weights_are_zero_in_the_file(demo):
    folder, report, _ = demo
    weights = tflite.read(folder / "model.tflite").weights()
    zeros = sum(int(np.count_nonzero(weight.data == 0)) for weight in weights)
    total = sum(weight.data.size for weight in weights)
    assert zeros / total >= 0.7999
    assert report["rows"][-1]["sparsity"] == pytest.approx(zeros / total)


def test_the_table_is_shown_again_without_training(demo):
    _, report, command = demo
    again = subprocess.run(command[:-1], capture_output=True, text=True, check=True)
    assert "training" not in again.stderr
    for row in report["rows"]:
        assert row["name"] in again.stdout
