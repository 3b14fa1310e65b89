import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structure.law import TOLERANCE, random_inputs, randomize
from structure.residual_models import (
    encoder_layer,
    keras,
    layers,
    mobilenet_v2,
    nested,
    residual_model,
    resnet_v1,
    resnet_v2,
    sequential_of_nested,
    transformer,
)

import edgeprune
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.models import kernels
from edgeprune.rebuild import calls, is_container
from edgeprune.structure.depth import magnitude, plan_layers, prune_layers


def run(container, inputs, entries):
    """Call a model, but multiply what some additions add by zero.

    `entries` maps the addition's node to the tensor that it adds to.
    """
    graph = container if hasattr(container, "_nodes_by_depth") else container._functional
    known = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}
    for node, _ in calls(graph):
        args, kwargs = node.arguments.fill_in(known)
        if is_container(node.operation):
            made = run(node.operation, keras.tree.flatten(args), entries)
        elif id(node) in entries:
            factors = [float(tensor is entries[id(node)]) for tensor in node.input_tensors]
            assert sum(factors) == 1
            terms = keras.tree.flatten(args)
            made = sum(term * factor for term, factor in zip(terms, factors, strict=True))
        else:
            made = node.operation(*args, **kwargs)
        for tensor, value in zip(node.outputs, keras.tree.flatten(made), strict=True):
            known[id(tensor)] = value
    return [known[id(tensor)] for tensor in graph.outputs]


def called(model, inputs):
    """Call a model as its users do."""
    return np.asarray(model(inputs[0] if len(inputs) == 1 else inputs))


def outputs(model, inputs):
    return [np.asarray(output) for output in run(model, inputs, {})]


def check_law(model, **chosen):
    """Without some branches a model computes what it does when they give zeros."""
    randomize(model)
    plan = plan_layers(model, granularity="branch", **chosen)
    smaller = plan.apply()
    leaving = [plan.blocks[index] for index in plan.removed]
    inputs = random_inputs(model)
    expected = run(model, inputs, {id(block.exit): block.entry for block in leaving})
    for want, have in zip(expected, outputs(smaller, inputs), strict=True):
        want = np.asarray(want)
        assert np.abs(want - have).max() <= TOLERANCE * max(1, np.abs(want).max())
    unchanged = outputs(model, inputs)[0]
    assert leaving
    assert np.abs(unchanged - np.asarray(expected[0])).max() > 1e-3
    assert smaller.count_params() < model.count_params()
    return plan, smaller


BUILDERS = {
    "resnet_v1": resnet_v1,
    "resnet_v2": resnet_v2,
    "mobilenet_v2": mobilenet_v2,
    "pre_norm": transformer,
    "post_norm": lambda: transformer(post_norm=True),
    "nested": nested,
    "sequential_of_nested": sequential_of_nested,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_the_law_for_half_of_the_branches(name):
    plan, _ = check_law(BUILDERS[name](), pruning_ratio=0.5)
    assert len(plan.removed) == int(len(plan.blocks) / 2 + 0.5)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_law_for_all_branches(name):
    model = BUILDERS[name]()
    _, smaller = check_law(model, names=["*"])
    assert not plan_layers(smaller, granularity="branch", count=0).blocks


def test_the_law_on_parallel_branches():
    x = inputs = keras.Input((4, 8))
    for _ in range(2):
        h = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, 4)(h, h) + layers.Dense(8)(h)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    randomize(model)
    smaller = prune_layers(model, names=["*"])
    data = random_inputs(model)
    expected = model.get_layer("head")(data[0])
    np.testing.assert_allclose(outputs(smaller, data)[0], expected, atol=TOLERANCE)
    assert [layer.name for layer in smaller.layers[1:]] == ["head"]


@pytest.mark.parametrize("post_norm", [False, True])
def test_without_layers_an_encoder_is_the_encoder_of_fewer_layers(post_norm):
    model = transformer(post_norm=post_norm)
    randomize(model)
    smaller = prune_layers(model, names=["e1_attention", "e3*"])
    expected = transformer(("e0", "e2"), post_norm)
    assert [layer.name for layer in smaller.layers[1:]] == [
        layer.name for layer in expected.layers[1:]
    ]
    for layer in expected.layers[1:]:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    data = random_inputs(model)
    np.testing.assert_allclose(
        outputs(smaller, data)[0], outputs(expected, data)[0], atol=TOLERANCE
    )


