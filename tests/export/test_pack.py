"""`pack` and `unpack` on real files of every mode, on odd ones, and on the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import edgeprune as ep
from edgeprune.cli import cli
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.export.packing.container import HEADER_BYTES, read_header


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A convolutional net in every mode, sparse-encoded, and a loop with its subgraphs."""
    import keras

    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 3, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, bias_initializer="ones")(x)
    x = layers.Conv2D(32, 1, bias_initializer="ones")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(64, bias_initializer="ones")(x))
    kernel = model.layers[-1].kernel
    weights = kernel.numpy()
    kernel.assign(weights * (np.random.default_rng(0).random(weights.shape) < 0.1))
    samples = np.random.default_rng(0).normal(size=(8, 12, 12, 3)).astype(np.float32)
    for mode in ("none", "float16", "dynamic", "int8", "int16x8"):
        data = samples if mode.startswith("int") else None
        output = folder / f"{mode}.tflite"
        ep.convert(model, output, quantize=mode, calibration=data, sparse="off", verify=False)
    ep.convert(model, folder / "sparse.tflite", sparse="on", verify=False)
    inputs = keras.Input((7, 5))
    recurrent = keras.Model(inputs, layers.GRU(6)(inputs))
    ep.convert(recurrent, folder / "loop.tflite", verify=False)
    return folder


MODES = ["none", "float16", "dynamic", "int8", "int16x8", "sparse", "loop"]


def came_back(path, folder):
    """Pack and unpack a file, and return the result if it is the same, byte for byte."""
    packed = ep.pack(path, folder / "model.epk")
    unpacked = ep.unpack(folder / "model.epk", folder / "back.tflite")
    content = path.read_bytes()
    assert (folder / "back.tflite").read_bytes() == content
    assert packed.bytes_before == unpacked.bytes_after == len(content)
    assert packed.bytes_after == unpacked.bytes_before == (folder / "model.epk").stat().st_size
    return packed


@pytest.mark.parametrize("name", MODES)
def test_real_files_come_back(files, tmp_path, name):
    packed = came_back(files / f"{name}.tflite", tmp_path)
    assert packed.bytes_after < packed.bytes_before
    assert packed.notes == ()
    # float: 16*3*3*3 + 3*3*16 + 16*32 + 32*64 weights in kernels.
    if name in ("none", "int8"):
        assert packed.weights == 432 + 144 + 512 + 2048


def test_files_that_are_odd_come_back(files, tmp_path):
    """Bytes after the end, a damaged file, and one in which no array can be found."""
    content = (files / "int8.tflite").read_bytes()
    odd = tmp_path / "odd.tflite"
    odd.write_bytes(content + b"signature" * 100)
    assert came_back(odd, tmp_path).notes == ()
    for damaged in (content[:5000], content[:8], content[:200] + bytes(400) + content[600:]):
        odd.write_bytes(damaged)
        packed = came_back(odd, tmp_path)
        assert packed.bits_per_weight is None or packed.notes == ()
    odd.write_bytes(content[:5000])
    assert "packed as mere bytes" in came_back(odd, tmp_path).notes[0]


