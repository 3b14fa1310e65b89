"""Advice: each verdict on a model made for it, each obstacle named with its layer."""

import json
import subprocess
import sys

import numpy as np
import pytest

from edgeprune.devices.advise import advise
from edgeprune.devices.lookup import load_profile
from edgeprune.devices.subject import subject_of
from edgeprune.devices.techniques import sparse_blockers
from edgeprune.devices.weight_bytes import clustered_bytes, float16_bytes, int8_bytes
from edgeprune.errors import InputError
from edgeprune.export.convert import convert
from edgeprune.export.converter import to_tflite
from edgeprune.export.encode import encode_sparse
from edgeprune.export.program import program_of
from edgeprune.export.tflite import read
from edgeprune.models import import_keras

keras = import_keras()
layers = keras.layers
ARM = "emulated-arm64"
ONE_SIDE = ((0, 1), (0, 1))


def net(
    *,
    pad=1,
    stem=3,
    stem_strides=2,
    pool=True,
    depthwise=3,
    depthwise_strides=1,
    wide=False,
    images=3,
    width=32,
):
    inputs = keras.Input((16, 16, images))
    x = layers.ZeroPadding2D(pad)(inputs) if pad else inputs
    x = layers.Conv2D(
        16, stem, strides=stem_strides, padding="valid" if pad else "same", name="conv1"
    )(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(depthwise, strides=depthwise_strides, padding="same", name="dw")(x)
    x = layers.Conv2D(width, 1, activation="relu6", name="point")(x)
    x = layers.Conv2D(2 * width, 1, name="point2")(x)
    if wide:
        x = layers.Conv2D(16, 3, padding="same", name="wide")(x)
    x = layers.GlobalAveragePooling2D()(x) if pool else layers.Flatten()(x)
    return filled(keras.Model(inputs, layers.Dense(5, name="top")(x), name="net"))


def filled(model):
    random = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(random.normal(size=variable.shape))
    return model


def file_of(model, *, quantize="none", batch=1):
    samples = None
    if quantize == "int8":
        samples = [np.random.default_rng(0).random((8, *model.input_shape[1:]), np.float32)]
    program = program_of(model).fixed(batch, None)
    return to_tflite(program, quantize, samples, integer_io=False, allow_select_ops=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("advise")
    model = net()
    model.save(folder / "net.keras")
    (folder / "net.tflite").write_bytes(file_of(model))
    (folder / "int8.tflite").write_bytes(file_of(model, quantize="int8"))
    (folder / "free.tflite").write_bytes(file_of(model, batch="dynamic"))
    return folder


def profile(folder, text, name="board", base="cortex-m4"):
    path = folder / f"{name}.toml"
    path.write_text(f'extends = "{base}"\n{text}')
    return path


def said(advice, technique, layer=None):
    return " | ".join(r.text for r in advice.of(technique).reasons if r.layer == layer)


@pytest.mark.parametrize(
    ("device", "pays_in"),
    [
        # On 64-bit Arm int8 is quicker and zeros are skipped; on x86 both only take less room.
        (ARM, {"int8": "both", "float16": "bytes", "sparse_float": "both"}),
        ("raspberry-pi-4", {"int8": "both", "weight_clustering": "none", "sparse_int8": "none"}),
        ("cortex-m4", {"int8": "both", "float16": "none", "weight_clustering": "bytes"}),
        ("cortex-m4", {"sparse_float": "none", "structured_pruning": "both"}),
        ("ethos-u55-128", {"int8": "both", "sparse_int8": "both", "weight_clustering": "both"}),
        ("ethos-u55-128", {"float16": "none", "sparse_float": "none", "fixed_batch": "none"}),
    ],
)
def test_verdicts_follow_the_device(folder, device, pays_in):
    advice = advise(folder / "net.tflite", device)
    expected = {"none": (), "bytes": ("bytes",), "both": ("bytes", "latency")}
    for technique, gains in pays_in.items():
        found = advice.of(technique)
        assert found.pays_in == expected[gains], technique
        assert found.verdict == ("does not pay" if gains == "none" else "pays")
        assert found.latency.kind == "predicted"
        if technique not in ("fixed_batch", "structured_pruning"):
            source = load_profile(device).sources[f"rewards.{technique}"]
            assert found.sources == (source,)
    assert advice.blockers == ()


def test_without_a_statement_nothing_is_known(folder, tmp_path):
    board = tmp_path / "board.toml"
    board.write_text('description = "a board"\nbackend = "local"\n')
    advice = advise(folder / "net.tflite", board)
    assert advice.of("int8").verdict == "not known"
    assert advice.of("int8").latency.effect == "not known"
    assert "does not say" in said(advice, "int8")


def test_zeros_in_the_wrong_place_do_not_help():
    """Nine in ten weights are zero, but in the 1x1 convolutions that matter none is."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, strides=2, name="conv1")(layers.ZeroPadding2D(1)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1, name="point")(x))
    other = layers.Dense(64, use_bias=False, name="zeros")(layers.Flatten()(inputs))
    model = filled(keras.Model(inputs, [x, other]))
    kernel = model.get_layer("zeros").kernel
    kernel.assign(np.array(kernel) * (np.random.default_rng(0).random(kernel.shape) > 0.95))
    found = advise(model, ARM)
    assert found.of("sparse_float").latency.effect == "no faster"
    assert "must be more than 2/3" in said(found, "sparse_float")


def test_a_file_that_is_stored_sparse_already(tmp_path):
    model = net(depthwise_strides=2)
    for variable in model.weights:
        if len(variable.shape) > 1:
            keep = np.random.default_rng(1).random(variable.shape) > 0.9
            variable.assign(np.array(variable) * keep)
    path = tmp_path / "sparse.tflite"
    path.write_bytes(encode_sparse(file_of(model), "on", lambda content: True)[0])
    found = advise(path, ARM)
    assert found.of("sparse_float").verdict == "does not pay"
    assert "stored sparse already, at sparsity 0.9" in said(found, "sparse_float")
    # It still says why the zeros that are stored bring no speed.
    assert any("pads (0,1)" in reason.text for reason in found.of("sparse_float").reasons)
    assert any("sparse-encoded" in note for note in advise(path, "ethos-u55-128").notes)


def test_layers_are_named_as_in_the_keras_model():
    """Keras 3 counts calls in operations' names: layer conv_1's is conv_1_1, layer conv's too."""
    names = ["conv", "conv_1", "conv_2"]
    model = keras.Sequential([keras.Input((8, 8, 3))])
    for name in names:
        model.add(layers.Conv2D(9, 1, name=name))
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(2))
    reasons = advise(filled(model), ARM).of("structured_pruning").reasons
    uneven = [reason.layer for reason in reasons if reason.text.startswith("has 9 channels")]
    assert uneven == names


def test_free_dimensions_are_fixed_as_asked():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(9, 1)(inputs))
    model = filled(keras.Model(inputs, layers.Dense(2)(x)))
    with pytest.raises(InputError, match="input_shape"):
        advise(model, ARM)
    assert advise(model, ARM, input_shape=(8, 8, 3)).of("int8").verdict == "pays"


