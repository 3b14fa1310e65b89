"""The scripts behind the README's figures run, and print figures that can be read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("training_overhead.py", ["--model", "mlp", "--seconds", "1"]),
        ("mask_update.py", ["--rounds", "1"]),
        ("convert_overhead.py", ["--rounds", "1"]),
        ("structure_scaling.py", ["--layers", "80", "--model", "MobileNetV3Small"]),
    ],
)
def test_script_prints_one_json_document(script, options):
    command = [sys.executable, BENCH / script, *options, "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ratio" in json.dumps(json.loads(ran.stdout))


def test_every_script_is_tried_here():
    tried = {
        "training_overhead.py",
        "mask_update.py",
        "convert_overhead.py",
        "structure_scaling.py",
    }
    assert {path.name for path in BENCH.glob("*.py")} == tried
