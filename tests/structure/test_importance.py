import numpy as np
import pytest
from structure.law import masked_output, randomize

from edgeprune.data import Dataset
from edgeprune.errors import InputError
from edgeprune.models import import_keras
from edgeprune.structure import importance
from edgeprune.structure.evidence import Evidence
from edgeprune.structure.graph import channel_graph
from edgeprune.structure.importance import criterion_of, score

keras = import_keras()
layers = keras.layers
WEIGHTS = ("l1", "l2", "bn_scale", "fpgm", "random")
DATA = ("taylor", "taylor_activation", "activation")


def group_of(model, layer):
    return next(group for group in channel_graph(model).groups if layer in group.layers)


def scores(name, model, layer, data=None):
    return criterion_of(name)(group_of(model, layer), model, data)


def two_layers(kernel, **hidden):
    """Dense layers whose first kernel is given, (in, channels)."""
    kernel = np.asarray(kernel, float)
    inputs = keras.Input((len(kernel),))
    x = layers.Dense(kernel.shape[1], name="made", **hidden)(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="read")(x))
    made = model.get_layer("made")
    made.set_weights([kernel, np.full(kernel.shape[1], 50.0)])  # a bias does not count
    return model


def small_cnn(dtype="float32", loss=None):
    """Residual, normalized, flattened: channels that several layers make, and several read."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 2), dtype=dtype)
    x = layers.Conv2D(4, 3, padding="same", name="stem", dtype=dtype)(inputs)
    y = layers.Conv2D(3, 3, padding="same", activation="tanh", name="inner", dtype=dtype)(x)
    y = layers.Conv2D(4, 1, name="outer", dtype=dtype)(y)
    x = layers.Add(name="add", dtype=dtype)([x, layers.BatchNormalization(dtype=dtype)(y)])
    x = layers.Flatten(dtype=dtype)(x)
    model = keras.Model(inputs, layers.Dense(3, name="head", dtype=dtype)(x), name="small")
    randomize(model, 1)
    if loss is not None:
        model.compile("sgd", loss)
    return model


def samples(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4, 4, 2)).astype(np.float32), rng.normal(size=(n, 3))


# Of the weights alone.


def test_l1_and_l2_by_hand():
    model = two_layers([[3, 0, 1], [-4, 0, 1]])
    np.testing.assert_allclose(scores("l1", model, "made"), [7, 0, 2])
    np.testing.assert_allclose(scores("l2", model, "made"), [5, 0, 2**0.5], rtol=1e-6)


def test_every_layer_that_makes_a_group_counts():
    inputs = keras.Input((4, 4, 1))
    a = layers.Conv2D(2, 1, name="a")(inputs)
    b = layers.Conv2D(2, 1, name="b")(inputs)
    x = layers.DepthwiseConv2D(1, name="depthwise")(layers.Add()([a, b]))
    model = keras.Model(inputs, layers.Conv2D(1, 1, name="read")(x))
    for name, kernel in {"a": [3, 0], "b": [4, -1], "depthwise": [12, 2], "read": [99, 99]}.items():
        weight = model.get_layer(name).kernel
        weight.assign(np.reshape(kernel, weight.shape))
    np.testing.assert_allclose(scores("l1", model, "a"), [19, 3])
    np.testing.assert_allclose(scores("l2", model, "a"), [13, 5**0.5], rtol=1e-6)


def test_grouped_channels_that_leave_together_are_summed():
    inputs = keras.Input((4, 4, 4))
    x = layers.Conv2D(4, 1, groups=2, name="grouped")(inputs)
    model = keras.Model(inputs, layers.Conv2D(1, 1)(x))
    # (1, 1, 2, 4): filters 0 and 1 are of the first group, 2 and 3 of the second.
    model.get_layer("grouped").kernel.assign(np.reshape([[1, 2, 4, 8]] * 2, (1, 1, 2, 4)))
    group = group_of(model, "grouped")
    sums = {2: [10, 20], 4: [2, 4, 8, 16]}[group.size]
    np.testing.assert_allclose(scores("l1", model, "grouped"), sums)


def test_bn_scale_by_hand():
    inputs = keras.Input((4,))
    a = layers.BatchNormalization(name="norm_a")(layers.Dense(3, name="a")(inputs))
    b = layers.BatchNormalization(name="norm_b")(layers.Dense(3, name="b")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Add()([a, b])))
    model.get_layer("norm_a").gamma.assign([0.5, -2, 0])
    model.get_layer("norm_b").gamma.assign([1, -1, 0.25])
    np.testing.assert_allclose(scores("bn_scale", model, "a"), [1.5, 3, 0.25])


def test_bn_scale_of_a_group_without_scales_is_l2():
    model = two_layers([[3, 0, 1], [-4, 0, 1]])
    np.testing.assert_allclose(
        scores("bn_scale", model, "made"), scores("l2", model, "made"), rtol=0
    )
    # Nor do half of them do.
    inputs = keras.Input((4,))
    a = layers.BatchNormalization(name="norm")(layers.Dense(2, name="a")(inputs))
    b = layers.Dense(2, name="b")(inputs)
    c = layers.Dense(4, name="c")(inputs)
    x = layers.Add()([layers.Concatenate()([a, b]), c])
    model = keras.Model(inputs, layers.Dense(2)(x))
    np.testing.assert_allclose(scores("bn_scale", model, "a"), scores("l2", model, "a"), rtol=0)


def test_fpgm_by_hand():
    # Filters (0, 0), (3, 4), (6, 8) on one line: the middle one is nearest to the others.
    model = two_layers([[0, 3, 6], [0, 4, 8]])
    np.testing.assert_allclose(scores("fpgm", model, "made"), [15, 10, 15])


def test_fpgm_is_the_sum_over_all_pairs():
    rows = np.random.default_rng(0).normal(size=(1500, 7))
    rows[3] = rows[4] = rows[1400]
    pairs = np.sqrt(((rows[:, None] - rows) ** 2).sum(-1)).sum(1)
    np.testing.assert_allclose(importance._distances(rows), pairs, rtol=1e-6)


def test_random_is_the_same_for_the_same_seed_only():
    model = two_layers(np.ones((2, 64)))
    group = group_of(model, "made")
    one, same, other = (criterion_of("random", seed)(group, model, None) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()
    assert len(np.unique(one)) == 64


# Of data.


def test_activation_by_hand():
    model = two_layers([[1, -1, 0], [1, 1, 0]])
    model.get_layer("made").bias.assign([0, 0, 2])
    x = np.array([[1, 2], [3, -2]], np.float32)  # made: (3, 1, 2) and (1, -5, 2)
    np.testing.assert_allclose(scores("activation", model, "made", x), [2, 3, 2])
    np.testing.assert_allclose(scores("activation", model, "made", (x, np.zeros(2))), [2, 3, 2])


def test_activation_is_the_mean_over_all_places():
    model = small_cnn()
    x, _ = samples()
    stem, add = (
        keras.Model(model.inputs, model.get_layer(name).output)(x) for name in ("stem", "add")
    )
    # The channels of the stem are read by `inner` and, after the addition, by `head`: 16 places
    # of each sample both times.
    expected = (np.abs(stem).mean((0, 1, 2)) + np.abs(add).mean((0, 1, 2))) / 2
    np.testing.assert_allclose(scores("activation", model, "stem", x), expected, rtol=1e-5)


def test_taylor_equals_finite_differences():
    model = small_cnn("float64", "mse")
    x, y = samples()
    evidence = Evidence(model, (x, y), batches=2, batch_size=3)
    for name, made in {"stem": ("stem", "outer"), "inner": ("inner",)}.items():
        # The loss's slope as all weights that make a channel grow in proportion.
        slopes = []
        for channel in range(group_of(model, name).size):
            kernels = [model.get_layer(layer).kernel for layer in made]
            before = [np.asarray(kernel) for kernel in kernels]
            ends = []
            for step in (1e-5, -1e-5):
                for kernel, value in zip(kernels, before, strict=True):
                    grown = value.copy()
                    grown[..., channel] *= 1 + step
                    kernel.assign(grown)
                ends.append([np.mean((model(*bx) - by) ** 2) for bx, by in evidence])
            for kernel, value in zip(kernels, before, strict=True):
                kernel.assign(value)
            slopes.append((np.array(ends[0]) - np.array(ends[1])) / 2e-5)
        expected = np.square(slopes).mean(1)
        np.testing.assert_allclose(scores("taylor", model, name, evidence), expected, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [2, 6])
def test_taylor_activation_is_the_change_of_a_linear_loss(batch_size):
    # Linear from the last addition on, so that to first order is exact there.
    def linear(y, p):
        return keras.ops.sum(y * p, -1)

    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 2))
    a = layers.Conv2D(4, 3, padding="same", activation="tanh", name="a")(inputs)
    b = layers.Conv2D(4, 3, padding="same", activation="relu", name="b")(inputs)
    x = layers.Add()([a, b])
    head = layers.Dense(3)(layers.Flatten()(x))
    tail = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Add()([head, tail]))
    randomize(model, 1)
    model.compile("sgd", linear)
    x, y = samples()
    graph = channel_graph(model)
    index = next(i for i, group in enumerate(graph.groups) if "a" in group.layers)
    whole = np.sum(y * np.asarray(model(x)), -1)
    changes = [
        np.abs(np.sum(y * masked_output(graph, {index: np.array([c])}, [x])[0], -1) - whole).mean()
        for c in range(4)
    ]
    data = Evidence(model, (x, y), batches=6 // batch_size, batch_size=batch_size)
    got = scores("taylor_activation", model, "a", data)
    np.testing.assert_allclose(got, changes, rtol=1e-4)


def test_taylor_tells_which_channels_can_leave():
    """The loss of a trained model changes least without those of the lowest scores."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 6)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    inputs = keras.Input((6,))
    hidden = layers.Dense(16, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(hidden))
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=15, verbose=0)
    made, read = ([np.asarray(w) for w in model.layers[i].weights] for i in (1, 2))
    hidden = np.maximum(x @ made[0] + made[1], 0)

    def loss(without=None):
        logits = np.delete(hidden, without or [], 1) @ np.delete(read[0], without or [], 0)
        logits = logits + read[1]
        return -(logits[np.arange(256), y] - np.log(np.exp(logits).sum(1))).mean()

    changes = np.abs([loss([channel]) - loss() for channel in range(16)])
    evidence = Evidence(model, (x, y))
    for name in ("taylor", "taylor_activation"):
        order = np.argsort(scores(name, model, "hidden", evidence))
        assert changes[order[:5]].mean() < 0.3 * changes[order[-5:]].mean()