def test_tf_keras_models_get_advice_too():
    import tf_keras

    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(32, activation="relu", input_shape=(64,), name="first"),
            tf_keras.layers.Dense(2, name="last"),
        ]
    )
    found = advise(model, ARM)
    # Most of the file is 64 * 32 weights, of four bytes, then of one.
    assert found.of("int8").bytes_before - found.of("int8").bytes_after > 2 * 64 * 32
    assert "a Keras 3 model is given" in said(found, "structured_pruning")


def test_files_that_microcontrollers_misread_are_noted(folder, tmp_path):
    half = tmp_path / "half.tflite"
    half.write_bytes(file_of(net(), quantize="float16"))
    (blocker,) = advise(half, "cortex-m4").blockers
    assert blocker.text == "TFLite Micro does not run float16 weights: convert with int8"
    assert "float16 already" in said(advise(half, ARM), "float16")


@pytest.mark.parametrize(
    ("broken", "layer", "why"),
    [
        ({}, None, None),
        ({"pad": 0}, "conv1", "pads (0,1) ('same' with stride 2): XNNPACK's sparse path needs"),
        ({"pad": ONE_SIDE}, "conv1", "needs padding 1 on every side"),
        ({"pad": ((1, 0), (1, 0))}, "conv1", "pads (1,0): XNNPACK's sparse path needs padding 1"),
        ({"stem_strides": 1}, "conv1", "only one of 3 channels with stride 2"),
        ({"stem": 5, "pad": 2}, "conv1", "is 5x5"),
        ({"images": 1}, "conv1", "only one of 3 channels"),
        ({"depthwise_strides": 2}, "dw", "pads (0,1)"),
        ({"depthwise": 7}, "dw", "must be 3x3 or 5x5"),
        ({"wide": True}, "wide", "is 3x3"),
        ({"pool": False}, None, "no spatial MEAN"),
    ],
)
def test_what_stands_in_the_way_of_sparse_inference(broken, layer, why):
    found = sparse_blockers(subject_of(net(**broken)))
    if why is None:
        assert found == ()
        return
    assert found[-1].layer == layer
    assert why in found[-1].text


