"""Profiles: what goes into them by hand, and those of this machine on a real model."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgeprune.devices.measurement import Benchmark, Latency, ModelBenchmark
from edgeprune.devices.options import RunOptions
from edgeprune.devices.profiling import OperatorTime, doubts, profile_of
from edgeprune.devices.profiling_parts import write_parts
from edgeprune.devices.profiling_script import ALONE, WHOLE, with_profile, with_profiles
from edgeprune.devices.run import benchmark
from edgeprune.devices.script import bench_script
from edgeprune.errors import EdgepruneError
from edgeprune.export.graph import Operator, Subgraph, Tensor, TfliteModel
from edgeprune.export.layer_names import Layers
from edgeprune.export.tflite import read

SHORT = {"min_seconds": 0.05, "min_runs": 5, "warmup_seconds": 0.01, "starts": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A .tflite file with its record: two layers, the second with a softmax after it."""
    from edgeprune.export.convert import convert
    from edgeprune.models import import_keras

    keras = import_keras()
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(32, activation="relu", name="body_1")(inputs)
    outputs = keras.layers.Dense(4, activation="softmax", name="head")(hidden)
    path = tmp_path_factory.mktemp("profiling") / "model.tflite"
    convert(keras.Model(inputs, outputs), path, verify=False)
    return path


@pytest.fixture
def row(model):
    return ModelBenchmark(
        model="model.tflite",
        device="local",
        kind="measured",
        runtime="ai-edge-litert",
        runtime_version="2.3.0",
        threads=1,
        init_ms=1.0,
        first_ms=1.0,
        latency_ms=Latency(0.004, 0.004, 0.004, 0.004, 0.004, 0.0, 9),
        relative_latency=1.0,
        relative_latency_interval=None,
        peak_memory_bytes=1,
        peak_memory_how="",
        arena_bytes=None,
        path=str(model),
        bytes=1,
        sha256="",
        rounds=9,
    )


def test_shares_and_layers_by_hand(model):
    operators = [
        OperatorTime((0,), "CONV_2D", "a", 3.0),
        OperatorTime((1,), "ADD", "a", 1.0),
        OperatorTime((2,), "WHILE", "b", None, reason="x"),
        OperatorTime((3,), "CONV_2D", "c", 4.0),
    ]
    found = profile_of(operators, "how", 10.0, Layers(model, read(model)))
    assert found["sum_ms"] == 8.0
    assert found["sum_by_whole"] == 0.8
    assert [one["share"] for one in found["operators"]] == [0.375, 0.125, None, 0.5]
    assert found["layers"] == [
        {"layer": "a", "ms": 4.0, "share": 0.5, "ops": {"CONV_2D": 0.375, "ADD": 0.125}},
        {"layer": "c", "ms": 4.0, "share": 0.5, "ops": {"CONV_2D": 0.5}},
    ]


def test_where_only_shares_are_told_there_are_no_times(model):
    operators = [
        OperatorTime((0,), "CONV_2D", "a", None, 0.75),
        OperatorTime((1,), "ADD", "b", None, 0.25),
    ]
    found = profile_of(operators, "how", None, Layers(model, read(model)), 1.25)
    assert (found["sum_ms"], found["whole_ms"], found["sum_by_whole"]) == (None, None, 1.25)
    assert [(one["ms"], one["share"]) for one in found["layers"]] == [(None, 0.75), (None, 0.25)]


def test_a_model_whose_operators_take_no_time_at_all(model):
    found = profile_of([OperatorTime((0,), "ADD", "a", 0.0)], "", 1.0, Layers(model, read(model)))
    assert (found["sum_ms"], found["operators"][0]["share"]) == (0.0, 0.0)


def test_layers_have_their_keras_names_by_the_record(model, tmp_path):
    layers = Layers(model, read(model))
    assert layers.source == "record"
    assert [layers.of(position) for position in range(3)] == ["body_1", "head", "head"]
    bare = tmp_path / "bare.tflite"
    bare.write_bytes(model.read_bytes())
    assert Layers(bare, read(bare)).source == "file"


def test_layers_of_what_the_converter_named(tmp_path):
    names = ("in", "serving_default_in:0_int16", "head/Relu", "StatefulPartitionedCall:01", "tfl.x")
    kinds = ("QUANTIZE", "RELU", "SOFTMAX", "DEQUANTIZE")
    tensors = tuple(
        Tensor(i, name, (1,), (1,), "int8", None, None, 0, None) for i, name in enumerate(names)
    )
    operators = tuple(Operator(kind, False, (i,), (i + 1,), {}) for i, kind in enumerate(kinds))
    model = TfliteModel(b"", (Subgraph("", tensors, (0,), (4,), operators),))
    layers = Layers(tmp_path / "none.tflite", model)
    assert [layers.of(position) for position in range(4)] == ["(input)", "head", "head", "(output)"]


