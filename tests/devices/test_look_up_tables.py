"""Look-up tables by the real tflite-micro: what its files hold, equal outputs, and refusals."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from edgeprune.cli import cli
from edgeprune.devices import tflm
from edgeprune.devices.look_up_tables import check, look_up_tables, table_path
from edgeprune.devices.look_up_tables_worker import compressed
from edgeprune.errors import InputError, UnsupportedError, VerificationError
from edgeprune.export.convert import convert
from edgeprune.export.inspect import inspect
from edgeprune.export.micro import DECODE
from edgeprune.export.tflite import read
from edgeprune.models import import_keras

keras = import_keras()
layers = keras.layers
rng = np.random.default_rng(0)
IMAGES = rng.standard_normal((8, 8, 8, 4)).astype("float32")
DRAWN = np.array([-0.75, -0.25, 0.5, 1.0, 0.3, -0.6, 0.9])


def drawn(shape, values):
    """Weights of so many values, each of which every output channel has: they lie on its grid."""
    rows = np.resize(DRAWN[:values], int(np.prod(shape[:-1])))
    return rng.permuted(np.tile(rows[:, None], shape[-1]), axis=0).reshape(shape)


def cnn(conv, depthwise, dense):
    """Two convolutions and a dense layer, whose kernels have so many values."""
    inputs = keras.Input((8, 8, 4))
    stack = [
        layers.Conv2D(32, 3, activation="relu"),
        layers.DepthwiseConv2D(6),
        layers.Flatten(),
        layers.Dense(48),
    ]
    x = inputs
    for layer, values in zip(stack, (conv, depthwise, None, dense), strict=True):
        x = layer(x)
        if values is not None:
            kernel = layer.weights[0]
            kernel.assign(drawn(kernel.shape, values) if values < 99 else kernel * 1.0)
    return keras.Model(inputs, x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of one model with kernels of few values, and of one with kernels of many."""
    folder = tmp_path_factory.mktemp("tables")
    keras.utils.set_random_seed(0)
    how = {"quantize": "int8", "calibration": IMAGES, "verify": False, "clean": False}
    convert(cnn(3, 7, 5), folder / "few.tflite", **how)
    convert(cnn(99, 99, 99), folder / "many.tflite", **how)
    convert(cnn(3, 7, 5), folder / "float.tflite", verify=False)
    return folder


@pytest.fixture(scope="module")
def made(folder):
    return look_up_tables(folder / "few.tflite")


def test_the_file_is_smaller_by_what_the_tables_save(folder, made):
    assert made.path == table_path(folder / "few.tflite") == folder / "few.lut.tflite"
    assert made.bytes == made.path.stat().st_size
    assert made.plain_bytes == (folder / "few.tflite").stat().st_size
    assert made.plain_gzip_bytes == len(gzip.compress((folder / "few.tflite").read_bytes(), 9))
    conv, depthwise, dense = made.kernels
    # 3 values: 2 bits each; tables of 3 bytes for each of 32 channels. 5: 3 bits, 48 tables.
    assert (conv.entries, conv.values, conv.bits) == (3 * 3 * 4 * 32, 3, 2)
    assert conv.bytes == 3 * 3 * 4 * 32 * 2 // 8 + 3 * 32
    assert (depthwise.entries, depthwise.values, depthwise.bits) == (6 * 6 * 32, 7, 3)
    assert depthwise.bytes == 6 * 6 * 32 * 3 // 8 + 7 * 32
    assert (dense.entries, dense.values, dense.bits) == (32 * 48, 5, 3)
    assert dense.bytes == 32 * 48 * 3 // 8 + 5 * 48
    saved = sum(kernel.entries - kernel.bytes for kernel in made.kernels)
    # Two tensors, an operator and a header come with each; tensors are aligned.
    assert saved - 300 * 3 < made.plain_bytes - made.bytes < saved
    assert json.loads((folder / "few.lut.tflite.json").read_text())["kernels"][0]["bits"] == 2


def test_tables_and_indices_give_back_the_weights(folder, made):
    """Decoded by hand from the file, by the layout that tflite-micro documents."""
    plain, graph = (read(folder / name).subgraphs[0] for name in ("few.tflite", "few.lut.tflite"))
    expected = [kernel.values() for op in plain.operators for kernel in plain.kernels(op)]
    decodes = [op for op in graph.operators if op.name == DECODE]
    assert len(decodes) == 3
    for operator, weights in zip(decodes, expected, strict=True):
        packed, ancillary = (graph.tensors[index].data for index in operator.inputs)
        assert graph.tensors[operator.inputs[0]].quantization is None
        bits, stride = int(ancillary[5] & 7), int(ancillary[6])
        stream = np.unpackbits(packed)[: weights.size * bits].reshape(-1, bits)
        indices = (stream @ (1 << np.arange(bits)[::-1])).reshape(weights.shape)
        axis = 3 if weights.shape[0] == 1 else 0
        tables = ancillary[16:].view(np.int8).reshape(weights.shape[axis], stride)
        channel = np.arange(weights.shape[axis]).reshape(
            [-1 if i == axis else 1 for i in range(weights.ndim)]
        )
        np.testing.assert_array_equal(tables[channel, indices], weights)


