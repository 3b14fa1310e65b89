"""TFLite Micro itself, on models that the real converter made."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeprune.devices import tflm
from edgeprune.devices.lookup import load_profile
from edgeprune.devices.measurement import Benchmark
from edgeprune.devices.options import RunOptions
from edgeprune.devices.profile import Limits
from edgeprune.devices.tflm_worker import Difference, lacking, random_inputs
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.export.micro import SUPPORTED_OPERATORS

QUICK = RunOptions(quick=True)


@pytest.fixture(scope="module")
def m4():
    return load_profile("cortex-m4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny models, each a file."""
    import tensorflow as tf

    from edgeprune.export.convert import convert
    from edgeprune.models import import_keras

    folder = tmp_path_factory.mktemp("tflm")
    keras = import_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).standard_normal((8, 8, 8, 3)).astype("float32")

    def to_file(model, name, **how):
        convert(model, folder / f"{name}.tflite", verify=False, **how)

    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.GlobalAveragePooling2D()(x)
    cnn = keras.Model(inputs, x)
    to_file(cnn, "float")
    to_file(cnn, "float16", quantize="float16")
    to_file(cnn, "int8", quantize="int8", calibration=images)
    to_file(cnn, "int8_io", quantize="int8", calibration=images, io="int8")
    to_file(cnn, "int16x8", quantize="int16x8", calibration=images)
    dense = keras.Model(inputs, layers.Dense(4)(layers.Flatten()(inputs)))
    to_file(dense, "dense", quantize="int16x8", calibration=images)
    sparse = keras.Model(inputs, layers.Dense(64)(layers.Flatten()(inputs)))
    sparse.layers[-1].set_weights([np.eye(192, 64), np.zeros(64)])
    to_file(sparse, "sparse", sparse="on")
    tiled = layers.Lambda(lambda x: tf.tile(x, [1, 2]))(x)
    to_file(keras.Model(inputs, tiled), "tile")
    sequence = keras.Input((4, 3))
    for name, unroll in (("loop", False), ("unrolled", True)):
        recurrent = layers.GRU(2, return_sequences=True, unroll=unroll)(sequence)
        to_file(keras.Model(sequence, recurrent), name)

    def from_function(name, function, *specs, module=None):
        concrete = tf.function(function, input_signature=specs).get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
        converter.experimental_enable_resource_variables = True
        (folder / f"{name}.tflite").write_bytes(converter.convert())

    class Total(tf.Module):
        def __init__(self):
            super().__init__()
            self.total = tf.Variable(tf.zeros((1, 8)))

        def add(self, x):
            self.total.assign_add(x)
            return 2.0 * self.total.read_value()

    total = Total()
    vector = tf.TensorSpec((1, 8))
    from_function("state", total.add, vector, module=total)
    from_function("two", lambda x, y: x + tf.nn.relu(y), vector, tf.TensorSpec((1, 1)))
    from_function("wide", tf.nn.relu, tf.TensorSpec((1, 600, 600)))
    from_function("huge", tf.nn.relu, tf.TensorSpec((1, 20000, 20000)))
    from_function("slice", lambda x: tf.slice(x, [0, 3], [1, 4]), vector)
    return folder


def simulate(folder, name, **options):
    return tflm.simulate(folder / f"{name}.tflite", seconds=1, **options)


@pytest.mark.parametrize(
    ("name", "at_least", "quanta"),
    [
        # Input and output of the depthwise convolution, 8 x 8 x 8 each, are there together.
        ("float", 2 * 8 * 8 * 8 * 4, None),
        ("int8", 2 * 8 * 8 * 8, 0),
        ("int8_io", 2 * 8 * 8 * 8, 0),
        ("int16x8", 2 * 8 * 8 * 8 * 2, 0),
        ("wide", 2 * 600 * 600 * 4, None),
    ],
)
def test_arena_and_outputs(folder, name, at_least, quanta):
    found = simulate(folder, name)
    arena, comparison = found.arena, found.comparison
    assert (found.failure, found.incomparable, found.lacking) == (None, None, ())
    assert arena.smallest_bytes >= arena.used_bytes == arena.head_bytes + arena.tail_bytes
    # To the byte but for the quantized input besides, and gaps between what is there together.
    assert at_least <= arena.head_bytes <= 1.2 * at_least
    # The reference kernels of both runtimes are the same code: floats agree to the bit, too.
    assert (comparison.equal, comparison.max_difference) == (True, 0.0)
    assert comparison.max_difference_quanta == quanta


