"""What benchmark_model prints, line by line from public logs of real devices."""

import importlib.util
import itertools
import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.devices.benchmark_model import (
    WITHIN_95,
    WITHIN_975,
    Spread,
    drift,
    median_interval,
    order,
    parse,
    pooled,
)
from edgeprune.errors import EdgepruneError, InputError, UnsupportedError

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench_on_device.py"
SPEC = importlib.util.spec_from_file_location("bench_for_adb", SCRIPT)
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)

# TensorFlow 2.16 or later
NEW = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Graph: [mobilenet_quant_v1_224.tflite]
INFO: Signature to run: []
INFO: Loaded model mobilenet_quant_v1_224.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 4.2761
INFO: Initialized session in 87.639ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if \
exceeding 150 seconds.
INFO: count=5 first=106436 curr=105929 min=105929 max=106436 avg=106065 std=193 p5=105929 \
median=105948 p95=106436

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if \
exceeding 150 seconds.
INFO: count=50 first=106022 curr=105780 min=105416 max=106528 avg=105784 std=260 p5=105485 \
median=105718 p95=106281

INFO: Inference timings in us: Init: 87639, First inference: 106436, Warmup (avg): 106065, \
Inference (avg): 105784
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only \
APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your \
discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=14.4414 overall=14.8164
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.2383
INFO: Memory status at the end of exeution:
INFO: - VmRSS              : 93 MB
"""
# TensorFlow 2.2
OLD = """\
STARTING!
Num threads: [1]
Loaded model /data/local/tmp/albert_base.tflite
INFO: Initialized TensorFlow Lite runtime.
The input model file size (MB): 11.983
Initialized session in 20.283ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding \
150 seconds.
count=2 first=339304 curr=266325 min=266325 max=339304 avg=302814 std=36489
Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding \
150 seconds.
count=50 first=266601 curr=266931 min=265837 max=268116 avg=9.2755e+04 std=419
Inference timings in us: Init: 20283, First inference: 339304, Warmup (avg): 302814, \
Inference (avg): 266473
Peak memory footprint (MB): init=6.44141 overall=64.8633
"""


def test_a_new_one():
    run = parse(NEW, "m")
    assert run.init_ms == 87.639
    assert (run.warm_up.count, run.warm_up.first) == (5, 106.436)
    assert run.timed == Spread(50, 106.022, 105.416, 106.528, 105.784, 0.26, 105.718)
    assert run.growth_bytes == round(14.8164 * 2**20)
    assert run.peak_bytes == round(93.2383 * 2**20)


def test_an_old_one():
    run = parse(OLD, "m")
    assert run.init_ms == 20.283
    assert run.timed.median is None
    assert run.timed.typical == run.timed.mean == 92.755
    assert run.growth_bytes == round(64.8633 * 2**20)
    assert run.peak_bytes is None


@pytest.mark.parametrize("line", ["count=1 curr=42", "count=7 curr=42(all same)"])
def test_inferences_that_all_took_the_same_time(line):
    run = parse(f"Initialized session in 1ms.\n{line}\n{line}\n", "m")
    assert run.timed.min == run.timed.max == run.timed.typical == 0.042
    assert run.timed.std == 0


def test_memory_of_zero_is_none():
    run = parse(OLD.replace("init=6.44141 overall=64.8633", "init=0 overall=0"), "m")
    assert run.growth_bytes is None


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", EdgepruneError, r"m: what came back .* \(nothing\)"),
        (NEW[: NEW.index("INFO: count=50")], EdgepruneError, "what came back"),
        ("ERROR: Benchmarking failed.", EdgepruneError, "what came back"),
        (
            "ERROR: Model provided has model identifier 'xxxx', should be 'TFL3'\n"
            "ERROR: Failed to load model\nERROR: Benchmarking failed.",
            InputError,
            "refuses it: Model provided has model identifier",
        ),
        (
            "ERROR: Encountered unresolved custom op: FlexStringLength.\n"
            "ERROR: Benchmarking failed.",
            UnsupportedError,
            "lacks operator FlexStringLength;",
        ),
        (NEW.replace("87.639ms", "-1ms"), EdgepruneError, "printed -1, which no time"),
        (NEW.replace("avg=105784", "avg=1e999"), EdgepruneError, "printed 1e999"),
    ],
)
def test_what_it_says_when_it_fails(text, kind, message):
    with pytest.raises(kind, match=message):
        parse(text, "m")


def test_an_error_of_a_delegate_does_not_hide_the_figures():
    text = NEW.replace(
        "INFO: The input", "ERROR: Following operations are not supported\nINFO: The input"
    )
    assert parse(text, "m").timed.count == 50


def test_pooling_is_exact():
    """Of parts of a sample, described as benchmark_model does, comes what the whole has."""
    generator = random.Random(0)
    parts = [[generator.uniform(1, 3) for _ in range(5 + i)] for i in range(4)]
    whole = list(itertools.chain(*parts))
    latency = pooled(
        [
            Spread(
                *(len(part), part[0], min(part), max(part), statistics.mean(part)),
                *(statistics.pstdev(part), statistics.median(part)),
            )
            for part in parts
        ]
    )
    assert latency.mean == pytest.approx(statistics.mean(whole))
    assert latency.std == pytest.approx(statistics.stdev(whole))
    assert (latency.min, latency.max, latency.runs) == (min(whole), max(whole), len(whole))
    assert latency.median == statistics.median(map(statistics.median, parts))


@given(st.lists(st.floats(0, 1e9), max_size=80), st.sampled_from([WITHIN_95, WITHIN_975]))
def test_intervals_are_those_of_the_script(values, deviations):
    own, its = median_interval(values, deviations), bench.median_interval(values, deviations)
    assert own == (its and tuple(its))


@given(st.integers(0, 100), st.integers(1, 9))
def test_the_order_is_that_of_the_script(number, count):
    assert order(number, count) == bench.order(number, count)


def test_drift_needs_thirds_that_are_apart():
    assert drift([10, 10, 10, 11, 11, 11, 12, 12, 12, 12]) == pytest.approx(0.2)
    assert drift([12, 12, 12, 11, 11, 11, 10, 10, 10]) == pytest.approx(-1 / 6)
    assert drift([10, 10, 13, 11, 11, 11, 12, 12, 12]) == 0  # 13 lies among the last
    assert drift([100, 100, 100, 101, 101, 101, 104, 104, 104]) == 0  # below 5 %
    assert drift([1, 2]) == 0