@pytest.mark.parametrize("change", ["another file's", "no JSON", "a list", "no layers"])
def test_a_record_that_is_not_the_files_is_not_taken(model, tmp_path, change):
    copy = tmp_path / "copy.tflite"
    copy.write_bytes(model.read_bytes())
    record = json.loads(Path(f"{model}.json").read_text())
    if change == "another file's":
        record["sha256"] = "0" * 64
    if change == "no layers":
        del record["made_by"]["layers"]
    text = {"no JSON": "{", "a list": "[]"}.get(change, json.dumps(record))
    Path(f"{copy}.json").write_text(text)
    assert Layers(copy, read(copy)).source == "file"


def test_a_call_is_taken_off_each_operator(row):
    parts = [{"ns": 3000}, {"ns": 2500}, {"ns": 400}]
    found = with_profile(row, {"call_ns": 500, "parts": parts})
    profile = found.per_operator
    assert [one["ms"] for one in profile["operators"]] == [0.0025, 0.002, 0.0]
    assert [one["op"] for one in profile["operators"]] == ["FULLY_CONNECTED"] * 2 + ["SOFTMAX"]
    assert (profile["how"], profile["whole_ms"]) == (ALONE, 0.004)
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        # Of a whole of 4000, alone: 2000. The profiler's clamp belongs to the first layer.
        ((1500, 500, 900, 1000), WHOLE),
        ((500, 0, 0, 0), ALONE),
        ((0, 0, 0, 0), ALONE),
    ],
)
def test_the_profiler_counts_where_the_parts_are_far_off_and_it_is_nearer(row, times, expected):
    kinds = ("Fully Connected (NC, F32) GEMM", "Clamp (NC)", "Fully Connected (NC)", "Softmax (NC)")
    nodes = [
        {"kind": kind, "position": None, "ns": ns} for kind, ns in zip(kinds, times, strict=True)
    ]
    said = {"call_ns": 0, "parts": [{"ns": 1000}, {"ns": 500}, {"ns": 500}], "nodes": nodes}
    found = with_profile(row, said).per_operator
    assert found["how"] == expected
    if expected is WHOLE:
        assert [one["ms"] for one in found["operators"]] == [0.002, 0.0009, 0.001]


def test_parts_whose_sum_is_near_the_whole_count(row):
    nodes = [{"kind": "Fully Connected (NC)", "position": p, "ns": 2000} for p in (0, 1)]
    said = {"call_ns": 0, "parts": [{"ns": 1600}, {"ns": 1600}, {"ns": 0}], "nodes": nodes}
    assert with_profile(row, said).per_operator["how"] == ALONE


def test_a_profiler_whose_operators_fit_nowhere_does_not_count(row):
    nodes = [{"kind": "Argmax (NC)", "position": None, "ns": 4000}]
    said = {"call_ns": 0, "parts": [{"ns": 9}] * 3, "nodes": nodes}
    assert with_profile(row, said).per_operator["how"] == ALONE


def test_what_has_no_time_keeps_its_reason(row):
    parts = [{"ns": 3000}, {"reason": "it does\x1b[2J\nnot run alone"}, {"ns": 500}]
    found = with_profile(row, {"call_ns": 0, "parts": parts})
    assert found.per_operator["operators"][1]["reason"] == "it does[2J not run alone"
    (warning,) = found.warnings
    assert warning.startswith("model.tflite: no time of 1 of its operators: FULLY_CONNECTED (")


@pytest.mark.parametrize(
    ("scale", "whole", "doubted"),
    [
        (1.0, 1.0, False),
        (1.0, 1.2, False),
        (1.0, 1.5, True),
        (0.001, 0.0015, False),  # half a microsecond: a call takes that
    ],
)
def test_a_sum_far_from_the_whole_is_doubted(model, scale, whole, doubted):
    operators = [OperatorTime((0,), "ADD", "a", scale)]
    lines = doubts("m", profile_of(operators, "", whole, Layers(model, read(model))))
    assert any(line.startswith("m: in sum its operators take 0.67x") for line in lines) == doubted


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"call_ns": 1, "parts": None},
        {"call_ns": 1, "parts": [{"ns": 1}]},
        {"call_ns": -1, "parts": [{"ns": 1}] * 3},
        {"call_ns": True, "parts": [{"ns": 1}] * 3},
        {"call_ns": 1, "parts": [{"ns": "1"}] * 3},
        {"call_ns": 1, "parts": [{"ns": float("nan")}] * 3},
        {"call_ns": 1, "parts": [[]] * 3},
        {"call_ns": 1, "parts": [{"ns": 1}] * 3, "sum_by_whole": "x"},
        {"call_ns": 1, "parts": [{"ns": 1}] * 3, "nodes": 1},
        {"call_ns": 1, "parts": [{"ns": 1}] * 3, "nodes": [1]},
        {"call_ns": 1, "parts": [{"ns": 1}] * 3, "nodes": [{"kind": "x", "ns": 1}]},
        {
            "call_ns": 1,
            "parts": [{"ns": 1}] * 3,
            "nodes": [{"kind": "x", "position": -1, "ns": 1}],
        },
    ],
)
def test_what_a_device_makes_up_is_refused(row, said):
    with pytest.raises(EdgepruneError, match="the profile that came back is not understood"):
        with_profile(row, said)


