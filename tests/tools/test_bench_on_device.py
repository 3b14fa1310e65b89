"""The on-device benchmark: its arithmetic on hand-made numbers, the whole script on real models."""

import ast
import datetime
import hashlib
import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench_on_device.py"
SPEC = importlib.util.spec_from_file_location("bench_on_device", SCRIPT)
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)

KEYS = {
    *("model", "device", "kind", "runtime", "runtime_version", "threads", "init_ms", "first_ms"),
    *("latency_ms", "relative_latency", "peak_memory_bytes", "arena_bytes"),
    *("environment", "unavailable"),
}
SHORT = ("--min-seconds=0.05", "--min-runs=50", "--warmup-seconds=0.05", "--starts=1")


def convert(function, shape, dtype=None, int8=False, allow_select=False):
    import tensorflow as tf

    spec = tf.TensorSpec(shape, dtype or tf.float32)
    concrete = tf.function(function, input_signature=[spec]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            [np.random.default_rng(i).standard_normal(shape).astype(np.float32)] for i in range(8)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    if allow_select:
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS,
            tf.lite.OpsSet.SELECT_TF_OPS,
        ]
    return converter.convert()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder of .tflite files, good ones and bad ones."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    filters = tf.constant(rng.standard_normal((3, 3, 3, 8)), tf.float32)
    table = tf.constant(rng.standard_normal((2, 4)), tf.float32)

    def network(x):
        return tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, filters, 2, "SAME")), (1, 2))

    files = {
        "float": convert(network, (1, 16, 16, 3)),
        "int8": convert(network, (1, 16, 16, 3), int8=True),
        "free_batch": convert(network, (None, 16, 16, 3)),
        "free_size": convert(network, (1, None, None, 3)),
        # Two rows: any index but 0 and 1 makes the runtime fail.
        "embedding": convert(lambda x: tf.gather(table, x), (1, 6), tf.int32),
        "select": convert(tf.strings.length, (1,), tf.string, allow_select=True),
        "empty": b"",
        "text": b"this is no model at all",
    }
    files["truncated"] = files["float"][: len(files["float"]) // 2]
    files["stub"] = files["float"][:20]
    for name, content in files.items():
        (folder / f"{name}.tflite").write_bytes(content)
    return folder


def run(*arguments, python=sys.executable, **keywords):
    return subprocess.run(
        [str(python), str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **keywords,
    )


def results_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # fails on anything beside the one document


def error_of(done, code=1):
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return line


# --- arithmetic -------------------------------------------------------------------------------


def test_summary_of_hand_made_times():
    # 1 to 10 ms. p90 lies at rank 0.9 * 9 = 8.1 counted from 0: 9 + 0.1 * (10 - 9).
    # Squared deviations from 5.5 sum to 82.5; over n - 1 = 9: 9.1666, root 3.02765.
    summary = bench.summarize([n * 1_000_000 for n in (3, 1, 2, 10, 9, 8, 7, 6, 5, 4)])
    assert summary == {
        "median": pytest.approx(5.5),
        "p90": pytest.approx(9.1),
        "mean": pytest.approx(5.5),
        "min": 1.0,
        "max": 10.0,
        "std": pytest.approx(3.0276503541),
        "runs": 10,
    }


def test_one_run_has_no_spread():
    assert bench.summarize([2_000_000])["std"] == 0.0


def test_relative_latency_is_paired_by_round():
    # The device slows down tenfold half way: every round says 0.5, the medians' ratio does not.
    first = [100, 100, 100, 1000, 1000, 1000, 1000]
    own = [50, 50, 50, 500, 500, 500, 500]
    assert bench.ratios_to([first], [own]) == [0.5]


def test_each_load_has_one_ratio():
    # However many rounds it has: a load of three is one value, the middle one.
    first, own = [[10, 10, 10], [20]], [[10, 12, 50], [10]]
    assert bench.ratios_to(first, own) == [1.2, 0.5]


def test_interval_takes_the_ranks_of_the_sign_test():
    # The published ranks for n = 50 at 95 % are the 18th and the 33rd.
    assert bench.median_interval(range(1, 51)) == [18, 33]
    low, high = bench.median_interval(range(1, 51), bench.WITHIN_975)
    assert (low, high) == (17, 34)
    # The chance that the median of 50 lies outside: twice that of fewer than 17 heads.
    assert 2 * sum(math.comb(50, heads) for heads in range(17)) / 2**50 <= 0.025


@pytest.mark.parametrize("deviations", [bench.WITHIN_95, bench.WITHIN_975])
def test_too_few_rounds_have_no_interval(deviations):
    """Of n values the extremes hold the median with a chance of 1 - 2 / 2^n."""
    enough = {bench.WITHIN_95: 6, bench.WITHIN_975: 7}[deviations]
    assert bench.median_interval([2] * (enough - 1), deviations) is None
    assert bench.median_interval([2] * enough, deviations) == [2, 2]


@pytest.mark.parametrize("asked", [bench.QUICK, bench.DEFAULTS])
def test_the_loads_are_enough_for_their_intervals(asked):
    """By the binomial distribution, exactly: the rank's own chance, and the next one's is not."""
    count = asked["loads"]
    for deviations, confidence in ((bench.WITHIN_95, 0.95), (bench.WITHIN_975, 0.975)):
        low, high = bench.median_interval(range(1, count + 1), deviations)
        assert low + high == count + 1

        def held(rank):
            return 1 - 2 * sum(math.comb(count, heads) for heads in range(rank)) / 2**count

        assert held(low) >= confidence > held(low + 1)


def test_drift_is_found_in_the_thirds():
    steady = [100 + (i * 7) % 11 for i in range(60)]
    assert bench.drift(steady) == 0
    assert bench.drift(steady[:40] + [value * 1.5 for value in steady[40:]]) == pytest.approx(
        0.5, abs=0.05
    )
    assert bench.drift([value * 2 for value in steady[:20]] + steady[20:]) == pytest.approx(
        -0.5, abs=0.05
    )


def test_small_or_uncertain_drift_is_none():
    assert bench.drift([100] * 20 + [104] * 40) == 0  # below 5 %
    noisy = [(1 + i % 10) * 10 for i in range(30)]
    # The last third is twice as large, yet its interval overlaps the first's.
    assert bench.drift([*noisy[:20], *(2 * value for value in noisy[20:])]) == 0
    assert bench.drift([1, 1, 1, 9, 9, 9]) == 0  # too few to say


@given(st.lists(st.integers(1, 10**9), max_size=90))
def test_drift_never_tells_what_is_within_its_bound(rounds):
    change = bench.drift(rounds)
    assert change == 0 or abs(change) > bench.DRIFT


def test_order_is_fair():
    # Over two full rotations of 3 models each stands twice in each place, and each follows
    # each other equally often within a round.
    rounds = [bench.order(number, 3) for number in range(6)]
    for place in range(3):
        assert sorted(order[place] for order in rounds) == [0, 0, 1, 1, 2, 2]
    follows = [pair for order in rounds for pair in itertools.pairwise(order)]
    assert {follows.count((a, b)) for a in range(3) for b in range(3) if a != b} == {2}


@given(st.integers(0, 1000), st.integers(1, 8))
def test_every_model_has_its_turn_in_every_round(number, count):
    assert sorted(bench.order(number, count)) == list(range(count))


@pytest.mark.parametrize(
    ("typical_ms", "min_runs", "min_seconds", "expected"),
    [
        ([10, 10], 50, 10, [1, 1]),
        ([10, 1], 50, 10, [1, 10]),  # as many as fit the slowest one's time
        ([1000, 1], 50, 10, [1, 200]),  # 50 rounds of 0.2 s are its 10 s
        ([1000, 1], 50, 0, [1, 1]),
        ([10, 9], 50, 10, [1, 1]),
    ],
)
def test_turns(typical_ms, min_runs, min_seconds, expected):
    typical = [ms * 1e6 for ms in typical_ms]
    assert bench.turns(typical, min_runs, min_seconds) == expected


class Clock:
    """Something with `run` that reports the times it was given and notes who ran when."""

    def __init__(self, name, times, log):
        self.name, self.times, self.log = name, times, log

    def run(self):
        self.log.append(self.name)
        return self.times[(self.log.count(self.name) - 1) % len(self.times)]


def test_interleaving_pairs_the_rounds():
    log = []
    slow, quick = Clock("slow", [10, 20], log), Clock("quick", [1, 3, 5], log)
    samples, rounds = bench.interleave([slow, quick], [1, 3], 4, 0, lambda fraction: None)
    assert rounds == [[10, 20, 10, 20], [3, 3, 3, 3]]
    assert [list(s) for s in samples] == [[10, 20, 10, 20], [1, 3, 5] * 4]
    # Rotated in rounds 0 and 1, reversed in 2 and 3.
    q = ["quick"] * 3
    assert log == ["slow", *q, *q, "slow", *q, "slow", "slow", *q]


def test_interleaving_goes_on_until_every_model_has_its_seconds():
    log = []
    models = [Clock("a", [2_000_000], log), Clock("b", [1_000_000], log)]
    samples, _ = bench.interleave(models, [1, 1], 5, 0.02, lambda fraction: None)
    assert [len(s) for s in samples] == [20, 20]  # 20 x 1 ms; `a` had its 0.02 s after 10


def test_a_turn_that_is_too_short_grows():
    """The warm-up took `b` for 100 times as slow as it is: it would need 100 times the rounds."""
    log = []
    models = [Clock("a", [1_000_000], log), Clock("b", [10_000], log)]
    samples, rounds = bench.interleave(models, [1, 1], 5, 0.02, lambda fraction: None, 1_000_000)
    assert len(rounds[1]) < 40
    assert sum(samples[1]) >= 0.02e9
    # 1, 2, 4, ... 64 of 10 us are more than half of a millisecond.
    assert len(samples[1]) == sum(2**i for i in range(6)) + 64 * (len(rounds[1]) - 6)


def test_the_order_goes_on_from_load_to_load():
    log = []
    models = [Clock("a", [1], log), Clock("b", [1], log)]
    bench.interleave(models, [1, 1], 2, 0, lambda fraction: None, first_round=1)
    assert log == ["b", "a", "b", "a"]  # rounds 1 and 2 of a, b; b, a; b, a; a, b


class Shelf:
    """Stands for a runtime: notes who was loaded when, and gives each load its own time."""

    class Model(Clock):
        def first_run(self):
            return self.run()

    def __init__(self):
        self.log = []
        self.models = []
        self.most = 0

    def load(self, path, threads, seed):
        self.log.append(path)
        model = self.Model(path, [len(self.log) * 1000], [])
        self.models.append(weakref.ref(model))
        self.most = max(self.most, sum(known() is not None for known in self.models))
        return model


def test_all_models_are_loaded_anew_in_changing_order():
    shelf = Shelf()
    samples, rounds = bench.measure_together(
        shelf, ["a", "b"], threads=1, seed=0, loads=3, warmup_seconds=0, min_runs=7, min_seconds=0
    )
    assert shelf.log == ["a", "b", "b", "a", "b", "a"]
    # 7 rounds are three of each load, and a load's time is that of its models.
    assert rounds == [[[1000] * 3, [4000] * 3, [6000] * 3], [[2000] * 3, [3000] * 3, [5000] * 3]]
    assert [len(own) for own in samples] == [9, 9]
    assert bench.ratios_to(*rounds) == [2, 0.75, 5 / 6]
    assert shelf.most == 2  # a small board may have no room for those of the load before


def test_interleaving_leaves_the_garbage_collector_on_after_an_error():
    import gc

    def fail():
        assert not gc.isenabled()
        raise KeyboardInterrupt

    model = Clock("a", [1], [])
    model.run = fail
    with pytest.raises(KeyboardInterrupt):
        bench.interleave([model], [1], 5, 0, lambda fraction: None)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.tflite", "b/y.tflite"], ["x.tflite", "y.tflite"]),
        (["a/x.tflite", "b/x.tflite"], ["a/x.tflite", "b/x.tflite"]),
        (
            ["p/a/x.tflite", "q/a/x.tflite", "y.tflite"],
            ["p/a/x.tflite", "q/a/x.tflite", "y.tflite"],
        ),
        (["x.tflite", "x.tflite"], ["x.tflite", "x.tflite (2)"]),
    ],
)
def test_names_tell_the_models_apart(paths, names):
    assert bench.unique_names([Path(path) for path in paths]) == names


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), max_size=6))
def test_names_are_always_unique(paths):
    names = bench.unique_names([Path("/top", *parts) for parts in paths])
    assert len(set(names)) == len(paths)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_small_integers_cover_their_range(dtype):
    value = bench.random_input({"dtype": dtype, "shape": [1, 1 << 20]}, 0)
    limits = np.iinfo(dtype)
    assert (value.dtype, value.min(), value.max()) == (dtype, limits.min, limits.max)


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool"])
def test_wide_integers_are_valid_indices(dtype):
    value = bench.random_input({"dtype": dtype, "shape": [1, 64]}, 0)
    assert value.dtype == dtype
    assert set(value.ravel().tolist()) == {0, 1}