@st.composite
def chains(draw):
    kinds = draw(
        st.lists(
            st.sampled_from(["add", "plus", "nested", "attend", "project", "plain", "long"]),
            min_size=2,
            max_size=7,
        )
    )
    return kinds, draw(st.floats(0.2, 0.9))


@settings(max_examples=15, deadline=None)
@given(chains())
def test_the_law_on_random_chains(chain):
    kinds, ratio = chain
    x = inputs = keras.Input((4, 6))
    x = layers.Dense(6)(x)
    count = 0
    for kind in kinds:
        count += kind in ("add", "plus", "nested", "attend", "long")
        match kind:
            case "add":
                x = layers.Add()([layers.Dense(6)(layers.Dense(3, "relu")(x)), x])
            case "plus":
                x = x + layers.Dropout(0.5)(layers.Dense(6, "tanh")(x))
            case "nested":
                inner = keras.Input((4, 6))
                x = keras.Model(inner, layers.Add()([inner, layers.Dense(6)(inner)]))(x)
            case "attend":
                x = layers.Add()([x, layers.MultiHeadAttention(1, 3)(x, x)])
            case "project":
                x = layers.Add()([layers.Dense(6)(x), layers.Dense(6)(x)])
            case "plain":
                x = layers.LayerNormalization()(x)
            case "long":
                h = layers.Dense(6)(x)
                x = layers.Add()([x, layers.Add()([h, layers.Dense(6)(h)])])
    model = keras.Model(inputs, layers.Dense(2)(x))
    randomize(model)
    blocks = plan_layers(model, granularity="branch", count=0).blocks
    assert len(blocks) == count
    if int(ratio * count + 0.5):
        check_law(model, pruning_ratio=ratio)


def test_what_is_kept():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = transformer()
    finally:
        keras.config.set_dtype_policy("float32")
    model.get_layer("e2_up").trainable = False
    smaller = prune_layers(model, count=2)
    assert smaller.name == model.name
    for layer in smaller.layers[1:]:
        old = model.get_layer(layer.name)
        assert type(layer) is type(old)
        assert layer is not old
        assert layer.dtype_policy == old.dtype_policy
        assert layer.trainable == old.trainable
        for new, weight in zip(layer.weights, old.weights, strict=True):
            np.testing.assert_array_equal(new, weight)
    assert not smaller.get_layer("e2_up").trainable
    smaller.compile("sgd", "mse")
    smaller.fit(np.zeros((2, 5, 8)), np.zeros((2, 3)), verbose=0)


def test_a_nested_model_that_was_one_block_leaves_whole():
    smaller = prune_layers(sequential_of_nested(), names=["a/add", "pair/*/add"])
    assert [layer.name for layer in smaller.layers] == ["between", "b", "logits"]
    inputs = keras.Input((8,))
    shared = residual_model("shared")
    model = keras.Model(inputs, shared(layers.Dense(8, name="first")(shared(inputs))))
    smaller = prune_layers(model, names=["shared/dense"])
    assert [layer.name for layer in smaller.layers[1:]] == ["first"]


def test_a_padding_mask_passes_where_a_layer_was():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(5, 8, mask_zero=True)(inputs)
    for number in range(3):
        x = encoder_layer(x, f"e{number}")
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(x))
    randomize(model)
    smaller = prune_layers(model, names=["e1*"])
    tokens = np.array([[1, 2, 3, 0, 0, 0], [4, 1, 2, 3, 4, 0]])
    x = model.layers[1](tokens)
    embedded = keras.Input((6, 8))
    y = embedded
    for number in (0, 2):
        y = encoder_layer(y, f"e{number}", attention_mask=tokens[:, None] != 0)
    expected = keras.Model(embedded, y)
    for layer in expected.layers[1:]:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    encoded = np.asarray(expected(np.asarray(x)))
    means = [row[: 3 + 2 * number].mean(0) for number, row in enumerate(encoded)]
    np.testing.assert_allclose(smaller(tokens), means, atol=TOLERANCE)


