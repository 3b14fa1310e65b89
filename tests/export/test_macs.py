"""Multiply-accumulates against values derived by hand, from Keras graphs and from .tflite files."""

import keras
import numpy as np
import pytest
import reference_models
import tensorflow as tf
import tf_keras

from edgeprune.errors import InputError
from edgeprune.export.graph import Operator, Subgraph, Tensor, TfliteModel
from edgeprune.export.macs import tflite_macs
from edgeprune.export.tflite import read
from edgeprune.keras_macs import keras_macs

BOTH = pytest.mark.parametrize("flavour", [keras, tf_keras], ids=["keras", "tf_keras"])

# ResNet-8, output positions x kernel entries:
#   stem         32*32 * 3*3*3*16                                  =   442,368
#   block of 16  32*32 * 2*(3*3*16*16)                             = 4,718,592
#   block of 32  16*16 * (3*3*16*32 + 3*3*32*32 + 1*1*16*32)       = 3,670,016
#   block of 64    8*8 * (3*3*32*64 + 3*3*64*64 + 1*1*32*64)       = 3,670,016
#   dense        64*10                                             =       640
RESNET8 = 442_368 + 4_718_592 + 3_670_016 + 3_670_016 + 640
# DS-CNN, 49x10 -> 25x5: stem 125 * 10*4*64; four times 125 * (3*3*64 + 64*64); dense 64*12.
DS_CNN = 320_000 + 4 * (72_000 + 512_000) + 768
# MobileNetV1-0.25, positions * (9 * c_in + c_in * c_out) for each pair:
MOBILENET_V1 = (
    48 * 48 * 27 * 8  # stem: 3 -> 8
    + 48 * 48 * (72 + 8 * 16)
    + 24 * 24 * (144 + 16 * 32)
    + 24 * 24 * (288 + 32 * 32)
    + 12 * 12 * (288 + 32 * 64)
    + 12 * 12 * (576 + 64 * 64)
    + 6 * 6 * (576 + 64 * 128)
    + 5 * 6 * 6 * (1152 + 128 * 128)
    + 3 * 3 * (1152 + 128 * 256)
    + 3 * 3 * (2304 + 256 * 256)
    + 256 * 2
)
# Autoencoder: 640*128 twice, 128*128 six times, 128*8 twice.
AUTOENCODER = 2 * 81_920 + 6 * 16_384 + 2 * 1_024

REFERENCES = {
    "resnet8": (RESNET8, 12_501_632, 12.50),
    "ds_cnn": (DS_CNN, 2_656_768, 2.66),
    "mobilenet_v1": (MOBILENET_V1, 7_489_664, 7.49),
    "autoencoder": (AUTOENCODER, 264_192, 0.26),
}