def test_floats_are_seeded_and_standard_normal():
    detail = {"dtype": "float32", "shape": [1, 100_000]}
    value = bench.random_input(detail, 7)
    assert value.dtype == np.float32
    assert value.mean() == pytest.approx(0, abs=0.02)  # 6 standard errors
    assert value.std() == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(value, bench.random_input(detail, 7))
    assert (value != bench.random_input(detail, 8)).any()


def test_text_input_is_refused():
    with pytest.raises(bench.BenchError, match=r"m\.tflite: input 'words' is of type bytes"):
        bench.random_input({"dtype": np.bytes_, "shape": [1], "name": "words"}, 0, "m.tflite")


def test_start_up_is_the_median_of_the_starts():
    starts = [
        {"init_ms": ms, "peak_memory_bytes": size} for ms, size in ((9, 5), (1, None), (2, 6))
    ]
    assert bench.medians(starts) == {"init_ms": 2, "peak_memory_bytes": None}


@pytest.fixture
def board(tmp_path, monkeypatch):
    """The files by which a board with two small and two large cores describes itself."""
    cpus = sorted(os.sched_getaffinity(0))
    files = {
        "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\nCPU part\t: 0xd08\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "sys/class/thermal/thermal_zone0/type": "battery\n",
        "sys/class/thermal/thermal_zone0/temp": "71000\n",
        "sys/class/thermal/thermal_zone1/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "48686\n",
        "sys/class/thermal/thermal_zone2/type": "cpu-thermal\n",  # switched off: no temp
    }
    for i, cpu in enumerate(cpus):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        files[f"{folder}/cpufreq/scaling_governor"] = "schedutil\n"
        files[f"{folder}/cpufreq/scaling_cur_freq"] = f"{600000 + i * 900000}\n"
        files[f"{folder}/cpu_capacity"] = f"{512 if i == 0 else 1024}\n"
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    return len(cpus)


