"""The emulated device itself: real aarch64 wheels under qemu, on models of the real converter."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeprune.devices import emulated
from edgeprune.devices.lookup import load_profile
from edgeprune.devices.measurement import Benchmark
from edgeprune.devices.options import RunOptions
from edgeprune.devices.reach import EmulatedReach
from edgeprune.devices.run import benchmark
from edgeprune.devices.sandbox import MAKE, PYTHON, WHEELS, _move, find_sandbox, make_sandbox
from edgeprune.devices.setup import set_up
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError

pytestmark = pytest.mark.slow

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_arm64_sandbox.py"
QUICK = RunOptions(min_seconds=0.05, min_runs=6, loads=6, warmup_seconds=0)
ONCE = RunOptions(min_seconds=0, min_runs=1, loads=1, warmup_seconds=0)
TIMES = ("init_ms", "first_ms", "latency_ms")


@pytest.fixture(scope="module")
def device(arm64_sandbox):
    profile = load_profile("emulated-arm64")
    return replace(profile, reach=EmulatedReach(sandbox=str(arm64_sandbox.folder)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny models, each a file."""
    import tensorflow as tf

    from edgeprune.export.convert import convert
    from edgeprune.models import import_keras

    folder = tmp_path_factory.mktemp("emulated")
    keras = import_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).standard_normal((8, 8, 8, 3)).astype("float32")
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.GlobalAveragePooling2D()(x)
    cnn = keras.Model(inputs, x)
    convert(cnn, folder / "float.tflite", verify=False)
    convert(
        cnn, folder / "int8.tflite", quantize="int8", calibration=images, io="int8", verify=False
    )
    three = keras.Model(inputs, layers.Dense(3, name="classes")(layers.Flatten()(inputs)))
    convert(three, folder / "three.tflite", quantize="int8", calibration=images, verify=False)
    wide = keras.Model(inputs, layers.Dense(64)(layers.Flatten()(inputs)))
    wide.layers[-1].set_weights([np.eye(192, 64), np.zeros(64)])
    convert(wide, folder / "sparse.tflite", sparse="on", verify=False)

    heavy = layers.Conv2D(64, 3, padding="same")(inputs)
    for _ in range(4):
        heavy = layers.Conv2D(64, 3, padding="same")(heavy)
    convert(keras.Model(inputs, heavy), folder / "heavy.tflite", verify=False)

    spec = tf.TensorSpec((1, 8))
    function = tf.function(tf.math.bessel_i0e, input_signature=[spec])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    converter.allow_custom_ops = True
    (folder / "custom.tflite").write_bytes(converter.convert())
    return folder


def run(folder, device, *names, options=QUICK):
    return emulated.run([str(folder / f"{name}.tflite") for name in names], device, options)


@pytest.fixture(scope="module")
def rows(folder, arm64_sandbox):
    """Four models through the front door, with a profile of the user's own."""
    profile = folder / "arm.toml"
    profile.write_text(
        f'extends = "emulated-arm64"\n[reach]\nsandbox = "{arm64_sandbox.folder}"\n', "utf-8"
    )
    said = []
    names = ("int8", "float", "sparse", "heavy")
    found = benchmark(
        [folder / f"{name}.tflite" for name in names],
        device=profile,
        min_runs=QUICK.min_runs,
        loads=QUICK.loads,
        min_seconds=QUICK.min_seconds,
        warmup_seconds=0,
        progress=said.append,
    )
    assert said[0] == "comparing outputs with this machine's"
    assert {row.device for row in found} == {"arm"}
    return list(found)


def test_outputs_are_this_machines(rows):
    int8, floats, sparse, heavy = rows
    assert int8.details["outputs_equal"] is True
    compared = int8.details["comparison"]
    assert (compared["samples"], compared["values"]) == (4, 4 * 8)
    assert (compared["differing"], compared["max_difference_quanta"]) == (0, 0)
    # Sums of products of order 1 in another order: not more than some roundings apart.
    for row in (floats, heavy):
        assert row.details["largest_difference"] < 1e-5
        assert row.details["failure"] is None
    # The identity, and zeros that take part in no sum where they are not stored.
    assert sparse.details["comparison"]["values"] == 4 * 64
    assert sparse.details["outputs_equal"] is True
    assert not any("differ" in line for row in rows for line in row.warnings)


