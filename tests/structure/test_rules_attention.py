import numpy as np
import pytest
from structure.law import check_law, randomize

from edgeprune.models import import_keras
from edgeprune.structure.graph import channel_graph
from edgeprune.structure.surgery import shrink

keras = import_keras()
layers = keras.layers


def attending(attention, source=(6, 5), width=8, **call):
    """Two dense layers make query and value; the output is read by a third."""
    inputs = keras.Input(source)
    query = layers.Dense(width, name="query")(inputs)
    value = layers.Dense(width, name="value")(inputs)
    made = keras.tree.flatten(attention(query, value, **call))[0]
    model = keras.Model(inputs, layers.Dense(3, name="end")(made))
    randomize(model)
    return model


def named(graph, kind):
    return [group for group in graph.groups if group.kind == kind]


MULTI_HEAD = {
    "plain": {},
    "no bias": {"use_bias": False},
    "values of their own size": {"value_dim": 5},
    "stated width": {"output_shape": 7},
    "dropout": {"dropout": 0.5},
    "gated": {"use_gate": True},
    "window": {"sliding_window": 2},
}


@pytest.mark.parametrize("options", MULTI_HEAD.values(), ids=MULTI_HEAD)
def test_the_law_holds_for_heads_and_channels(options):
    attention = layers.MultiHeadAttention(4, 3, name="attention", **options)
    model = attending(attention)
    graph, smaller = check_law(model, 0.5)
    (heads,) = named(graph, "heads")
    assert heads.size == 4
    assert heads.layers == ("attention",)
    assert [group.name for group in named(graph, "channels")] == [
        "query",
        "value",
        "attention",
        "end",
    ]
    assert not any(group.frozen.any() for group in graph.groups[:-1])
    left = smaller.get_layer("attention")
    assert left.key_dim == 3
    assert left.value_dim == options.get("value_dim", 3)
    assert left.get_config()["output_shape"] == (left.output_dense.kernel.shape[-1],)


@pytest.mark.parametrize(
    "options", [{"use_causal_mask": True}, {"return_attention_scores": True}], ids=str
)
def test_the_law_holds_for_options_of_the_call(options):
    model = attending(layers.MultiHeadAttention(4, 3), **options)
    graph, _ = check_law(model, 0.5)
    assert not named(graph, "heads")[0].frozen.any()


def test_a_head_is_made_three_times_and_read_once():
    model = attending(layers.MultiHeadAttention(4, 3, name="attention"))
    graph = channel_graph(model)
    (heads,) = named(graph, "heads")
    assert [
        (part.variable.path.split("/")[-2:], part.axis, part.role) for part in heads.slices
    ] == [
        (["query", "kernel"], 1, "out"),
        (["query", "bias"], 0, "bias"),
        (["key", "kernel"], 1, "out"),
        (["key", "bias"], 0, "bias"),
        (["value", "kernel"], 1, "out"),
        (["value", "bias"], 0, "bias"),
        (["attention_output", "kernel"], 0, "in"),
    ]
    smaller = shrink(graph, {graph.groups.index(heads): np.array([0, 2])})
    left, old = smaller.get_layer("attention"), model.get_layer("attention")
    assert left.num_heads == 2
    np.testing.assert_array_equal(
        left.key_dense.kernel, np.asarray(old.key_dense.kernel)[:, [1, 3]]
    )
    np.testing.assert_array_equal(
        left.output_dense.kernel, np.asarray(old.output_dense.kernel)[[1, 3]]
    )


def test_a_query_may_shrink_where_its_attention_does_not():
    # Without an output_shape Keras would take the query's new width for the output's.
    inputs = keras.Input((6, 5))
    query = layers.Dense(8, name="query")(inputs)
    model = keras.Model(inputs, layers.MultiHeadAttention(2, 3, name="end")(query, inputs))
    randomize(model)
    graph, smaller = check_law(model, 0.5)
    assert graph.groups[0].name == "query"
    smaller = shrink(graph, {0: np.array([0, 1, 2])})
    assert smaller.output_shape == (None, 6, 8)
    assert smaller.get_layer("end").query_dense.kernel.shape == (5, 2, 3)


