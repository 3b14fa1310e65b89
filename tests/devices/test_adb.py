"""Android devices, by stand-ins for adb and benchmark_model: no phone was at hand."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeprune.devices.run import benchmark
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError

HERE = Path(__file__).parent
HOSTILE = 'it\'s "my" $(touch pwned) `touch pwned` ; & | > pwned * \\ é'
QUICK = {"quick": True}

GETPROP = """\
[ro.build.fingerprint]: [google/oriole/oriole:14/UQ1A/1:user/release-keys]
[ro.build.version.release]: [14]
[ro.build.version.sdk]: [34]
[ro.product.cpu.abi]: [arm64-v8a]
[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 6]
[ro.soc.model]: [GS101]
"""
THERMAL = """\
IsStatusOverride: false
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=99.0, mType=0, mName=BIG, mStatus=3}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=41.5, mType=0, mName=BIG, mStatus=0}}
\tTemperature{{mValue=36.0, mType=0, mName=LITTLE, mStatus=0}}
\tTemperature{{mValue=80.0, mType=3, mName=VIRTUAL-SKIN, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=cpu0}}
"""


class Phone:
    """The stand-ins' folder, and what they are to do."""

    def __init__(self, folder):
        self.folder = folder
        self.storage = folder / "storage"
        self.storage.mkdir()
        (folder / "device").mkdir()
        for name in ("adb", "benchmark_model"):
            shutil.copy(HERE / f"stand_in_{name}.sh", folder / name)
            (folder / name).chmod(0o755)
        self.put("getprop", GETPROP)
        self.put("dumpsys", THERMAL.format(status=0))
        self.behave()

    def behave(self, prints=None, **behaviour):
        """Say what the stand-ins are to do differently: shell variables of theirs."""
        if prints is not None:
            (self.folder / "prints").write_text(prints)
            behaviour["prints"] = "yes"
        lines = [f"{key}={shlex.quote(str(value))}" for key, value in behaviour.items()]
        (self.folder / "behaviour").write_text("\n".join(lines) + "\n")

    def put(self, name, text):
        """Put a program on the device that prints a text."""
        (self.folder / f"{name}.txt").write_text(text)
        path = self.folder / "device" / name
        path.write_text(f"#!/bin/sh\nexec cat '{self.folder}/{name}.txt'\n")
        path.chmod(0o755)

    def profile(self, head="", **changes):
        settings = {
            "folder": str(self.storage),
            "benchmark_model": str(self.folder / "benchmark_model"),
            **changes,
        }
        reach = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        path = self.folder / "phone.toml"
        path.write_text(f'description = "x"\nbackend = "adb"\n{head}[reach]\n{reach}')
        return str(path)

    @property
    def commands(self):
        lines = (self.folder / "log").read_text().splitlines()
        return [line.split("|")[:-1] for line in lines]

    @property
    def runs(self):
        lines = (self.folder / "runs").read_text().splitlines()
        words = [line.removeprefix("--").split("|--") for line in lines]
        return [dict(word.rstrip("|").split("=", 1) for word in run) for run in words]


@pytest.fixture
def phone(tmp_path, monkeypatch):
    folder = tmp_path / "phone"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(folder))
    return Phone(folder)


@pytest.fixture
def models(tmp_path):
    """Two files; the stand-in takes 2 ms for the first and 1 ms for the second."""
    for name, size in (("large", 2000), ("small", 1000)):
        (tmp_path / f"{name}.tflite").write_bytes(b"\0\0\0\0TFL3" + bytes(size - 8))
    return [tmp_path / "large.tflite", tmp_path / "small.tflite"]


def test_two_models(phone, models):
    said = []
    first, second = benchmark(models, device=phone.profile(), progress=said.append, **QUICK)
    assert (first.model, first.device, first.kind) == ("large.tflite", "phone", "measured")
    assert (first.runtime, first.rounds) == ("benchmark_model", 10)
    assert (first.init_ms, first.first_ms) == (87.639, 2.009)
    # Two inferences in each of ten rounds.
    assert first.latency_ms.runs == 20
    assert first.latency_ms.median == 2.0
    assert first.latency_ms.mean == pytest.approx(2.0015)
    assert (first.latency_ms.min, first.latency_ms.max) == (1.997, 2.009)
    # All rounds alike: of 20 values, the population's deviation by sqrt(20 / 19).
    assert first.latency_ms.std == pytest.approx(0.004 * (20 / 19) ** 0.5)
    assert first.latency_ms.p90 is None
    assert "no times of single inferences" in first.unavailable["latency_ms.p90"]
    assert (first.relative_latency, second.relative_latency) == (1.0, 0.5)
    assert second.relative_latency_interval == (0.5, 0.5)
    assert second.details["relative_interval_975"] == (0.5, 0.5)
    assert first.peak_memory_bytes == round(11.25 * 2**20)
    assert first.details["peak_footprint_bytes"] == round(93.25 * 2**20)
    assert first.environment["model"] == "Google Pixel 6"
    assert first.environment["platform"] == "Android 14 (API 34)"
    assert first.environment["temperature_c"] == {"before": 41.5, "after": 41.5}
    assert first.environment["thermal_status"] == {"before": 0, "after": 0}
    assert first.protocol["binary_sha256"].startswith(first.runtime_version.removeprefix("sha256 "))
    assert list(phone.storage.iterdir()) == []
    assert said[-1] == "measuring 2 models, interleaved: 90%"


