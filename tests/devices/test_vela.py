"""Vela itself, on models that the real converter made."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeprune.devices import vela
from edgeprune.devices.lookup import load_profile
from edgeprune.devices.measurement import Benchmark
from edgeprune.devices.options import RunOptions
from edgeprune.devices.profile import Limits
from edgeprune.devices.reach import VelaReach
from edgeprune.devices.vela_report import failure_text, read_report
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.export.tflite import read

U55 = VelaReach("ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram")
OPTIONS = RunOptions()
UNITS = 256


@pytest.fixture(scope="module")
def u55():
    return load_profile("ethos-u55-128")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny models, each a file; all but `float` in int8."""
    import tensorflow as tf

    from edgeprune.export.convert import convert
    from edgeprune.models import import_keras

    folder = tmp_path_factory.mktemp("vela")
    keras = import_keras()
    layers = keras.layers
    generator = np.random.default_rng(0)
    samples = generator.standard_normal((8, UNITS)).astype("float32")

    def to_file(model, name, **how):
        how = {"quantize": "int8", "calibration": samples, "io": "int8"} | how
        convert(model, folder / f"{name}.tflite", verify=False, **how)

    def stack(depth):
        model = keras.Sequential([keras.Input((UNITS,))])
        for _ in range(depth):
            model.add(layers.Dense(UNITS, use_bias=False))
            kernel = generator.standard_normal((UNITS, UNITS)) / UNITS**0.5
            model.layers[-1].set_weights([kernel])
        return model

    two = stack(2)
    to_file(two, "two")
    to_file(two, "float", quantize="none", calibration=None, io="float")
    to_file(two, "float_ends", io="float")
    to_file(stack(4), "four")
    # The twin of `two`: 80 % zeros, 7 values besides.
    for layer in two.layers:
        (kernel,) = layer.get_weights()
        coarse = np.round(kernel / np.abs(kernel).max() * 4) / 4
        flat = np.abs(kernel).ravel()
        coarse.ravel()[np.argsort(flat)[: int(0.8 * flat.size)]] = 0.0
        layer.set_weights([coarse])
    to_file(two, "sparse")
    to_file(two, "sparse_encoded", sparse="on", quantize="none", calibration=None, io="float")
    inputs = keras.Input((UNITS,))
    x = layers.Dense(UNITS, activation="relu")(inputs)
    x = layers.Lambda(lambda x: tf.cumsum(x, axis=1))(x)
    to_file(keras.Model(inputs, layers.Dense(4)(x)), "cumsum")
    small = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(2, 3)])
    images = generator.standard_normal((4, 4, 4, 2)).astype("float32")
    to_file(small, "convolution", calibration=images)
    return folder


def estimate(folder, name, reach=U55):
    return vela.estimate(folder / f"{name}.tflite", reach)


def test_an_estimate(folder):
    found = estimate(folder, "two")
    # One multiplication a weight, of a vector; 500 MHz; all of it on the accelerator.
    assert found.npu_macs == 2 * UNITS**2
    assert found.clock_hz == 500e6
    assert found.inference_ms == pytest.approx(found.cycles / 500e3)
    assert (found.operators, found.cpu_operators) == (2, ())
    assert found.original_weight_bytes == 2 * UNITS**2
    # Random bytes do not get smaller by more than their distribution allows: 7 bits of 8 or so.
    assert 0.7 < found.encoded_weight_bytes / found.original_weight_bytes < 1.1
    # The weights' way from flash at 0.5 GB/s and 500 MHz is a byte a cycle, and takes the longest.
    assert found.cycles_by_part["off_chip_flash"] >= found.encoded_weight_bytes
    assert found.cycles >= max(found.cycles_by_part.values())
    # In bytes: the weights are in flash, two vectors and what is staged in SRAM.
    assert found.memory_bytes["off_chip_flash"] >= found.encoded_weight_bytes
    assert 2 * UNITS <= found.memory_bytes["sram"] <= 2 * UNITS + found.encoded_weight_bytes
    assert found.memory_bytes["dram"] == found.memory_bytes["on_chip_flash"] == 0
    assert found.compiled_bytes >= found.encoded_weight_bytes


def test_zeros_and_few_values_shrink_the_weights(folder):
    dense, sparse = estimate(folder, "two"), estimate(folder, "sparse")
    assert sparse.original_weight_bytes == dense.original_weight_bytes
    assert sparse.encoded_weight_bytes < dense.encoded_weight_bytes / 2
    assert sparse.compiled_bytes < dense.compiled_bytes
    # Reading them is what takes the time of a fully connected layer.
    assert sparse.cycles < dense.cycles
    assert sparse.npu_macs == dense.npu_macs