def test_environment_of_a_board(board):
    state = bench.state()
    found, missing = bench.environment(state, state)
    assert found["cpu"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert found["governor"] == ["schedutil"]
    clock = 600 + (board - 1) * 900
    assert found["frequency_mhz"] == {"before": clock, "after": clock}
    assert found["temperature_c"] == {"before": 48.686, "after": 48.686}
    assert missing == {}


def test_environment_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    state = bench.state()
    found, missing = bench.environment(state, state)
    assert found["governor"] is found["frequency_mhz"] is found["temperature_c"] is None
    assert "scaling_governor cannot be read" in missing["environment.governor"]
    assert {"environment.frequency_mhz", "environment.temperature_c"} <= set(missing)


def test_doubts_about_a_board(board):
    before = {"load_average": [board, 0, 0], "frequency_mhz": 1500}
    told = "\n".join(bench.doubts(before, {"frequency_mhz": 1200}))
    assert f"load average {board}.0 on {board} CPUs" in told
    assert "rose by 100% from the first third" not in told
    assert "governor schedutil" in told
    assert "the clock fell by 20%" in told
    assert ("CPUs of different speed" in told) == (board > 1)


def test_doubts_about_heat_and_drift(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    before = {"load_average": None, "frequency_mhz": None}
    after = {**before, "temperature_c": 84.6, "throttled": 0x50005}
    heat, pi = bench.doubts(before, after)
    assert "the processor is at 85 C" in heat
    assert pi.startswith("the Raspberry Pi reports under-voltage, throttled:")
    assert bench.doubts(before, {**after, "temperature_c": 79, "throttled": 0x50000}) == []
    (drift,) = bench.doubts(before, before, [10] * 20 + [20] * 20)
    assert "time rose by 100% from the first third" in drift


def test_throttling_of_a_raspberry_pi_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench.throttled() is None
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\ntest "$1" = get_throttled && echo throttled=0x50005\n')
    program.chmod(0o755)
    assert bench.throttled() == 0x50005
    program.write_text("#!/bin/sh\necho VCHI initialization failed\n")
    assert bench.throttled() is None


def test_no_doubts_about_a_quiet_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    before = {"load_average": [0.1, 0, 0], "frequency_mhz": None}
    assert bench.doubts(before, before) == []


def test_language_is_python_3_9():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 9))


