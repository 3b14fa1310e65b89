import pytest
from structure.law import check_law, randomize

from edgeprune.models import import_keras
from edgeprune.structure.graph import channel_graph

keras = import_keras()
layers = keras.layers


def chain(shape, *parts):
    model = keras.Sequential([keras.Input(shape), *parts])
    randomize(model)
    return model


def test_the_law_holds_step_by_step():
    step = layers.TimeDistributed
    model = chain(
        (3, 6, 6, 2),
        step(layers.Conv2D(6, 3, activation="relu"), name="conv"),
        step(layers.BatchNormalization()),
        step(layers.DepthwiseConv2D(2)),
        step(layers.MaxPooling2D(2)),
        step(layers.Flatten()),
        step(layers.Dense(8), name="dense"),
        layers.LSTM(5),
        layers.Dense(2),
    )
    graph, smaller = check_law(model, 0.5)
    assert not any(group.frozen.any() for group in graph.groups[:-1])
    assert smaller.get_layer("conv").layer.filters < 6
    assert smaller.get_layer("dense").get_config()["layer"]["config"]["units"] < 8


def test_what_the_inner_layer_reads_lies_behind_the_axis_of_time():
    model = chain(
        (3, 6, 6, 2),
        layers.TimeDistributed(layers.Conv2D(6, 3)),
        layers.TimeDistributed(layers.Conv2D(4, 3), name="reader"),
    )
    (read,) = channel_graph(model).groups[0].reads
    assert read.operation is model.get_layer("reader")
    assert (read.input, read.axis) == (0, 4)


@pytest.mark.parametrize("inner", [lambda: keras.Sequential([layers.Dense(4)]), lambda: Own()])
def test_what_is_not_known_inside_is_refused(inner):
    model = chain(
        (3, 5), layers.Dense(6, name="before"), layers.TimeDistributed(inner()), layers.Dense(2)
    )
    graph = channel_graph(model)
    assert graph.groups[0].name == "before"
    assert graph.groups[0].frozen.all()
    assert "TimeDistributed" in graph.refused[0].reason
    check_law(model, 0.5)


@keras.saving.register_keras_serializable("test_rules_wrappers")
class Own(layers.Layer):
    def call(self, x):
        return keras.ops.flip(x, -1)

    def compute_output_shape(self, shape):
        return shape


def test_masks_pass_through():
    inputs = keras.Input((6,), dtype="int32")
    made = layers.Embedding(5, 6, mask_zero=True)(inputs)
    made = layers.TimeDistributed(layers.Dense(7))(made)
    model = keras.Model(inputs, layers.Dense(3)(layers.LSTM(5)(made)))
    randomize(model)
    graph, _ = check_law(model, 0.5)
    assert not any(group.frozen.any() for group in graph.groups[:-1])
