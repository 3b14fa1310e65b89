import json
import re

import pytest

from edgeprune.devices.measurement import Benchmark, Latency, ModelBenchmark
from edgeprune.errors import InputError


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

model        median ms  p90 ms  relative  95 % interval   init ms  first ms   memory
-----------  ---------  ------  --------  --------------  -------  --------  -------
base.tflite       10.0    12.0     1.00x  -                  1.25      20.0  1.0 MiB
half.tflite       5.00    6.00    0.500x  0.490 to 0.520     1.25      20.0        -"""
    )


def test_intervals_of_small_ratios_keep_their_digits():
    tiny = model_benchmark("tiny.tflite", relative_latency_interval=(0.00742, 0.0123))
    assert "  0.00742 to 0.0123  " in str(Benchmark([BASE, tiny]))


def test_kinds_and_devices_never_share_a_table():
    simulated = model_benchmark("s.tflite", kind="simulated")
    elsewhere = model_benchmark("e.tflite", device="phone", threads=2)
    titles = [table[0] for table in Benchmark([BASE, simulated, elsewhere]).tables()]
    assert titles == [
        "board: measured with tflite-runtime 2.14.0, 1 thread",
        "board: simulated with tflite-runtime 2.14.0, 1 thread",
        "phone: measured with tflite-runtime 2.14.0, 2 threads",
    ]


def test_one_device_has_one_table_even_when_its_results_are_apart():
    phone = model_benchmark("p.tflite", device="phone")
    tables = list(Benchmark([BASE, phone, HALF]).tables())
    assert [[row[0] for row in rows] for _, _, rows in tables] == [
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


def test_each_device_has_its_own_baseline():
    same = (0.97, 1.02)
    results = [
        BASE,
        model_benchmark("p.tflite", device="phone"),
        model_benchmark("other.tflite", device="phone", relative_latency_interval=same),
    ]
    assert Benchmark(results).notes == (
        "phone: other.tflite: no difference from p.tflite was found (95 % interval 0.970 to 1.020)",
    )


def test_figures_that_only_one_kind_has_get_columns():
    bare = {
        **dict.fromkeys(["init_ms", "first_ms", "latency_ms", "relative_latency"]),
        **dict.fromkeys(["relative_latency_interval", "peak_memory_bytes", "rounds"]),
    }
    npu = model_benchmark(
        **bare,
        kind="predicted",
        runtime="ethos-u-vela",
        runtime_version="5.2",
        arena_bytes=2048,
        details={"cycles": 123456, "sram_bytes": 1536, "operators_on_the_cpu": ["SOFTMAX"]},
    )
    assert (
        str(Benchmark([npu]))
        == """\
board: predicted with ethos-u-vela 5.2, 1 thread

