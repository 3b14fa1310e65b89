"""XNNPACK's operators laid beside the model's, as LiteRT 2.3's profiler tells them."""

import pytest

from edgeprune.devices.benchmark_model import Node
from edgeprune.devices.profiling_xnnpack import UNKNOWN, nodes_profile, places
from edgeprune.export.graph import Operator, Subgraph, Tensor
from edgeprune.export.tflite import read


def chain(*names):
    """A graph of operators that each read the one before."""
    tensors = tuple(
        Tensor(i, f"t{i}", (1,), (1,), "float32", None, None, 0, None)
        for i in range(len(names) + 1)
    )
    operators = tuple(Operator(name, False, (i,), (i + 1,), {}) for i, name in enumerate(names))
    return Subgraph("", tensors, (0,), (len(names),), operators)


def nodes(*kinds):
    """Rows of a delegate's operators; a number stands for TFLite's own at that position."""
    return [
        Node("SOFTMAX", kind, 1.0, 1) if isinstance(kind, int) else Node(kind, None, 1.0, 1)
        for kind in kinds
    ]


CONV, DEPTHWISE = "Convolution (NHWC, F32) IGEMM", "Convolution (NHWC, F32) DWConv"
FULL, CLAMP = "Fully Connected (NC, F32) GEMM", "Clamp (NC)"
RESIDUAL = chain("CONV_2D", "CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED", "SOFTMAX")


@pytest.mark.parametrize(
    ("graph", "rows", "expected"),
    [
        # An activation after an addition and a reshape before a matrix product are XNNPACK's own.
        (
            RESIDUAL,
            (CONV, CONV, "Add (ND)", CLAMP, "Mean (ND) Reduce2", "Static Reshape (NC)", FULL,
             "Softmax (NC, F32)"),
            [0, 1, 2, 2, 3, 3, 4, 5],
        ),
        # Pointwise convolutions become matrix products.
        (
            chain("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "AVERAGE_POOL_2D", "SOFTMAX"),
            (CONV, DEPTHWISE, FULL, "Average Pooling (NHWC, F32) Average Pooling",
             "Softmax (NC, F32)"),
            [0, 1, 2, 3, 4],
        ),
        # int8: TFLite computes the softmax itself.
        (
            chain("QUANTIZE", "CONV_2D", "FULLY_CONNECTED", "SOFTMAX", "DEQUANTIZE"),
            ("Convert (NC)", "Convolution (NHWC, QC8) IGEMM",
             "Fully Connected (NC, QS8, QC8W) GEMM", 3, "Convert (NC)"),
            [0, 1, 2, 3, 4],
        ),
        # Padding is done by the convolution that reads it.
        (chain("PAD", "CONV_2D", "RELU"), (CONV,), [1]),
        (chain("PAD", "CONV_2D", "RELU"), ("Constant Pad (ND, X32)", CONV, CLAMP), [0, 1, 2]),
        # A layer normalization, and a reshape more than the model has.
        (
            chain("MEAN", "NEG", "SQUARED_DIFFERENCE", "MEAN", "ADD", "RSQRT", "MUL", "RESHAPE",
                  "FULLY_CONNECTED"),
            ("Mean (ND) Reduce2", "Negate (ND)", "Squared Difference (ND)", "Mean (ND) Reduce2",
             "Add (ND)", "Reciprocal Square Root (ND)", "Multiply (ND)", "Static Reshape (NC)",
             "Static Reshape (NC)", FULL),
            [0, 1, 2, 3, 4, 5, 6, 7, 7, 8],
        ),
        # What does not fit.
        (RESIDUAL, (CONV, CONV, "Add (ND)", "Softmax (NC, F32)"), None),
        (RESIDUAL, (CONV,), None),
        (chain("CONV_2D"), (CONV, CONV), None),
        (chain("CONV_2D"), ("Argmax Pooling (NHWC, F32)",), None),
        (chain("CONV_2D"), (5,), None),
    ],
)  # fmt: skip
def test_places(graph, rows, expected):
    assert places(graph, nodes(*rows)) == expected


def test_rows_of_several_delegates_in_one_are_not_told_apart():
    assert places(chain("CONV_2D"), [Node(CONV, None, 1.0, 2)]) is None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import numpy as np
    import tensorflow as tf

    kernel = np.ones((8, 8), "float32")
    function = tf.function(
        lambda x: tf.nn.softmax(tf.nn.relu(x @ kernel)), input_signature=[tf.TensorSpec((1, 8))]
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    path = tmp_path_factory.mktemp("xnnpack") / "model.tflite"
    path.write_bytes(converter.convert())
    names = [operator.name for operator in read(path).subgraphs[0].operators]
    assert names == ["FULLY_CONNECTED", "SOFTMAX"]
    return path


def test_times_of_one_operator_are_added_up(model):
    rows = [Node(FULL, None, 3.0, 1), Node(CLAMP, None, 1.0, 1), Node("SOFTMAX", 1, 4.0, 1)]
    found = nodes_profile(model, rows, 10.0)
    told = [(one["op"], one["ms"], one["share"]) for one in found["operators"]]
    assert told == [("FULLY_CONNECTED", 4.0, 0.5), ("SOFTMAX", 4.0, 0.5)]
    assert found["sum_by_whole"] == 0.8


def test_what_fits_nowhere_has_no_layer(model):
    rows = [Node("Argmax (NC)", None, 3.0, 1), Node("SOFTMAX", 1, 1.0, 1)]
    found = nodes_profile(model, rows, None)
    told = [(one["op"], one["layer"] == UNKNOWN, one["share"]) for one in found["operators"]]
    assert told == [("Argmax (NC)", True, 0.75), ("SOFTMAX", False, 0.25)]
    assert found["how"].endswith("the layers of XNNPACK's are not told")