def test_an_input_that_only_a_leaving_block_reads_stays_an_input():
    x, other = keras.Input((8,)), keras.Input((3,))
    f = layers.Dense(8)(layers.Concatenate()([x, other]))
    model = keras.Model([x, other], layers.Dense(2)(layers.Add(name="add")([x, f])))
    smaller = prune_layers(model, names=["add"])
    assert [tensor.shape for tensor in smaller.inputs] == [(None, 8), (None, 3)]
    data = random_inputs(model)
    expected = model.layers[-1](data[0])
    np.testing.assert_allclose(smaller(data), expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["resnet_v1", "pre_norm", "sequential_of_nested"])
def test_a_smaller_model_saves_loads_and_converts(name, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    model = BUILDERS[name]()
    randomize(model)
    smaller = prune_layers(model, pruning_ratio=0.5)
    data = random_inputs(model, batch=1)
    want = called(smaller, data)
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.saving.load_model(tmp_path / "smaller.keras")
    np.testing.assert_allclose(called(loaded, data), want, atol=TOLERANCE)
    edgeprune.convert(smaller, tmp_path / "smaller.tflite")
    interpreter = Interpreter(str(tmp_path / "smaller.tflite"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], data[0])
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(output, want, atol=1e-4)


def dense_blocks(count=12):
    x = inputs = keras.Input((4,))
    for number in range(1, count + 1):
        f = layers.Dense(4, name=f"dense{number}")(x)
        x = layers.Add(name=f"b{number}")([x, f])
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"pruning_ratio": 0.5}, [2, 4, 6, 8, 10, 12]),  # every other one, as Fan et al.
        ({"pruning_ratio": 1 / 3}, [3, 6, 9, 12]),
        ({"pruning_ratio": 0.75}, [2, 3, 4, 6, 7, 8, 10, 11, 12]),
        ({"pruning_ratio": 0.0}, []),
        ({"count": 12}, list(range(1, 13))),
        ({"count": 1}, [12]),
        ({"count": 3, "criterion": "last"}, [10, 11, 12]),
        ({"count": 3, "criterion": "last", "skip": ["b12", "dense10"]}, [8, 9, 11]),
        ({"pruning_ratio": 0.5, "skip": ["b?"]}, [10, 11, 12]),  # 6 asked for, 3 may leave
        ({"names": ["b3", "dense1?"]}, [3, 10, 11, 12]),
        ({"names": ["b1*"], "skip": ["b12"]}, [1, 10, 11]),
        ({"names": "b7"}, [7]),
    ],
)
def test_which_leave_by_position_and_name(chosen, expected):
    plan = plan_layers(dense_blocks(), **chosen)
    assert [plan.blocks[index].name for index in plan.removed] == [f"b{n}" for n in expected]
    assert plan.scores == (None,) * 12


def test_which_leave_by_magnitude():
    model = dense_blocks(3)
    for number, value in enumerate((-0.5, 0.1, 0.3), 1):
        kernel = np.full((4, 4), value, np.float32)
        kernel[0] = 0  # a quarter of the weights
        model.get_layer(f"dense{number}").set_weights([kernel, np.full(4, 100.0)])
    plan = plan_layers(model, count=2, criterion="magnitude")
    assert plan.scores == pytest.approx((0.375, 0.075, 0.225))
    assert plan.removed == (1, 2)
    assert plan_layers(model, count=2, criterion=magnitude).removed == (1, 2)


def test_magnitude_of_nested_shared_and_weightless_branches():
    model = nested()
    for kernel in kernels(model):
        kernel.variable.assign(np.full(kernel.variable.shape, 2.0))
    plan = plan_layers(model, count=1, criterion="magnitude")
    assert plan.scores == pytest.approx((2, 2, 2))
    x = inputs = keras.Input((4,))
    x = layers.Add()([x, layers.ReLU()(x)])
    assert plan_layers(keras.Model(inputs, x), count=1, criterion="magnitude").scores == (0,)


def shifting(*shifts):
    """A chain of blocks that each add a constant to the one feature."""
    x = inputs = keras.Input((1,))
    for number in range(1, len(shifts) + 1):
        f = layers.Dense(1, name=f"dense{number}")(layers.Dropout(0.9)(x))
        x = layers.Add(name=f"b{number}")([x, f])
    model = keras.Model(inputs, x)
    for number, shift in enumerate(shifts, 1):
        model.get_layer(f"dense{number}").set_weights([np.zeros((1, 1)), np.array([shift])])
    return model