def test_a_reason_comes_without_a_profile(row):
    sent = replace(row, per_operator={"x": 1}, unavailable={"per_operator": "it crashed"})
    (found,) = with_profiles([sent], RunOptions(per_operator=True))
    assert (found.per_operator, found.unavailable["per_operator"]) == ({}, "it crashed")
    (found,) = with_profiles([replace(row, per_operator={"x": 1})], RunOptions())
    assert found.per_operator == {}


def test_on_this_machine(model):
    (found,) = benchmark(model, profile=True, **SHORT)
    profile = found.per_operator
    assert [one["layer"] for one in profile["operators"]] == ["body_1", "head", "head"]
    assert [one["positions"] for one in profile["operators"]] == [[0], [1], [2]]
    times = [one["ms"] for one in profile["operators"]]
    assert profile["sum_ms"] == pytest.approx(sum(times))
    assert profile["sum_ms"] > 0
    assert profile["whole_ms"] == found.latency_ms.median
    assert sum(one["share"] for one in profile["layers"]) == pytest.approx(1)
    assert "per_operator" not in found.unavailable
    again = Benchmark.from_json(Benchmark([found]).to_json())
    assert again[0].per_operator == profile
    (plain,) = benchmark(model, **SHORT)
    assert plain.per_operator == {}
    assert "per_operator" not in plain.unavailable


def test_a_device_without_a_profiler_says_so(tmp_path):
    import tensorflow as tf

    function = tf.function(tf.nn.relu, input_signature=[tf.TensorSpec((1, 4))])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    path = tmp_path / "relu.tflite"
    path.write_bytes(converter.convert())
    (found,) = benchmark(path, device="cortex-m4", profile=True, **SHORT)
    assert found.per_operator == {}
    assert "has no profiler" in found.unavailable["per_operator"]


def script(*arguments):
    command = [sys.executable, str(bench_script()), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_by_itself(model, tmp_path):
    parts = write_parts(read(model), tmp_path / "parts.zip")
    quick = ("--min-seconds=0", "--min-runs=1", "--warmup-seconds=0", "--loads=1")
    done = script(*quick, f"--operators={tmp_path / 'parts.zip'}", model)
    (record,) = json.loads(done.stdout)
    found = record["per_operator"]
    assert len(found["parts"]) == len(parts) == 3
    assert all(part.keys() == {"ns"} and part["ns"] > 0 for part in found["parts"])
    assert found["call_ns"] > 0
    # Of other releases of LiteRT the profiler is not called.
    assert ("nodes" in found) == record["runtime_version"].startswith("2.3.")
    nodes = found.get("nodes", ())
    kinds = [node["kind"].split(" (")[0] for node in nodes]  # XNNPACK takes all three
    own = [kind for kind in kinds if kind in ("Fully Connected", "Softmax")]
    assert own == (["Fully Connected", "Fully Connected", "Softmax"] if nodes else [])
    assert all(node["position"] is None and node["ns"] >= 0 for node in nodes)
    (plain,) = json.loads(script(*quick, model).stdout)
    assert "per_operator" not in plain


def test_one_operator_that_does_not_run_takes_those_along_that_read_it(model, tmp_path):
    write_parts(read(model), tmp_path / "whole.zip")
    with (
        zipfile.ZipFile(tmp_path / "whole.zip") as whole,
        zipfile.ZipFile(tmp_path / "parts.zip", "w") as broken,
    ):
        for name in whole.namelist():
            broken.writestr(name, b"TFL3" if name == "1.tflite" else whole.read(name))
    quick = ("--min-seconds=0", "--min-runs=1", "--warmup-seconds=0", "--starts=1")
    (record,) = json.loads(script(*quick, f"--operators={tmp_path / 'parts.zip'}", model).stdout)
    first, second, third = record["per_operator"]["parts"]
    assert first["ns"] > 0
    assert second["reason"].startswith("it does not run alone (")
    assert third == {"reason": "what it reads was not computed"}


def test_what_is_no_archive_loses_no_times(model, tmp_path):
    (tmp_path / "parts.zip").write_text("no zip")
    quick = ("--min-seconds=0", "--min-runs=1", "--warmup-seconds=0", "--loads=1")
    done = script(*quick, f"--operators={tmp_path / 'parts.zip'}", model)
    (record,) = json.loads(done.stdout)
    assert record["latency_ms"]["runs"] == 1
    assert "per_operator" not in record
    assert "parts.zip: not an archive of operators" in record["unavailable"]["per_operator"]


def test_each_model_has_an_archive():
    done = script("--operators=a", "--operators=b", "m.tflite")
    assert done.returncode == 2
    assert "2 --operators for 1 models" in done.stderr


def test_an_earlier_result_without_profiles_is_read(row):
    record = json.loads(Benchmark([replace(row)]).to_json())
    del record[0]["per_operator"]
    (found,) = Benchmark.from_json(json.dumps(record))
    assert found.per_operator == {}