def test_buffers_behind_the_flatbuffer_are_coded_too(files, tmp_path):
    """Models over 2 GB keep their weights there, and name where they begin."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    kernel = np.random.default_rng(0).normal(0, 20, (40, 100)).clip(-127, 127).astype(np.int8)
    model = schema.ModelT()
    model.version, outside, none = 3, schema.BufferT(), schema.BufferT()
    tensor, graph = schema.TensorT(), schema.SubGraphT()
    tensor.shape, tensor.type = np.array(kernel.shape, np.int32), schema.TensorType.INT8
    tensor.buffer, tensor.name = 1, b"kernel"
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [tensor], [], [], []
    model.buffers, model.subgraphs, model.operatorCodes = [none, outside], [graph], []

    def written(offset):
        outside.offset, outside.size = offset, kernel.size
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    path = tmp_path / "large.tflite"
    path.write_bytes(written(len(written(1 << 20))) + kernel.tobytes())
    assert came_back(path, tmp_path).bytes_after < 4000 * 7 / 8


def test_no_file_is_its_own_output(files, tmp_path):
    model = tmp_path / "model.tflite"
    model.write_bytes((files / "int8.tflite").read_bytes())
    packed = ep.pack(model, tmp_path / "model.epk").path
    for call, path in ((ep.pack, model), (ep.unpack, packed)):
        before = path.read_bytes()
        with pytest.raises(InputError, match="is the input itself; name another file"):
            call(path, path)
        assert path.read_bytes() == before


def test_packing_compares_with_others_if_asked(files, tmp_path):
    packed = ep.pack(files / "int8.tflite", tmp_path / "model.epk", compare=True)
    assert list(packed.others) == ["gzip -9", "xz -9e", "zstd -19"]
    assert packed.bytes_after < min(packed.others.values())
    assert str(packed).count("\n") == 4


def test_packing_twice_gives_the_same_file(files, tmp_path):
    for name in ("a", "b"):
        ep.pack(files / "int8.tflite", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_tensorflow_is_loaded(files, tmp_path):
    program = (
        "import sys, edgeprune as ep\n"
        f"ep.pack({str(files / 'int8.tflite')!r}, 'model.epk')\n"
        "ep.unpack('model.epk', 'back.tflite')\n"
        "heavy = {'tensorflow', 'keras', 'tf_keras', 'ai_edge_litert.interpreter'}\n"
        "loaded = heavy & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_unpacking_needs_no_schema(files, tmp_path):
    ep.pack(files / "int8.tflite", tmp_path / "model.epk")
    program = (
        "import sys, edgeprune as ep\n"
        "sys.modules['ai_edge_litert'] = None\n"
        "ep.unpack('model.epk', 'back.tflite')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


@pytest.fixture
def packed_file(files, tmp_path):
    ep.pack(files / "int8.tflite", tmp_path / "model.epk")
    return tmp_path / "model.epk"


def test_bad_packed_files_are_refused_and_leave_nothing(packed_file, tmp_path):
    content = packed_file.read_bytes()
    cases = {
        b"": "not a packed model",
        b"EPK": "cut off",
        content[:-1]: "cut off",
        content + b"x": "after its end",
        content[:3] + b"\7" + content[4:]: "version 7 of the format, supported: 1",
        content[:300] + b"damaged" + content[307:]: "damaged|checksum|ends",
        b"EPK\1" + b"\xff" * 100: "damaged",
    }
    output = tmp_path / "out.tflite"
    for bad, message in cases.items():
        packed_file.write_bytes(bad)
        with pytest.raises(InputError, match=message):
            ep.unpack(packed_file, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.epk"]


def test_a_wrong_checksum_is_refused(packed_file, tmp_path):
    content = bytearray(packed_file.read_bytes())
    content[read_header(bytes(content[:HEADER_BYTES])).header_bytes - 1] ^= 1
    packed_file.write_bytes(content)
    with pytest.raises(InputError, match="checksum"):
        ep.unpack(packed_file, tmp_path / "out.tflite")


def test_long_models_have_to_be_allowed(packed_file, files, tmp_path):
    size = (files / "int8.tflite").stat().st_size
    with pytest.raises(InputError, match=f"{size} bytes, more than the {size - 1} allowed"):
        ep.unpack(packed_file, tmp_path / "out.tflite", max_bytes=size - 1)
    ep.unpack(packed_file, tmp_path / "out.tflite", max_bytes=size)


def test_what_is_no_tflite_file_is_not_packed(packed_file, tmp_path):
    (tmp_path / "text.tflite").write_text("not a model, though it says so")
    (tmp_path / "empty.tflite").write_bytes(b"")
    output = tmp_path / "out.epk"
    for path, message in {
        tmp_path / "text.tflite": "TFL3 is missing",
        tmp_path / "empty.tflite": "TFL3 is missing",
        packed_file: "packed model already",
        tmp_path / "missing.tflite": "no such file",
        tmp_path: "a directory",
    }.items():
        with pytest.raises(InputError, match=message):
            ep.pack(path, output)
    assert not output.exists()


def test_outputs_that_cannot_be_written(files, packed_file, tmp_path):
    for call, source in ((ep.pack, files / "int8.tflite"), (ep.unpack, packed_file)):
        with pytest.raises(EdgepruneError, match="does not exist"):
            call(source, tmp_path / "missing" / "out")
        with pytest.raises(EdgepruneError, match="directory"):
            call(source, tmp_path)


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_commands_print_one_json_document(files, tmp_path):
    packed, back = tmp_path / "model.epk", tmp_path / "back.tflite"
    ran = invoke("pack", files / "none.tflite", "-o", packed, "--compare", "--json")
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout)
    assert list(document) == [
        "output",
        "bytes_before",
        "bytes_after",
        "weights",
        "bits_per_weight",
        "others",
        "notes",
    ]
    assert document["output"] == str(packed)
    ran = invoke("unpack", packed, "-o", back, "--json")
    document = json.loads(ran.stdout)
    assert list(document) == ["output", "bytes_before", "bytes_after"]
    assert document["bytes_after"] == (files / "none.tflite").stat().st_size


def test_commands_print_lines_for_people(files, tmp_path):
    ran = invoke("pack", files / "none.tflite", "-o", tmp_path / "model.epk")
    assert ran.exit_code == 0
    assert "bits for each of 3,136 weights" in ran.output
    ran = invoke("unpack", tmp_path / "model.epk", "-o", tmp_path / "back.tflite")
    assert "as it was packed" in ran.output


def test_commands_refuse_in_one_line(files, packed_file, tmp_path):
    ran = invoke("unpack", files / "none.tflite", "-o", tmp_path / "out.tflite")
    assert ran.exit_code == 1
    assert ran.stderr.startswith("Error: cannot unpack")
    assert ran.stderr.count("\n") == 1
    ran = invoke("unpack", packed_file, "-o", tmp_path / "out.tflite", "--max-bytes", "10")
    assert ran.exit_code == 1
    assert "--max-bytes" in ran.stderr
    assert invoke("unpack", packed_file, "-o", "x", "--max-bytes", "0").exit_code == 2
    assert invoke("pack", packed_file).exit_code == 2