def test_which_leave_by_the_loss():
    model = shifting(3.0, 5.0, -5.0, 1.0)
    model.compile("sgd", "mse")
    data = (np.zeros((40, 1)), np.full((40, 1), 4.0))  # the whole model is right
    chosen = {"criterion": "loss", "data": data, "count": 2}
    plan = plan_layers(model, **chosen)
    # Without block k the output is off by its shift, and the loss is its square.
    assert plan.scores == pytest.approx((9, 25, 25, 1))
    assert plan.removed == (0, 3)
    # One at a time: without the last one, 3 is off by 3 + 1, 5 by 6 and -5 by 4.
    plan = plan_layers(model, **chosen, greedy=True)
    assert plan.scores == pytest.approx((16, 36, 16, 1))
    assert plan.removed == (0, 3)
    # Three: without the first and the last, 5 is off by 9 and -5 by 1.
    assert plan_layers(model, **{**chosen, "count": 3}, greedy=True).removed == (0, 2, 3)
    assert plan_layers(model, **{**chosen, "count": 3}).removed == (0, 1, 3)
    assert outputs(model, [np.zeros((1, 1), np.float32)])[0] == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["resnet_v1", "post_norm", "sequential_of_nested"])
def test_the_loss_without_a_block_is_the_loss_of_the_model_without_it(name):
    model = BUILDERS[name]()
    randomize(model)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, *model.input_shape[1:])).astype(np.float32)
    y = rng.integers(0, 3, 20)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plan = plan_layers(model, count=1, criterion="loss", data=(x, y), batch_size=8)
    for block, score in zip(plan.blocks, plan.scores, strict=True):
        without = prune_layers(model, names=[block.name])
        assert score == pytest.approx(float(loss(y, without(x))), rel=1e-4)
    assert plan.scores[plan.removed[0]] == min(plan.scores)


def test_which_leave_by_a_function_of_the_users():
    model = dense_blocks(4)
    seen = []

    def backwards(block, given, data):
        seen.append((given is model, data))
        return -int(block.name[1:])

    plan = plan_layers(model, count=2, criterion=backwards, data="mine", skip=["b4"])
    assert plan.removed == (1, 2)
    assert plan.scores == (-1, -2, -3, None)
    assert seen == [(True, "mine")] * 3


def test_what_a_plan_says():
    plan = plan_layers(resnet_v1(), names=["stage1_block1"])
    said = plan.to_json()
    assert [group["name"] for group in said["groups"] if group["removed"]] == ["stage1_block1"]
    # Two 3x3 kernels of 8 to 8 channels, on 2x2 pixels, and two normalizations of 4 x 8.
    assert said["parameters_before"] - said["parameters_after"] == 2 * 576 + 2 * 4 * 8
    assert said["macs_before"] - said["macs_after"] == 2 * 576 * 4
    assert [refusal["layer"] for refusal in said["refused"]] == ["stage0_block0", "stage1_block0"]
    text = str(plan)
    for part in ("stage1_block1", "leaves", "stays", "projection", "parameters: ", "MACs: "):
        assert part in text


@pytest.mark.parametrize(
    ("chosen", "match"),
    [
        ({}, "got no budget; give exactly one of pruning_ratio, count and names"),
        ({"count": 1, "pruning_ratio": 0.5}, "got pruning_ratio and count; give exactly one"),
        ({"pruning_ratio": 1.0}, r"pruning_ratio=1.0` is outside \[0, 1\)"),
        ({"pruning_ratio": -0.1}, r"pruning_ratio=-0.1` is outside \[0, 1\)"),
        ({"pruning_ratio": float("nan")}, "pruning_ratio=nan` is outside"),
        ({"count": -1}, "count=-1 is not a whole number"),
        ({"count": 1.5}, "count=1.5 is not a whole number"),
        ({"count": 4}, "count=4 is more than the 3 blocks"),
        ({"count": 3, "skip": ["b1"]}, "count=3 is more than the 2 blocks"),
        ({"names": ["b9"]}, "names='b9'` matches no block of the model; its blocks are b1, b2, b3"),
        ({"count": 1, "skip": ["b9"]}, "skip='b9'` matches no block"),
        ({"count": 1, "criterion": "l1"}, "criterion='l1'` is unknown; supported: position"),
        ({"count": 1, "criterion": "loss"}, "criterion='loss'` needs `data`"),
        ({"count": 1, "criterion": "loss", "data": np.zeros((9, 4))}, "needs targets"),
        (
            {"count": 1, "criterion": "loss", "data": (np.zeros((9, 4)), np.full((9, 4), np.nan))},
            "nan|NaN",
        ),
        ({"count": 1, "criterion": lambda *_: "high"}, "gave no number for block 'b1'"),
        ({"count": 1, "criterion": lambda *_: np.nan}, "gave nan for block 'b1'"),
        ({"count": 1, "granularity": "layer"}, "granularity='layer'"),
    ],
)
def test_bad_arguments(chosen, match):
    model = dense_blocks(3)
    model.compile("sgd", "mse")
    with pytest.raises(InputError, match=match) as raised:
        prune_layers(model, **chosen)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("chosen", [{"pruning_ratio": 0.5}, {"count": 9}])
