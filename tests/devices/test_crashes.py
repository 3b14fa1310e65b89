"""What is said of crashes, against the real runtime on emulated 64-bit Arm."""

import platform
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from edgeprune.devices import crashes
from edgeprune.devices.advise import advise
from edgeprune.devices.lookup import load_profile
from edgeprune.devices.refusals import check_file
from edgeprune.devices.setup import _fitting
from edgeprune.devices.ssh import Interpreter
from edgeprune.devices.subject import subject_of
from edgeprune.errors import UnsupportedError
from edgeprune.export.convert import convert
from edgeprune.export.tflite import read
from edgeprune.models import import_keras
from edgeprune.recipe import ExportSpec, Recipe

# Whether tflite-runtime 2.14 crashes on a Dense: rows, inputs, outputs.
DENSE = {
    (1, 8, 4): False,
    (1, 64, 10): False,
    (1, 64, 1): False,  # a single scale
    (1, 64, 3): True,
    (1, 7, 4): True,
    (5, 64, 10): True,
}


def dense(rows, inputs, outputs):
    keras = import_keras()
    keras.utils.set_random_seed(0)
    given = keras.Input((rows, inputs) if rows > 1 else (inputs,))
    return keras.Model(given, keras.layers.Dense(outputs, name="classes")(given))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The int8 file of each `DENSE`, and of a convolution and a dynamic-range Dense."""
    folder = tmp_path_factory.mktemp("dense")
    random = np.random.default_rng(0)
    found = {}
    for shape in DENSE:
        model = dense(*shape)
        samples = random.standard_normal((4, *model.input_shape[1:])).astype("float32")
        path = folder / f"{'-'.join(map(str, shape))}.tflite"
        convert(model, path, quantize="int8", calibration=samples, verify=False, clean=False)
        found[shape] = path
    return found


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    path = tmp_path_factory.mktemp("dynamic") / "dynamic.tflite"
    convert(dense(5, 64, 3), path, quantize="dynamic", verify=False, clean=False)
    return path


def old(name):
    return replace(load_profile(name), runtime="tflite-runtime")


def test_what_is_said_of_files(files, dynamic):
    said = {shape: bool(crashes.crashing(read(path))) for shape, path in files.items()}
    assert said == DENSE
    assert crashes.crashing(read(dynamic)) == []
    assert crashes.told_of(read(dynamic)) is None


@pytest.mark.slow
def test_float_models_crash_once_they_are_int8(dynamic):
    for shape, bad in DENSE.items():
        model = subject_of(dense(*shape)).tflite
        assert crashes.crashing(model) == []
        assert bool(crashes.crashing(model, once_int8=True)) == bad, shape


@pytest.mark.slow
def test_what_is_said_is_true(files, dynamic, arm64_sandbox):
    code = (
        "import sys; from tflite_runtime.interpreter import Interpreter\n"
        "it = Interpreter(sys.argv[1]); it.allocate_tensors(); it.invoke()"
    )
    ended = {}
    for shape, path in {**files, "dynamic": dynamic}.items():
        command = arm64_sandbox.command("-c", code, str(path))
        ended[shape] = subprocess.run(command, capture_output=True).returncode
    assert {shape: code != 0 for shape, code in ended.items()} == {**DENSE, "dynamic": False}


def test_which_devices_it_is_about(monkeypatch):
    assert crashes.crashes(old("emulated-arm64")) is True
    assert crashes.crashes(load_profile("emulated-arm64")) is False
    assert crashes.crashes(old("raspberry-pi-4")) is True
    assert crashes.crashes(load_profile("raspberry-pi-4")) is None
    assert crashes.crashes(load_profile("cortex-m4")) is False
    assert crashes.crashes(load_profile("android")) is False
    for machine, expected in (("x86_64", False), ("aarch64", True)):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert crashes.crashes(old("local")) is expected


def test_advice_names_the_layer_and_what_to_do(files):
    there = "crashes tflite-runtime 2.14 on 64-bit Arm"
    found = advise(dense(1, 64, 3), old("raspberry-pi-4"))
    assert found.blockers == ()
    int8 = found.of("int8")
    assert int8.verdict == "does not pay"
    assert str(int8.reasons[0]) == (
        f"classes (FULLY_CONNECTED, 1 row of 64 inputs and 3 outputs, int8) {there}: "
        'set runtime = "ai-edge-litert" in the profile, and install that there'
    )
    maybe = advise(dense(1, 64, 3), "raspberry-pi-4").of("int8")
    assert maybe.verdict == "pays"
    assert f"{there}, if that is what is installed there" in str(maybe.reasons[-1])
    stored = advise(files[1, 64, 3], old("emulated-arm64"))
    assert there in str(stored.blockers[0])
    assert advise(files[1, 64, 3], "emulated-arm64").blockers == ()


def test_a_file_is_refused_before_training(files, caplog):
    recipe = Recipe(export=ExportSpec(quantize="int8"))
    bad, good = files[5, 64, 10], files[1, 64, 10]
    with pytest.raises(UnsupportedError) as raised:
        check_file(bad, recipe, [old("raspberry-pi-5")])
    assert str(raised.value) == (
        "raspberry-pi-5, for the model as it is before training: (FULLY_CONNECTED, 5 rows of 64 "
        "inputs and 10 outputs, int8) crashes tflite-runtime 2.14 on 64-bit Arm: set runtime = "
        '"ai-edge-litert" in the profile, and install that there; nothing was trained'
    )
    assert not caplog.records
    check_file(good, recipe, [old("raspberry-pi-5")])
    check_file(bad, recipe, [load_profile("emulated-arm64")])
    assert not caplog.records
    check_file(bad, recipe, [load_profile("raspberry-pi-5")])
    assert "raspberry-pi-5, if" in caplog.text


def test_the_doctor_installs_what_does_not_crash():
    def python(version, machine):
        return Interpreter("python3", version, machine, ())

    assert _fitting(python((3, 11), "aarch64")) == "ai-edge-litert"
    assert _fitting(python((3, 8), "aarch64")) == "tflite-runtime"  # too old for the other
    assert _fitting(python((3, 11), "x86_64")) == "tflite-runtime"
    assert _fitting(python((3, 12), "x86_64")) == "ai-edge-litert"