def test_a_shared_layer_reads_at_both_of_its_calls():
    shared = layers.Dense(2, name="shared")
    one, two = keras.Input((3,), name="one"), keras.Input((3,), name="two")
    made = layers.Dense(4, name="made")
    outputs = layers.Concatenate()([shared(made(one)), shared(made(two))])
    model = keras.Model([one, two], outputs)
    randomize(model, 3)
    rng = np.random.default_rng(0)
    x = {"one": rng.normal(size=(5, 3)), "two": rng.normal(size=(5, 3))}
    inner = [np.asarray(made(value.astype(np.float32))) for value in x.values()]
    expected = np.abs(np.stack(inner)).mean((0, 1))
    np.testing.assert_allclose(scores("activation", model, "made", x), expected, rtol=1e-5)


def test_a_layer_without_weights_may_be_shared_by_several_sizes():
    inputs = keras.Input((3,))
    unit = layers.UnitNormalization()
    wide, narrow = layers.Dense(6, name="wide")(inputs), layers.Dense(4, name="narrow")(inputs)
    x = layers.Concatenate()([unit(wide), unit(narrow)])
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("sgd", "mse")
    data = np.random.default_rng(0).normal(size=(8, 3)), np.zeros((8, 2))
    evidence = Evidence(model, data)
    for name, size in {"wide": 6, "narrow": 4}.items():
        made = np.abs(np.asarray(model.get_layer(name)(data[0].astype(np.float32))))
        unit_made = made / np.sqrt((made**2).sum(1, keepdims=True))
        # It is read where it is normalized and by the head.
        expected = (made.mean(0) + unit_made.mean(0)) / 2
        np.testing.assert_allclose(scores("activation", model, name, evidence), expected, rtol=1e-4)
        assert scores("taylor_activation", model, name, evidence).shape == (size,)


