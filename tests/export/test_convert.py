"""Whole conversions: files in, a verified .tflite and its record out, or nothing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgeprune.errors import InputError, UnsupportedError, VerificationError
from edgeprune.export import tflite
from edgeprune.export.convert import convert


@pytest.fixture(scope="module")
def flavours():
    import keras
    import tf_keras

    return {"keras": keras, "tf_keras": tf_keras}


def network(keras, **kwargs):
    """Image in, three classes out; BatchNorm and Dropout behave differently in training."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 2), name="image", **kwargs)
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5)(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(x))
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(4, 3)), rng.normal(size=3)
    model.get_layer("classes").set_weights([kernel, bias])
    model.get_layer("norm").set_weights(
        [rng.uniform(0.5, 2, 4), rng.normal(size=4), rng.normal(size=4), rng.uniform(0.5, 2, 4)]
    )
    return model


SAMPLES = np.random.default_rng(1).normal(size=(20, 8, 8, 2)).astype(np.float32)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def run(path, *arrays):
    """Run a file by position, as a user's device program would."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


# Modes and sources


@pytest.mark.parametrize("mode", ["none", "float16", "dynamic", "int8", "int16x8"])
@pytest.mark.parametrize("name", ["keras", "tf_keras"])
def test_every_mode_of_both_flavours(flavours, tmp_path, name, mode):
    model = network(flavours[name])
    calibration = SAMPLES if mode.startswith("int") else None
    artifact = convert(model, tmp_path / "a.tflite", quantize=mode, calibration=calibration)
    assert artifact.quantization == mode
    assert artifact.verification.passed
    assert artifact.verification.samples == (20 if calibration is not None else 256)
    (output,) = run(artifact.path, SAMPLES[:1])
    assert output.shape == (1, 3)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, np.asarray(model(SAMPLES[:1])), atol=0.05)
    dtypes = {weight.dtype for weight in tflite.read(artifact.path).weights()}
    # Kernels under 1024 entries stay in float in dynamic mode.
    expected = {"none": "float32", "dynamic": "float32", "float16": "float16"}
    assert dtypes == {expected.get(mode, "int8")}


@pytest.mark.parametrize("suffix", ["keras", "h5", "hdf5"])
@pytest.mark.parametrize("name", ["keras", "tf_keras"])
def test_files_of_both_flavours(flavours, tmp_path, name, suffix):
    model = network(flavours[name])
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    artifact = convert(path, tmp_path / "a.tflite")
    assert artifact.made_by["source"] == {
        "model": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    np.testing.assert_allclose(
        run(artifact.path, SAMPLES[:1])[0], np.asarray(model(SAMPLES[:1])), atol=1e-5
    )


@pytest.mark.parametrize("name", ["keras", pytest.param("tf_keras", marks=pytest.mark.slow)])
def test_saved_model_directories(flavours, tmp_path, name):
    import tensorflow as tf

    model = network(flavours[name])
    if name == "keras":
        model.export(tmp_path / "saved", verbose=False)
    else:
        tf.saved_model.save(model, str(tmp_path / "saved"))
    artifact = convert(
        tmp_path / "saved", tmp_path / "a.tflite", quantize="int8", calibration=SAMPLES
    )
    assert artifact.verification.passed
    assert tflite.read(artifact.path).subgraphs[0].tensors[0].signature == (1, 8, 8, 2)
    first = artifact.made_by["source"]["sha256"]
    assert convert(tmp_path / "saved", tmp_path / "b.tflite").made_by["source"]["sha256"] == first


def test_a_saved_model_of_plain_tensorflow(tmp_path):
    import tensorflow as tf

    class Scale(tf.Module):
        def __init__(self):
            self.factor = tf.Variable(3.0)

        @tf.function(input_signature=[tf.TensorSpec((None, 2)), tf.TensorSpec((None, 2))])
        def __call__(self, b, a):
            return {"difference": self.factor * (b - a)}

    module = Scale()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.__call__)
    artifact = convert(tmp_path / "saved", tmp_path / "a.tflite")
    assert artifact.made_by["outputs"] == ["difference"]
    runner = Interpreter(str(artifact.path)).get_signature_runner()
    outputs = runner(a=np.ones((1, 2), np.float32), b=np.full((1, 2), 5, np.float32))
    assert outputs["difference"].tolist() == [[12, 12]]


def test_integer_input_and_output(flavours, tmp_path):
    artifact = convert(
        network(flavours["keras"]),
        tmp_path / "a.tflite",
        quantize="int8",
        calibration=SAMPLES,
        io="int8",
    )
    interpreter = Interpreter(str(artifact.path))
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details() + interpreter.get_output_details():
        assert detail["dtype"] is np.int8
    names = {op.name for op in tflite.read(artifact.path).subgraphs[0].operators}
    assert not names & {"QUANTIZE", "DEQUANTIZE"}


# Stripping


def test_quantize_aware_models_are_stripped(flavours, tmp_path):
    from edgeprune.quantization.qat import quantize_aware

    for name, keras in flavours.items():
        aware = quantize_aware(network(keras))
        aware(SAMPLES)
        artifact = convert(aware, tmp_path / f"{name}.tflite", quantize="int8", calibration=SAMPLES)
        assert artifact.verification.passed


def test_pruned_tfmot_files_are_stripped(flavours, tmp_path):
    import tensorflow_model_optimization as tfmot

    pruned = tfmot.sparsity.keras.prune_low_magnitude(
        network(flavours["tf_keras"]), tfmot.sparsity.keras.ConstantSparsity(0.5, 0)
    )
    pruned.save(tmp_path / "pruned.h5")
    artifact = convert(tmp_path / "pruned.h5", tmp_path / "a.tflite")
    assert artifact.verification.passed
    assert len(tflite.read(artifact.path).subgraphs[0].operators) <= 6


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["keras", "tf_keras"])
def test_half_precision_models_convert_in_float32(flavours, tmp_path, name, policy):
    keras = flavours[name]
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = network(keras)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    artifact = convert(model, tmp_path / "a.tflite")
    (output,) = run(artifact.path, SAMPLES[:1])
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, np.float32(model(SAMPLES[:1])), atol=0.05)


# Shapes


def test_batch(flavours, tmp_path):
    model = network(flavours["keras"])
    for batch, signature in ((1, 1), (3, 3), ("dynamic", -1)):
        artifact = convert(model, tmp_path / "a.tflite", batch=batch)
        graph = tflite.read(artifact.path).subgraphs[0]
        assert graph.tensors[graph.inputs[0]].signature == (signature, 8, 8, 2)
        assert graph.tensors[graph.outputs[0]].signature == (signature, 3)
    for batch in (0, -1, "all", 1.5):
        with pytest.raises(InputError, match="batch must be a whole number"):
            convert(model, tmp_path / "a.tflite", batch=batch)


def test_a_model_built_for_one_batch(flavours, tmp_path):
    for name, keras in flavours.items():
        model = network(keras, batch_size=4)
        artifact = convert(model, tmp_path / f"{name}.tflite", quantize="int8", calibration=SAMPLES)
        graph = tflite.read(artifact.path).subgraphs[0]
        assert graph.tensors[graph.inputs[0]].shape == (4, 8, 8, 2)
        with pytest.raises(InputError, match="built for batches of 4, got batch 2"):
            convert(model, tmp_path / "b.tflite", batch=2)


def test_free_dimensions_need_a_shape(flavours, tmp_path):
    for name, keras in flavours.items():
        inputs = keras.Input((None, None, 3), name="image")
        x = keras.layers.Conv2D(2, 3)(inputs)
        model = keras.Model(inputs, keras.layers.GlobalMaxPooling2D()(x))
        output = tmp_path / f"{name}.tflite"
        with pytest.raises(
            InputError, match=r"\(\?, \?, 3\) with free .*`input_shape=image=224,224,3`"
        ):
            convert(model, output)
        for shape in ((16, 12, 3), {"image": (16, 12, 3)}):
            artifact = convert(model, output, input_shape=shape)
            graph = tflite.read(artifact.path).subgraphs[0]
            assert graph.tensors[graph.inputs[0]].signature == (1, 16, 12, 3)
        for shape in ((16, 12), (16, 12, 4), (0, 12, 3), {"picture": (16, 12, 3)}):
            with pytest.raises(InputError, match="input shape"):
                convert(model, output, input_shape=shape)


def two_by_two(keras):
    """Inputs whose alphabetical order is not theirs, of two dtypes; two outputs; a nested model."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    z = keras.Input((6,), name="z-values")
    a = keras.Input((3,), dtype="int32", name="a_tokens")
    inner_in = keras.Input((6,))
    inner = keras.Model(inner_in, layers.Dense(4, activation="relu")(inner_in), name="inner")
    x = layers.Concatenate()([inner(z), layers.Flatten()(layers.Embedding(9, 2)(a))])
    return keras.Model([z, a], [layers.Dense(2, name="two")(x), layers.Dense(1, name="one")(x)])