def test_a_model_without_blocks_is_refused(chosen):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(2)], name="plain")
    with pytest.raises(InputError, match=r"^model 'plain' has no block that can leave; supported"):
        prune_layers(model, **chosen)
    x = keras.Input((4,))
    sides = [layers.Dense(4)(x), layers.Dense(4)(x)]
    with pytest.raises(InputError, match=r"no block that can leave \('join': it adds "):
        prune_layers(keras.Model(x, layers.Add(name="join")(sides)), **chosen)


def test_the_smaller_model_is_compiled_as_the_original():
    model = dense_blocks(3)
    assert not prune_layers(model, count=1).compiled
    model.compile(keras.optimizers.SGD(0.25, momentum=0.5), "mse", metrics=["mae"])
    smaller = prune_layers(model, count=1)
    assert smaller.loss == "mse"
    assert smaller.optimizer is not model.optimizer
    assert smaller.optimizer.get_config()["momentum"] == 0.5
    smaller.fit(np.ones((4, 4)), np.ones((4, 4)), verbose=0)


@pytest.mark.parametrize(
    ("ratio", "notes"),
    [
        (0.5, ("blocks leave whole: 0.5 of 3 is 1.5, and 2 leave",)),
        (0.1, ("blocks leave whole: 0.1 of 3 is 0.3, and 0 leave",)),
        (
            0.99,
            (
                "blocks leave whole: 0.99 of 3 is 2.97, and 3 leave",
                "all 3 blocks leave; what is left is the model around them",
            ),
        ),
        (1 / 3, ()),
    ],
)
def test_a_plan_says_what_a_ratio_comes_to(ratio, notes):
    plan = plan_layers(dense_blocks(3), pruning_ratio=ratio)
    assert plan.notes == notes
    assert plan.to_json()["notes"] == list(notes)
    assert all(note in str(plan) for note in notes)


def test_tables_call_a_block_by_a_layer_that_was_named():
    x = inputs = keras.Input((4,))
    for number in range(2):
        x = layers.Add()([x, layers.Dense(4, name=f"mix{number}")(layers.ReLU()(x))])
    x = layers.Add()([x, layers.Dense(4)(x)])
    model = keras.Model(inputs, x)
    plan = plan_layers(model, count=1)
    assert plan.labels == ["mix0", "mix1", model.layers[-1].name]
    assert [group["label"] for group in plan.to_json()["groups"]] == plan.labels
    assert "\nmix1 " in str(plan)
    assert plan_layers(model, names=[plan.labels[1]]).removed == (1,)


def test_bad_models():
    model = dense_blocks(3)
    model.get_layer("dense2").kernel.assign(np.full((4, 4), np.nan))
    with pytest.raises(InputError, match="'dense2' has NaN or infinite weights"):
        prune_layers(model, count=1)
    with pytest.raises(
        InputError, match=r"='stage0_block0'` names 'stage0_block0', which cannot leave: .*shortcut"
    ):
        prune_layers(resnet_v1(), names=["stage0_block0"])
    legacy = pytest.importorskip("tf_keras")
    with pytest.raises(UnsupportedError, match="tf_keras model"):
        prune_layers(legacy.Sequential([legacy.layers.Dense(1, input_shape=(2,))]), count=0)
