import numpy as np
import pytest
from structure.rule_models import (
    around,
    followed,
    group_of,
    image,
    kept,
    keras,
    layers,
    positions,
    steps,
    without,
)

from edgeprune.structure.graph import channel_graph


@pytest.mark.parametrize(
    ("kind", "shape"), [("Conv1D", (9, 3)), ("Conv2D", (8, 8, 3)), ("Conv3D", (5, 5, 5, 3))]
)
def test_convolutions_of_every_rank_hold_the_law(kind, shape):
    make = getattr(layers, kind)
    model = around(make(6, 2, activation="relu", name="second"), make(8, 3, name="source"), shape)
    followed(model, 8)
    followed(model, 6, "second")


def test_a_convolution_of_a_dilated_causal_kind_holds_the_law():
    make = layers.Conv1D(6, 2, dilation_rate=2, padding="causal", use_bias=False)
    followed(steps(make), 8)


def test_channels_first_is_read_along_the_second_axis():
    """TensorFlow on a CPU does not run such a convolution, so the shapes are what is checked."""
    entry = keras.Input((3, 8, 8))
    x = layers.Conv2D(8, 3, data_format="channels_first", name="source")(entry)
    x = layers.DepthwiseConv2D(3, data_format="channels_first", name="depthwise")(x)
    x = layers.BatchNormalization(axis=1, name="norm")(x)
    x = layers.Conv2D(4, 1, data_format="channels_first", name="second")(x)
    model = keras.Model(entry, x)
    group = group_of(channel_graph(model))
    assert group.size == 8
    assert not group.frozen.any()
    smaller = without(model, [0, 5, 7])
    assert smaller.get_layer("source").filters == 5
    assert smaller.get_layer("depthwise").kernel.shape == (3, 3, 5, 1)
    assert smaller.get_layer("norm").gamma.shape == (5,)
    assert smaller.get_layer("second").kernel.shape == (1, 1, 5, 4)
    assert smaller.output_shape == (None, 4, 4, 4)


def test_the_same_channels_of_every_group_leave_where_groups_are_few():
    # Two groups of 4 -> 6: units are 4 pairs of inputs and 6 pairs of outputs.
    model = image(layers.Conv2D(12, 3, groups=2, name="grouped"))
    followed(model, 4)
    group = followed(model, 6, "grouped")
    assert group.widths.tolist() == [[2] * 6]
    source = group_of(channel_graph(model))
    assert positions(source, "source/kernel", 3)[1] == [1, 5]
    assert positions(source, "grouped/kernel", 2)[1] == [1]
    assert positions(group, "grouped/kernel", 3)[2] == [2, 8]
    smaller = without(without(model, [1]), [0], "grouped")
    grouped = smaller.get_layer("grouped")
    assert (grouped.groups, grouped.filters, grouped.kernel.shape) == (2, 10, (3, 3, 3, 10))


def test_whole_groups_leave_where_groups_are_many():
    # Four groups of 2 -> 3: a unit is a group, with its 2 inputs and 3 outputs.
    model = image(layers.Conv2D(12, 3, groups=4, name="grouped"))
    group = followed(model, 4)
    assert group.layers == ("source", "grouped")
    assert group.widths.tolist() == [[2] * 4, [3] * 4]
    assert positions(group, "source/kernel", 3)[1] == [2, 3]
    assert positions(group, "grouped/kernel", 3)[1] == [3, 4, 5]
    smaller = without(model, [1])
    grouped = smaller.get_layer("grouped")
    assert (grouped.groups, grouped.filters, grouped.kernel.shape) == (3, 9, (3, 3, 2, 9))


def test_one_channel_a_group_is_a_depthwise_convolution():
    followed(image(layers.Conv2D(8, 3, groups=8, use_bias=False)), 8)


def test_a_grouped_convolution_of_the_models_inputs_keeps_its_groups():
    entry = keras.Input((6, 6, 4))
    grouped = layers.Conv2D(6, 3, groups=2, name="source")(entry)
    model = keras.Model(entry, layers.Dense(2)(layers.Flatten()(grouped)))
    followed(model, 3)
    assert without(model, [0]).get_layer("source").filters == 4


@pytest.mark.parametrize(
    ("kind", "build"), [("DepthwiseConv1D", steps), ("DepthwiseConv2D", image)]
)
def test_a_depthwise_convolution_hands_channels_on(kind, build):
    model = build(getattr(layers, kind)(3, depth_multiplier=2, name="depthwise"))
    group = followed(model, 8)
    # Channel 3 becomes 6 and 7.
    assert positions(group, "depthwise/bias", 0)[3] == [6, 7]
    smaller = without(model, [0, 3])
    assert smaller.get_layer("depthwise").bias.shape == (12,)


def test_a_softmax_in_a_convolution_keeps_its_channels():
    kept(image(layers.Conv2D(4, 1, activation="softmax", name="second")), "softmax", "second")


def test_channels_that_serve_as_positions_stay():
    reason = "works along these channels as if they were positions"
    kept(steps(lambda x: layers.Conv1D(4, 2)(layers.Permute((2, 1))(x))), reason)
    kept(steps(lambda x: layers.MaxPooling1D(2)(layers.Permute((2, 1))(x))), reason)
    kept(steps(lambda x: layers.GlobalMaxPooling1D()(layers.Permute((2, 1))(x))), reason)


def test_kernels_that_are_no_plain_weight_are_refused():
    model = image(layers.Conv2D(4, 3, name="second"))
    model.get_layer("second").enable_lora(2)
    graph = channel_graph(model)
    assert "LoRA" in group_of(graph).reasons[0]
    assert not any("second" in group.layers for group in graph.groups)


def test_names_policies_and_flags_are_kept():
    entry = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, dtype="mixed_float16", name="half")(entry)
    x = layers.BatchNormalization(trainable=False, name="norm")(x)
    x = layers.Conv2D(4, 3, strides=2, padding="same", trainable=False, name="second")(x)
    model = keras.Model(entry, layers.Dense(2, dtype="float32")(layers.Flatten()(x)), name="m")
    smaller = without(model, [2, 3], "half")
    assert smaller.name == "m"
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]
    assert smaller.get_layer("half").dtype_policy.name == "mixed_float16"
    assert not smaller.get_layer("norm").trainable
    assert not smaller.get_layer("second").trainable
    assert smaller.get_layer("second").strides == (2, 2)
    np.testing.assert_array_equal(
        smaller.get_layer("half").kernel,
        np.delete(np.asarray(model.get_layer("half").kernel), [2, 3], axis=3),
    )
