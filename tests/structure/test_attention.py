import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from structure.law import check_law, masked_output, randomize

from edgeprune.errors import InputError, UnsupportedError
from edgeprune.export.convert import convert
from edgeprune.models import import_keras, load_model
from edgeprune.structure.attention import gate, plan_heads, prune_heads
from edgeprune.structure.evidence import Evidence
from edgeprune.structure.graph import channel_graph
from edgeprune.structure.plan import plan_channels
from edgeprune.structure.pruning import prune_channels

keras = import_keras()
layers = keras.layers


def transformer(heads=(4, 4), compiled=True, seed=0):
    """An encoder of one layer for each number of heads, on 6 steps of 5 features."""
    inputs = keras.Input((6, 5))
    x = layers.Dense(8)(inputs)
    for index, count in enumerate(heads):
        attended = layers.MultiHeadAttention(count, 3, name=f"attention_{index}")(x, x)
        x = layers.LayerNormalization()(layers.Add()([x, attended]))
        hidden = layers.Dense(12, activation="relu")(x)
        x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(8)(hidden)]))
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    randomize(model, seed)
    if compiled:
        model.compile("adam", "sparse_categorical_crossentropy")
    return model


def samples(n=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 6, 5)).astype("float32"), rng.integers(0, 3, n)


def test_the_smaller_model_computes_what_the_masked_one_does(tmp_path):
    model = transformer()
    planned = plan_heads(model, pruning_ratio=0.5)
    smaller = prune_heads(model, pruning_ratio=0.5)
    assert [layer.num_heads for layer in smaller.layers if hasattr(layer, "num_heads")] == [2, 2]
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]
    x, _ = samples(1)
    expected = np.asarray(masked_output(planned.graph, planned.removed, [x])[0])
    np.testing.assert_allclose(smaller(x), expected, atol=1e-5)
    assert np.abs(np.asarray(model(x)) - expected).max() > 1e-3  # the heads did something

    smaller.save(tmp_path / "smaller.keras")
    again = load_model(tmp_path / "smaller.keras")
    assert again.get_layer("attention_0").num_heads == 2
    np.testing.assert_array_equal(again(x), smaller(x))

    artifact = convert(again, tmp_path / "smaller.tflite")
    (output,) = (
        Interpreter(str(artifact.path)).get_signature_runner()(**{again.inputs[0].name: x}).values()
    )
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_the_plan_counts_heads_and_what_is_saved():
    model = transformer()
    planned = plan_heads(model, pruning_ratio=0.25)
    assert [(row.name, row.channels_before, row.channels_after) for row in planned.groups] == [
        ("attention_0", 4, 3),
        ("attention_1", 4, 3),
    ]
    assert planned.refused == ()
    # A head: three kernels of 8 x 3 and biases of 3, and 3 x 8 of the output's kernel.
    assert planned.parameters_before - planned.parameters_after == 2 * (3 * 27 + 24)
    assert planned.apply().count_params() == planned.parameters_after
    stated = plan_heads(model, heads={"attention_1": [3]})
    assert stated.parameters_before - stated.parameters_after == 3 * 27 + 24


def test_heads_leave_by_their_weights():
    model = transformer()
    attention = model.get_layer("attention_0")
    for head, size in ((0, 3.0), (1, 0.1), (2, 2.0), (3, 0.5)):
        for dense in (attention.query_dense, attention.key_dense, attention.value_dense):
            kernel = np.array(dense.kernel)
            kernel[:, head] = size
            dense.kernel.assign(kernel)
    for criterion in ("l1", "l2"):
        planned = plan_heads(model, pruning_ratio=0.5, criterion=criterion)
        first = planned.removed[_place(planned.graph, "attention_0")]
        np.testing.assert_array_equal(first, [1, 3])


def _place(graph, name):
    (place,) = [
        index
        for index, group in enumerate(graph.groups)
        if group.kind == "heads" and group.name == name
    ]
    return place


def _heads(model, name):
    graph = channel_graph(model)
    return graph.groups[_place(graph, name)]


def test_named_heads_leave():
    model = transformer()
    smaller = prune_heads(model, heads={"attention_0": [0, 2], "attention_1": []})
    kept = smaller.get_layer("attention_0")
    old = model.get_layer("attention_0")
    np.testing.assert_array_equal(
        kept.value_dense.kernel, np.asarray(old.value_dense.kernel)[:, [1, 3]]
    )
    assert smaller.get_layer("attention_1").num_heads == 4
    assert smaller.compiled
    assert smaller.loss == "sparse_categorical_crossentropy"


