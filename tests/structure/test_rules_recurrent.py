import numpy as np
import pytest
from structure.law import check_law, randomize

from edgeprune.models import import_keras
from edgeprune.structure.graph import channel_graph
from edgeprune.structure.plan import plan_channels
from edgeprune.structure.surgery import shrink

keras = import_keras()
layers = keras.layers

KINDS = {
    "LSTM": layers.LSTM,
    "GRU": layers.GRU,
    "GRU, reset before": lambda *a, **k: layers.GRU(*a, reset_after=False, **k),
    "SimpleRNN": layers.SimpleRNN,
    "RNN of a cell": lambda units, **k: layers.RNN(layers.GRUCell(units), **k),
    "RNN of cells": lambda units, **k: layers.RNN(
        layers.StackedRNNCells(
            [layers.LSTMCell(5), layers.GRUCell(6), layers.SimpleRNNCell(units)]
        ),
        **k,
    ),
}


def chain(shape, *parts):
    model = keras.Sequential([keras.Input(shape), *parts])
    randomize(model)
    return model


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in KINDS),
        ("LSTM", {"use_bias": False, "unroll": True}),
        ("GRU", {"use_bias": False, "go_backwards": True}),
    ],
)
def test_the_law_holds_for_units(kind, options):
    make = KINDS[kind]
    model = chain(
        (7, 3),
        layers.Dense(6),
        make(8, return_sequences=True, **options),
        make(6, **options),
        layers.Dense(4),
    )
    graph, smaller = check_law(model, 0.4)
    assert [group.frozen.all() for group in graph.groups[:-1]] == [False] * (len(graph.groups) - 1)
    assert smaller.count_params() < model.count_params()


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("SimpleRNN", 1)])
def test_every_gate_loses_the_unit(kind, gates):
    model = chain((7, 3), KINDS[kind](4, name="units"), layers.Dense(2))
    graph = channel_graph(model)
    kernel, recurrent_in, recurrent_out, bias, dense = graph.groups[0].slices
    np.testing.assert_array_equal(kernel.channels, [0, 1, 2, 3] * gates)
    np.testing.assert_array_equal(recurrent_out.channels, [0, 1, 2, 3] * gates)
    np.testing.assert_array_equal(recurrent_in.channels, [0, 1, 2, 3])
    np.testing.assert_array_equal(bias.channels, [0, 1, 2, 3] * gates)
    assert (kernel.role, recurrent_in.role, recurrent_out.role) == ("out", "in", "out")
    assert (bias.role, dense.role) == ("bias", "in")
    smaller = shrink(graph, {0: np.array([1])})
    cell = smaller.get_layer("units").cell
    old = model.get_layer("units").cell
    kept = [gate * 4 + unit for gate in range(gates) for unit in (0, 2, 3)]
    np.testing.assert_array_equal(cell.kernel, np.asarray(old.kernel)[:, kept])
    np.testing.assert_array_equal(
        cell.recurrent_kernel, np.asarray(old.recurrent_kernel)[[0, 2, 3]][:, kept]
    )
    np.testing.assert_array_equal(cell.bias, np.asarray(old.bias)[..., kept])
    assert smaller.get_layer("units").get_config()["units"] == 3


def test_states_tie_an_encoder_to_its_decoder():
    inputs, given = keras.Input((5, 3)), keras.Input((4, 2))
    _, *states = layers.LSTM(8, return_state=True, name="encoder")(inputs)
    decoded = layers.LSTM(8, return_sequences=True, name="decoder")(given, initial_state=states)
    model = keras.Model([inputs, given], layers.Dense(3)(decoded))
    randomize(model)
    graph, smaller = check_law(model, 0.5)
    assert graph.groups[0].layers == ("encoder", "decoder")
    assert not graph.groups[0].frozen.any()
    assert smaller.get_layer("encoder").units == smaller.get_layer("decoder").units < 8


def test_states_of_stacked_cells_belong_to_their_cells():
    cells = [layers.LSTMCell(5), layers.GRUCell(6)]
    inputs = keras.Input((5, 3))
    output, *states = layers.RNN(layers.StackedRNNCells(cells), return_state=True)(inputs)
    ends = [layers.Dense(2)(tensor) for tensor in (output, *keras.tree.flatten(states))]
    model = keras.Model(inputs, ends)
    randomize(model)
    graph, _ = check_law(model, 0.5)
    assert [group.size for group in graph.groups[:2]] == [5, 6]
    # The hidden state and the carry of the first are read by one layer each, the second cell
    # reads the hidden state; the second cell's is output and state.
    assert sum(part.role == "in" for part in graph.groups[0].slices) == 1 + 1 + 2
    assert sum(part.role == "in" for part in graph.groups[1].slices) == 1 + 2
    smaller = shrink(graph, {0: np.array([1]), 1: np.array([0, 5])})
    shrunk = smaller.layers[1].get_config()["cell"]["config"]["cells"]
    assert [cell["config"]["units"] for cell in shrunk] == [4, 4]


def test_initial_states_that_are_inputs_keep_the_units():
    inputs, state = keras.Input((5, 3)), keras.Input((8,))
    made = layers.GRU(8, name="units")(inputs, initial_state=state)
    graph = channel_graph(keras.Model([inputs, state], layers.Dense(3)(made)))
    assert graph.groups[0].name == "units"
    assert graph.groups[0].frozen.all()