def test_nested_models_and_masks_are_run_as_keras_runs_them():
    inner_in = keras.Input((None, 6))
    inner = keras.Model(inner_in, layers.LSTM(5, name="lstm")(inner_in), name="inner")
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(9, 6, mask_zero=True, name="embed")(inputs)
    x = layers.Dropout(0.9)(inner(x))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    randomize(model, 2)
    model.compile("sgd", "mse")
    tokens = np.array([[1, 2, 3, 0, 0, 0, 0], [4, 5, 6, 7, 8, 1, 2]])
    evidence = Evidence(model, (tokens, np.zeros((2, 2))))
    flow = next(
        flow
        for (operation, *_), (flow,) in evidence.activations.items()
        if operation == id(model.get_layer("head"))
    )
    before = keras.Model(model.inputs, model.get_layer("head").input)(tokens)
    np.testing.assert_allclose(flow.absolute, np.abs(before).sum(0), rtol=1e-5)
    effects = evidence.effects[id(model.get_layer("head")), 0, 1][0].effect
    # Of the mean squared error over two outputs, a sample's gradient is error times kernel.
    kernel = np.asarray(model.get_layer("head").kernel)
    np.testing.assert_allclose(effects, before * (np.asarray(model(tokens)) @ kernel.T), rtol=1e-4)