# --- the whole script -------------------------------------------------------------------------


def check(result):
    assert set(result) >= KEYS
    assert result["kind"] == "measured"
    latency = result["latency_ms"]
    assert 0 < latency["min"] <= latency["median"] <= latency["p90"] <= latency["max"]
    assert latency["min"] <= latency["mean"] <= latency["max"]
    assert latency["std"] >= 0
    assert latency["runs"] >= result["rounds"] >= 50
    low, high = result["relative_latency_interval"]
    assert 0 < low <= result["relative_latency"] <= high
    wide_low, wide_high = result["details"]["relative_interval_975"]
    assert 0 < wide_low <= result["relative_latency"] <= wide_high
    low, high = result["details"]["latency_interval_975_ms"]
    assert latency["min"] <= low <= high <= latency["max"]
    digest = hashlib.sha256(SCRIPT.read_bytes()).hexdigest()
    assert result["protocol"]["script_sha256"] == digest
    assert result["protocol"]["min_seconds"] == 0.05
    assert result["protocol"]["loads"] == 20
    assert datetime.datetime.fromisoformat(result["protocol"]["ended"]).tzinfo
    assert result["init_ms"] > 0
    assert result["first_ms"] > 0
    for key in ("peak_memory_bytes", "arena_bytes"):
        assert (result[key] is None) == (key in result["unavailable"])
    for key, value in result["environment"].items():
        assert (value is None) == (f"environment.{key}" in result["unavailable"]), key
    assert all(result["unavailable"].values())


