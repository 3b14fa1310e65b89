import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgeprune.devices.run import benchmark
from edgeprune.devices.script import bench_script
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError
from edgeprune.export.artifact import Artifact

SHORT = {"min_seconds": 0.05, "min_runs": 20, "warmup_seconds": 0.01, "starts": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small .tflite file."""
    import tensorflow as tf

    weights = tf.constant(np.random.default_rng(0).standard_normal((8, 4)), tf.float32)
    function = tf.function(
        lambda x: tf.nn.relu(tf.matmul(x, weights)),
        input_signature=[tf.TensorSpec((1, 8), tf.float32)],
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    path = tmp_path_factory.mktemp("local") / "model.tflite"
    path.write_bytes(converter.convert())
    return path


def test_paths_and_artifacts(model):
    artifact = Artifact(model, "", model.stat().st_size, 0, "none", 0.0, None)
    said = []
    results = benchmark([str(model), model, artifact], progress=said.append, **SHORT)
    assert [result.model for result in results] == [
        "model.tflite",
        "model.tflite (2)",
        "model.tflite (3)",
    ]
    for result in results:
        assert (result.kind, result.device, result.path) == ("measured", "local", str(model))
        assert result.latency_ms.runs >= 20
        assert "arena_bytes" in result.unavailable
    assert any(line.startswith("measuring 3 models") for line in said)
    assert not any("XNNPACK" in line or line.startswith("[bench]") for line in said)


def test_one_path_will_do(model):
    (result,) = benchmark(model, names=["mine"], threads=2, cpus=[0], **SHORT)
    assert (result.model, result.threads) == ("mine", 2)
    assert result.environment["affinity"] == [0]


def test_nothing_is_printed(model, capfd):
    benchmark(model, **SHORT)
    assert capfd.readouterr() == ("", "")


def test_a_name_that_looks_like_an_option(model, tmp_path, monkeypatch):
    (tmp_path / "--quick").write_bytes(model.read_bytes())
    monkeypatch.chdir(tmp_path)
    (result,) = benchmark("--quick", names=["-x"], **SHORT)
    assert (result.model, result.rounds) == ("-x", result.latency_ms.runs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "got no model"),
        ([object()], "got object; supported: paths"),
        (object(), "got object; supported: paths"),
        (["missing.tflite"], r"missing\.tflite: no such file"),
        (["."], "not a file"),
        ([os.devnull], "not a file"),
    ],
)
def test_bad_models(given, message):
    with pytest.raises(InputError, match=message):
        benchmark(given, **SHORT)


def test_damaged_model(model, tmp_path):
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(model.read_bytes()[:100])
    with pytest.raises(InputError, match=r"damaged\.tflite: not a usable \.tflite file"):
        benchmark(damaged, **SHORT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "`threads` must be a whole number from 1 to 1024; got 0"),
        ({"min_runs": 0}, "`min_runs` must be a whole number from 1 on; got 0"),
        ({"min_seconds": float("nan")}, "`min_seconds` must be seconds, 0 or more; got nan"),
        ({"timeout_seconds": -1}, "`timeout_seconds` must be seconds"),
        ({"cpus": [4095]}, "--cpu 4095"),
        ({"cpus": []}, "`cpus` must be numbers from 0, at least one"),
        ({"names": ["a", "b"]}, "got 2 names for 1 models"),
        ({"runtime": "torch"}, "runtime 'torch' does not run on local; supported: ai-edge-litert"),
    ],
)
def test_wrong_arguments(model, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        benchmark(model, **{**SHORT, **arguments})
    assert "\n" not in str(caught.value)


def test_runtime_that_is_not_installed(model):
    with pytest.raises(UnsupportedError) as caught:
        benchmark(model, runtime="tflite-runtime", **SHORT)
    assert "asked for cannot be used (tflite-runtime: not installed)" in str(caught.value)
    assert "installed: ai-edge-litert, tensorflow; leave out --runtime" in str(caught.value)


@pytest.mark.parametrize("runtime", ["ai-edge-litert", "tensorflow"])
def test_the_script_alone_says_nothing_but_its_progress(model, runtime):
    options = ["--quick", "--min-seconds=0.05", f"--runtime={runtime}"]
    done = subprocess.run(
        [sys.executable, str(bench_script()), *options, str(model)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("[bench] ")] == []


def test_script_that_dies_is_one_error(model, tmp_path, monkeypatch):
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho out of luck >&2\nkill -KILL $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(EdgepruneError, match="exit code -9: out of luck"):
        benchmark(model, **SHORT)


def test_ctrl_c_ends_the_whole_tree(model):
    code = "import sys, edgeprune as ep; ep.benchmark(sys.argv[1], min_seconds=60, progress=print)"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "measuring" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(signal.SIGINT)  # to this process alone
    _, said = process.communicate(timeout=30)
    assert said.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_script_is_the_one_in_tools():
    tools = Path(__file__).resolve().parents[2] / "tools"
    assert bench_script().read_bytes() == (tools / "bench_on_device.py").read_bytes()