def test_a_model_of_several_outputs_has_its_own_losses():
    inputs = keras.Input((4,))
    x = layers.Dense(5, name="made")(inputs)
    model = keras.Model(
        inputs, {"a": layers.Dense(2, name="a")(x), "b": layers.Dense(3, name="b")(x)}
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4)).astype(np.float32)
    y = {"a": rng.normal(size=(8, 2)), "b": rng.normal(size=(8, 3))}
    with pytest.raises(InputError, match="several outputs and is not compiled"):
        scores("taylor", model, "made", (x, y))
    # With no weight on `b`, it is as if its target were met.
    model.compile("sgd", {"a": "mse", "b": "mse"}, loss_weights={"a": 1.0, "b": 0.0})
    got = scores("taylor_activation", model, "made", (x, y))
    hidden = np.asarray(model.get_layer("made")(x))
    slope = (np.asarray(model(x)["a"]) - y["a"]) @ np.asarray(model.get_layer("a").kernel).T
    np.testing.assert_allclose(got, np.abs(hidden * slope).mean(0), rtol=1e-4)
    # Its own metrics have seen nothing.
    assert all(float(metric.result()) == 0 for metric in model.metrics if metric.name == "loss")


def test_regularization_is_no_part_of_the_loss():
    got = []
    for strength in (0, 10.0):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        x = layers.Dense(
            5, name="made", kernel_regularizer=keras.regularizers.L2(strength),
            activity_regularizer=keras.regularizers.L1(strength),
        )(inputs)  # fmt: skip
        model = keras.Model(inputs, layers.Dense(1)(x))
        model.compile("sgd", "mse")
        data = np.ones((8, 4), np.float32), np.zeros((8, 1))
        got.append(scores("taylor", model, "made", data))
        assert len(model.losses) <= 1  # none that a graph made is left behind
    np.testing.assert_allclose(*got, rtol=1e-5)


def test_data_come_in_many_forms(tmp_path):
    import tensorflow as tf

    model = small_cnn(loss="mse")
    x, y = samples(20)
    np.savez(tmp_path / "data.npz", x=x, y=y, x_val=x, y_val=y)
    forms = [
        (x, y),
        Dataset(x, y, x[:1], y[:1], ""),
        tmp_path / "data.npz",
        tf.data.Dataset.from_tensor_slices((x, y)).batch(7),
        [(x[:10], y[:10]), (x[10:], y[10:])],
        Evidence(model, (x, y)),
    ]
    first, *others = [scores("taylor", model, "stem", form) for form in forms]
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4)


def test_batches_span_all_of_the_data():
    model = small_cnn()
    x = np.arange(100.0, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 2), np.float32)
    evidence = Evidence(model, (x, np.arange(100)), batches=3, batch_size=4)
    seen = [list(y) for _, y in evidence]
    assert seen == [[0, 27, 54, 81], [9, 36, 63, 90], [18, 45, 72, 99]]
    for columns, y in evidence:
        np.testing.assert_array_equal(columns[0][:, 0, 0, 0], y)


def test_a_model_of_a_fixed_batch_gets_batches_of_it():
    inputs = keras.Input(batch_shape=(4, 3))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(5, name="made")(inputs)))
    model.compile("sgd", "mse")
    x, y = np.ones((11, 3), np.float32), np.zeros((11, 2))
    assert [len(part) for _, part in Evidence(model, (x, y))] == [4, 4]
    assert scores("taylor", model, "made", (x, y)).shape == (5,)
    with pytest.raises(InputError, match="takes 4 at once"):
        Evidence(model, (x[:3], y[:3]))