@pytest.mark.parametrize("name", ["keras", "tf_keras"])
def test_several_inputs_and_outputs(flavours, tmp_path, name):
    model = two_by_two(flavours[name])
    rng = np.random.default_rng(0)
    z, a = rng.normal(size=(10, 6)).astype(np.float32), rng.integers(0, 9, (10, 3), np.int32)
    for mode in ("none", "int8"):
        artifact = convert(
            model, tmp_path / "a.tflite", quantize=mode, calibration={"a_tokens": a, "z_values": z}
        )
        assert [spec["name"] for spec in artifact.made_by["inputs"]] == ["z_values", "a_tokens"]
        runner = Interpreter(str(artifact.path)).get_signature_runner()
        got = runner(z_values=z[:1], a_tokens=a[:1])
        for key, expected in zip(("two", "one"), model([z[:1], a[:1]]), strict=True):
            np.testing.assert_allclose(got[key], np.asarray(expected), atol=0.1)


def test_a_dictionary_of_inputs(flavours, tmp_path):
    keras = flavours["keras"]
    inputs = {"b": keras.Input((2,), name="b"), "a": keras.Input((2,), name="a")}
    model = keras.Model(inputs, {"out": inputs["b"] - 2 * inputs["a"]})
    artifact = convert(model, tmp_path / "a.tflite")
    runner = Interpreter(str(artifact.path)).get_signature_runner()
    outputs = runner(a=np.ones((1, 2), np.float32), b=np.full((1, 2), 5, np.float32))
    (values,) = outputs.values()
    assert values.tolist() == [[3, 3]]