def to_tflite(model):
    """Convert either flavour with batch 1, as plainly as can be."""
    specs = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    if isinstance(model, tf_keras.Model):
        function = tf.function(lambda *given: model(list(given) if len(given) > 1 else given[0]))
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function(*specs)], model
        )
        return read(converter.convert())
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", lambda *given: model(*given, training=False), specs)
        archive.write_out(folder, verbose=False)
        return read(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


@pytest.mark.parametrize(
    "flavour", [keras, pytest.param(tf_keras, marks=pytest.mark.slow)], ids=["keras", "tf_keras"]
)
@pytest.mark.parametrize("name", REFERENCES)
def test_mlperf_tiny_references(flavour, name):
    derived, exact, published_millions = REFERENCES[name]
    assert derived == exact
    assert round(exact / 1e6, 2) == published_millions
    model = getattr(reference_models, f"build_{name}")(flavour)
    counted = keras_macs(model)
    assert (counted.total, counted.notes) == (exact, ())
    assert sum(counted.by_layer.values()) == exact
    if flavour is tf_keras:
        converted = tf.lite.TFLiteConverter.from_keras_model(model).convert()
        assert tflite_macs(read(converted)).total == exact


def test_mlperf_tiny_reference_from_keras_3_to_tflite():
    assert tflite_macs(to_tflite(reference_models.build_resnet8(keras))).total == RESNET8


def convolutions(layers):
    """(layer, input shape, products by hand)."""
    return [
        (layers.Conv1D(6, 3), (10, 4), 8 * 3 * 4 * 6),
        (layers.Conv1D(6, 3, strides=2, padding="same"), (10, 4), 5 * 3 * 4 * 6),
        (layers.Conv1D(6, 3, dilation_rate=3), (11, 4), 5 * 3 * 4 * 6),
        (layers.Conv1D(6, 3, padding="causal"), (10, 4), 10 * 3 * 4 * 6),
        (layers.Conv2D(6, (3, 2)), (7, 8, 4), 5 * 7 * 3 * 2 * 4 * 6),
        (layers.Conv2D(6, 3, groups=2), (7, 8, 4), 5 * 6 * 3 * 3 * 2 * 6),
        (layers.Conv2D(6, 3, dilation_rate=2), (9, 8, 4), 5 * 4 * 3 * 3 * 4 * 6),
        (layers.Conv3D(5, 2), (4, 5, 6, 3), 3 * 4 * 5 * 8 * 3 * 5),
        (layers.DepthwiseConv1D(3, depth_multiplier=2), (9, 4), 7 * 3 * 8),
        (layers.DepthwiseConv2D(3, padding="same"), (6, 7, 4), 42 * 9 * 4),
        (layers.DepthwiseConv2D(3, dilation_rate=2), (9, 9, 4), 25 * 9 * 4),
        (layers.SeparableConv1D(5, 3), (9, 4), 7 * (3 * 4 + 4 * 5)),
        (layers.SeparableConv2D(5, 3, depth_multiplier=2), (6, 6, 4), 16 * (9 * 8 + 8 * 5)),
        # Transposed: each input position with the whole kernel.
        (layers.Conv1DTranspose(5, 3, strides=2), (7, 4), 7 * 3 * 4 * 5),
        (layers.Conv2DTranspose(5, 3, strides=2, padding="same"), (6, 7, 4), 42 * 9 * 4 * 5),
        (layers.Conv3DTranspose(2, 2), (3, 4, 5, 3), 60 * 8 * 3 * 2),
        (layers.Dense(6), (9,), 54),
        (layers.Dense(6), (5, 9), 5 * 54),
        (layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (5, 4), 5 * 4 * 2 * 3),
        (layers.LSTM(6), (7, 5), 7 * (5 * 24 + 6 * 24)),
        (layers.GRU(6), (7, 5), 7 * (5 * 18 + 6 * 18)),
        (layers.SimpleRNN(6), (7, 5), 7 * (5 * 6 + 6 * 6)),
        (layers.Bidirectional(layers.LSTM(3)), (4, 5), 2 * 4 * (5 * 12 + 3 * 12)),
        (layers.TimeDistributed(layers.Dense(3)), (4, 5), 4 * 15),
        (layers.BatchNormalization(), (6,), 0),
        (layers.AveragePooling2D(2), (6, 6, 3), 0),
    ]


@BOTH
@pytest.mark.parametrize("index", range(len(convolutions(keras.layers))))
def test_layers(flavour, index):
    layer, shape, expected = convolutions(flavour.layers)[index]
    inputs = flavour.Input(shape)
    model = flavour.Model(inputs, layer(inputs))
    counted = keras_macs(model)
    assert (counted.total, counted.notes) == (expected, ())
    if flavour is tf_keras:
        assert tflite_macs(to_tflite(model)).total == expected


def test_keras_3_recurrent_loops_count_every_step_in_tflite():
    inputs = keras.Input((7, 5))
    model = keras.Model(inputs, keras.layers.GRU(6)(inputs))
    converted = to_tflite(model)
    assert "WHILE" in {operator.name for operator in converted.subgraphs[0].operators}
    counted = tflite_macs(converted)
    assert (counted.total, counted.notes) == (7 * (5 * 18 + 6 * 18), ())


@BOTH
def test_attention(flavour):
    query, value = flavour.Input((10, 12)), flavour.Input((8, 14))
    attention = flavour.layers.MultiHeadAttention(2, 5, value_dim=4)
    model = flavour.Model([query, value], attention(query, value))
    projections = 10 * 12 * 10 + 8 * 14 * 10 + 8 * 14 * 8 + 10 * 8 * 12
    products = 2 * 10 * 8 * 5 + 2 * 10 * 8 * 4  # Q K^T, then A V, for 2 heads
    counted = keras_macs(model)
    assert counted.total == projections + products
    assert counted.by_layer[attention.name] == products
    if flavour is tf_keras:
        assert tflite_macs(to_tflite(model)).total == projections + products


def test_grouped_query_attention():
    inputs = keras.Input((10, 12))
    layer = keras.layers.GroupQueryAttention(8, 4, 2)
    model = keras.Model(inputs, layer(inputs, inputs))
    # 4 query heads share 2 key and value heads, all of dimension 8.
    assert (
        keras_macs(model).total == 10 * 12 * 32 + 2 * 10 * 12 * 16 + 2 * 4 * 100 * 8 + 10 * 32 * 12
    )


def test_embedding_is_a_look_up():
    inputs = tf_keras.Input((6,), dtype="int32")
    model = tf_keras.Model(inputs, tf_keras.layers.Embedding(20, 4)(inputs))
    assert keras_macs(model).total == tflite_macs(to_tflite(model)).total == 0


@BOTH
def test_shared_and_nested_layers_count_each_call(flavour):
    layers = flavour.layers
    shared = layers.Dense(4, name="shared")
    inner = flavour.Sequential([flavour.Input((4,)), layers.Dense(4, name="deep")], name="inner")
    inputs = flavour.Input((4,))
    model = flavour.Model(inputs, inner(inner(shared(shared(shared(inputs))))))
    assert keras_macs(model).by_layer == {"shared": 3 * 16, "inner/deep": 2 * 16}


@BOTH
def test_subclassed_models_count_once_their_shape_is_known(flavour):
    class Custom(flavour.Model):
        def __init__(self):
            super().__init__(name="custom")
            self.dense = flavour.layers.Dense(3)

        def call(self, x):
            return tf.matmul(self.dense(x), tf.ones((3, 5)))

    model = Custom()
    unknown = keras_macs(model)
    assert unknown.total is None
    assert "call it on one batch" in unknown.reason
    model(np.zeros((6, 4), np.float32))
    assert keras_macs(model).total == 4 * 3 + 3 * 5


@BOTH
def test_counting_leaves_the_model_as_it_was(flavour):
    model = reference_models.build_ds_cnn(flavour)
    attributes = {layer.name: set(vars(layer)) for layer in model.layers}
    keras_macs(model)
    assert {layer.name: set(vars(layer)) for layer in model.layers} == attributes


@BOTH
def test_a_free_dimension_gives_no_total_but_a_reason(flavour):
    inputs = flavour.Input((None, 4))
    counted = keras_macs(flavour.Model(inputs, flavour.layers.Dense(3)(inputs)))
    assert counted.total is None
    assert "free dimension" in counted.reason


def test_a_free_batch_counts_as_one_in_tflite():
    inputs = tf_keras.Input((6, 6, 2))
    model = tf_keras.Model(inputs, tf_keras.layers.Conv2D(3, 3)(inputs))
    converted = read(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    assert converted.subgraphs[0].tensors[0].signature == (-1, 6, 6, 2)
    assert tflite_macs(converted).total == 16 * 9 * 2 * 3


def test_a_free_batch_merged_with_time_gives_no_total():
    inputs = tf_keras.Input((5, 4))
    layers = tf_keras.layers
    model = tf_keras.Model(inputs, layers.TimeDistributed(layers.Dense(3))(inputs))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    counted = tflite_macs(read(converter.convert()))
    assert counted.total in (None, 60)  # never the 12 of the stored shapes
    assert tflite_macs(to_tflite(model)).total == 60


def test_another_free_dimension_gives_no_total_in_tflite():
    inputs = tf_keras.Input((None, 6, 2))
    model = tf_keras.Model(inputs, tf_keras.layers.Conv2D(3, 3)(inputs))
    counted = tflite_macs(read(tf.lite.TFLiteConverter.from_keras_model(model).convert()))
    assert counted.total is None
    assert "free dimension" in counted.reason


def one_operator(name, shapes, output, options):
    tensors = tuple(
        Tensor(index, str(index), shape, shape, "float32", None, None, 0, None)
        for index, shape in enumerate([*shapes, output])
    )
    operator = Operator(name, False, tuple(range(len(shapes))), (len(shapes),), options)
    graph = Subgraph("main", tensors, (0,), (len(shapes),), (operator,))
    return tflite_macs(TfliteModel(b"", (graph,)))


@pytest.mark.parametrize(
    ("name", "shapes", "output", "options", "expected"),
    [
        ("BATCH_MATMUL", [(2, 3, 4), (2, 4, 5)], (2, 3, 5), {}, 2 * 3 * 4 * 5),
        ("BATCH_MATMUL", [(2, 4, 3), (2, 4, 5)], (2, 3, 5), {"adj_x": True}, 2 * 3 * 4 * 5),
        ("CONV_3D", [(1, 4, 4, 4, 3), (2, 2, 2, 3, 5)], (1, 3, 3, 3, 5), {}, 27 * 8 * 3 * 5),
        (
            "CONV_3D_TRANSPOSE",
            [(5,), (2, 2, 2, 4, 3), (1, 3, 3, 3, 3)],
            (1, 4, 4, 4, 4),
            {},
            27 * 8 * 4 * 3,
        ),
        ("SVDF", [(1, 8), (6, 8), (6, 4)], (1, 3), {}, 6 * 8 + 6 * 4),
        ("UNIDIRECTIONAL_SEQUENCE_RNN", [(1, 7, 5), (6, 5), (6, 6)], (1, 7, 6), {}, 7 * 66),
        ("ADD", [(4, 4), (4, 4)], (4, 4), {}, 0),
    ],
)
def test_operators(name, shapes, output, options, expected):
    assert one_operator(name, shapes, output, options).total == expected


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        one_operator("FULLY_CONNECTED", [(1, 4), ()], (1, 3), {})


@pytest.mark.parametrize("body", [0, 7])
def test_endless_and_missing_subgraphs_are_refused(body):
    loop = Operator("WHILE", False, (), (), {"cond_subgraph_index": 0, "body_subgraph_index": body})
    graph = Subgraph("main", (), (), (), (loop,))
    with pytest.raises(InputError):
        tflite_macs(TfliteModel(b"", (graph,)))


def test_custom_operators_are_named_in_the_notes():
    operator = Operator("FlexMatMul", True, (), (), {})
    counted = tflite_macs(TfliteModel(b"", (Subgraph("main", (), (), (), (operator,)),)))
    assert "FlexMatMul" in counted.notes[0]