def test_twice_the_layers(folder):
    two, four = estimate(folder, "two"), estimate(folder, "four")
    assert four.npu_macs == 2 * two.npu_macs
    assert 1.5 < four.cycles / two.cycles < 2.5
    assert four.encoded_weight_bytes == pytest.approx(2 * two.encoded_weight_bytes, rel=0.05)


def test_layers(folder, u55):
    found = vela.layers(folder / "four.tflite", u55)
    names = [
        graph.tensors[operator.outputs[0]].name
        for graph in read(folder / "four.tflite").subgraphs
        for operator in graph.operators
    ]
    assert [layer.name for layer in found] == names
    assert {(layer.op, layer.made, layer.on_npu) for layer in found} == {
        ("FullyConnected", "FullyConnected", True)
    }
    assert [layer.macs for layer in found] == [UNITS**2] * 4
    total = estimate(folder, "four").cycles
    assert all(0 < layer.cycles < total for layer in found)
    assert sum(layer.cycles for layer in found) == pytest.approx(total, rel=0.1)


def test_what_stays_on_the_cpu_is_named(folder, u55):
    found = estimate(folder, "cumsum")
    left = Counter(operator.op for operator in found.cpu_operators)
    assert left["CUMSUM"] == 1
    assert set(left) <= {"CUMSUM", "QUANTIZE", "DEQUANTIZE"}
    (cumsum,) = (operator for operator in found.cpu_operators if operator.op == "CUMSUM")
    assert "umsum" in cumsum.name
    assert cumsum.reason == "Unsupported opType"
    on_cpu = [layer.op for layer in found.layers if not layer.on_npu]
    assert len(on_cpu) == len(found.cpu_operators)
    # A time without the sum's by one with all of the model's would flatter.
    paths = [str(folder / f"{name}.tflite") for name in ("two", "cumsum")]
    _, row = vela.run(paths, u55, OPTIONS)
    assert row.relative_latency is None
    assert row.unavailable["relative_latency"].startswith("CUMSUM on the CPU in one of the two")
    assert {"op": "CUMSUM", "name": cumsum.name, "reason": cumsum.reason} in row.details[
        "operators"
    ]["on_cpu"]
    (warning,) = row.warnings
    assert warning.startswith("cumsum.tflite: on the CPU stay ")
    assert "CUMSUM" in warning


def test_a_float_model_has_nothing_there(folder, u55):
    found = estimate(folder, "float")
    assert (found.cycles, found.inference_ms, found.npu_macs) == (0, None, 0)
    paths = [str(folder / f"{name}.tflite") for name in ("two", "float", "float_ends")]
    two, row, ends = vela.run(paths, u55, OPTIONS)
    assert row.warnings == (
        "float.tflite: nothing runs on the Ethos-U, all stays on the CPU: 2 FULLY_CONNECTED "
        "(Operation has tensor with unsupported DataType Float32); convert with int8",
    )
    for key in ("cycles", "inference_ms", "sram_bytes"):
        assert row.details[key] is None
        assert row.unavailable[key] == "no operator of the model runs on the Ethos-U"
    assert row.relative_latency is None
    assert row.details["fits"] is None
    # Its ends are no reason not to compare.
    assert [operator["op"] for operator in ends.details["operators"]["on_cpu"]] == [
        "QUANTIZE",
        "DEQUANTIZE",
    ]
    assert ends.relative_latency == ends.details["cycles"] / two.details["cycles"]
    assert (
        "QUANTIZE, DEQUANTIZE; cycles and SRAM are those of the Ethos-U alone" in ends.warnings[0]
    )


def test_rows(folder, u55):
    said = []
    options = RunOptions(names=("dense", "sparse"), progress=said.append)
    paths = [str(folder / f"{name}.tflite") for name in ("two", "sparse")]
    dense, sparse = results = vela.run(paths, u55, options)
    assert said == ["compiling dense with Vela", "compiling sparse with Vela"]
    assert (dense.model, dense.device, dense.kind) == ("dense", "ethos-u55-128", "predicted")
    assert (dense.runtime, dense.threads) == ("ethos-u-vela", 1)
    known = estimate(folder, "sparse")
    assert dense.relative_latency == 1.0
    assert sparse.relative_latency == known.cycles / dense.details["cycles"]
    assert sparse.details["cycles"] == known.cycles
    assert sparse.details["cycles_by_part"]["npu"] == known.cycles_by_part["npu"]
    assert sparse.details["flash_bytes"] == known.compiled_bytes
    assert sparse.details["sram_bytes"] == known.memory_bytes["sram"]
    assert sparse.details["room"]["sram"]["spare_bytes"] == 2**21 - known.memory_bytes["sram"]
    assert sparse.details["encoded_weight_bytes"] == known.encoded_weight_bytes
    assert sparse.details["fits"] is True
    assert sparse.protocol["system_config"] == "Ethos_U55_High_End_Embedded"
    for result in results:
        assert result.warnings == ()
        for key in ("init_ms", "first_ms", "latency_ms", "arena_bytes", "rounds"):
            assert getattr(result, key) is None
            assert key in result.unavailable
    assert Benchmark.from_json(Benchmark(results).to_json()) == Benchmark(results)