def test_query_value_and_key_are_told_apart_however_they_are_given():
    inputs = keras.Input((6, 5))
    parts = {name: layers.Dense(n, name=name)(inputs) for name, n in (("a", 4), ("b", 6), ("c", 8))}
    attention = layers.MultiHeadAttention(2, 3, name="attention")
    made = attention(key=parts["c"], query=parts["a"], value=parts["b"])
    model = keras.Model(inputs, layers.Dense(3)(made))
    randomize(model)
    graph, _ = check_law(model, 0.5)
    readers = {
        group.name: [
            part.variable.path.split("/")[-2] for part in group.slices if part.role == "in"
        ]
        for group in named(graph, "channels")
    }
    assert readers["a"] == ["query"]
    assert readers["b"] == ["value"]
    assert readers["c"] == ["key"]
    assert not any(group.frozen.any() for group in graph.groups[:-1])


def test_a_shared_attention_layer_has_one_group_of_heads():
    inputs = keras.Input((6, 5))
    shared = layers.MultiHeadAttention(4, 2, output_shape=5, name="shared")
    made = layers.Add()([inputs, shared(inputs, inputs)])
    model = keras.Model(inputs, layers.Dense(3)(shared(made, made)))
    randomize(model)
    graph, smaller = check_law(model, 0.5)
    (heads,) = named(graph, "heads")
    assert not heads.frozen.any()
    assert smaller.get_layer("shared").num_heads < 4


def test_attention_over_two_axes():
    inputs = keras.Input((3, 4, 5))
    made = layers.Dense(6)(inputs)
    made = layers.MultiHeadAttention(3, 2, attention_axes=(1, 2), output_shape=(2, 7))(made, made)
    model = keras.Model(inputs, layers.Dense(3)(made))
    randomize(model)
    graph, _ = check_law(model, 0.5)
    assert [group.size for group in graph.groups] == [6, 3, 2, 7, 3]
    # The axes of 2 and 7 are made alike; that of 2 reaches the model's output.
    assert [bool(group.frozen.all()) for group in graph.groups] == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("shape", "heads_stay"), [((6, 6), False), ((1, 6, 6), False), ((4, 6, 6), True)]
)
@pytest.mark.parametrize("constant", [True, False])
def test_a_mask_for_each_head_keeps_the_heads(shape, heads_stay, constant):
    attention = layers.MultiHeadAttention(4, 3)
    inputs, mask = keras.Input((6, 5)), keras.Input(shape, dtype="bool")
    given = np.random.default_rng(0).random((1, *shape)) < 0.8
    query = layers.Dense(8)(inputs)
    made = attention(query, query, attention_mask=given if constant else mask)
    model = keras.Model(inputs if constant else [inputs, mask], layers.Dense(3)(made))
    randomize(model)
    samples = [np.random.default_rng(1).normal(size=(1, 6, 5)).astype("float32")]
    graph, _ = check_law(model, 0.5, inputs=samples if constant else [*samples, given])
    assert named(graph, "heads")[0].frozen.all() == heads_stay


def test_scores_that_are_an_output_keep_the_heads():
    inputs = keras.Input((6, 5))
    made, scores = layers.MultiHeadAttention(4, 3)(inputs, inputs, return_attention_scores=True)
    graph = channel_graph(keras.Model(inputs, [layers.Dense(3)(made), scores]))
    assert named(graph, "heads")[0].frozen.all()


def test_heads_that_meet_channels_stay():
    inputs = keras.Input((4, 5))
    _, scores = layers.MultiHeadAttention(4, 3)(inputs, inputs, return_attention_scores=True)
    image = layers.Conv2D(4, 1, data_format="channels_first")(
        layers.Reshape((1, 4, 4))(layers.Dense(4)(inputs))
    )
    met = layers.Add()([scores, image])
    model = keras.Model(inputs, layers.Conv2D(2, 1, data_format="channels_first")(met))
    graph = channel_graph(model)
    mixed = [group for group in graph.groups if len(group.layers) > 1]
    assert len(mixed) == 1
    assert mixed[0].frozen.all()
    assert "heads" in mixed[0].reasons[0]