def test_a_difference_of_rounding_is_one_step(folder, m4):
    """LiteRT's fully connected kernels scale sums in floats, TFLite Micro's in integers.

    See https://github.com/tensorflow/tensorflow/issues/119412.
    """
    (result,) = tflm.run([str(folder / "dense.tflite")], m4, QUICK)
    assert result.details["comparison"]["max_difference_quanta"] <= 1
    assert (
        result.details["comparison"]["differing"] < result.details["comparison"]["values"] == 8 * 4
    )
    told = [line for line in result.warnings if "by up to 1 step of the output's scale" in line]
    assert len(told) == (result.details["comparison"]["differing"] > 0)


def starts(path, arena_bytes):
    """Try an arena outside of this process: kernels crash where they get no memory."""
    script = (
        "import sys; from tflite_micro.python.tflite_micro import runtime; "
        "runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2])).invoke()"
    )
    command = [sys.executable, "-c", script, str(path), str(arena_bytes)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["int8_io", "slice"])
def test_the_arena_is_the_smallest_that_works(folder, name):
    arena = simulate(folder, name).arena
    # A slice's preparation looks at four tensors at once, of 64 bytes each; nothing stays of it.
    assert arena.smallest_bytes - arena.used_bytes == {"int8_io": 0, "slice": 4 * 64}[name]
    path = folder / f"{name}.tflite"
    assert starts(path, arena.smallest_bytes)
    assert not starts(path, arena.smallest_bytes - 16)


def test_several_inputs_and_state(folder):
    two = simulate(folder, "two").comparison
    assert (two.samples, two.values, two.equal) == (8, 8 * 8, True)
    # Sums of all the samples so far: both runtimes keep their state from one to the next.
    state = simulate(folder, "state")
    assert (state.comparison.values, state.comparison.equal) == (8 * 8, True)


def test_loops_and_the_same_layers_unrolled(folder, m4):
    """A difference is told with its size; in loops of this release of TFLite Micro there is one."""
    from ai_edge_litert.interpreter import Interpreter
    from tflite_micro.python.tflite_micro import runtime

    loop, unrolled = tflm.run(
        [str(folder / f"{name}.tflite") for name in ("loop", "unrolled")], m4, QUICK
    )
    assert unrolled.details["outputs_equal"]
    assert unrolled.warnings == ()
    path = str(folder / "loop.tflite")
    ours, theirs = runtime.Interpreter.from_file(path, arena_size=2**16), Interpreter(path)
    theirs.allocate_tensors()
    (detail,), apart = theirs.get_input_details(), 0.0
    samples = random_inputs([detail], seed=0)
    for _ in range(loop.details["comparison"]["samples"]):
        (value,) = next(samples)
        ours.set_input(value, 0)
        ours.invoke()
        theirs.set_tensor(detail["index"], value)
        theirs.invoke()
        output = theirs.get_tensor(theirs.get_output_details()[0]["index"])
        apart = max(apart, np.abs(ours.get_output(0) - output).max())
    assert loop.details["comparison"]["max_difference"] == pytest.approx(apart, abs=1e-6)
    assert loop.details["outputs_equal"] == (not loop.warnings) == (apart < 1e-6)
    if loop.warnings:
        (warning,) = loop.warnings
        assert "64 of 64 outputs differ from LiteRT's reference kernels" in warning
        assert warning.endswith("unroll=True")


def test_what_differs_is_counted_bit_for_bit():
    found = Difference([1.0, 0.5, None])
    one = np.array([1, -128, 127], np.int8)
    two = np.array([0.0, 1.5], np.float32)
    three = np.array([[np.nan]], np.float32)
    found.add([one, two, three], [one, two, three])
    assert found.record(1)["differing"] == 0
    found.add([one, two, three], [np.array([1, 127, 124], np.int8), two - 0.5, three])
    found.add([one, two, three], [one, -two, three])  # a zero of the other sign, too
    assert found.record(3) == {
        "samples": 3,
        "values": 18,
        "differing": 2 + 2 + 2,
        "max_difference": 255.0,
        "max_difference_quanta": None,
    }
    steps = Difference([0.25])
    steps.add([np.array([1.0], np.float32)], [np.array([2.5], np.float32)])
    assert steps.record(1)["max_difference_quanta"] == 6
    steps.add([np.array([1.0], np.float32)], [np.array([np.inf], np.float32)])
    assert steps.record(2)["max_difference"] is None
    assert steps.record(2)["max_difference_quanta"] is None


