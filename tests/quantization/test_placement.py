"""Where activations are rounded: the same places as in the .tflite file, and none twice."""

import keras
import pytest
from keras import layers, ops

from edgeprune import quantize_aware
from edgeprune.quantization.layers import ActivationRange, GridLayer


def rounded(model):
    """Names of the layers and inputs whose output is rounded, through nested models."""
    aware = quantize_aware(model)
    return [
        layer.name.removesuffix("_range")
        for layer in aware._flatten_layers()
        if isinstance(layer, ActivationRange) and layer.name not in ("before_activation", "between")
    ]


def image():
    return keras.Input((8, 8, 3), name="image")


def test_convolution_normalization_and_relu_are_one_operator():
    x = layers.Conv2D(4, 3, name="conv")(image_in := image())
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(6.0, name="relu")(x)
    x = layers.Conv2D(4, 3, activation="relu", name="conv_relu")(x)
    x = layers.DepthwiseConv2D(3, name="last")(x)
    assert rounded(keras.Model(image_in, x)) == ["image", "relu", "conv_relu", "last"]


def test_a_value_that_is_read_twice_exists_and_is_rounded():
    inputs = image()
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    y = layers.ReLU(name="relu")(x)
    z = layers.Add(name="add")([x, y])
    assert rounded(keras.Model(inputs, layers.ReLU(name="end")(z))) == [
        "image",
        "conv",
        "relu",
        "end",
    ]


def test_a_value_that_is_also_an_output_of_the_model_is_rounded():
    inputs = image()
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    y = layers.ReLU(name="relu")(x)
    assert rounded(keras.Model(inputs, [x, y])) == ["image", "conv", "relu"]


def test_pooling_padding_and_reshaping_hand_their_range_on():
    inputs = image()
    x = layers.ZeroPadding2D(name="pad")(inputs)
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    x = layers.Dense(3, activation="softmax", name="out")(x)
    # softmax has a fixed range; what goes into it is rounded inside the layer
    assert rounded(keras.Model(inputs, x)) == ["image", "conv"]


def test_residual_adds_and_concatenations_are_rounded_after_their_relu():
    inputs = image()
    x = layers.Conv2D(4, 3, padding="same", name="a")(inputs)
    y = layers.BatchNormalization(name="b_norm")(layers.Conv2D(4, 3, padding="same", name="b")(x))
    x = layers.ReLU(name="add_relu")(layers.Add(name="add")([x, y]))
    x = layers.Concatenate(name="both")([x, y])
    assert rounded(keras.Model(inputs, x)) == ["image", "a", "b_norm", "add_relu", "both"]


def test_a_normalization_that_cannot_fold_is_an_operator_of_its_own():
    inputs = image()
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    assert rounded(keras.Model(inputs, x)) == ["image", "conv", "norm"]


def test_activations_that_do_not_fuse_see_an_int8_tensor_and_make_one():
    inputs = image()
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.LeakyReLU(name="leaky")(x)
    x = layers.Conv2D(4, 3, name="conv_2")(x)
    x = layers.Activation("gelu", name="gelu")(x)
    x = layers.Conv2D(4, 3, name="conv_3")(x)
    x = layers.Activation("sigmoid", name="sigmoid")(x)  # its range is fixed
    assert rounded(keras.Model(inputs, x)) == ["image", "conv", "leaky", "conv_2", "gelu", "conv_3"]


def test_training_only_layers_are_looked_through():
    inputs = image()
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.SpatialDropout2D(0.1, name="drop")(x)
    x = layers.Activation("relu", name="relu")(x)
    assert rounded(keras.Model(inputs, x)) == ["image", "relu"]


def test_models_inside_are_looked_through():
    inside = image()
    x = layers.Conv2D(4, 3, name="conv")(inside)
    backbone = keras.Model(inside, layers.BatchNormalization(name="norm")(x), name="backbone")
    inputs = keras.Input((8, 8, 3), name="outer")
    x = layers.ReLU(name="relu")(backbone(inputs))
    assert rounded(keras.Model(inputs, x)) == ["outer", "relu"]
    stack = keras.Sequential([keras.Input((8, 8, 3), name="outer"), backbone, layers.ReLU()])
    stack.layers[-1].name = "relu"
    assert rounded(stack) == ["outer", "relu"]


def test_a_shared_layer_is_wrapped_once_and_each_of_its_outputs_rounded():
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    shared = layers.Dense(3, name="shared")
    x = layers.Subtract(name="apart")([shared(first), shared(second)])
    model = keras.Model([first, second], x)
    assert rounded(model) == ["first", "second", "shared", "shared_range_2", "apart"]
    wrapped = [x for x in quantize_aware(model)._flatten_layers() if isinstance(x, GridLayer)]
    assert len(wrapped) == 1


def test_operations_of_keras_ops_are_placed_like_layers():
    inputs = keras.Input((8,), name="in")
    x = ops.relu(layers.Dense(4, name="dense")(inputs))
    x = x + 1.0
    x = ops.reshape(x, (-1, 2, 2))
    model = keras.Model(inputs, x)
    relu, add = [op.name for op in model.operations if type(op).__name__ in ("Relu", "Add")]
    assert rounded(model) == ["in", relu, add]


def test_integer_inputs_are_not_rounded():
    inputs = keras.Input((5,), dtype="int32", name="words")
    x = layers.Embedding(10, 4, name="table")(inputs)
    x = layers.Dense(2, name="dense")(layers.Flatten()(x))
    assert rounded(keras.Model(inputs, x)) == ["table", "dense"]


@pytest.mark.parametrize("skip", ["conv", "co*", "Conv2D"])
def test_a_skipped_layer_is_neither_wrapped_nor_rounded(skip):
    inputs = image()
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="dense")(layers.Flatten()(x)))
    aware = quantize_aware(model, skip=[skip])
    assert isinstance(aware.get_layer("conv"), layers.Conv2D)
    assert isinstance(aware.get_layer("dense"), GridLayer)
    names = [x.name for x in aware.layers if isinstance(x, ActivationRange)]
    assert names == ["image_range", "dense_range"]