def test_padding_stays_masked():
    inputs = keras.Input((6,), dtype="int32")
    made = layers.Embedding(5, 8, mask_zero=True)(inputs)
    made = layers.MultiHeadAttention(4, 2, name="attention")(made, made)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(made)))
    randomize(model)
    given = np.array([[1, 2, 0, 0, 0, 0], [3, 1, 2, 4, 0, 0]], np.int32)
    graph, _ = check_law(model, 0.5, inputs=[given])
    assert not any(group.frozen.any() for group in graph.groups[:-1])


GROUPED = {
    "bundles of two": (4, 2, {}),
    "one head of keys": (4, 1, {}),
    "as many": (3, 3, {"use_bias": False}),
    "gated": (6, 2, {"use_gate": True}),
}


@pytest.mark.parametrize(("queries", "keys", "options"), GROUPED.values(), ids=GROUPED)
def test_the_law_holds_for_grouped_queries(queries, keys, options):
    attention = layers.GroupQueryAttention(3, queries, keys, name="attention", **options)
    model = attending(attention)
    graph, smaller = check_law(model, 0.7)
    (heads,) = named(graph, "heads")
    assert heads.size == (keys if keys > 1 else queries)
    assert not heads.frozen.any()
    left = smaller.get_layer("attention")
    assert left.num_query_heads < queries
    assert left.num_query_heads % left.num_key_value_heads == 0
    # The output is as wide as the query, and the value too.
    channels = named(graph, "channels")
    assert channels[0].layers == ("query", "value")
    assert not channels[0].frozen.any()


def test_a_head_of_keys_leaves_with_the_queries_that_it_answers():
    model = attending(layers.GroupQueryAttention(3, 6, 3, name="attention"))
    graph = channel_graph(model)
    (heads,) = named(graph, "heads")
    assert heads.widths.tolist() == [[2, 2, 2]]
    smaller = shrink(graph, {graph.groups.index(heads): np.array([1])})
    left, old = smaller.get_layer("attention"), model.get_layer("attention")
    assert (left.num_query_heads, left.num_key_value_heads) == (4, 2)
    np.testing.assert_array_equal(
        left._query_dense.kernel, np.asarray(old._query_dense.kernel)[:, [0, 1, 4, 5]]
    )
    np.testing.assert_array_equal(
        left._value_dense.kernel, np.asarray(old._value_dense.kernel)[:, [0, 2]]
    )


@pytest.mark.parametrize(
    "make",
    [
        layers.Attention,
        lambda: layers.Attention(use_scale=True, score_mode="concat"),
        layers.AdditiveAttention,
    ],
)
@pytest.mark.parametrize("with_key", [True, False])
def test_the_law_holds_for_attention_without_kernels(make, with_key):
    inputs = keras.Input((6, 5))
    parts = [layers.Dense(8, name=name)(inputs) for name in "qvk"[: 2 + with_key]]
    made = make()(parts, use_causal_mask=True)
    model = keras.Model(inputs, layers.Dense(3)(made))
    randomize(model)
    graph, smaller = check_law(model, 0.5)
    assert graph.groups[0].layers == (("q", "k") if with_key else ("q", "v"))
    assert not any(group.frozen.any() for group in graph.groups[:-1])
    assert smaller.count_params() < model.count_params()


def test_an_adapter_inside_attention_is_refused():
    model = attending(layers.MultiHeadAttention(4, 3, name="attention"))
    model.get_layer("attention").query_dense.enable_lora(2)
    graph = channel_graph(model)
    assert not named(graph, "heads")
    assert all(group.frozen.all() for group in graph.groups)