def test_inputs_are_seeded_and_cover_their_types():
    details = [
        {"dtype": np.float32, "shape": np.array([1, 500])},
        {"dtype": np.int8, "shape": np.array([2, 1000])},
        {"dtype": np.int32, "shape": np.array([9])},
        {"dtype": np.bool_, "shape": np.array([])},
    ]
    first, again = next(random_inputs(details, 3)), next(random_inputs(details, 3))
    for value, same, detail in zip(first, again, details, strict=True):
        np.testing.assert_array_equal(value, same)
        assert (value.dtype, value.shape) == (detail["dtype"], tuple(detail["shape"]))
    assert abs(float(first[0].mean())) < 0.2
    assert (first[1].min(), first[1].max()) == (-128, 127)
    assert set(first[2]) <= {0, 1}
    assert not np.array_equal(next(random_inputs(details, 4))[0], first[0])


def test_the_list_of_operators_is_the_package_s():
    names = {name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    builtins = names - {"CUSTOM"}
    customs = SUPPORTED_OPERATORS - builtins
    asked = [(name, False) for name in builtins] + [(name, True) for name in (*customs, "Nope")]
    # A device that has the accelerator has its operator; this machine has not.
    assert set(lacking(asked)) == (builtins | {"Nope"}) - (SUPPORTED_OPERATORS - {"ethos-u"}) | {
        "ethos-u"
    }


def test_operators_that_are_lacking_are_named(folder, m4):
    path = str(folder / "tile.tflite")
    with pytest.raises(UnsupportedError, match=r"^tile\.tflite: TFLite Micro has no kernel for "):
        tflm.run([path], m4, QUICK)
    good, bad = tflm.run([str(folder / "int8.tflite"), path], m4, QUICK)
    assert (good.details["unsupported_operators"], good.details["failure"]) == ([], None)
    assert "TILE" in bad.details["unsupported_operators"]
    assert bad.arena_bytes is None
    assert "TILE" in bad.unavailable["arena_bytes"]
    assert bad.warnings == (f"tile.tflite: {bad.details['failure']}",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("float16", r"Node DEQUANTIZE \(number 0\) failed to prepare.*: convert with int8"),
        # Its fully connected layer would read what is stored as if that were all weights.
        ("sparse", "does not read; convert with --sparse off$"),
        ("huge", "it needs an arena of more than 1073741824 bytes"),
    ],
)
def test_models_that_are_refused(folder, m4, name, message):
    with pytest.raises(UnsupportedError, match=rf"^{name}\.tflite: .*TFLite Micro .*{message}"):
        tflm.run([str(folder / f"{name}.tflite")], m4, QUICK)