def test_every_layer_in_the_way_is_named():
    model = net(pad=0, depthwise_strides=2)
    assert [reason.layer for reason in sparse_blockers(subject_of(model))] == ["conv1", "dw"]
    advice = advise(model, ARM)
    sparse = advice.of("sparse_float")
    assert (sparse.pays_in, sparse.latency.effect) == (("bytes",), "no faster")
    assert "conv1 pads (0,1)" in str(advice)


def test_what_rewrites_padding_is_named(tmp_path):
    advice = advise(net(pad=0, depthwise_strides=2), ARM)
    assert said(advice, "sparse_float").endswith(
        "`ep.make_sparse_eligible`, or `rewrite_padding = true` under [sparsity] of a recipe, pads "
        "conv1, dw so; the model is to be fine-tuned after it"
    )
    (tmp_path / "net.tflite").write_bytes(file_of(net(pad=0)))
    stored = advise(tmp_path / "net.tflite", ARM)
    assert said(stored, "sparse_float").endswith("in the Keras model that it comes from")
    # A kernel of 7x7 is no matter of padding.
    assert "make_sparse_eligible" not in str(advise(net(depthwise=7), ARM))


def test_reasons_come_before_their_sources(folder, tmp_path):
    told = said(advise(folder / "net.tflite", "cortex-m4"), "float16")
    assert told == (
        "brings nothing there: the kernels take int8 and int16 activations, no float "
        "[https://github.com/tensorflow/tflite-micro/issues/2473]; TFLite Micro defines no float16 "
        "operators [https://github.com/ARM-software/CMSIS-NN/blob/main/README.md]"
    )
    told = said(advise(folder / "net.tflite", "local"), "int8")
    assert told.startswith("no faster there: ResNet-8 in int8 took 1.28x")
    own = profile(tmp_path, '[sources]\n"rewards.float16" = "it is so: we tried"\n')
    assert said(advise(folder / "net.tflite", own), "float16") == (
        "brings nothing there: it is so: we tried"
    )


def test_little_sparse_work_is_no_promise():
    model = net(width=2)
    # Products: conv1 8*8*16*27, dw 8*8*16*9;
    # the 1x1 ones 8*8*(16*2 + 2*4) and top 4*5, which is 6.5 % of all.
    advice = advise(model, ARM)
    assert advice.of("sparse_float").latency.effect == "not known"
    assert "only 7%" in said(advice, "sparse_float")


def test_bytes_foretell_the_converted_files():
    model = net(width=128)
    subject = subject_of(model)
    assert int8_bytes(subject.tflite) == pytest.approx(
        len(file_of(model, quantize="int8")), rel=0.03
    )
    assert float16_bytes(subject.tflite) == pytest.approx(
        len(file_of(model, quantize="float16")), rel=0.03
    )


def test_dead_channels_that_convert_removes_are_not_counted(tmp_path):
    model = net(width=128)
    kernel, bias = (np.array(variable) for variable in model.get_layer("point").weights)
    kernel[..., :100], bias[:100] = 0, -1  # after relu6 nothing is left of them
    model.get_layer("point").set_weights([kernel, bias])
    content = file_of(model)
    found = advise(model, ARM)
    # point and point2 lose 100 of 128 channels between them.
    assert len(content) - found.bytes == pytest.approx(4 * 100 * (16 + 1 + 256), abs=64)
    artifact = convert(model, tmp_path / "small.tflite", verify=False)
    assert found.bytes == pytest.approx(artifact.bytes, abs=64)  # the layers' names
    assert any("(100), are not counted" in note for note in found.notes)
    assert found.of("int8").bytes_after < int8_bytes(subject_of(model).tflite) - 100 * (16 + 256)

    (tmp_path / "net.tflite").write_bytes(content)
    stored = advise(tmp_path / "net.tflite", ARM)
    assert stored.bytes == len(content)
    (note,) = [note for note in stored.notes if "dead channels" in note]
    left = convert(tmp_path / "net.tflite", tmp_path / "less.tflite").bytes
    assert note.endswith(
        f"`edgeprune convert net.tflite` removes them, which leaves {left:,} bytes"
    )
    assert not any("dead channels" in note for note in advise(net(), ARM).notes)