model          arena   cycles     sram
-----------  -------  -------  -------
base.tflite  2.0 KiB  123,456  1.5 KiB"""
    )


def test_a_mean_stands_in_for_a_median_that_is_not_told():
    untold = Latency(None, None, 10.5, 9.0, 15.0, 1.0, 50)
    result = model_benchmark(latency_ms=untold)
    assert result.typical_ms == 10.5
    (table,) = Benchmark([result]).tables()
    assert [column.title for column in table[1]][:3] == ["model", "mean ms", "relative"]
    assert Benchmark.from_json(Benchmark([result]).to_json())[0] == result


def test_a_device_that_failed_has_no_table_but_a_line():
    failed = model_benchmark(device="phone", error="it is switched off")
    results = Benchmark([BASE, failed])
    assert len(list(results.tables())) == 1
    assert results.failures == {"phone": "it is switched off"}
    assert str(results).endswith("\n\nphone failed: it is switched off")
    assert Benchmark.from_json(results.to_json()) == results


def test_problems_are_what_cannot_be_deployed():
    unfit = "half.tflite does not fit: it needs 2 bytes of flash, the device has 1, 1 fewer"
    rows = [
        model_benchmark(warnings=("it is warm",)),
        model_benchmark("half.tflite", warnings=("it is warm", unfit), details={"fits": False}),
        model_benchmark("no.tflite", device="npu", details={"failure": "Vela refuses it"}),
        *(model_benchmark(name, device="phone", error="it is off") for name in ("a", "b")),
    ]
    assert Benchmark(rows).problems == (
        f"board: {unfit}",
        "npu: no.tflite: Vela refuses it",
        "phone: it is off",
    )
    assert Benchmark([BASE, HALF]).problems == ()


RECORD = json.loads(Benchmark([BASE]).to_json())[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latency_ms": 3}, "entry 1: latency_ms must be an object, got 3"),
        ({"latency_ms": {"median": 1}}, "entry 1: latency_ms: key 'p90' is missing"),
        ({"threads": True}, "entry 1: threads must be a whole number; got True"),
        ({"init_ms": "1"}, "entry 1: init_ms must be a number; got '1'"),
        ({"init_ms": 10**400}, "entry 1: init_ms must be a number; got 1000"),
        ({"kind": "guessed"}, "kind must be one of measured, simulated, predicted; got 'guessed'"),
        ({"relative_latency_interval": [1]}, "must be a list of 2 items, each a number; got [1]"),
        ({"relative_latency_interval": [1, "2"]}, "must be a list of 2 items"),
        ({"warnings": "none"}, "warnings must be a list of text; got 'none'"),
        ({"unavailable": {"x": 1}}, "unavailable must be an object"),
        ({"environment": []}, "environment must be an object; got []"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"model": None}, "model must be text; got None"),
    ],
)
def test_a_record_of_the_wrong_shape_is_refused(change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Benchmark.from_json(json.dumps([{**RECORD, **change}]))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "is not JSON"),
        ("{}", "must be a list"),
        ("[1]", "entry 1 must be an object, got 1"),
        ("[NaN]", "NaN is no number of JSON"),
        ("[" * 100000, "nested too deeply"),
        (json.dumps([{k: v for k, v in RECORD.items() if k != "sha256"}]), "'sha256' is missing"),
    ],
)
def test_what_is_no_result_is_refused(document, message, tmp_path):
    path = tmp_path / "old.json"
    path.write_text(document)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        Benchmark.load(path)
    assert str(caught.value).startswith(f"result {path}")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Benchmark.load(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not JSON"):
        Benchmark.load(tmp_path / "binary.json")


def test_several_devices_have_an_overview():
    """Kinds never share a column; what no device of a kind has gets none."""
    nothing = {"latency_ms": None, "relative_latency": None, "relative_latency_interval": None}
    why = {"unavailable": {"latency_ms": "it is emulated"}}
    results = Benchmark(
        [
            BASE,
            HALF,
            model_benchmark(device="arm", kind="simulated", latency_ms=None, **why),
            model_benchmark(
                "half.tflite",
                device="arm",
                kind="simulated",
                latency_ms=None,
                relative_latency=0.4,
                **why,
            ),
            model_benchmark(device="m4", kind="simulated", arena_bytes=2048, **nothing),
            model_benchmark(device="off", error="switched off"),
        ]
    )
    assert (
        str(results).partition("All devices")[2].partition("\n\nnote")[0].partition("\n\noff")[0]
        == """

                   board        arm         m4
                measured  simulated  simulated
model     file        ms   relative      arena
-----  -------  --------  ---------  ---------
base   2.0 KiB      10.0      1.00x    2.0 KiB
half   2.0 KiB      5.00     0.400x          -"""
    )
    assert results.notes.count("arm: no times: it is emulated") == 1
    assert Benchmark([BASE, HALF]).overview() is None


def test_a_predicted_time_stands_in_the_overview():
    predicted = model_benchmark(
        device="npu",
        kind="predicted",
        latency_ms=None,
        relative_latency=None,
        relative_latency_interval=None,
        details={"inference_ms": 0.25, "sram_bytes": 4096, "cycles": 99},
    )
    _, columns, rows = Benchmark([BASE, predicted]).overview()
    names = [column.title for column in columns]
    assert names[3:] == ["npu\npredicted\nms", "npu\npredicted\nSRAM"]
    assert rows[0][3:] == (0.25, 4096)
    assert not any("no times" in line for line in Benchmark([BASE, predicted]).notes)


def test_models_keep_the_names_that_tell_them_apart():
    rows = [model_benchmark(name, device=d) for d in "ab" for name in ("m", "m.tflite")]
    _, _, shown = Benchmark(rows).overview()
    assert [row[0] for row in shown] == ["m", "m.tflite"]
