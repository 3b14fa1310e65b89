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
        ("pack_size.py", ["--quick"]),
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
        "pack_size.py",
        "structure_quality.py",
        "clustering_quality.py",
        "clustered_quantization.py",
        "sparsity_allocation.py",
        "interval_coverage.py",
        "sparse_eligibility.py",  # in tests/devices/test_sparse_truth.py, with its device
    }
    assert {path.name for path in BENCH.glob("*.py")} == tried


def test_a_sample_of_the_coverage_runs(tmp_path):
    results = tmp_path / "results.json"
    options = ["--runs", "2", "--min-seconds", "0.05", "--results", results]
    options += ["--script", BENCH.parent / "bench_on_device.py"]
    command = [sys.executable, BENCH / "interval_coverage.py", *options]
    ran = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    printed = json.loads(ran.stdout)
    (kept,) = json.loads(results.read_text()).values()
    assert kept["rows"] == printed["rows"]
    # Two models, each by the script and by what was named beside it: here the same one.
    assert [row["model"] for row in printed["rows"]] == ["mobilenet-v1"] * 2 + ["ds-cnn"] * 2
    for row in printed["rows"]:
        assert (row["runs"], row["comparisons"]) == (2, 2)
        assert row["coverage"] in (0, 0.5, 1)
        assert row["half_width"] > 0
        assert {row["false_verdicts_copy"], row["false_verdicts_other"]} <= {0, 1}


def test_a_sample_of_the_clustering_runs():
    options = ["--task", "digits", "--seeds", "1", "--dense-epochs", "20", "--epochs", "2"]
    command = [sys.executable, BENCH / "clustering_quality.py", *options, "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    (result,) = json.loads(ran.stdout)["results"]
    drops = {(row["way"], row["optimizer"]): row["drop"] for row in result["rows"]}
    assert result["dense"] > 0.9
    assert len(drops) == 20
    assert drops["mean, changed every step", "adam 3e-3"] < 0.1


def test_a_sample_of_the_clustered_quantization(tmp_path):
    results = tmp_path / "results.json"
    options = ["--seeds", "1", "--clusters", "4", "--sparsity", "0.8", "--results", results]
    command = [sys.executable, BENCH / "clustered_quantization.py", *options, "--json"]
    few = ["--epochs", "10", "--fine-epochs", "3"]
    ran = subprocess.run([*command, *few], capture_output=True, text=True, check=True)
    printed, kept = json.loads(ran.stdout), json.loads(results.read_text())["digits"]
    assert printed["rows"] == kept["rows"]
    rows = {row["way"]: row for row in kept["rows"]}
    assert list(rows) == ["post-training", "float", "QAT", "kept"]
    assert max(rows[way]["values"] for way in ("post-training", "float", "kept")) <= 4
    assert rows["QAT"]["values"] > 4
    assert rows["kept"]["ratio"] < 1
    assert not any(row["lost_zeros"] for row in rows.values())
    assert rows["kept"]["test_accuracy"] > 0.8


def test_a_sample_of_the_quality_runs(tmp_path):
    results = tmp_path / "results.json"
    options = ["--seeds", "1", "--epochs", "3", "--glyphs", "2000", "--words", "600"]
    command = [sys.executable, BENCH / "structure_quality.py", *options, "--min-seconds", "1"]
    subprocess.run([*command, "--results", results], capture_output=True, check=True)
    parts = json.loads(results.read_text())
    assert set(parts) == {"resnet8", "heads", "layers", "latency"}
    rows = {row["way"]: row for row in parts["resnet8"]["summary"]}
    dense, pruned = rows["dense"], rows["pruned, fine-tuned"]
    assert 0.35 <= pruned["macs"] / dense["macs"] <= 0.4
    assert pruned["mean"] >= dense["mean"] - 0.05
    assert rows["scratch-B"]["compute"] == pytest.approx(1, abs=0.2)
    dense, _, pruned = parts["layers"]["summary"]
    assert pruned["macs"] < 0.6 * dense["macs"]
    assert all(0.4 <= row["macs_ratio"] <= 0.5 for row in parts["latency"]["rows"])


def test_a_sample_of_the_allocation_runs(tmp_path):
    results = tmp_path / "results.json"
    options = ["--task", "digits", "--seeds", "1", "--epochs", "2", "--pruning-epochs", "3"]
    command = [sys.executable, BENCH / "sparsity_allocation.py", *options, "--results", results]
    ran = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    printed, kept = json.loads(ran.stdout)["digits"], json.loads(results.read_text())["digits"]
    assert printed["mean"] == kept["mean"]
    totals = {run["way"]: run["sparsity"] for run in kept["runs"]}
    assert totals.pop("dense") == 0
    assert all(total == pytest.approx(0.95, abs=1e-4) for total in totals.values())
    shares = {run["way"]: run.get("layers") for run in kept["runs"]}
    assert shares["allocated"]["classes/kernel"] < 0.9 < shares["uniform"]["classes/kernel"]