def test_uncompiled_classifiers_get_cross_entropy():
    model = small_cnn()
    x, _ = samples(12)
    y = np.arange(12) % 3
    got = scores("taylor", model, "stem", (x, y))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    np.testing.assert_allclose(got, scores("taylor", model, "stem", (x, y)), rtol=1e-4)


def test_the_model_stays_as_it_is():
    model = small_cnn(loss="mse")
    before = [np.asarray(weight) for weight in model.weights]
    x, y = samples(8)
    for name in DATA:
        scores(name, model, "stem", (x, y))
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    model.fit(x, y, verbose=0)


# Bad input.


@pytest.mark.parametrize("name", DATA)
def test_no_data_is_refused(name):
    with pytest.raises(InputError, match=f"'{name}'` needs `data`, x and y; give them"):
        scores(name, small_cnn(), "stem")


@pytest.mark.parametrize("name", ["taylor", "taylor_activation"])
def test_no_targets_are_refused(name):
    with pytest.raises(InputError, match="needs targets"):
        scores(name, small_cnn(), "stem", samples()[0])


@pytest.mark.parametrize("name", ["l1", "l2", "bn_scale", "fpgm", *DATA])
def test_weights_that_are_not_finite_are_refused(name):
    bad = np.nan if name in ("l1", "taylor") else np.inf
    model = small_cnn(loss="mse")
    kernel = np.array(model.get_layer("inner").kernel)
    kernel[0, 0, 0, 0] = bad
    model.get_layer("inner").kernel.assign(kernel)
    with pytest.raises(InputError, match="layer 'inner' has NaN or infinite weights"):
        scores(name, model, "inner", samples())


@pytest.mark.parametrize("name", ["taylor", "taylor_activation"])
def test_gradients_that_are_not_finite_are_refused(name):
    model = small_cnn(loss=lambda y, p: keras.ops.log(0 * keras.ops.sum(p, -1)))
    with pytest.raises(InputError, match="NaN or infinite gradients"):
        scores(name, model, "stem", samples())


def test_activations_that_are_not_finite_are_refused():
    inputs = keras.Input((3,))
    x = layers.Dense(4, name="made")(inputs)
    x = layers.Activation("relu")(layers.Multiply(name="square")([x, x]))
    model = keras.Model(inputs, layers.Dense(2, name="read")(x))
    with pytest.raises(InputError, match="'read' reads NaN or infinite activations"):
        scores("activation", model, "made", np.full((2, 3), 1e30, np.float32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.ones((4, 4, 4, 2)), np.ones((3, 3))), "4 samples and 3 targets"),
        ((np.ones((4, 5, 4, 2)), np.ones((4, 3))), r"takes samples of shape \(4, 4, 2\)"),
        ((np.full((4, 4, 4, 2), np.nan), np.ones((4, 3))), "NaN or infinite values"),
        ((np.ones((4, 4, 4, 2)), np.full((4, 3), np.inf)), "NaN or infinite values"),
        ((np.ones((4, 4, 4, 2)), np.ones((4, 5))), "cannot be run on the data"),
        (7, "got int"),
        ([], "no batches"),
        ([np.ones((4, 4, 4, 2))], "supported: batches"),
        ("nothing.npz", "does not exist"),
    ],
)
def test_bad_data_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        scores("taylor", small_cnn(loss="mse"), "stem", data)


@pytest.mark.parametrize("how", [{"batches": 0}, {"batch_size": 2.5}, {"batches": True}])
def test_bad_numbers_of_batches_are_refused(how):
    with pytest.raises(InputError, match="whole number"):
        Evidence(small_cnn(), samples(), **how)


def test_an_unknown_criterion_is_refused():
    with pytest.raises(InputError, match=r"`criterion='l3'` is unknown; supported: l1, l2"):
        criterion_of("l3")


def test_a_function_of_the_users_is_checked():
    model = two_layers([[3, 0, 1], [-4, 0, 1]])
    group = group_of(model, "made")
    np.testing.assert_array_equal(score(lambda *_: [3, 1, 2], group, model, None), [3, 1, 2])

    for result, message in (
        ([1, 2], r"mine\(\) gave shape \(2,\)"),
        (["a", "b", "c"], "one number for each of its 3 channels"),
        ([1, np.nan, 2], "NaN or infinite scores for the group of layer 'made'"),
        (None, "one number for each"),
    ):

        def mine(group, model, data, result=result):
            return result

        with pytest.raises(InputError, match=message):
            score(mine, group, model, None)
