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


@pytest.mark.parametrize(
    ("equation", "output_shape", "bias_axes"),
    [
        ("abc,cd->abd", (6, 12), "d"),
        ("abc,cd->abd", (6, 12), None),
        ("...x,xy->...y", 12, "y"),
        ("...x,xy->...y", (12,), None),
        ("abc,cde->abde", (None, 4, 6), "de"),
        ("abc,cde->abde", (None, 4, 6), "e"),
        ("abc,cd->adb", (12, 6), "d"),
        ("abc,cd->ad", (12,), "d"),  # b is summed over
        ("abc,cd->acd", (8, 12), "cd"),  # c has a kernel for each of its channels
        ("abc,bd->adc", (12, 8), "dc"),  # the steps are read, the channels handed on
        ("ab...,bd->ad...", (12,), None),
    ],
)
def test_the_law_holds_for_every_form_of_equation(equation, output_shape, bias_axes):
    model = chain(
        (6, 5),
        layers.Dense(8),
        layers.EinsumDense(equation, output_shape, bias_axes=bias_axes, activation="relu"),
    )
    rank = len(model.output_shape)
    model = chain(
        (6, 5),
        *model.layers,
        layers.EinsumDense(*(("...xy,xyz->...z", 5) if rank > 2 else ("ax,xy->ay", 5))),
    )
    graph, smaller = check_law(model, 0.5)
    assert not graph.groups[0].frozen.any()
    assert smaller.count_params() < model.count_params()


def test_each_output_letter_is_a_group_and_each_input_letter_is_read():
    inputs = keras.Input((6, 5))
    made = layers.EinsumDense("abc,cde->abde", (None, 4, 6), bias_axes="de", name="split")(inputs)
    outputs = layers.EinsumDense("abde,def->abf", (None, 7), name="join")(made)
    graph = channel_graph(keras.Model(inputs, outputs))
    d, e, end = graph.groups
    assert [group.size for group in graph.groups] == [4, 6, 7]
    assert end.frozen.all()
    places = [
        [(part.layer, part.variable.name, part.axis, part.role) for part in group.slices]
        for group in (d, e)
    ]
    assert places[0] == [
        ("split", "kernel", 1, "out"),
        ("split", "bias", 0, "bias"),
        ("join", "kernel", 0, "in"),
    ]
    assert places[1] == [
        ("split", "kernel", 2, "out"),
        ("split", "bias", 1, "bias"),
        ("join", "kernel", 1, "in"),
    ]
    smaller = shrink(graph, {0: np.array([1]), 1: np.array([0, 5])})
    assert smaller.get_layer("split").get_config()["output_shape"] == (None, 3, 4)
    assert smaller.get_layer("split").kernel.shape == (5, 3, 4)
    assert smaller.get_layer("split").bias.shape == (3, 4)
    assert smaller.get_layer("join").kernel.shape == (3, 4, 7)
    assert smaller.get_layer("join").get_config()["output_shape"] == (None, 7)


def test_a_softmax_over_what_it_makes_keeps_it():
    model = chain(
        (6, 5),
        layers.EinsumDense("abc,cde->abde", (None, 4, 6), activation="softmax"),
        layers.EinsumDense("abde,def->abf", (None, 7)),
    )
    d, e, _ = channel_graph(model).groups
    assert not d.frozen.any()
    assert e.frozen.all()
    check_law(model, 0.5)


def test_a_bias_that_keras_may_misplace_keeps_all_sizes():
    # Were e to shrink to 4, Keras would add the bias of d, (4, 1), to e.
    model = chain(
        (6, 5),
        layers.EinsumDense("abc,cde->abde", (None, 4, 6), bias_axes="d", name="made"),
        layers.EinsumDense("abde,def->abf", (None, 7)),
    )
    d, e, _ = channel_graph(model).groups
    assert d.frozen.all()
    assert e.frozen.all()
    assert "bias" in e.reasons[0]


def test_a_repeated_letter_is_refused():
    layer = layers.EinsumDense("abb,bc->abc", (6, 7))
    inputs = keras.Input((6, 5))
    made = layers.Dense(6, name="before")(inputs)
    graph = channel_graph(keras.Model(inputs, layer(made)))
    assert graph.groups[0].frozen.all()
    assert "repeats a letter" in graph.refused[0].reason


def test_a_kernel_of_integers_or_with_an_adapter_is_refused():
    for change in (lambda layer: layer.quantize("int8"), lambda layer: layer.enable_lora(2)):
        model = chain(
            (6, 5),
            layers.Dense(8, name="before"),
            layers.EinsumDense("abc,cd->abd", (None, 9)),
        )
        change(model.layers[-1])
        (group,) = channel_graph(model).groups
        assert group.name == "before"
        assert group.frozen.all()