def test_sequential_and_shared_layers(flavours, tmp_path):
    for name, keras in flavours.items():
        shared = keras.layers.Dense(4)
        model = keras.Sequential([keras.Input((4,)), shared, keras.layers.ReLU(), shared])
        assert convert(model, tmp_path / f"{name}.tflite").verification.passed


def test_no_operator_of_dropout_or_training_is_left(flavours, tmp_path):
    for name, keras in flavours.items():
        path = convert(network(keras), tmp_path / f"{name}.tflite").path
        names = [op.name for op in tflite.read(path).subgraphs[0].operators]
        assert names == ["CONV_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]


# What cannot be done


def test_arguments_that_do_not_go_together(flavours, tmp_path):
    model = network(flavours["keras"])
    cases = [
        ({"quantize": "int2"}, "unknown quantization 'int2'; supported: none, float16, dynamic"),
        ({"quantize": "int8"}, "int8 quantization needs calibration data"),
        ({"quantize": "int16x8"}, "int16x8 quantization needs calibration data"),
        ({"io": "int8"}, "`io='int8'` goes with `quantize='int8'`, got `quantize='none'`"),
        ({"io": "int16"}, "unknown `io='int16'`"),
        ({"sparse": "yes"}, "unknown `sparse='yes'`"),
        ({"tolerance": -1.0}, "`tolerance` must be 0 or more"),
        ({"quantize": "int8", "calibration": SAMPLES[..., :1]}, r"samples of shape \(8, 8, 2\)"),
        ({"quantize": "int8", "calibration": np.full_like(SAMPLES, np.nan)}, "NaN"),
        ({"quantize": "int8", "calibration": SAMPLES.astype(np.uint8)}, "float32, got uint8"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            convert(model, tmp_path / "a.tflite", **arguments)
    with pytest.raises(InputError, match=r"got Functional; the order is .*convert\(model, output"):
        convert("a.tflite", model)
    with pytest.raises(InputError, match="supported: a Keras 3 or tf_keras model"):
        convert(object(), tmp_path / "a.tflite")
    assert listing(tmp_path) == []


def test_outputs_that_cannot_be(flavours, tmp_path):
    model = network(flavours["keras"])
    (tmp_path / "folder.tflite").mkdir()
    (tmp_path / "file").write_text("")
    cases = [
        ("a.bin", r"must end in \.tflite"),
        ("folder.tflite", "it is a directory"),
        ("none/a.tflite", "folder .*/none does not exist; make it first"),
        ("file/a.tflite", "cannot write"),
    ]
    for name, message in cases:
        with pytest.raises(InputError, match=message):
            convert(model, tmp_path / name)
    (tmp_path / "a.tflite").write_bytes(b"x")
    with pytest.raises(InputError, match="is the model itself"):
        convert(tmp_path / "a.tflite", tmp_path / "a.tflite")
    assert listing(tmp_path) == ["a.tflite", "file", "folder.tflite"]


def test_a_folder_that_may_not_be_written(flavours):
    # Nobody, root included, creates files there.
    with pytest.raises(InputError, match=r"cannot write /proc/a\.tflite"):
        convert(network(flavours["keras"]), "/proc/a.tflite")


def test_select_operators_are_named_and_may_be_allowed(flavours, tmp_path):
    import tensorflow as tf

    keras = flavours["keras"]
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: tf.math.erf(x))(inputs))
    with pytest.raises(UnsupportedError, match="lacks: Erf; replace them, or pass `allow_sel"):
        convert(model, tmp_path / "a.tflite")
    with pytest.raises(UnsupportedError, match="pass `verify=False`"):
        convert(model, tmp_path / "a.tflite", allow_select_ops=True)
    assert listing(tmp_path) == []
    artifact = convert(model, tmp_path / "a.tflite", allow_select_ops=True, verify=False)
    assert artifact.verification is None
    assert [op.name for op in tflite.read(artifact.path).subgraphs[0].operators] == ["FlexErf"]


def test_operators_that_nothing_runs_are_named(flavours, tmp_path):
    import tensorflow as tf

    keras = flavours["keras"]
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: tf.math.erfinv(x))(inputs))
    with pytest.raises(UnsupportedError, match="no TFLite runtime runs: Erfinv; replace"):
        convert(model, tmp_path / "a.tflite")