def test_ratios_but_no_times(rows):
    int8, _, _, heavy = rows
    assert (int8.relative_latency, int8.relative_latency_interval) == (1.0, (1.0, 1.0))
    for row in rows:
        assert (row.kind, row.runtime) == ("simulated", "ai-edge-litert")
        assert row.runtime_version == WHEELS["ai-edge-litert"][0]
        assert row.rounds >= 6
        low, high = row.relative_latency_interval
        assert 0 < low <= row.relative_latency <= high
        assert all(getattr(row, key) is None and row.unavailable[key] for key in TIMES)
        assert "plug-in" in row.unavailable["instructions"]
        assert not any(key.endswith(("_ms", "_seconds", "_ns")) for key in row.details)
    # 9.5 million multiplications against 18,000: far from any chance.
    assert heavy.relative_latency_interval[0] > 2
    text = str(Benchmark(rows))
    assert "relative" in text
    assert " ms" not in text
    assert Benchmark.from_json(Benchmark(rows).to_json()) == Benchmark(rows)


def test_what_made_it_is_recorded(rows, arm64_sandbox):
    environment = rows[0].environment
    assert environment["emulator"].startswith("qemu-aarch64 version")
    assert environment["sandbox"] == json.loads(
        (arm64_sandbox.folder / "sandbox.json").read_text("utf-8")
    )
    assert set(environment["sandbox"]["packages"]) >= {"libc6", "python3.11-minimal"}
    assert {"seed", "min_runs", "script_sha256"} <= set(rows[0].protocol)


def test_shares_of_operators_but_no_times(folder, device):
    options = replace(QUICK, per_operator=True)
    (row,) = emulated.run([str(folder / "heavy.tflite")], device, options)
    found = row.per_operator
    assert {one["op"] for one in found["operators"]} == {"CONV_2D"}
    first, *others = [one["share"] for one in found["operators"]]
    # 3 channels in against 64: far from any chance.
    assert all(share > 2 * first for share in others)
    assert first + sum(others) == pytest.approx(1)
    times = [found["sum_ms"], found["whole_ms"], *(one["ms"] for one in found["operators"])]
    assert times == [None] * len(times)
    assert found["sum_by_whole"] > 0
    assert "shares are all" in found["how"]


def test_an_operator_that_the_runtime_lacks(folder, device):
    with pytest.raises(UnsupportedError, match=r"custom\.tflite: .* lacks operator BesselI0e"):
        run(folder, device, "custom")
    with pytest.raises(InputError, match="no such file"):
        run(folder, device, "absent")