TABLE = """\
INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t   [node type]\t[first]\t[avg ms]\t[%]\t[cdf%]\t[mem KB]\t[times called]\t[Name]
\t Fully Connected (NC, F32) GEMM\t3.1\t3.0\t75%\t75%\t0.0\t1\tDelegate/Fully Connected (NC, F32) GEMM:0
\t Clamp (NC)\t1.1\t1.0\t25%\t100%\t0.0\t1\tDelegate/Clamp (NC):1

"""  # noqa: E501


def test_time_by_operator(phone, tiny_model):
    phone.behave(table="table")
    (phone.folder / "table").write_text(TABLE)
    (found,) = benchmark(tiny_model, device=phone.profile(), profile=True, **QUICK)
    (only,) = found.per_operator["operators"]
    assert (only["op"], only["ms"], only["share"]) == ("FULLY_CONNECTED", 4.0, 1.0)
    assert found.per_operator["whole_ms"] == found.latency_ms.median
    # The profile's run is one more, so that it does not disturb the others.
    profiled = [run for run in phone.runs if "enable_op_profiling" in run]
    assert (profiled, len(phone.runs)) == ([phone.runs[-1]], 1 + 10 + 1)
    assert found.latency_ms.runs == 20


def test_no_table_loses_no_times(phone, models):
    found = benchmark(models, device=phone.profile(), profile=True, **QUICK)
    assert all("printed no table" in one.unavailable["per_operator"] for one in found)
    assert [one.latency_ms.median for one in found] == [2.0, 1.0]
    phone.behave(table="table")
    (phone.folder / "table").write_text(TABLE)
    found = benchmark(models, device=phone.profile(), profile=True, **QUICK)
    assert all("large.tflite" in one.unavailable["per_operator"] for one in found[:1])
    assert [one.per_operator for one in found] == [{}, {}]


def test_the_flags_and_the_order(phone, models):
    benchmark(models, device=phone.profile("threads = 4\n"), **QUICK)
    starts, rounds = phone.runs[:2], phone.runs[2:]
    assert [run["report_peak_memory_footprint"] for run in starts] == ["true"] * 2
    assert all(run["num_threads"] == "4" and run["use_xnnpack"] == "true" for run in phone.runs)
    assert {run["report_peak_memory_footprint"] for run in rounds} == {"false"}
    assert {(run["num_runs"], run["min_secs"], run["warmup_min_secs"]) for run in rounds} == {
        ("2", "0.1", "0.1")
    }
    numbers = "".join(run["graph"][-8] for run in rounds)
    assert numbers == "01101001" * 2 + "0110"


def test_an_old_benchmark_model_tells_no_median(phone, models):
    phone.behave(new="")
    result, _ = benchmark(models, device=phone.profile(), **QUICK)
    assert result.latency_ms.median is None
    assert result.unavailable["latency_ms.median"].startswith("this benchmark_model prints no")
    assert result.typical_ms == pytest.approx(2.0015)
    assert result.details["round_figure"] == "mean"


def test_throttling_is_told(phone, models):
    phone.behave(slower=5)
    phone.put("dumpsys", THERMAL.format(status=2))
    results = benchmark(models, device=phone.profile(), **QUICK)
    assert any("time rose by" in note for note in results.notes)
    assert any("thermal status 2 (moderate)" in note for note in results.notes)
    # Both slow down alike: within a round the second is one run ahead or behind.
    assert results[1].relative_latency == pytest.approx(0.5, abs=0.02)


def test_a_device_that_does_not_tell(phone, models):
    phone.put("getprop", "")
    phone.put("dumpsys", "Can't find service: thermalservice\n")
    result, _ = benchmark(models, device=phone.profile(), **QUICK)
    for key in ("cpu", "platform", "temperature_c", "thermal_status"):
        assert result.environment[key] is None
        assert result.unavailable[f"environment.{key}"]


