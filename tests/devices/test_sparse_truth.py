"""What is said of sparse inference, against the truth: real Arm kernels, in emulation.

No times: sparse kernels sum in another order than dense ones, so the last bits of a model's
outputs tell which ran. tools/bench/sparse_eligibility.py compares times, of many more models.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.sparse_eligibility import NETS
from tensorflow.lite.python.convert import mlir_sparsify

from edgeprune.devices import emulated_worker
from edgeprune.devices.script import bench_script
from edgeprune.export.convert import convert
from edgeprune.export.sparse_inference import miscomputed, sparse_inference
from edgeprune.export.tflite import read

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "sparse_eligibility.py"

pytestmark = pytest.mark.slow


def differences(files, sandbox, folder):
    """Run files in emulation on the same input; return how far each is from the first."""
    models = [
        {"path": str(file), "inputs": str(folder / "in.npz"), "outputs": str(file) + ".npz"}
        for file in files
    ]
    job = {"models": models, "samples": 1, "seconds": 60, "timed": False, "plain": False}
    job |= {"runtime": "ai-edge-litert", "threads": 1, "seed": 0}
    (folder / "job.json").write_text(json.dumps(job))
    worker = [emulated_worker.__file__, str(bench_script()), str(folder / "job.json")]
    subprocess.run(sandbox.command(*worker), check=True, capture_output=True)
    outputs = []
    for model in models:
        with np.load(model["outputs"]) as values:
            outputs.append(np.concatenate([values[key].ravel() for key in values]))
    return [float(np.abs(own - outputs[0]).max()) for own in outputs]


@pytest.mark.parametrize(
    ("name", "eligible", "wrong"),
    [
        ("v1", True, False),
        ("v2", True, False),
        ("v1-same", False, False),
        ("v1-60", False, False),
        ("v1-max-pool", False, True),
        ("v1-branch", False, True),
        ("v1-rows", False, True),
        ("v1-sum", None, False),
    ],
)
def test_what_is_said_is_true(name, eligible, wrong, arm64_sandbox, tmp_path):
    dense, sparse = tmp_path / "dense.tflite", tmp_path / "sparse.tflite"
    convert(NETS[name][1].build(), dense, sparse="off", clean=False, verify=False)
    sparse.write_bytes(mlir_sparsify(dense.read_bytes()))
    assert sparse_inference(read(sparse)).eligible is eligible
    assert (miscomputed(read(sparse)) is not None) == wrong
    _, apart = differences([dense, sparse], arm64_sandbox, tmp_path)
    if wrong:
        assert apart > 0.01
    elif eligible is not False:
        assert 0 < apart < 1e-5
    else:
        assert apart == 0


def test_the_script_compares_times(arm64_sandbox, tmp_path):
    device, results = tmp_path / "arm.toml", tmp_path / "results.json"
    device.write_text(f'extends = "emulated-arm64"\n[reach]\nsandbox = "{arm64_sandbox.folder}"\n')
    options = ["--device", device, "--seconds", "0.3", "--results", results, "--json"]
    command = [sys.executable, SCRIPT, *options, "--only"]
    subprocess.run([*command, "v1"], stdout=subprocess.DEVNULL)
    ran = subprocess.run([*command, "v1-same"], stdout=subprocess.PIPE)
    found = json.loads(ran.stdout)
    assert found == json.loads(results.read_text())
    sparse, dense = found["models"]
    assert (sparse["said"], dense["said"]) == ("eligible", "not eligible")
    # 0.3 and 1.0 on a quiet machine; what a busy one makes of them is not this test's matter.
    assert sparse["agrees"] == (0 < sparse["ratio"] <= 0.5)
    assert dense["agrees"] == (dense["ratio"] > 0.85)
    assert ran.returncode == (not dense["agrees"])