def test_limits(folder, u55):
    path = str(folder / "two.tflite")
    (known,) = vela.run([path], u55, OPTIONS)
    sram, flash = known.details["sram_bytes"], known.details["flash_bytes"]
    small = replace(u55, limits=Limits(arena_bytes=sram - 1, flash_bytes=2 * flash))
    (result,) = vela.run([path], small, OPTIONS)
    assert (result.details["fits"], result.details["room"]["sram"]["spare_bytes"]) == (False, -1)
    assert result.warnings == (
        f"two.tflite does not fit: it needs {sram} bytes of sram, the device has {sram - 1}, "
        "1 fewer",
    )


@pytest.mark.parametrize("name", ["ethos-u65-512", "ethos-u85-256"])
def test_the_other_accelerators_that_ship(folder, name):
    profile = load_profile(name)
    (result,) = vela.run([str(folder / "two.tflite")], profile, OPTIONS)
    # Both of 1 GHz, with their weights in DRAM.
    assert result.environment["clock_hz"] == 1e9
    assert result.details["inference_ms"] == pytest.approx(result.details["cycles"] / 1e6)
    assert result.details["memory_bytes"]["dram"] >= result.details["encoded_weight_bytes"]
    assert result.details["operators"]["on_cpu"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"system_config": "Ethos_U55_Nope"},
            r"^reach.system_config 'Ethos_U55_Nope' is not in Arm/vela.ini; it has .*Ethos_U55",
        ),
        ({"memory_mode": "Nope"}, r"^reach.memory_mode 'Nope' is not in .*; it has .*Shared_Sram"),
        (
            {"system_config": "Ethos_U65_High_End"},
            r"'Ethos_U65_High_End' is for another accelerator than 'ethos-u55-128'; choose one "
            r"whose name begins with Ethos_U55$",
        ),
        # Vela knows better than its file says what goes together.
        ({"memory_mode": "Dedicated_Sram_384KB"}, r"^Vela: Invalid configuration of arena_mem"),
        ({"config": "nope.ini"}, r"^Vela's configuration nope.ini cannot be read: No such file"),
        ({"config": "devices"}, r"^reach.config must be an .ini file"),
    ],
)
def test_options_that_vela_does_not_know(folder, u55, change, message):
    profile = replace(u55, reach=replace(U55, **change))
    with pytest.raises(InputError, match=message) as caught:
        vela.run([str(folder / "two.tflite")], profile, OPTIONS)
    assert "\n" not in str(caught.value)


def test_a_configuration_of_the_user_s(folder, tmp_path):
    """Half the clock: twice the time at no more cycles."""
    content = vela.shipped_config().read_text()
    start = content.index("[System_Config.Ethos_U55_High_End_Embedded]")
    changed = content[:start] + content[start:].replace("core_clock=500e6", "core_clock=250e6", 1)
    # The name has two parts, which Vela alone would look for among its own files.
    own = tmp_path / "own" / "slow clock.ini"
    own.parent.mkdir()
    own.write_text(changed)
    slow = estimate(folder, "two", replace(U55, config=str(own)))
    fast = estimate(folder, "two")
    assert (slow.clock_hz, fast.clock_hz) == (250e6, 500e6)
    assert slow.cycles <= fast.cycles
    assert slow.inference_ms > fast.inference_ms
    own.write_text("core_clock=250e6\n")
    with pytest.raises(InputError, match="cannot be read: File contains no section headers"):
        estimate(folder, "two", replace(U55, config=str(own)))


