"""Verdicts on hand-made results, where it is known what they must be."""

import importlib.util
import random
from pathlib import Path

import pytest

from edgeprune.devices.compare import compare_with, comparison_table
from edgeprune.devices.measurement import Benchmark, Latency, ModelBenchmark

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench_on_device.py"
SPEC = importlib.util.spec_from_file_location("bench_for_compare", SCRIPT)
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)


def row(model, median, interval, relative=1.0, relative_interval=(1.0, 1.0), **changes):
    values = {
        "model": model,
        "device": "pi",
        "kind": "measured",
        "runtime": "tflite-runtime",
        "runtime_version": "2.14.0",
        "threads": 1,
        "init_ms": 1.0,
        "first_ms": 1.0,
        "latency_ms": Latency(median, median, median, median, median, 0.0, 50),
        "relative_latency": relative,
        "relative_latency_interval": relative_interval,
        "peak_memory_bytes": None,
        "peak_memory_how": None,
        "arena_bytes": None,
        "path": model,
        "bytes": 1,
        "sha256": model,
        "rounds": 50,
        "environment": {"cpu": "Cortex-A76", "governor": ["performance"]},
        "details": {
            "latency_interval_975_ms": interval,
            "relative_interval_975": list(relative_interval),
        },
    }
    return ModelBenchmark(**{**values, **changes})


def compared(now, then):
    return [row.compared for row in compare_with(Benchmark(now), Benchmark(then))]


def test_a_model_is_compared_through_the_first():
    """The device was twice as slow in the earlier run; the model is the same by its ratio."""
    then = [row("a", 20, [19, 21]), row("b", 10, [9, 11], 0.5, (0.48, 0.52))]
    now = [row("a", 10, [9, 11]), row("b", 5, [4.5, 5.5], 0.5, (0.49, 0.51))]
    first, second = compared(now, then)
    assert (first["figure"], first["ratio"], first["verdict"]) == (
        "latency ms",
        0.5,
        "device faster",
    )
    assert first["interval"] == [9 / 21, 11 / 19]
    assert first["same_file"]
    assert (second["figure"], second["ratio"]) == ("relative latency", 1.0)
    assert second["interval"] == [0.49 / 0.52, 0.51 / 0.48]
    assert second["verdict"] == "not told apart"


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ([9.0, 9.9], "not told apart"),  # 9.9 / 9.8 is above 1
        ([8.0, 9.7], "faster"),
        ([10.3, 11.0], "slower"),
        (None, "not told apart"),
        ("hostile", "not told apart"),
        ([0.0, 1.0], "not told apart"),
        ([float("inf"), 1.0], "not told apart"),
    ],
)
def test_a_verdict_needs_an_interval_without_one(now, verdict):
    (found,) = compared([row("a", 9.9, now, sha256="new")], [row("a", 10.0, [9.8, 10.2])])
    assert found["verdict"] == verdict


def test_another_first_model_leaves_only_the_milliseconds():
    then = [row("a", 20, [19, 21]), row("b", 10, [9.9, 10.1], 0.5)]
    changed = row("a", 10, [9, 11], sha256="another file")
    now = [changed, row("b", 5, [4.9, 5.1], 0.25)]
    assert [found["figure"] for found in compared(now, then)] == ["latency ms"] * 2
    assert not compared(now, then)[0]["same_file"]


def test_of_the_same_file_only_the_device_can_have_changed():
    then = [
        row("a", 20, [19, 21]),
        row("b", 10, [9, 11], 0.50, (0.49, 0.51)),
        row("c", 10, [9, 11], 0.50, (0.49, 0.51)),
    ]
    now = [
        row("a", 20, [19, 21]),
        row("b", 10, [9, 11], 0.55, (0.54, 0.56)),
        row("c", 10, [9, 11], 0.40, (0.39, 0.41), sha256="new c"),
    ]
    _, b, c = compared(now, then)
    assert (b["verdict"], b["same_file"]) == ("device slower", True)
    assert (c["verdict"], c["same_file"]) == ("faster", False)
    assert c["interval"] == pytest.approx([0.39 / 0.51, 0.41 / 0.49])


def test_milliseconds_of_another_file_have_the_device_in_them():
    then = [row("a", 20, [19, 21]), row("b", 10, [9, 11], 0.5, (0.49, 0.51))]
    new_first = [row("a", 10, [9, 11], sha256="new"), then[1]]
    found = compare_with(Benchmark(new_first), Benchmark(then))
    (note,) = [line for line in found.notes if "milliseconds" in line]
    assert note.startswith("a: compared by milliseconds, in which the device's own state")
    assert "name an unchanged model first" in note
    new_second = [then[0], row("b", 10, [9, 11], 0.5, (0.49, 0.51), sha256="new")]
    found = compare_with(Benchmark(new_second), Benchmark(then))
    assert not [line for line in found.notes if "milliseconds" in line]