def test_both_files_compute_the_same_in_tflite_micro(folder, made):
    """In this process, on other inputs than those of the verification."""
    from tflite_micro.python.tflite_micro import runtime

    outputs = []
    for name in ("few.tflite", "few.lut.tflite"):
        interpreter = runtime.Interpreter.from_bytes((folder / name).read_bytes(), arena_size=2**20)
        found = []
        for image in IMAGES:
            interpreter.set_input(image[None], 0)
            interpreter.invoke()
            found.append(np.array(interpreter.get_output(0)))
        outputs.append(np.stack(found))
    assert np.ptp(outputs[0]) > 0
    np.testing.assert_array_equal(*outputs)


def test_inspect_counts_weights_in_tables_by_their_shapes_alone(folder, made):
    plain, found = inspect(folder / "few.tflite"), inspect(made.path)
    for name in ("parameters", "macs"):
        assert getattr(found, name) == getattr(plain, name)
    for row, expected in zip(found.layers, plain.layers, strict=True):
        same = (expected.name, expected.shape, expected.dtype)
        assert (row.name, row.shape, row.dtype) == same
        assert row.parameters == expected.parameters
        assert row.sparsity is row.distinct_values is None
    assert found.sparsity is found.sparse_encoded_bytes is found.entropy_bytes is None
    assert found.notes == ()
    said = found.summary()
    assert "sparsity    unknown (3 kernels are in look-up tables, where values are not" in said
    assert "entropy" not in said


def test_the_pack_command_counts_weights_in_tables(made, tmp_path):
    arguments = ["pack", str(made.path), "-o", str(tmp_path / "m.epk"), "--json"]
    packed = json.loads(CliRunner().invoke(cli, arguments).stdout)
    weights = sum(kernel.entries for kernel in made.kernels)
    assert packed["weights"] == weights
    assert packed["bits_per_weight"] == 8 * packed["bytes_after"] / weights


def test_benchmark_runs_the_file_on_a_microcontroller(made):
    found = tflm.simulate(made.path, samples=1)
    assert found.failure is None
    assert found.arena.smallest_bytes == made.arena_bytes > made.plain_arena_bytes
    assert found.comparison is None
    assert "TFLM_DECODE" in found.incomparable