def test_a_stateful_layer_shrinks_with_its_states():
    inputs = keras.Input(batch_shape=(2, 5, 3))
    made = layers.LSTM(8, stateful=True, name="units")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(made))
    randomize(model)
    _, smaller = check_law(model, 0.5)
    units = smaller.get_layer("units")
    assert units.stateful
    assert units.states[0].shape == (2, units.units)


def test_a_softmax_over_units_and_a_cell_of_ones_own_are_refused():
    model = chain((5, 3), layers.SimpleRNN(8, activation="softmax"), layers.Dense(2))
    assert channel_graph(model).groups[0].frozen.all()

    class OwnCell(layers.GRUCell):
        pass

    model = chain((5, 3), layers.Dense(4, name="before"), layers.RNN(OwnCell(8)), layers.Dense(2))
    graph = channel_graph(model)
    assert graph.groups[0].frozen.all()
    assert "OwnCell" in graph.refused[0].reason
    assert len(graph.groups) == 2  # of the cell itself nothing is known


@pytest.mark.parametrize(
    ("kind", "merge_mode"),
    [
        *(("SimpleRNN", mode) for mode in ("sum", "mul", "ave")),
        *((kind, "concat") for kind in ("LSTM", "GRU", "RNN of cells")),
    ],
)
def test_the_law_holds_in_both_directions(kind, merge_mode):
    model = chain(
        (7, 3),
        layers.Bidirectional(KINDS[kind](8, return_sequences=True), merge_mode=merge_mode),
        layers.Bidirectional(KINDS[kind](6), merge_mode=merge_mode, name="both"),
        layers.Dense(4),
    )
    graph, smaller = check_law(model, 0.4)
    assert not any(group.frozen.any() for group in graph.groups[:-1])
    assert smaller.count_params() < model.count_params()
    width = smaller.get_layer("both").output.shape[-1]
    assert width % 2 == 0 or merge_mode != "concat"
    assert smaller.layers[-1].kernel.shape[0] == width


def test_both_directions_may_be_returned_apart_with_their_states():
    inputs, starts = keras.Input((5, 3)), keras.Input((4,))
    states = [layers.Dense(6)(starts) for _ in range(4)]
    both = layers.Bidirectional(
        layers.LSTM(6, return_sequences=True, return_state=True), merge_mode=None, name="both"
    )
    forward, backward, *held = both(inputs, initial_state=states)
    ends = [layers.Dense(2)(tensor) for tensor in (forward, backward, *held)]
    model = keras.Model([inputs, starts], ends)
    randomize(model)
    graph, smaller = check_law(model, 0.5)
    (group,) = [group for group in graph.groups if not group.frozen.any()]
    assert len(group.layers) == 6  # the four layers that make the states, and both directions
    assert smaller.get_layer("both").forward_layer.units < 6


def test_a_backward_layer_of_its_own_keeps_its_options():
    backward = layers.LSTM(6, go_backwards=True, activation="relu")
    model = chain(
        (5, 3), layers.Bidirectional(layers.LSTM(6), backward_layer=backward), layers.Dense(2)
    )
    _, smaller = check_law(model, 0.5)
    both = smaller.layers[0]
    assert both.backward_layer.activation is keras.activations.relu
    assert both.forward_layer.units == both.backward_layer.units < 6


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_law_holds_for_convolutional_recurrence(rank, data_format):
    make = getattr(layers, f"ConvLSTM{rank}D")
    spatial = (4,) * rank
    first = data_format == "channels_first"
    model = chain(
        (3, 2, *spatial) if first else (3, *spatial, 2),
        make(5, 2, return_sequences=True, data_format=data_format),
        make(4, 2, data_format=data_format, name="last"),
        getattr(layers, f"GlobalAveragePooling{rank}D")(data_format=data_format),
        layers.Dense(2),
    )
    graph, _ = check_law(model, 0.5)
    assert not any(group.frozen.any() for group in graph.groups[:2])
    smaller = shrink(graph, {1: np.array([0, 2, 3])})
    assert smaller.get_layer("last").get_config()["filters"] == 1


def test_masked_steps_stay_masked():
    inputs = keras.Input((None,), dtype="int32")
    made = layers.Embedding(5, 6, mask_zero=True)(inputs)
    made = layers.Bidirectional(layers.GRU(6, return_sequences=True))(made)
    model = keras.Model(inputs, layers.Dense(3)(layers.LSTM(5)(made)))
    randomize(model)
    given = np.array([[1, 2, 0, 0, 0, 0], [3, 1, 2, 4, 0, 0]], np.int32)
    graph, smaller = check_law(model, 0.5, inputs=[given])
    assert not any(group.frozen.any() for group in graph.groups[:-1])
    # Steps that are masked have no part in what the smaller model gives.
    np.testing.assert_allclose(smaller(given), smaller(given[:, :4]), atol=1e-6)


def test_a_plan_lists_a_layer_of_two_directions_once():
    inputs = keras.Input((6, 4))
    x = layers.Bidirectional(layers.LSTM(16), name="both")(inputs)
    planned = plan_channels(keras.Model(inputs, layers.Dense(2)(x)), pruning_ratio=0.5)
    assert planned.groups[0].layers == ("both",)