def test_loops_are_refused_in_integer_modes_only(flavours, tmp_path):
    keras = flavours["keras"]
    x = np.random.default_rng(0).normal(size=(10, 5, 3)).astype(np.float32)

    def recurrent(unroll):
        layers = [keras.Input((5, 3)), keras.layers.GRU(4, unroll=unroll), keras.layers.Dense(2)]
        return keras.Sequential(layers)

    with pytest.raises(UnsupportedError, match="unroll=True"):
        convert(recurrent(False), tmp_path / "a.tflite", quantize="int8", calibration=x)
    assert convert(recurrent(False), tmp_path / "a.tflite", quantize="dynamic").verification.passed
    unrolled = convert(recurrent(True), tmp_path / "b.tflite", quantize="int8", calibration=x)
    assert unrolled.verification.passed


@pytest.mark.parametrize("name", ["keras", pytest.param("tf_keras", marks=pytest.mark.slow)])
def test_token_ids_outside_the_vocabulary_are_the_datas_fault(flavours, tmp_path, name):
    layers = flavours[name].layers
    inputs = flavours[name].Input((6,), dtype="int32")
    model = flavours[name].Model(inputs, layers.Dense(3)(layers.Embedding(40, 8)(inputs)))
    tokens = np.arange(60, dtype=np.int32).reshape(10, 6)
    for mode, message in (
        ("int8", r"calibration data: an index, such as a token id, lies outside"),
        ("none", r"indices\[.*\] = 40 is not in \[0, 40\)\); .* below the embedding's vocabulary"),
    ):
        with pytest.raises(InputError, match=message):
            convert(model, tmp_path / "a.tflite", quantize=mode, calibration=tokens)
        convert(model, tmp_path / "b.tflite", quantize=mode, calibration=tokens % 40)
    assert listing(tmp_path) == ["b.tflite", "b.tflite.json"]