def test_what_saves_no_bytes_stays(folder, tmp_path):
    convert(
        cnn(99, 99, 3), tmp_path / "m.tflite", quantize="int8", calibration=IMAGES, verify=False
    )
    found = look_up_tables(tmp_path / "m.tflite", tmp_path / "t.tflite")
    conv, depthwise, dense = found.kernels
    rows = {layer.op: layer.name for layer in inspect(tmp_path / "m.tflite").layers}
    layer_names = [rows[op] for op in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")]
    assert [kernel.layer for kernel in found.kernels] == layer_names
    assert f"where a table saves no bytes: {', '.join(layer_names[:2])}\n" in str(found)
    assert conv.bits is depthwise.bits is None
    assert conv.bytes == conv.entries
    assert dense.bits == 2


def test_one_table_where_there_is_one_scale(tmp_path):
    import tensorflow as tf

    kernel = tf.constant(drawn((64, 48), 4), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((1, 64))])
    def apply(x):
        return x @ kernel

    converter = tf.lite.TFLiteConverter.from_concrete_functions([apply.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [x] for x in rng.normal(size=(4, 1, 64)).astype("f")
    )
    converter._experimental_disable_per_channel = True
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    (kernel,) = look_up_tables(tmp_path / "m.tflite").kernels
    assert not kernel.per_channel
    assert (kernel.bits, kernel.bytes) == (2, 64 * 48 * 2 // 8 + 4)


def test_files_of_tflite_micros_own_command_can_be_read(folder):
    """They keep the scales of the weights on the indices, which have another shape."""
    plain = read(folder / "few.tflite")
    dense = plain.subgraphs[0].kernels(plain.subgraphs[0].operators[-2])[0]
    own = read(compressed(plain.content, [(0, dense.index, 3, 0)]))
    (operator,) = (op for op in own.subgraphs[0].operators if op.name == DECODE)
    assert own.subgraphs[0].tensors[operator.inputs[0]].quantization is None


def test_outputs_that_differ_are_not_let_pass(folder, tmp_path):
    """One table in place of one for each scale: what TFLite Micro decodes of it is wrong."""
    plain = folder / "few.tflite"
    graph = read(plain).subgraphs[0]
    conv = next(kernel for op in graph.operators for kernel in graph.kernels(op))
    bits = int(np.unique(conv.values()).size - 1).bit_length()
    kernels = json.dumps([(0, conv.index, bits, None)])
    said, ended = tflm.ask(
        "edgeprune.devices.look_up_tables_worker",
        [str(plain), str(tmp_path / "t.tflite"), kernels, "2", "0"],
        60,
    )
    with pytest.raises(VerificationError, match=r"with look-up tables \d+ of 96 outputs differ"):
        check(said, ended, plain)


def command(*arguments):
    return CliRunner().invoke(cli, ["convert", *map(str, arguments), "--look-up-tables"])


def test_the_command_writes_both_files(folder, made, tmp_path):
    ran = command(folder / "few.tflite", "-o", tmp_path / "m.tflite", "--json")
    assert ran.exit_code == 0, ran.output
    tables = json.loads(ran.stdout)["look_up_tables"]
    assert tables["path"] == str(tmp_path / "m.lut.tflite")
    assert tables["bytes"] == (tmp_path / "m.lut.tflite").stat().st_size
    assert tables["plain_bytes"] == (tmp_path / "m.tflite").stat().st_size
    assert [kernel["bits"] for kernel in tables["kernels"]] == [2, 3, 3]
    ran = command(folder / "few.tflite", "-o", tmp_path / "m.tflite")
    assert "outputs equal to the plain file's, bit for bit, on 8 samples" in ran.stdout
    assert "look-up tables for 3 of 3 kernels" in ran.stdout


def test_the_command_refuses_before_and_after_the_conversion(folder, tmp_path):
    ran = command(tmp_path / "m.keras", "-o", tmp_path / "m.tflite", "--quantize", "int16x8")
    assert ran.exit_code == 2
    assert "--look-up-tables are for int8 weights, got --quantize int16x8" in ran.output
    assert not list(tmp_path.iterdir())
    ran = command(folder / "many.tflite", "-o", tmp_path / "m.tflite")
    assert ran.exit_code == 1
    assert "no kernel has so few distinct values" in ran.output
    assert f"({tmp_path / 'm.tflite'} is whole)" in ran.output
    assert {path.name for path in tmp_path.iterdir()} == {"m.tflite", "m.tflite.json"}


def test_convert_refuses_a_file_that_has_look_up_tables(made, tmp_path):
    ran = command(made.path, "-o", tmp_path / "m.tflite", "--no-verify")
    assert ran.exit_code == 1
    assert "has look-up tables, in which no dead channels can be found" in ran.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "many.tflite",
            r"no kernel has so few .* saves bytes: conv2d\S* \d+ a channel, depthw.*; cluster",
        ),
        ("float.tflite", "are for int8 weights of .*; .*float.tflite has float32 weights: convert"),
        ("few.lut.tflite", "few.lut.tflite has look-up tables already; give the plain file"),
    ],
)
def test_files_without_anything_to_store_so_are_refused(folder, made, tmp_path, name, message):
    with pytest.raises(UnsupportedError, match=message):
        look_up_tables(folder / name, tmp_path / "t.tflite")
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be_written_are_refused(folder, tmp_path):
    for output in (folder / "few.tflite", tmp_path / "m.bin"):
        with pytest.raises(InputError, match=r"must be another file than .*, ending in \.tflite"):
            look_up_tables(folder / "few.tflite", output)
    with pytest.raises(InputError, match="does not exist; make it first"):
        look_up_tables(folder / "few.tflite", tmp_path / "no" / "m.tflite")
    with pytest.raises(InputError, match=r"no\.tflite"):
        look_up_tables(tmp_path / "no.tflite")


def test_without_tflite_micro_it_says_what_to_install(folder, tmp_path):
    script = (
        "import sys\nsys.modules['tflite_micro'] = None\n"
        "from importlib import util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'tflite_micro' else find(name, *a)\n"
        "from edgeprune.devices.look_up_tables import look_up_tables\n"
        f"look_up_tables({str(folder / 'few.tflite')!r}, {str(tmp_path / 't.tflite')!r})\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "TFLite Micro is not installed; pip install 'edgeprune[mcu]'" in ended.stderr
    assert not list(tmp_path.iterdir())