def changed(path, target, change):
    """Write a copy of a model with something changed in its first operator."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    change(model, model.subgraphs[0].operators[0])
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(bytes(builder.Output()))
    return target


def test_a_crash_is_told_and_the_arena_kept(folder, m4, tmp_path):
    """A slice from far outside its tensor: TFLite Micro trusts the model."""

    def begin_far(model, operator):
        begin = model.subgraphs[0].tensors[operator.inputs[1]]
        model.buffers[begin.buffer].data = np.array([0, 2**29], np.int32).view(np.uint8)

    path = changed(folder / "slice.tflite", tmp_path / "far.tflite", begin_far)
    found = tflm.simulate(path)
    assert found.failure == "TFLite Micro crashed (SIGSEGV) while running it"
    assert found.arena == simulate(folder, "slice").arena
    good, bad = tflm.run([str(folder / "two.tflite"), str(path)], m4, QUICK)
    assert (good.details["outputs_equal"], bad.arena_bytes) == (True, found.arena.smallest_bytes)
    assert "SIGSEGV" in bad.unavailable["outputs_equal"]


def test_what_litert_does_not_run_still_has_an_arena(folder, tmp_path):
    """TFLite Micro lets a convolution without its options pass, LiteRT does not."""

    def without_options(model, operator):
        operator.builtinOptions, operator.builtinOptionsType = None, 0

    path = changed(folder / "int8_io.tflite", tmp_path / "bare.tflite", without_options)
    found = tflm.simulate(path)
    assert found.incomparable.startswith("LiteRT does not run the model: ")
    assert found.arena == simulate(folder, "int8_io").arena


def test_too_little_time(folder, m4):
    options = replace(QUICK, timeout_seconds=0.0)
    with pytest.raises((UnsupportedError, tflm.EdgepruneError), match="its time was up"):
        tflm.run([str(folder / "int8.tflite")], m4, options)


def test_rows(folder, m4):
    paths = [str(folder / f"{name}.tflite") for name in ("int8", "wide")]
    said = []
    options = RunOptions(quick=True, names=("small", "large"), seed=5, progress=said.append)
    small, large = tflm.run(paths, m4, options)
    assert said == ["running small in TFLite Micro", "running large in TFLite Micro"]
    assert (small.model, small.device, small.kind) == ("small", "cortex-m4", "simulated")
    assert (small.runtime, small.threads, small.protocol["seed"]) == ("tflite-micro", 1, 5)
    size = (folder / "int8.tflite").stat().st_size
    assert (small.bytes, small.details["flash_bytes"]) == (size, size)
    assert small.details["room"]["flash"]["spare_bytes"] == 2 * 2**20 - size
    assert small.details["room"]["arena"]["spare_bytes"] == 640 * 1024 - small.arena_bytes
    assert (small.details["fits"], large.details["fits"]) == (True, False)
    # 2 x 600 x 600 floats and some, in 640 KiB.
    lacks = large.arena_bytes - 655_360
    assert large.details["room"]["arena"]["spare_bytes"] == -lacks
    assert large.warnings == (
        f"large does not fit: it needs {large.arena_bytes} bytes of arena, the device has 655360, "
        f"{lacks} fewer",
    )
    # Whatever is missing says why; nothing that a clock of this machine showed is there.
    for result in (small, large):
        for key in ("init_ms", "first_ms", "latency_ms", "relative_latency", "rounds"):
            assert getattr(result, key) is None
            assert key in result.unavailable
    document = Benchmark([small, large]).to_json()
    assert Benchmark.from_json(document) == Benchmark([small, large])
    assert json.loads(document)[0]["arena_bytes"] == small.arena_bytes


def test_limits(folder, m4):
    path = str(folder / "int8.tflite")
    (known,) = tflm.run([path], m4, QUICK)
    flash, arena = known.bytes, known.arena_bytes

    def details(**limits):
        (result,) = tflm.run([path], replace(m4, limits=Limits(**limits)), QUICK)
        return result.details["fits"], len(result.warnings)

    assert details() == (None, 0)
    # To the byte; what leaves next to nothing is told.
    assert details(flash_bytes=flash, ram_bytes=arena) == (True, 2)
    assert details(flash_bytes=flash - 1, ram_bytes=arena) == (False, 2)
    assert details(flash_bytes=2 * flash, ram_bytes=10**6, arena_bytes=arena - 1) == (False, 1)


def test_missing_and_damaged_files(folder, m4, tmp_path):
    whole = (folder / "int8.tflite").read_bytes()
    for name, content, message in (
        ("cut.tflite", whole[: len(whole) // 2], "damaged"),
        ("empty.tflite", b"", "empty|not a"),
        ("noise.tflite", bytes(range(256)), "not a"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            tflm.run([str(path)], m4, QUICK)
    with pytest.raises(InputError, match="no such file"):
        tflm.run([str(tmp_path / "missing.tflite")], m4, QUICK)


def test_not_installed_or_broken(folder, m4, tmp_path, monkeypatch):
    path = str(folder / "int8.tflite")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tflite_micro", None)
        with pytest.raises(
            UnsupportedError, match=r"not installed; pip install 'edgeprune\[mcu\]'"
        ):
            tflm.run([path], m4, QUICK)
    (tmp_path / "tflite_micro.py").write_text("raise ImportError('libfar.so: no such file')\n")
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path))
    with pytest.raises(UnsupportedError, match=r"does not load \(libfar.so: no such file\)"):
        tflm.run([path], m4, QUICK)


def test_nothing_is_printed_and_no_folder_is_trusted(folder, tmp_path, monkeypatch, capfd):
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the working folder')\n")
    monkeypatch.chdir(tmp_path)
    assert simulate(folder, "int8").comparison.equal
    assert capfd.readouterr() == ("", "")