def changed(path, target, change):
    """Write a copy of a model with its first operator changed."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    change(model.subgraphs[0].operators[0])
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(bytes(builder.Output()))
    return target


def lose_inputs(operator):
    operator.inputs = operator.inputs[:1]


def test_a_model_that_vela_refuses(folder, u55, tmp_path):
    path = str(changed(folder / "convolution.tflite", tmp_path / "odd.tflite", lose_inputs))
    failure = "Vela refuses this model: Failed to parse TFLite file"
    with pytest.raises(UnsupportedError, match=f"^odd.tflite: {failure}$"):
        vela.run([path], u55, OPTIONS)
    good, bad = vela.run([str(folder / "two.tflite"), path], u55, OPTIONS)
    assert good.details["cycles"] > 0
    assert bad.details["failure"] == failure
    assert bad.warnings == (f"odd.tflite: {failure}",)
    for key in ("cycles", "inference_ms", "sram_bytes"):
        assert (bad.details[key], bad.unavailable[key]) == (None, failure)
    _, other = vela.run([path, str(folder / "two.tflite")], u55, OPTIONS)
    assert other.unavailable["relative_latency"] == "Vela refuses the first model"


def test_a_model_that_vela_crashes_on(folder, u55, tmp_path):
    """Vela reads the weights of a fully connected layer before it knows that there are any."""
    path = str(changed(folder / "two.tflite", tmp_path / "odd.tflite", lose_inputs))
    with pytest.raises(
        UnsupportedError, match=r"^odd.tflite: Vela crashed \(SIGSEGV\) on this.*convert it again"
    ):
        vela.run([path], u55, OPTIONS)


def test_too_little_time(folder, u55):
    with pytest.raises(UnsupportedError, match=r"since its time was up, on this .*--timeout"):
        vela.run([str(folder / "two.tflite")], u55, RunOptions(timeout_seconds=0.0))


def test_missing_damaged_and_compiled_files(folder, u55, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        vela.run([str(tmp_path / "missing.tflite")], u55, OPTIONS)
    cut = tmp_path / "cut.tflite"
    cut.write_bytes((folder / "two.tflite").read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged"):
        vela.run([str(cut)], u55, OPTIONS)
    command = [sys.executable, "-m", "ethosu.vela", str(folder / "two.tflite")]
    command += ["--accelerator-config=ethos-u55-128", f"--output-dir={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(UnsupportedError, match="was compiled for an Ethos-U already"):
        vela.run([str(tmp_path / "two_vela.tflite")], u55, OPTIONS)


def test_sparse_encoded_weights(folder, u55):
    """Vela ignores how they are stored; it would take other values for the weights."""
    with pytest.raises(UnsupportedError, match="sparse-encoded, which Vela does not read; convert"):
        vela.run([str(folder / "sparse_encoded.tflite")], u55, OPTIONS)


def test_not_installed(folder, u55, monkeypatch):
    monkeypatch.setitem(sys.modules, "ethosu", None)
    with pytest.raises(UnsupportedError, match=r"not installed; pip install 'edgeprune\[npu\]'"):
        vela.run([str(folder / "two.tflite")], u55, OPTIONS)


def test_a_device_of_another_kind(folder):
    with pytest.raises(InputError, match="cortex-m4 is a device with backend 'tflm'"):
        vela.layers(folder / "two.tflite", load_profile("cortex-m4"))


def test_a_report_of_another_release(folder, tmp_path):
    model = read(folder / "two.tflite")
    with pytest.raises(
        UnsupportedError, match=r"report is not understood .*supported: ethos-u-vela"
    ):
        read_report(tmp_path, model, ())
    (tmp_path / "model_summary_x.csv").write_text("cycles_all\n7\n")
    with pytest.raises(UnsupportedError, match=r"not understood \(KeyError: 'cycles_total'\)"):
        read_report(tmp_path, model, ())


def test_complaints_become_a_line():
    assert failure_text(
        ["Traceback", "ethosu.vela.errors.CliOptionError: 'Error: Incorrect x'"]
    ) == (
        "CliOptionError",
        "Incorrect x",
    )
    assert failure_text(["ValueError: cannot mmap"]) == ("ValueError", "cannot mmap")
    assert failure_text(["Killed"]) == ("", "Killed")
    assert failure_text([]) == ("", "no message")


def test_names_folders_and_nothing_printed(tmp_path, folder, u55, monkeypatch, capfd):
    """A model of any name, from a folder with a module that must not be imported."""
    odd = tmp_path / "a b;$(touch pwned)'\"_summary_.tflite"
    odd.write_bytes((folder / "two.tflite").read_bytes())
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the working folder')\n")
    monkeypatch.chdir(tmp_path)
    (row,) = vela.run([odd.name], u55, OPTIONS)
    assert row.details["cycles"] == estimate(folder, "two").cycles
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([odd.name, "numpy.py"])
    assert capfd.readouterr() == ("", "")