def test_two_models(models):
    done = run(models / "float.tflite", models / "int8.tflite", *SHORT, "--seed=3")
    first, second = results_of(done)
    check(first)
    check(second)
    assert (first["model"], second["model"]) == ("float.tflite", "int8.tflite")
    assert (first["runtime"], first["threads"]) == ("ai-edge-litert", 1)
    assert first["relative_latency"] == 1.0
    assert first["bytes"] == (models / "float.tflite").stat().st_size
    assert first["rounds"] == second["rounds"]
    assert "[bench] measuring 2 models" in done.stderr


def test_memory_grows_with_the_model(models, tmp_path):
    import tensorflow as tf

    weights = np.random.default_rng(0).standard_normal((2048, 4096)).astype(np.float32)
    (tmp_path / "large.tflite").write_bytes(convert(lambda x: tf.matmul(x, weights), (1, 2048)))
    small, large = results_of(run(models / "float.tflite", tmp_path / "large.tflite", *SHORT))
    # The second holds 32 MiB of weights, and the first must not feel its neighbour.
    assert large["peak_memory_bytes"] - small["peak_memory_bytes"] > 30 * 2**20
    assert small["peak_memory_bytes"] < 16 * 2**20


def test_free_batch_is_set_to_one_and_told(models):
    (result,) = results_of(run(models / "free_batch.tflite", *SHORT))
    check(result)
    assert any("batch dimension is free" in line for line in result["warnings"])


def test_indices_stay_in_the_table(models):
    (result,) = results_of(run(models / "embedding.tflite", *SHORT))
    check(result)


def test_options_reach_the_result(models):
    path = models / "float.tflite"
    cpu = min(os.sched_getaffinity(0))
    options = ("--threads=2", f"--cpu={cpu}", "--name=one", "--name=two", "--device=board")
    first, second = results_of(run(path, path, *SHORT, *options))
    assert (first["model"], second["model"]) == ("one", "two")
    assert (first["threads"], first["device"]) == (2, "board")
    assert first["environment"]["affinity"] == [cpu]