def test_int4_weights_are_not_for_look_up_tables(tmp_path):
    path = tmp_path / "int4.tflite"
    convert(net(width=128), path, quantize="int4", verify=False)
    weights = {kernel.dtype for kernel in read(path).weights()}
    assert "int4" in weights
    size = path.stat().st_size
    int8 = sum(kernel.entries for kernel in read(path).weights() if kernel.dtype == "int8")
    # The depthwise kernel is int8; its 16 channels of 9 weights pay for no table.
    assert int8 == 9 * 16
    assert clustered_bytes(read(path)) == size
    found = advise(path, "cortex-m4").of("weight_clustering")
    assert (found.verdict, found.bytes_after) == ("does not pay", size)
    assert "not fewer" in said(advise(path, "cortex-m4"), "weight_clustering")
    all_int4 = keras.Sequential([keras.Input((64,)), layers.Dense(64), layers.Dense(64)])
    convert(all_int4, path, quantize="int4", verify=False)
    assert said(advise(path, "cortex-m4"), "weight_clustering").endswith(
        "is for int8 weights, and these are int4"
    )


def test_sparse_bytes_foretell_the_encoded_file(tmp_path):
    model = net(width=128)
    for name in ("point", "point2"):
        kernel = model.get_layer(name).kernel
        values = np.array(kernel)
        flat = values.reshape(-1)
        flat[np.argsort(np.abs(flat))[: round(0.9 * flat.size)]] = 0
        kernel.assign(values)
    advice = advise(model, ARM).of("sparse_float")
    encoded = convert(model, tmp_path / "sparse.tflite", sparse="on", verify=False)
    assert advice.assumes is None  # the zeros are there
    assert advice.bytes_after == pytest.approx(encoded.bytes, rel=0.03)


def test_channels_that_do_not_fill_the_kernels():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, name="twelve")(inputs)
    x = layers.Conv2D(16, 3, name="sixteen")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = filled(keras.Model(inputs, layers.Dense(5, name="classes")(x)))
    advice = advise(model, ARM)  # multiples of 8
    assert said(advice, "structured_pruning", "twelve") == (
        "has 12 channels, no multiple of 8: kernels compute 16, 25% of them for nothing"
    )
    # The number of classes is the task's.
    named = {reason.layer for reason in advice.of("structured_pruning").reasons}
    assert "sixteen" not in named
    pruned = advice.of("structured_pruning")
    assert pruned.verdict == "pays"
    assert pruned.bytes_after < pruned.bytes_before
    # conv 6*6*12*27, 4*4*16*108, 16*5 -> 8 channels each: 6*6*8*27, 4*4*8*72, 8*5.
    assert pruned.latency.relative_macs == pytest.approx(
        (36 * 8 * 27 + 16 * 8 * 72 + 40) / (36 * 12 * 27 + 16 * 16 * 108 + 80)
    )