def test_a_result_of_one_load_is_told():
    then = row("a", 20, [19, 21], protocol={"starts": 1})
    now = row("a", 20, [19, 21], protocol={"starts": 1, "loads": 12})
    told = compare_with(Benchmark([now]), Benchmark([then])).notes
    assert any("is of one load of the models" in line for line in told)
    assert any("loads unknown -> 12" in line for line in told)
    assert compare_with(Benchmark([now]), Benchmark([now])).notes == ()


def test_what_is_missing_has_a_reason():
    then = [row("a", 20, [19, 21]), row("b", 1, None, latency_ms=None, relative_latency=None)]
    simulated = row("a", 1, None, kind="simulated")
    assert compared([simulated], then) == [{"missing": "it was measured then and is simulated now"}]
    assert compared([row("c", 1, None)], then) == [{"missing": "the earlier result has no c on pi"}]
    elsewhere = row("a", 1, None, device="phone")
    assert "no a on phone" in compared([elsewhere], then)[0]["missing"]
    assert compared([row("b", 1, None)], then) == [{"missing": "no figure that both results have"}]


def test_exact_figures_need_no_interval():
    bare = {"relative_latency": None, "rounds": None, "details": {}}
    vela = {"kind": "predicted", **bare}
    (found,) = compared([row("a", 0.9, None, **vela)], [row("a", 1.0, None, **vela)])
    assert (found["verdict"], found["interval"]) == ("faster", None)
    (found,) = compared([row("a", 1.0, None, **vela)], [row("a", 1.0, None, **vela)])
    assert found["verdict"] == "same"
    tflm = {"kind": "simulated", "latency_ms": None, **bare}
    (found,) = compared(
        [row("a", 1, None, arena_bytes=300, **tflm)], [row("a", 1, None, arena_bytes=200, **tflm)]
    )
    assert (found["figure"], found["ratio"], found["verdict"]) == ("arena bytes", 1.5, "more")


def test_another_environment_is_told_once():
    then = [row("a", 20, [19, 21]), row("b", 10, [9, 11], 0.5)]
    environment = {"cpu": "Cortex-A72", "governor": ["ondemand"]}
    now = [row("a", 20, [19, 21], environment=environment, threads=2), row("b", 10, [9, 11], 0.5)]
    results = compare_with(Benchmark(now), Benchmark(then))
    (note,) = [line for line in results.notes if "differs" in line]
    assert "threads 1 -> 2" in note
    assert "cpu Cortex-A76 -> Cortex-A72" in note
    assert "governor ['performance'] -> ['ondemand']" in note
    assert not [
        line for line in compare_with(Benchmark(then), Benchmark(then)).notes if "differs" in line
    ]


def test_a_failed_device_is_left_as_it_is():
    failed = row("a", 1, None, error="switched off")
    assert compared([failed], [row("a", 1, None)]) == [{}]
    found = compared([row("a", 1, None)], [failed])
    assert "has no a on pi" in found[0]["missing"]


def test_the_table():
    then = [row("a", 20, [19, 21]), row("b", 10, [9, 11], 0.5, (0.48, 0.52))]
    now = [row("a", 10, [9, 11]), row("c", 5, [4.5, 5.5], 0.5)]
    results = compare_with(Benchmark(now), Benchmark(then))
    title, columns, rows = comparison_table(results, "compared with old.json")
    assert title == "compared with old.json"
    assert rows[0] == (
        *("pi", "a", "latency ms", "20", "10", 0.5),
        *("0.429 to 0.579", "device faster (same file)"),
    )
    assert rows[1][-1] == "the earlier result has no c on pi"
    assert all(len(entry) == len(columns) for entry in rows)
    assert Benchmark.from_json(results.to_json()) == results


def test_the_intervals_hold_the_truth():
    """Of equal files, each load has its own ratio; no more than 5 % may be told apart."""
    generator = random.Random(0)
    intervals = []

    def drawn():
        times = []
        for _ in range(2):
            layouts = [generator.lognormvariate(0, 0.02) for _ in range(bench.QUICK["loads"])]
            times.append([[own * generator.gauss(1e6, 1e3) for _ in range(20)] for own in layouts])
        ratios = bench.ratios_to(*times)
        intervals.append(bench.median_interval(ratios))
        wide = bench.median_interval(ratios, bench.WITHIN_975)
        return [row("a", 1, None), row("b", 1, None, bench.statistics.median(ratios), wide)]

    verdicts = [compared(drawn(), drawn())[1]["verdict"] for _ in range(200)]
    assert sum(verdict != "not told apart" for verdict in verdicts) <= 0.05 * 200
    held = sum(low <= 1 <= high for low, high in intervals)
    assert held >= 0.95 * 400
    assert held < 400  # an interval that always holds it tells nothing