def test_same_file_name_in_two_folders(models, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(models / "float.tflite", tmp_path / name / "m.tflite")
    results = results_of(run("a/m.tflite", "b/m.tflite", *SHORT, cwd=tmp_path))
    assert [result["model"] for result in results] == ["a/m.tflite", "b/m.tflite"]


def test_quick_does_less(models):
    (result,) = results_of(run(models / "float.tflite", "--quick", "--min-seconds=0"))
    assert result["protocol"]["loads"] == 12
    assert result["rounds"] == result["latency_ms"]["runs"] == 24  # two in each load


def test_few_loads_have_no_interval(models):
    options = ("--quick", "--min-seconds=0", "--loads=5")
    (result,) = results_of(run(models / "float.tflite", *options))
    assert result["relative_latency_interval"] is None
    assert result["unavailable"]["relative_latency_interval"] == "fewer than 6 loads"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such file"),
        ("empty", "the file is empty"),
        ("text", "not a .tflite file"),
        ("stub", "not a usable .tflite file"),
        ("truncated", "not a usable .tflite file"),
        ("free_size", r"has free dimensions (1, ?, ?, 3)"),
        ("select", "lacks operator FlexStringLength"),
    ],
)
def test_bad_model(models, name, message):
    line = error_of(run(models / "float.tflite", models / f"{name}.tflite", *SHORT))
    assert f"{name}.tflite" in line
    assert message in line


def test_folder_is_no_model(models):
    assert "not a file" in error_of(run(models, *SHORT))


@pytest.mark.parametrize(
    ("death", "told"),
    [("kill -SEGV $$", "SIGSEGV"), ("kill -KILL $$", "SIGKILL"), ("exit 3", "code 3")],
)
def test_crash_of_the_runtime_is_one_line(models, tmp_path, monkeypatch, death, told):
    dying = tmp_path / "python"
    dying.write_text(f"#!/bin/sh\n{death}\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    model = models / "float.tflite"
    with pytest.raises(bench.BenchError, match=rf"float\.tflite: .* crashed on it \(.*{told}\)"):
        bench.run_alone(bench.Runtime(), model, bench.parse([str(model)]))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["m.tflite", "--threads=0"],
        ["m.tflite", "--loads=0"],
        ["m.tflite", "--min-seconds=-1"],
        ["m.tflite", "--min-seconds=nan"],
        ["m.tflite", "--cpu=one"],
        ["m.tflite", "--runtime=torch"],
        ["m.tflite", "--name=a", "--name=b"],
    ],
)
def test_wrong_usage(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_cpu_that_is_not_there(models):
    assert "--cpu 4095" in error_of(run(models / "float.tflite", "--cpu=4095", *SHORT))


def test_no_runtime_installed(models, tmp_path):
    # NumPy alone on the path: the interpreter's own site-packages are left out.
    (tmp_path / "numpy").symlink_to(Path(np.__file__).parent)
    (tmp_path / "numpy.libs").symlink_to(Path(np.__file__).parents[1] / "numpy.libs")
    done = subprocess.run(
        [sys.executable, "-S", str(SCRIPT), str(models / "float.tflite")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "pip install ai-edge-litert" in error_of(done)


def test_no_numpy(models):
    done = subprocess.run(
        [sys.executable, "-S", str(SCRIPT), str(models / "float.tflite")],
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "NumPy is missing" in error_of(done)


def test_full_disk(models):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(models / "float.tflite"), *SHORT],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "Error: the result cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stage", ["alone", "measuring"])
def test_ctrl_c(models, stage):
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(models / "float.tflite"), "--min-seconds=60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        if stage in line:
            break
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the children, too
    out, rest = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in rest


def test_device_environment_for_real(tmp_path, models):
    """tflite-runtime, NumPy 1 and nothing else, on Python 3.9 if there is one."""
    python = oldest_python()
    environment = tmp_path / "device"
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    device = environment / "bin" / "python"
    packages = ["tflite-runtime", "numpy<2"]
    subprocess.run([device, "-m", "pip", "install", "-q", *packages], check=True)
    done = run(models / "float.tflite", models / "int8.tflite", *SHORT, python=device)
    results = results_of(done)
    for result in results:
        check(result)
        assert result["runtime"] == "tflite-runtime"
        assert result["runtime_version"].startswith("2.")
        assert result["environment"]["numpy"].startswith("1.")


def oldest_python():
    """The oldest Python from 3.9 to 3.11 (tflite-runtime's last) that is installed here."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in ("3.9", "3.10", "3.11"):
        name = f"python{version}"
        for found in [shutil.which(name), *sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"))]:
            if found and not subprocess.run([found, "-c", "import venv, ensurepip"]).returncode:
                return found
    return sys.executable