@pytest.fixture(scope="module")
def copied(arm64_sandbox, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy") / "sandbox"
    return shutil.copytree(arm64_sandbox.folder, folder, symlinks=True)


@pytest.fixture
def broken(copied, device):
    """A device to whose runtime code can be added."""
    file = copied / "usr/local/lib/python3.11/dist-packages/ai_edge_litert/interpreter.py"
    whole = file.read_text("utf-8")

    def broken(code):
        file.write_text(f"{whole}\n{code}\n", "utf-8")
        return replace(device, reach=EmulatedReach(sandbox=str(copied)))

    yield broken
    file.write_text(whole, "utf-8")


def test_wrong_outputs_are_told_whatever_is_printed(folder, broken):
    device = broken(
        "import os\n"
        "os.write(1, b'noise')\n"
        "whole = Interpreter.get_tensor\n"
        "Interpreter.get_tensor = lambda self, index: whole(self, index) ^ 1\n"
    )
    (row,) = run(folder, device, "int8", options=ONCE)
    assert (row.rounds, row.relative_latency) == (1, 1.0)
    assert row.unavailable["relative_latency_interval"] == "fewer than 6 loads"
    assert row.details["outputs_equal"] is False
    assert row.details["largest_difference"] == 1.0
    assert row.details["comparison"]["differing"] == row.details["comparison"]["values"] == 32
    assert row.warnings[0] == (
        "int8.tflite: 32 of 32 outputs differ from this machine's, by up to 1 step of the "
        "output's scale"
    )


def test_wrong_floats_are_told_from_rounded_ones(folder, broken):
    device = broken(
        "whole = Interpreter.get_tensor\n"
        "Interpreter.get_tensor = lambda self, index: whole(self, index) + 0.01\n"
    )
    (row,) = run(folder, device, "float", options=ONCE)
    told = [line for line in row.warnings if "differ" in line]
    assert len(told) == 1
    assert told[0].startswith("float.tflite: 32 of 32 outputs differ from this machine's, by up to")
    assert "0.01; the largest is " in told[0]


def test_a_crash_inside_takes_one_model_along(folder, broken):
    device = broken(
        "import os\n"
        "whole = Interpreter.invoke\n"
        "def invoke(self):\n"
        "    if self.get_output_details()[0]['shape'][-1] == 64:\n"
        "        os.kill(os.getpid(), 11)\n"
        "    whole(self)\n"
        "Interpreter.invoke = invoke\n"
    )
    bad, good, after = run(folder, device, "sparse", "float", "int8", options=ONCE)
    assert bad.details["failure"].startswith("the emulated runtime crashed (SIGSEGV)")
    assert bad.warnings == (f"sparse.tflite: {bad.details['failure']}",)
    assert bad.details["outputs_equal"] is bad.relative_latency is bad.rounds is None
    assert bad.unavailable["relative_latency"] == bad.details["failure"]
    assert after.details["outputs_equal"] is True
    for row in (good, after):
        assert row.details["failure"] is row.relative_latency is None
        assert row.unavailable["relative_latency"] == (
            "sparse.tflite, with which it would be compared, does not run"
        )


def test_a_crash_that_is_known_is_explained(folder, device):
    older = replace(ONCE, runtime="tflite-runtime")
    good, bad = run(folder, device, "int8", "three", options=older)
    assert (good.runtime, good.runtime_version) == ("tflite-runtime", WHEELS["tflite-runtime"][0])
    assert good.details["outputs_equal"] is True
    assert good.details["comparison"]["compared_with"].endswith("without XNNPACK")
    assert bad.details["failure"].startswith("the emulated runtime crashed (SIGSEGV)")
    assert bad.details["failure"].endswith(
        "(FULLY_CONNECTED, 1 row of 192 inputs and 3 outputs, int8) crashes tflite-runtime 2.14 on "
        '64-bit Arm: set runtime = "ai-edge-litert" in the profile, and install that there'
    )
    (here,) = run(folder, device, "three", options=ONCE)
    assert here.details["outputs_equal"] is True
    assert here.details["comparison"]["compared_with"].endswith("on this machine")


def test_a_hang_is_ended(folder, broken):
    device = broken("import time\ntime.sleep(600)")
    with pytest.raises(EdgepruneError, match="did not end within 4 s"):
        run(folder, device, "float", options=replace(QUICK, timeout_seconds=4))


def test_what_is_missing(folder, device, tmp_path, monkeypatch):
    both = "the sandbox has ai-edge-litert and tflite-runtime, not tensorflow"
    with pytest.raises(UnsupportedError, match=both):
        run(folder, device, "float", options=replace(QUICK, runtime="tensorflow"))
    older = replace(device, reach=replace(device.reach, runtime_version="2.13.0"))
    with pytest.raises(UnsupportedError, match=r"has ai-edge-litert 2\.1\.6, not 2\.13\.0"):
        run(folder, older, "float")
    absent = replace(device, reach=EmulatedReach(sandbox=str(tmp_path / "none")))
    with pytest.raises(UnsupportedError) as raised:
        run(folder, absent, "float")
    assert str(raised.value).endswith(f"make it with {MAKE} emulated-arm64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="apt-get install qemu-user-static"):
        run(folder, device, "float")


def test_only_a_whole_sandbox_counts(arm64_sandbox, tmp_path):
    record = json.loads((arm64_sandbox.folder / "sandbox.json").read_text("utf-8"))
    (tmp_path / PYTHON).parent.mkdir(parents=True)
    (tmp_path / PYTHON).touch()
    assert find_sandbox(tmp_path) is None
    file = tmp_path / "sandbox.json"
    file.write_text(json.dumps(record), "utf-8")
    assert find_sandbox(tmp_path).record == record
    for other in (
        {**record, "format": 0},
        {**record, "wheels": {**record["wheels"], "numpy": {"version": "2.0.0", "sha256": ""}}},
        [record],
        "",
    ):
        file.write_text(json.dumps(other), "utf-8")
        assert find_sandbox(tmp_path) is None
    file.write_text(json.dumps(record)[:-9], "utf-8")
    assert find_sandbox(tmp_path) is None
    file.write_text(json.dumps(record), "utf-8")
    (tmp_path / PYTHON).unlink()
    assert find_sandbox(tmp_path) is None


def test_making_one_that_is_there_needs_nothing(arm64_sandbox, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_sandbox(arm64_sandbox.folder) == arm64_sandbox
    with pytest.raises(UnsupportedError, match="qemu-user-static"):
        make_sandbox(tmp_path / "new")


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(EdgepruneError, match="apt-get -q update failed: E: Failed to fetch"):
        make_sandbox(tmp_path / "a" / "b", mirror="http://127.0.0.1:9")
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    with pytest.raises(InputError, match="is there and is no sandbox"):
        make_sandbox(tmp_path / "full")
    with pytest.raises(InputError, match="cannot make the sandbox"):
        make_sandbox(tmp_path / "full" / "letter" / "below")


def test_the_tool_killed_half_way_leaves_no_sandbox(tmp_path):
    command = [sys.executable, str(TOOL), "--folder", str(tmp_path / "sandbox")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as tool:
        assert tool.stderr.readline().startswith(b"fetching 12 packages of Debian bookworm")
        os.killpg(tool.pid, signal.SIGKILL)
    assert not (tmp_path / "sandbox").exists()


def test_the_tool_says_what_is_wrong_and_where_it_is(arm64_sandbox, tmp_path):
    def tool(*words):
        return subprocess.run(
            [sys.executable, str(TOOL), *words],
            capture_output=True,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        )

    there = tool("--folder", str(arm64_sandbox.folder))
    assert (there.returncode, there.stdout.strip()) == (0, str(arm64_sandbox.folder))
    wrong = tool("--device", "cortex-m4")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("Error: device cortex-m4 is not emulated")


def test_a_new_one_takes_the_place_of_an_older_but_not_of_a_rivals(arm64_sandbox, tmp_path):
    def root(name, **changes):
        folder = tmp_path / name
        (folder / PYTHON).parent.mkdir(parents=True)
        (folder / PYTHON).write_text(name, "utf-8")
        record = json.dumps({**arm64_sandbox.record, **changes})
        (folder / "sandbox.json").write_text(record, "utf-8")
        return folder

    place = root("place", format=0)
    _move(root("new"), place, tmp_path / "old")
    assert (place / PYTHON).read_text("utf-8") == "new"
    _move(root("later"), place, tmp_path / "old2")
    assert (place / PYTHON).read_text("utf-8") == "new"


def test_the_doctor_makes_the_sandbox_unless_it_is_there(device, arm64_sandbox, tmp_path):
    here = replace(device, reach=EmulatedReach(sandbox=str(arm64_sandbox.folder)))
    (check,) = set_up(here)
    assert check.ok
    assert str(arm64_sandbox.folder) in check.found
    (tmp_path / "taken").write_text("not a sandbox")
    (refused,) = set_up(replace(device, reach=EmulatedReach(sandbox=str(tmp_path))))
    assert not refused.ok
    assert "remove it, or name another folder" in refused.found
