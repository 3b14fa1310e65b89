import numpy as np
import pytest
from structure.law import check_law, randomize

from edgeprune.models import import_keras
from edgeprune.structure.graph import channel_graph
from edgeprune.structure.surgery import shrink

keras = import_keras()
layers = keras.layers


def chain(shape, *parts):
    model = keras.Sequential([keras.Input(shape), *parts])
    randomize(model)
    return model


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_law_holds_for_transposed_convolutions(rank, bias):
    conv = getattr(layers, f"Conv{rank}D")
    transposed = getattr(layers, f"Conv{rank}DTranspose")
    model = chain(
        (4,) * rank + (2,),
        conv(6, 2),
        transposed(8, 3, strides=2, activation="relu", use_bias=bias),
        transposed(3, 2, use_bias=bias),
    )
    graph, smaller = check_law(model, 0.5)
    assert [group.frozen.any() for group in graph.groups] == [False, False, True]
    assert smaller.count_params() < model.count_params()


def test_a_transposed_kernel_makes_its_last_axis_but_one():
    model = chain(
        (4, 4, 2), layers.Conv2DTranspose(6, 3, name="up"), layers.Conv2DTranspose(3, 2, name="end")
    )
    graph = channel_graph(model)
    assert [(part.layer, part.axis, part.role) for part in graph.groups[0].slices] == [
        ("up", 2, "out"),
        ("up", 0, "bias"),
        ("end", 3, "in"),
    ]
    smaller = shrink(graph, {0: np.array([0, 4])})
    assert smaller.get_layer("up").get_config()["filters"] == 4
    assert smaller.get_layer("up").kernel.shape == (3, 3, 4, 2)
    assert smaller.get_layer("end").kernel.shape == (2, 2, 3, 4)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_the_law_holds_for_separable_convolutions(rank, multiplier):
    separable = getattr(layers, f"SeparableConv{rank}D")
    model = chain(
        (6,) * rank + (3,),
        separable(6, 3, depth_multiplier=multiplier, padding="same"),
        layers.BatchNormalization(),
        separable(5, 3, depth_multiplier=multiplier, activation="relu", use_bias=False),
        getattr(layers, f"GlobalAveragePooling{rank}D")(),
        layers.Dense(4),
    )
    graph, smaller = check_law(model, 0.5)
    assert [group.frozen.any() for group in graph.groups] == [False, False, True]
    assert smaller.count_params() < model.count_params()


def test_a_separable_convolution_reads_each_channel_depth_multiplier_times():
    model = chain(
        (6, 6, 3),
        layers.Conv2D(4, 1, name="before"),
        layers.SeparableConv2D(5, 3, depth_multiplier=2, name="both"),
    )
    graph = channel_graph(model)
    depthwise, pointwise = graph.groups[0].slices[2:]
    assert (depthwise.axis, depthwise.role) == (2, "in")
    assert (pointwise.axis, pointwise.role) == (2, "in")
    np.testing.assert_array_equal(pointwise.channels, [0, 0, 1, 1, 2, 2, 3, 3])
    smaller = shrink(graph, {0: np.array([1])})
    both = smaller.get_layer("both")
    assert both.depthwise_kernel.shape == (3, 3, 3, 2)
    assert both.pointwise_kernel.shape == (1, 1, 6, 5)
    np.testing.assert_array_equal(
        both.pointwise_kernel,
        np.asarray(model.get_layer("both").pointwise_kernel)[:, :, [0, 1, 4, 5, 6, 7]],
    )