def test_text_inputs_are_refused(flavours, tmp_path):
    keras = flavours["keras"]
    inputs = keras.Input((1,), dtype="string")
    vectors = keras.layers.TextVectorization(max_tokens=5, vocabulary=["a", "b"])(inputs)
    with pytest.raises(UnsupportedError, match="takes strings"):
        convert(keras.Model(inputs, vectors), tmp_path / "a.tflite")


def test_damaged_saved_models(flavours, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"not a protobuf")
    with pytest.raises(InputError, match="not a whole SavedModel"):
        convert(tmp_path / "saved", tmp_path / "a.tflite")
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(InputError, match="not a whole SavedModel"):
        convert(tmp_path / "saved", tmp_path / "a.tflite")


# What is left behind


def test_the_record(flavours, tmp_path):
    artifact = convert(
        network(flavours["keras"]), tmp_path / "a.tflite", quantize="int8", calibration=SAMPLES
    )
    content = artifact.path.read_bytes()
    assert artifact.bytes == len(content)
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.record_path.name == "a.tflite.json"
    record = json.loads(artifact.record_path.read_text())
    assert record["sha256"] == artifact.sha256
    assert record["verification"]["passed"] is True
    assert record["verification"]["notes"] == list(artifact.verification.notes)
    first, second = str(artifact).splitlines()
    assert first.startswith(f"{artifact.path}: ")
    assert ", quantization int8, sparsity 0." in first
    assert second.startswith("verified on 20 samples: max abs error ")
    assert record["made_by"]["recipe"]["quantize"] == "int8"
    assert record["made_by"]["calibration_samples"] == 20
    assert record["made_by"]["verified_on"] == "calibration samples"
    assert {"edgeprune", "tensorflow", "keras", "ai-edge-litert"} <= set(
        record["made_by"]["versions"]
    )
    assert listing(tmp_path) == ["a.tflite", "a.tflite.json"]
    random = convert(network(flavours["keras"]), tmp_path / "b.tflite")
    assert random.made_by["verified_on"] == "random inputs, seed 0"


def cancellation(keras):
    """(1000 a + b) - 1000 a: eight bits cannot hold what is left of it."""
    inputs = keras.Input((2,))
    large = keras.layers.Dense(1, use_bias=False, name="large")
    both = keras.layers.Dense(1, use_bias=False, name="both")
    model = keras.Model(inputs, keras.layers.Subtract()([both(inputs), large(inputs)]))
    both.set_weights([np.array([[1000.0], [1.0]])])
    large.set_weights([np.array([[1000.0], [0.0]])])
    return model


def test_a_failed_verification_leaves_what_was_there(flavours, tmp_path):
    model = cancellation(flavours["keras"])
    samples = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    output = tmp_path / "a.tflite"
    output.write_text("old")
    with pytest.raises(VerificationError, match=r"max abs error .* on 50 samples.*tole") as caught:
        convert(model, output, quantize="int8", calibration=samples)
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == ["a.tflite"]
    assert output.read_text() == "old"
    artifact = convert(model, output, quantize="int8", calibration=samples, verify=False)
    assert artifact.verification is None
    record = json.loads(artifact.record_path.read_text())
    assert record["made_by"]["verified_on"] == "nothing, as asked"
    assert convert(
        model, output, quantize="int8", calibration=samples, tolerance=100.0
    ).verification.passed