def test_cpus_become_a_mask(phone, models):
    path = phone.folder / "device" / "taskset"
    path.write_text(f'#!/bin/sh\necho "$1" >>"{phone.folder}/masks"\nshift\nexec "$@"\n')
    path.chmod(0o755)
    result, _ = benchmark(models, device=phone.profile("cpus = [4, 5, 6, 7]\n"), **QUICK)
    assert set((phone.folder / "masks").read_text().split()) == {"f0"}
    assert result.protocol["cpu"] == (4, 5, 6, 7)


def test_paths_that_a_shell_would_read(phone, models):
    folder = phone.folder / HOSTILE
    folder.mkdir()
    model = phone.folder / f"{HOSTILE}.tflite"
    shutil.copy(models[0], model)
    binary = folder / "benchmark_model"
    shutil.copy(phone.folder / "benchmark_model", binary)
    profile = phone.profile(folder=str(folder), benchmark_model=str(binary))
    (result,) = benchmark(model, device=profile, **QUICK)
    assert result.path == str(model)
    assert [path.name for path in folder.iterdir()] == ["benchmark_model"]
    assert not list(phone.folder.rglob("pwned"))


def test_the_serial_is_an_argument_of_its_own(phone, models):
    phone.behave(devices="R58\tdevice\n192.168.1.7:5555\tdevice")
    benchmark(models[0], device=phone.profile(serial="192.168.1.7:5555"), **QUICK)
    others = [words for words in phone.commands if words != ["devices"]]
    assert all(words[:2] == ["-s", "192.168.1.7:5555"] for words in others)
    with pytest.raises(EdgepruneError, match=r"several devices .* name one as reach\.serial"):
        benchmark(models[0], device=phone.profile(), **QUICK)


@pytest.mark.parametrize(
    ("behaviour", "kind", "message"),
    [
        ({"devices": ""}, EdgepruneError, "not listed, says adb"),
        ({"devices": "R58\tunauthorized"}, EdgepruneError, "allow debugging on its screen"),
        ({"full": "yes"}, EdgepruneError, r"no room for large.tflite in .*; make some, or set"),
        ({"signal": 9}, EdgepruneError, "ended by signal 9 on the device; its memory"),
        ({"signal": 11}, EdgepruneError, "ended by signal 11"),
        ({"gone_after": 6}, EdgepruneError, "adb lost the device .*check the cable"),
        ({"prints": ""}, EdgepruneError, "is not what TFLite's benchmark_model prints"),
        ({"prints": "nonsense", "code": 1}, EdgepruneError, "prints .nonsense."),
        ({"prints": "x" * (1 << 23)}, EdgepruneError, "text without end"),
        (
            {"prints": "ERROR: Could not open 'x'.\nERROR: Benchmarking failed.", "code": 1},
            InputError,
            "large.tflite: benchmark_model refuses it: Could not open 'x'",
        ),
        (
            {"prints": "ERROR: Encountered unresolved custom op: FlexErf.\nSee instructions"},
            UnsupportedError,
            "lacks operator FlexErf; convert the model to builtin operators only",
        ),
        (
            {"prints": "/system/bin/sh: ./b: not executable: 64-bit ELF file", "code": 126},
            UnsupportedError,
            "not for this device's processor",
        ),
        (
            {"prints": "Initialized session in 1.2.3ms.\ncount=1 curr=1\ncount=1 curr=1"},
            EdgepruneError,
            "printed '1.2.3' where a number stands",
        ),
    ],
)
def test_what_goes_wrong(behaviour, kind, message, phone, models):
    phone.behave(**behaviour)
    with pytest.raises(kind, match=message) as caught:
        benchmark(models, device=phone.profile(), **QUICK)
    assert str(caught.value).isprintable()
    if "gone_after" not in behaviour:
        assert list(phone.storage.iterdir()) == []


def test_a_folder_that_cannot_be_written(phone, models):
    with pytest.raises(EdgepruneError, match=r"no temporary folder .*; set reach\.folder"):
        benchmark(models, device=phone.profile(folder=str(phone.folder / "absent")), **QUICK)


def test_a_hang_is_ended(phone, models):
    phone.behave(hang="yes")
    with pytest.raises(EdgepruneError, match=r"did not end within 1 s.*--timeout"):
        benchmark(models, device=phone.profile(), timeout_seconds=1, **QUICK)
    assert list(phone.storage.iterdir()) == []


def test_ctrl_c_leaves_nothing_there(phone, models):
    phone.behave(hang="yes")
    command = [sys.executable, "-m", "edgeprune", "benchmark", models[0]]
    process = subprocess.Popen(
        [*command, "--device", phone.profile()], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while not (phone.folder / "runs").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert list(phone.storage.iterdir()) == []