def test_narrow_models_have_nothing_to_prune():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="narrow")(inputs)
    model = filled(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    model = keras.Model(inputs, layers.Dense(2)(model.output))
    found = advise(model, ARM).of("structured_pruning")
    assert found.verdict == "does not pay"
    assert "narrow" in {reason.layer for reason in found.reasons}


def test_integer_models_are_at_their_goal(folder):
    advice = advise(folder / "int8.tflite", ARM)
    for technique in ("int8", "float16", "sparse_float"):
        assert advice.of(technique).verdict == "does not pay"
        assert "integers already" in said(advice, technique)


def test_a_free_batch(folder):
    fixed = advise(folder / "net.tflite", ARM).of("fixed_batch")
    assert (fixed.verdict, fixed.latency.effect) == ("does not pay", "no faster")
    for file in ("free.tflite", "net.keras"):
        free = advise(folder / file, ARM)
        assert free.of("fixed_batch").pays_in == ("latency",)
        assert "leaves the batch free" in said(free, "fixed_batch")


def test_loops_are_named():
    model = keras.Sequential([keras.Input((6, 4)), layers.LSTM(5, name="memory"), layers.Dense(2)])
    arm = advise(model, ARM)
    assert "runs as a loop" in said(arm, "int8", "memory")
    assert arm.of("int8").verdict == "does not pay"
    assert arm.blockers == ()
    micro = advise(model, "cortex-m4")
    assert [blocker.layer for blocker in micro.blockers] == ["memory"]
    assert all(found.verdict == "does not pay" for found in micro.techniques)


def test_operators_that_the_device_lacks_are_named_with_their_layer():
    inputs = keras.Input((4, 8))
    x = layers.Dense(8, name="first")(inputs)
    x = layers.Lambda(keras.ops.erf, name="error")(x)
    model = filled(keras.Model(inputs, layers.Dense(2, name="last")(x)))
    for device in ("cortex-m4", "raspberry-pi-4"):
        (blocker,) = advise(model, device).blockers
        assert blocker.layer == "error"
        assert "FlexErf" in blocker.text


def test_memory_that_is_too_small(folder, tmp_path):
    size = (folder / "net.tflite").stat().st_size
    small = advise(folder / "net.tflite", profile(tmp_path, f"[limits]\nflash_bytes = {size - 1}"))
    assert "makes the model fit" in said(small, "int8")
    assert small.too_large == ()
    tiny = advise(folder / "net.tflite", profile(tmp_path, "[limits]\nflash_bytes = 1000"))
    assert "more than the flash's 1,000" in str(tiny.too_large[0])
    assert tiny.of("structured_pruning").verdict == "pays"
    # point2 reads 8*8*32 and writes 8*8*64 values at once, a byte each; nothing takes more.
    text = "[limits]\narena_bytes = {}"
    fits = advise(folder / "net.tflite", profile(tmp_path, text.format(64 * 96)))
    assert fits.too_large == ()
    narrow = advise(folder / "net.tflite", profile(tmp_path, text.format(64 * 96 - 1)))
    assert narrow.too_large[0].layer.startswith("point2")
    assert "6,144 bytes" in narrow.too_large[0].text


def test_unusable_input_is_one_clear_error(folder, tmp_path):
    with pytest.raises(InputError, match="unknown device"):
        advise(folder / "net.tflite", "no-such-device")
    with pytest.raises(InputError, match="does not exist"):
        advise(tmp_path / "none.tflite", ARM)
    whole = (folder / "net.tflite").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\0" * 100):
        damaged = tmp_path / "damaged.tflite"
        damaged.write_bytes(content)
        with pytest.raises(InputError):
            advise(damaged, ARM)
    keras_file = tmp_path / "damaged.keras"
    keras_file.write_bytes((folder / "net.keras").read_bytes()[:500])
    with pytest.raises(InputError):
        advise(keras_file, ARM)
    with pytest.raises(InputError, match="Keras 3 or tf_keras"):
        advise(42, ARM)


KEYS = "technique verdict pays_in bytes_before bytes_after assumes latency reasons sources"


def test_the_command(folder):
    code = (
        "import sys\n"
        "from edgeprune.cli import cli\n"
        "cli.main(sys.argv[1:], standalone_mode=False)\n"
        "print('tensorflow' in sys.modules, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, "advise", str(folder / "net.tflite")]
    command += ["--device", ARM]
    table = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "sparse_float" in table.stdout
    assert table.stderr.strip() == "False"  # a .tflite file needs no TensorFlow
    ran = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    document = json.loads(ran.stdout)
    keys = ["model", "device", "description", "bytes", "blockers"]
    keys += ["too_large", "techniques", "notes"]
    assert list(document) == keys
    assert document == advise(folder / "net.tflite", ARM).to_dict()
    for entry in document["techniques"]:
        assert list(entry) == KEYS.split()
        assert list(entry["latency"]) == ["effect", "kind", "basis", "relative_macs", "command"]
        assert all(list(reason) == ["text", "layer"] for reason in entry["reasons"])