def test_sparsity_is_counted_in_the_file(flavours, tmp_path):
    """Conv 8 of 72 zeros, dense 6 of 12: 14 of 84."""
    model = network(flavours["keras"])
    kernel, bias = model.get_layer("conv").get_weights()
    kernel.reshape(-1)[:8] = 0
    model.get_layer("conv").set_weights([kernel, bias])
    kernel, bias = model.get_layer("classes").get_weights()
    kernel.reshape(-1)[:6] = 0
    model.get_layer("classes").set_weights([kernel, bias])
    for mode in ("none", "int8"):
        artifact = convert(
            model, tmp_path / "a.tflite", quantize=mode, calibration=SAMPLES, clean=False
        )
        zeros = sum(weight.zeros() for weight in tflite.read(artifact.path).weights())
        # In int8, weights below half a step become zeros too.
        assert zeros == 14 if mode == "none" else zeros >= 14
        assert artifact.sparsity == pytest.approx(zeros / 84)


PROGRAM = """
import resource, sys, keras
from edgeprune.errors import EdgepruneError
from edgeprune.export.convert import convert
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(2000)])
model.save(sys.argv[1] + "/model.keras")
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
print("ready", flush=True)
try:
    convert(sys.argv[1] + "/model.keras", sys.argv[1] + "/a.tflite")
except EdgepruneError as error:
    print("Error:", error)
except KeyboardInterrupt:
    print("interrupted")
"""


def start(folder, kind):
    """Run a conversion in a process of its own, whose temporary files go to a folder of ours."""
    (folder / "tmp").mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder / "tmp")},
    )


def test_a_full_disk(tmp_path):
    out, err = start(tmp_path, "full").communicate(timeout=120)
    assert "Error: " in out, err[-2000:]
    assert "Traceback" not in out + err
    assert listing(tmp_path) == ["model.keras", "tmp"]
    assert listing(tmp_path / "tmp") == []


def test_ctrl_c_leaves_nothing(tmp_path):
    process = start(tmp_path, "interrupt")
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    left = [name for name in listing(tmp_path) if name not in ("model.keras", "tmp")]
    # Should the machine have been quick enough to finish, the files are whole.
    assert (out, left) in (("interrupted\n", []), ("", ["a.tflite", "a.tflite.json"]))
    assert listing(tmp_path / "tmp") == []


def test_paths_are_checked_before_anything_is_loaded(tmp_path):
    """Without TensorFlow, and before the model is even looked for."""
    program = (
        "import sys, edgeprune\n"
        "for output, data in (('none/a.tflite', None), ('a.tflite', 'no.npz'), "
        "('a.tflite', 'no')):\n"
        "    try: edgeprune.convert('no.keras', output, calibration=data)\n"
        "    except edgeprune.InputError as error: print(error)\n"
        "print('tensorflow' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    folder, file, spec, tensorflow = done.stdout.splitlines()
    assert folder == "cannot write none/a.tflite: folder none does not exist; make it first"
    assert file.startswith("data file no.npz does not exist")
    assert spec.startswith("cannot load data from 'no'")
    assert tensorflow == "False"
    assert listing(tmp_path) == []


def test_a_kill_leaves_nothing_beside_the_output(tmp_path):
    process = start(tmp_path, "kill")
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.7)
    process.kill()
    process.communicate(timeout=120)
    left = [name for name in listing(tmp_path) if name not in ("model.keras", "tmp")]
    assert left in ([], ["a.tflite", "a.tflite.json"])


def test_nothing_is_printed(flavours, tmp_path, capfd):
    convert(network(flavours["keras"]), tmp_path / "a.tflite", quantize="int8", calibration=SAMPLES)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_progress_names_the_steps(flavours, tmp_path):
    steps = []
    convert(network(flavours["keras"]), tmp_path / "a.tflite", progress=steps.append)
    assert steps == ["load", "clean up", "convert", "verify", "write"]
