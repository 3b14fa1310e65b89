import numpy as np
from structure.law import check_law, randomize

from edgeprune.models import import_keras
from edgeprune.structure.graph import channel_graph

keras = import_keras()
layers = keras.layers


def tokens():
    return keras.Input((6,), dtype="int32")


def test_the_law_holds_and_the_vectors_shrink():
    inputs = tokens()
    made = layers.Embedding(5, 8, name="table")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(made)))
    randomize(model)
    graph, smaller = check_law(model, 0.5)
    table = graph.groups[0]
    assert table.size == 8
    assert not table.frozen.any()
    left = smaller.get_layer("table").get_config()["output_dim"]
    assert left < 8
    assert smaller.get_layer("table").embeddings.shape == (5, left)


def test_masks_go_on_with_fewer_channels():
    inputs = tokens()
    made = layers.Embedding(5, 8, mask_zero=True)(inputs)
    made = layers.LSTM(6, return_sequences=True)(made)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(made)))
    randomize(model)
    given = np.array([[1, 2, 0, 0, 0, 0], [3, 1, 2, 4, 0, 0]], np.int32)
    _, smaller = check_law(model, 0.5, inputs=[given])
    longer = np.where(given == 0, 0, given)
    longer[0, 2] = 3
    # Masked steps have no part in the output, others do.
    assert np.abs(smaller(given) - smaller(longer))[0].max() > 1e-4
    assert smaller.count_params() < model.count_params()


def test_pretrained_vectors_do_not_stand_in_the_way():
    inputs = tokens()
    start = keras.initializers.Constant(np.random.default_rng(0).normal(size=(5, 8)))
    made = layers.Embedding(5, 8, embeddings_initializer=start)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(made))
    randomize(model)
    check_law(model, 0.5)


def test_a_table_of_integers_is_left_alone():
    inputs = tokens()
    made = layers.Embedding(5, 8, name="table")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="end")(layers.Dense(4, name="after")(made)))
    model.get_layer("table").quantize("int8")
    graph = channel_graph(model)
    assert [group.name for group in graph.groups] == ["after", "end"]
