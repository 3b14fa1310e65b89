"""Models cut into their operators: run one after the other, they are the model again."""

import json
import zipfile

import numpy as np
import pytest

from edgeprune.devices.profiling_parts import EMPTY, MANIFEST, parts_of, write_parts
from edgeprune.export.graph import Operator, Subgraph, Tensor
from edgeprune.export.tflite import read

SHAPE = (1, 8, 8, 4)


def weights(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32") / 4


def convert(function, shape=SHAPE, **settings):
    import tensorflow as tf

    concrete = tf.function(function, input_signature=[tf.TensorSpec(shape)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete.get_concrete_function()])
    for key, value in settings.items():
        setattr(converter, key, value)
    return converter.convert()


def network(x):
    import tensorflow as tf

    y = tf.nn.relu(tf.nn.conv2d(x, weights(3, 3, 4, 8), 1, "SAME"))
    z = tf.nn.depthwise_conv2d(y, weights(3, 3, 8, 1), (1, 1, 1, 1), "SAME")
    both = tf.concat([y + z, z], -1)
    first, second = tf.split(both, 2, -1)
    return tf.nn.softmax(tf.matmul(tf.reduce_mean(first * second, (1, 2)), weights(8, 5)))


def loop(x):
    import tensorflow as tf

    return tf.while_loop(
        lambda i, y: i < 3, lambda i, y: (i + 1, tf.nn.relu(y * 1.5 - x)), (0, tf.abs(x))
    )[1]


def free_shapes(x):
    import tensorflow as tf

    kept = tf.boolean_mask(x, x > 0.5)
    return tf.sqrt(kept) * 2.0


CASES = {
    "float": lambda: convert(network),
    "float16": lambda: convert(network, **_half()),
    "int8": lambda: convert(network, **_int8()),
    "loop": lambda: convert(loop),
    "shapes known at run time": lambda: convert(free_shapes),
    "two outputs, one of them read on": lambda: convert(lambda x: (x * 2.0, abs(x * 2.0))),
}


def _half():
    import tensorflow as tf

    return {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "target_spec": tf.lite.TargetSpec(supported_types=[tf.float16]),
    }


def _int8():
    import tensorflow as tf

    samples = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype("float32")
    return {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "representative_dataset": lambda: ([sample] for sample in samples),
        "target_spec": tf.lite.TargetSpec(supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8]),
    }


def interpreter_of(content):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    return Interpreter(
        model_content=content,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )


def run(content, values):
    interpreter = interpreter_of(content)
    details = interpreter.get_input_details()
    assert len(details) == len(values)
    for detail, value in zip(details, values, strict=True):
        interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(details, values, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()]


@pytest.mark.parametrize("case", CASES)
def test_one_after_the_other_they_compute_what_the_model_computes(case, tmp_path):
    content = CASES[case]()
    model = read(content)
    dtypes = {tensor.dtype for tensor in model.subgraphs[0].tensors}
    assert {"int8", "float16"} & dtypes == {case} & {"int8", "float16"}
    parts = write_parts(model, tmp_path / "parts.zip")
    graph = model.subgraphs[0]
    inputs = [np.random.default_rng(1).standard_normal(SHAPE).astype("float32")]
    values = dict(zip(graph.inputs, inputs, strict=True))
    with zipfile.ZipFile(tmp_path / "parts.zip") as archive:
        manifest = json.loads(archive.read(MANIFEST))
        for part in manifest["parts"]:
            assert part["reason"] is None
            made = run(archive.read(part["file"]), [values[i] for i in part["inputs"]])
            values.update(zip(part["outputs"], made, strict=True))
            for index in part["last_uses"]:
                if index not in graph.outputs:
                    del values[index]  # so that a later part that reads it fails
        (same,) = run(archive.read(EMPTY), inputs)
    assert np.array_equal(same, inputs[0])
    for index, expected in zip(graph.outputs, run(content, inputs), strict=True):
        assert np.array_equal(values[index], expected, equal_nan=True)
    # Every operator is in a part, and each part is about one of its own.
    assert {p for part in parts for p in part.positions} == set(range(len(graph.operators)))
    assert len({part.positions[-1] for part in parts}) == len(parts)


def test_what_unpacks_constants_goes_with_the_operator_that_reads_them():
    graph = read(CASES["float16"]()).subgraphs[0]
    names = [[graph.operators[p].name for p in part.positions] for part in parts_of(graph)]
    assert ["DEQUANTIZE", "CONV_2D"] in [sorted(set(one), reverse=True) for one in names]
    assert all(one[-1] != "DEQUANTIZE" for one in names)


def test_only_unpacking_is_for_others():
    def tensor(index, *, constant=False):
        data = np.zeros(4, np.uint8) if constant else None
        return Tensor(index, "", (1,), (1,), "float32", None, None, 0, data)

    operators = (
        Operator("DENSIFY", False, (0,), (1,), {}),
        Operator("DEQUANTIZE", False, (1,), (2,), {}),
        Operator("RANGE", False, (0,), (3,), {}),
        Operator("ADD", False, (2, 3), (4,), {}),
        Operator("DEQUANTIZE", False, (0,), (5,), {}),
    )
    tensors = (tensor(0, constant=True), *(tensor(index) for index in range(1, 6)))
    graph = Subgraph("", tensors, (), (4, 5), operators)
    told = [(part.positions, part.inputs, part.last_uses) for part in parts_of(graph)]
    # The last one is an output of the model.
    assert told == [((2,), (), ()), ((0, 1, 3), (3,), (3,)), ((4,), (), ())]


def test_weights_are_stored_once(tmp_path):
    content = convert(lambda x: x @ weights(256, 256) @ weights(256, 64), (1, 256))
    write_parts(read(content), tmp_path / "parts.zip")
    size = (tmp_path / "parts.zip").stat().st_size
    assert len(content) < size < 1.1 * len(content)


def test_what_shares_a_resource_says_so():
    import tensorflow as tf

    class Counter(tf.Module):
        def __init__(self):
            super().__init__()
            self.state = tf.Variable(tf.zeros(SHAPE))

        @tf.function(input_signature=[tf.TensorSpec(SHAPE)])
        def __call__(self, x):
            self.state.assign_add(x)
            return self.state * 2.0

    counter = Counter()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [counter.__call__.get_concrete_function()], counter
    )
    converter.experimental_enable_resource_variables = True
    graph = read(converter.convert()).subgraphs[0]
    reasons = {graph.operators[part.positions[-1]].name: part.reason for part in parts_of(graph)}
    assert reasons["READ_VARIABLE"] == "it shares a resource with other operators"
    assert reasons["MUL"] is None