def shut(model, layer, head, amount):
    """A copy whose head hands on `amount` of what it did: values are read linearly."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    dense = copy.get_layer(layer).value_dense
    for variable, axis in ((dense.kernel, 1), (dense.bias, 0)):
        value = np.moveaxis(np.array(variable), axis, 0)
        value[head] *= amount
        variable.assign(np.moveaxis(value, 0, axis))
    return copy


def test_the_gate_is_the_mean_slope_of_each_samples_loss():
    model = transformer((3,))
    x, y = samples(6)
    seen = Evidence(model, (x, y), batches=6, batch_size=1)
    scores = gate(_heads(model, "attention_0"), model, seen)

    step = 1e-2
    expected = []
    for head in range(3):
        losses = [
            -np.log(
                np.asarray(shut(model, "attention_0", head, amount)(x), np.float64)[range(6), y]
            )
            for amount in (1 + step, 1 - step)
        ]
        expected.append(np.abs((losses[0] - losses[1]) / (2 * step)).mean())
    np.testing.assert_allclose(scores, expected, rtol=5e-3)
    # Slopes of single samples differ in sign, so that of the whole batch is smaller.
    whole = np.abs(
        Evidence(model, (x, y), batches=1, batch_size=6).saliency[
            id(model.get_layer("attention_0").output_dense.kernel)
        ][0][0]
    )
    assert (whole < 0.9 * scores).any()


def test_the_gate_of_a_bundle_shuts_all_of_it():
    inputs = keras.Input((6, 5))
    x = layers.Dense(8)(inputs)
    attended = layers.GroupQueryAttention(3, 4, 2, name="attention")(x, x)
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(attended)))
    randomize(model)
    model.compile("adam", "mse")
    x, _ = samples(4)
    y = np.arange(4.0)[:, None]
    seen = Evidence(model, (x, y), batches=4, batch_size=1)
    scores = gate(_heads(model, "attention"), model, seen)
    expected, step = [], 1e-2
    for head in range(2):
        losses = []
        for amount in (1 + step, 1 - step):
            copy = keras.models.clone_model(model)
            copy.set_weights(model.get_weights())
            dense = copy.get_layer("attention")._value_dense
            factor = np.where(np.arange(2) == head, amount, 1)[:, None]
            dense.kernel.assign(np.asarray(dense.kernel) * factor)
            dense.bias.assign(np.asarray(dense.bias) * factor)
            losses.append(np.square(np.asarray(copy(x), np.float64) - y)[:, 0])
        expected.append(np.abs((losses[0] - losses[1]) / (2 * step)).mean())
    np.testing.assert_allclose(scores, expected, rtol=5e-3)


def test_heads_that_the_loss_does_not_miss_leave_by_their_gates():
    model = transformer((4,))
    output = model.get_layer("attention_0").output_dense
    kernel = np.array(output.kernel)
    kernel[[1, 2]] = 0  # nothing of these is read
    output.kernel.assign(kernel)
    x, y = samples()
    smaller = prune_heads(model, pruning_ratio=0.5, criterion="gate", data=(x, y), samples=12)
    np.testing.assert_allclose(smaller(x), model(x), atol=1e-6)
    np.testing.assert_array_equal(
        smaller.get_layer("attention_0").output_dense.kernel, kernel[[0, 3]]
    )


def test_an_uncompiled_model_gets_the_loss_of_its_targets():
    model, x_y = transformer((4,), compiled=False), samples()
    assert prune_heads(model, pruning_ratio=0.5, criterion="gate", data=x_y).count_params()
    assert not prune_heads(model, pruning_ratio=0.5).compiled


def test_global_ranking_divides_by_the_layers_euclidean_norm():
    model = transformer((2, 2))
    scores = {"attention_0": np.array([3.0, 4.0]), "attention_1": np.array([10.0, 0.1])}
    # Divided by 5 and by 10.0005: 0.6 0.8 1.0 0.01. By their means the same order but for 3 and 4.
    planned = plan_heads(
        model,
        pruning_ratio=0.5,
        criterion=lambda group, model, data: scores[group.name],
        ranking="global",
    )
    assert {planned.graph.groups[i].name: list(r) for i, r in planned.removed.items()} == {
        "attention_0": [0],
        "attention_1": [1],
    }


def test_every_layer_keeps_a_head():
    model = transformer((4, 4))
    few = {"attention_0": 0.0, "attention_1": 1.0}
    smaller = prune_heads(
        model,
        pruning_ratio=0.9,
        criterion=lambda group, model, data: np.arange(1, 5) * 0.01 + few[group.name],
        ranking="global",
    )
    assert min(smaller.get_layer(name).num_heads for name in few) == 1


def test_rounds_and_fine_tuning():
    model, (x, y) = transformer((4,)), samples()
    seen = []

    def tune(smaller, number):
        seen.append((number, smaller.get_layer("attention_0").num_heads))
        smaller.fit(x, y, epochs=1, verbose=0)

    smaller = prune_heads(model, pruning_ratio=0.5, rounds=2, fine_tune=tune)
    assert seen == [(0, 3), (1, 2)]
    assert smaller.get_layer("attention_0").num_heads == 2


def test_channels_leave_without_heads_and_heads_without_channels():
    model = transformer()
    channels = prune_channels(model, pruning_ratio=0.5, round_to=1)
    assert channels.get_layer("attention_0").num_heads == 4
    assert channels.count_params() < model.count_params()
    assert {row.kind for row in plan_channels(model, pruning_ratio=0.5).groups} == {"channels"}
    heads = prune_heads(channels, pruning_ratio=0.5)
    assert heads.get_layer("attention_0").num_heads == 2
    assert (
        heads.get_layer("attention_0").output_dense.kernel.shape[-1]
        == (channels.get_layer("attention_0").output_dense.kernel.shape[-1])
    )
    check_law(heads, 0.3)


def test_skip_and_ratios_name_layers():
    smaller = prune_heads(transformer((4, 4, 4)), pruning_ratio=0.5, skip="attention_0")
    assert [smaller.get_layer(f"attention_{i}").num_heads for i in range(3)] == [4, 2, 2]
    smaller = prune_heads(transformer((4, 4)), pruning_ratio=0, ratios={"attention_1": 0.75})
    assert [smaller.get_layer(f"attention_{i}").num_heads for i in range(2)] == [4, 1]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "neither pruning_ratio nor heads"),
        ({"pruning_ratio": 1.0}, "outside \\[0, 1\\)"),
        ({"pruning_ratio": -0.1}, "outside \\[0, 1\\)"),
        ({"pruning_ratio": 0.5, "heads": {"attention_0": [0]}}, "give one"),
        ({"heads": {"nothing": [0]}}, "matches no layer"),
        ({"heads": {"Dense": [0]}}, "no layer with"),
        ({"heads": {"attention_0": [4]}}, "no head 4; it has 4"),
        ({"heads": {"attention_0": [-1]}}, "no head -1"),
        ({"heads": {"attention_0": range(4)}}, "at least one must stay"),
        ({"heads": {"attention_0": [1]}, "rounds": 2}, "at once"),
        ({"pruning_ratio": 0.5, "criterion": "gate"}, "needs `data`"),
        ({"pruning_ratio": 0.5, "criterion": "activation"}, "unknown for heads"),
        ({"pruning_ratio": 0.5, "samples": 0}, "samples=0"),
        ({"pruning_ratio": 0.5, "skip": ["nothing"]}, "matches no layer"),
        ({"pruning_ratio": 0.5, "ranking": "layer"}, "ranking='layer'` is unknown"),
    ],
)
def test_bad_requests_are_one_line(request_, message):
    with pytest.raises(InputError, match=message) as caught:
        prune_heads(transformer((4,)), **request_)
    assert "\n" not in str(caught.value)


def test_models_without_heads_and_heads_that_must_stay():
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(InputError, match="no attention heads"):
        prune_heads(plain, pruning_ratio=0.5)
    inputs = keras.Input((6, 5))
    _, scores = layers.MultiHeadAttention(4, 3, name="a")(
        inputs, inputs, return_attention_scores=True
    )
    model = keras.Model(inputs, scores)
    with pytest.raises(UnsupportedError, match="must stay"):
        prune_heads(model, heads={"a": [0]})
    planned = plan_heads(model, pruning_ratio=0.5)
    assert planned.removed == {}
    assert "output of the model" in planned.refused[0].reason


def test_weights_and_gradients_that_are_no_numbers_are_told():
    x, y = samples()
    model = transformer((4,))
    model.compile("adam", lambda y_true, y_pred: keras.ops.sqrt(-1 - y_pred[:, 0]))
    with pytest.raises(InputError, match="NaN or infinite gradients"):
        prune_heads(model, pruning_ratio=0.5, criterion="gate", data=(x, y))
    kernel = model.get_layer("attention_0").key_dense.kernel
    kernel.assign(np.asarray(kernel) * np.nan)
    with pytest.raises(InputError, match="NaN or infinite weights"):
        prune_heads(model, pruning_ratio=0.5)


def test_a_fixed_batch_of_several_samples_has_no_gates():
    inputs = keras.Input(batch_shape=(2, 6, 5))
    made = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(made)))
    model.compile("adam", "mse")
    with pytest.raises(InputError, match="one by one"):
        prune_heads(
            model, pruning_ratio=0.5, criterion="gate", data=(samples(4)[0], np.zeros((4, 1)))
        )
