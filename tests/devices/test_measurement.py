import json

import pytest

from edgeprune.devices.measurement import Benchmark, Latency, ModelBenchmark


def model_benchmark(model="base.tflite", **changes):
    values = {
        "model": model,
        "device": "board",
        "kind": "measured",
        "runtime": "tflite-runtime",
        "runtime_version": "2.14.0",
        "threads": 1,
        "init_ms": 1.25,
        "first_ms": 20.0,
        "latency_ms": Latency(10.0, 12.0, 10.5, 9.0, 15.0, 1.0, 50),
        "relative_latency": 1.0,
        "relative_latency_interval": (1.0, 1.0),
        "peak_memory_bytes": 2**20,
        "peak_memory_how": "VmHWM",
        "arena_bytes": None,
        "path": "/models/" + model,
        "bytes": 2048,
        "sha256": "0" * 64,
        "rounds": 50,
        "environment": {"cores": 4, "governor": None},
        "warnings": (),
        "unavailable": {"arena_bytes": "not TFLite Micro", "environment.governor": "unreadable"},
    }
    return ModelBenchmark(**{**values, **changes})


BASE = model_benchmark()
HALF = model_benchmark(
    "half.tflite",
    latency_ms=Latency(5.0, 6.0, 5.25, 4.5, 7.5, 0.5, 100),
    relative_latency=0.5,
    relative_latency_interval=(0.49, 0.52),
    peak_memory_bytes=None,
)


def test_json_and_back():
    results = Benchmark([BASE, HALF])
    assert Benchmark.from_json(results.to_json()) == results
    first = json.loads(results.to_json())[0]
    assert first["latency_ms"]["p90"] == 12.0
    assert first["unavailable"]["arena_bytes"] == "not TFLite Micro"


def test_json_without_figures_and_back():
    bare = model_benchmark(latency_ms=None, relative_latency_interval=None, rounds=None)
    assert Benchmark.from_json(Benchmark([bare]).to_json())[0] == bare


def test_it_is_a_sequence():
    results = Benchmark([BASE, HALF])
    assert len(results) == 2
    assert results[1] is HALF
    assert results[:1] == Benchmark([BASE])
    assert list(results) == [BASE, HALF]
    assert hash(results) == hash(Benchmark([BASE, HALF]))


def test_printed():
    assert (
        str(Benchmark([BASE, HALF]))
        == """\
board: measured with tflite-runtime 2.14.0, 1 thread

model        median ms  p90 ms  relative  init ms  first ms   memory
-----------  ---------  ------  --------  -------  --------  -------
base.tflite       10.0    12.0     1.00x     1.25      20.0  1.0 MiB
half.tflite       5.00    6.00    0.500x     1.25      20.0        -"""
    )


def test_kinds_and_devices_never_share_a_table():
    simulated = model_benchmark("s.tflite", kind="simulated")
    elsewhere = model_benchmark("e.tflite", device="phone", threads=2)
    titles = [title for title, _ in Benchmark([BASE, simulated, elsewhere]).tables()]
    assert titles == [
        "board: measured with tflite-runtime 2.14.0, 1 thread",
        "board: simulated with tflite-runtime 2.14.0, 1 thread",
        "phone: measured with tflite-runtime 2.14.0, 2 threads",
    ]


def test_one_device_has_one_table_even_when_its_results_are_apart():
    phone = model_benchmark("p.tflite", device="phone")
    tables = list(Benchmark([BASE, phone, HALF]).tables())
    assert [[row[0] for row in rows] for _, rows in tables] == [
        ["base.tflite", "half.tflite"],
        ["p.tflite"],
    ]


@pytest.mark.parametrize(
    ("interval", "said"),
    [((0.97, 1.02), True), ((1.0, 1.02), True), ((0.49, 0.52), False), (None, False)],
)
def test_a_difference_that_may_be_chance_is_told(interval, said):
    other = model_benchmark("other.tflite", relative_latency_interval=interval)
    notes = Benchmark([BASE, other]).notes
    assert any("other.tflite: no difference from base.tflite" in line for line in notes) == said


def test_a_warning_of_all_models_is_printed_once():
    warned = [model_benchmark(name, warnings=("busy",)) for name in ("a", "b")]
    results = Benchmark([*warned, model_benchmark("c", warnings=("busy", "hot"))])
    assert results.notes[:2] == ("busy", "hot")
    assert str(results).count("note: busy") == 1
