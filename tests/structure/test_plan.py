import json

import numpy as np
import pytest
from reference_models import build_ds_cnn, build_resnet8
from structure.law import TOLERANCE, _run, masked_output, random_inputs, randomize

import edgeprune.structure.plan as planning
from edgeprune.errors import InputError, UnsupportedError
from edgeprune.keras_macs import keras_macs
from edgeprune.models import import_keras
from edgeprune.structure.budget import Remaining
from edgeprune.structure.graph import channel_graph
from edgeprune.structure.plan import plan_channels
from edgeprune.structure.pruning import prune_channels
from edgeprune.structure.surgery import shrink

keras = import_keras()
layers = keras.layers


@pytest.fixture(scope="module")
def resnet():
    keras.utils.set_random_seed(0)
    model = build_resnet8(keras)
    randomize(model)
    return model


def small(filters=(16, 32), shape=(8, 8, 3)):
    inputs = keras.Input(shape)
    x = layers.Conv2D(filters[0], 3, padding="same", name="first")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(filters[1], 3, padding="same", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x), name="small")
    randomize(model)
    return model


def kept(plan):
    return {group.name: group.channels_after for group in plan.groups}


def test_parameters_and_macs_by_hand():
    plan = plan_channels(small(), pruning_ratio=0.5)
    assert kept(plan) == {"first": 8, "second": 16, "head": 4}
    # Kernel and bias, four vectors of the normalization, the second kernel and bias, the head.
    assert plan.parameters_before == 27 * 16 + 16 + 64 + 144 * 32 + 32 + 32 * 4 + 4
    assert plan.parameters_after == 27 * 8 + 8 + 32 + 72 * 16 + 16 + 16 * 4 + 4
    assert plan.macs_before == 64 * (27 * 16 + 144 * 32) + 32 * 4
    assert plan.macs_after == 64 * (27 * 8 + 72 * 16) + 16 * 4


@pytest.mark.parametrize("build", [build_resnet8, build_ds_cnn])
@pytest.mark.parametrize("ranking", ["group", "global"])
def test_the_law_holds_for_what_a_plan_removes(build, ranking):
    model = build(keras)
    randomize(model)
    plan = plan_channels(model, pruning_ratio=0.5, ranking=ranking, criterion="fpgm")
    smaller = plan.apply()
    assert smaller.count_params() == plan.parameters_after < 0.7 * plan.parameters_before
    assert keras_macs(smaller).total == plan.macs_after < 0.7 * plan.macs_before
    inputs = random_inputs(model)
    for want, have in zip(
        masked_output(plan.graph, plan.removed, inputs), _run(smaller, inputs, {}), strict=True
    ):
        np.testing.assert_allclose(have, want, atol=TOLERANCE * np.abs(want).max().clip(1))


@pytest.mark.parametrize("fraction", [0.8, 0.4])
@pytest.mark.parametrize("ranking", ["group", "global"])
def test_targets_are_met_from_below(resnet, fraction, ranking):
    plan = plan_channels(resnet, target_macs=fraction, ranking=ranking)
    share = plan.macs_after / plan.macs_before
    assert fraction - 0.05 < share <= fraction
    plan = plan_channels(resnet, target_parameters=fraction, ranking=ranking, round_to=1)
    share = plan.parameters_after / plan.parameters_before
    assert fraction - 0.02 < share <= fraction
    assert plan.missed is None


def test_a_target_out_of_reach_is_said(resnet):
    plan = plan_channels(resnet, target_macs=0.01)
    left = plan.macs_after / plan.macs_before
    assert f"`target_macs=0.01` is not met: {left:.3f} stays with `round_to=8`" in plan.missed
    assert plan.missed in str(plan)
    assert plan.missed in plan.to_json()["notes"]


def test_a_target_of_one_removes_nothing(resnet):
    plan = plan_channels(resnet, target_macs=1.0)
    assert plan.removed == {}
    assert plan.macs_after == plan.macs_before


def attention():
    inputs = keras.Input((6, 8))
    x = layers.Dense(16, name="in")(inputs)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8, name="mha")(x, x)])
    x = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.Dense(16, name="down")(layers.Dense(32, name="up")(x))])
    return keras.Model(inputs, layers.Dense(3)(x))


def recurrent():
    inputs = keras.Input((6, 8))
    x = layers.Bidirectional(layers.LSTM(12, return_sequences=True))(inputs)
    x = layers.GRU(8)(layers.TimeDistributed(layers.Dense(10))(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def varied():
    inputs = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(12, 3, name="separable")(inputs)
    x = layers.Conv2D(24, 3, groups=3, strides=2)(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)
    inner_in = keras.Input(x.shape[1:])
    inner = keras.Model(inner_in, layers.Conv2D(10, 1)(inner_in), name="inner")
    x = layers.Conv2DTranspose(6, 3)(inner(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


@pytest.mark.parametrize("build", [build_resnet8, build_ds_cnn, attention, recurrent, varied])
def test_the_estimate_is_exact(build):
    model = build(keras) if build in (build_resnet8, build_ds_cnn) else build()
    graph = channel_graph(model)
    remaining = Remaining(graph, keras_macs(model).by_layer)
    rng = np.random.default_rng(0)
    removed = {}
    for index, group in enumerate(graph.groups):
        free = np.flatnonzero(~group.frozen)
        if len(free) > 1:  # heads are two
            removed[index] = np.sort(rng.choice(free, len(free) // 2, replace=False))
    assert removed
    smaller = shrink(graph, removed)
    assert remaining.parameters(removed) == smaller.count_params() < model.count_params()
    assert remaining.macs(removed) == keras_macs(smaller).total
    assert remaining.macs({}) == keras_macs(model).total


def test_an_estimate_that_is_too_low_is_put_right():
    # The product of two activations has no weight to tell how it shrinks.
    inputs = keras.Input((20, 4))
    x = layers.Dense(24, name="made")(inputs)
    y = layers.Dense(24, name="other")(inputs)
    scores = layers.Dot(axes=2, name="dot")([x, y])
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(16)(scores)))
    for fraction in (0.9, 0.7, 0.5):
        plan = plan_channels(model, target_macs=fraction, round_to=1)
        assert plan.macs_after <= fraction * plan.macs_before or plan.missed
        assert keras_macs(plan.apply()).total == plan.macs_after


def test_a_model_with_free_dimensions_has_no_macs():
    model = small(shape=(None, None, 3))
    plan = plan_channels(model, pruning_ratio=0.5)
    assert (plan.macs_before, plan.macs_after) == (None, None)
    assert "MACs are not known: input" in plan.notes[0]
    assert plan.to_json()["macs_after"] is None
    assert "MACs: - -> -" in str(plan)
    assert plan.apply().count_params() == plan.parameters_after
    with pytest.raises(UnsupportedError, match=r"free dimension.* or give `target_parameters`"):
        plan_channels(model, target_macs=0.5)


def test_a_plan_far_below_its_target_says_so():
    # 16 -> 8 halves nearly everything; 32 -> 16 likewise.
    plan = plan_channels(small(), target_macs=0.9, round_to=16)
    left = plan.macs_after / plan.macs_before
    assert left < 0.6
    asked = (
        f"`target_macs=0.9` was asked, {left:.3f} stays: nothing nearer that cuts the groups alike"
    )
    assert plan.missed == f"{asked} was found; a smaller `round_to` comes closer"
    assert plan.missed in plan.notes
    assert plan_channels(small(), target_macs=0.9, round_to=1).missed is None


def test_limits_that_hold_a_group_are_named():
    def notes(**limits):
        return plan_channels(small(), pruning_ratio=0.5, **limits).notes

    assert notes(min_channels=16) == ("first: nothing leaves with `min_channels=16`",)
    assert notes(max_ratio=0.3) == ("first: nothing leaves with `max_ratio=0.3`",)
    assert notes(min_channels=16, max_ratio=0.3) == (
        "first: nothing leaves with `min_channels=16`, `max_ratio=0.3`",
    )
    assert notes(min_channels=16, skip="first") == ()
    nothing, held = notes(max_ratio=0.1)
    assert nothing.startswith("`pruning_ratio=0.5`: nothing leaves")
    assert held == "first, second: nothing leaves with `max_ratio=0.1`"


def test_groups_without_scales_are_named():
    plan = plan_channels(small(), pruning_ratio=0.5, criterion="bn_scale")
    assert plan.notes == (
        "second: ranked by l2, as not every channel has a scale of a normalization",
    )
    assert plan_channels(small(), pruning_ratio=0.5).notes == ()


def test_rows_count_channels_of_the_layer():
    # Grouped convolutions let their channels leave eight at once, or four.
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(32, 3, name="plain")(inputs)
    x = layers.Conv2D(32, 3, groups=4, name="grouped")(x)
    x = layers.GlobalAveragePooling2D()(layers.GroupNormalization(8)(x))
    model = keras.Model(inputs, layers.Dense(4, name="head")(x))
    plan = plan_channels(model, pruning_ratio=0.5)
    smaller = plan.apply()
    for row in plan.groups:
        for built, count in ((model, row.channels_before), (smaller, row.channels_after)):
            assert built.get_layer(row.name).output.shape[-1] == count
    assert [(row.name, row.channels_before, row.channels_after) for row in plan.groups] == [
        ("plain", 32, 16),
        ("grouped", 32, 16),
        ("head", 4, 4),
    ]
    assert [row.frozen for row in plan.groups] == [0, 0, 4]
    # Rounds are fractions of the units that the groups have, whatever the rows count.
    rounds = prune_channels(model, pruning_ratio=0.5, rounds=2)
    assert [w.shape for w in rounds.weights] == [w.shape for w in smaller.weights]


def test_json_and_text():
    plan = plan_channels(small(), pruning_ratio=0.5)
    document = json.loads(json.dumps(plan.to_json()))
    assert document["groups"][0] == {
        "name": "first",
        "kind": "channels",
        "layers": ["first"],
        "channels_before": 16,
        "channels_after": 8,
        "frozen": 0,
    }
    assert document["refused"] == [{"layer": "head", "reason": "'head' is an output of the model"}]
    assert document["parameters_before"] == plan.parameters_before
    assert str(plan).splitlines() == [
        "layers  channels  after  removed",
        "------  --------  -----  -------",
        "first         16      8    0.500",
        "second        32     16    0.500",
        "head           4      4    0.000",
        "",
        "kept  because",
        "----  --------------------------------",
        "head  'head' is an output of the model",
        "",
        f"parameters: {plan.parameters_before:,} -> {plan.parameters_after:,}",
        f"MACs: {plan.macs_before:,} -> {plan.macs_after:,}",
    ]


@pytest.mark.parametrize(("channels", "left"), [(16, 8), (8, 4), (12, 8), (6, 4), (2, 1), (1, 1)])
def test_axes_no_larger_than_a_multiple_are_halved(channels, left):
    plan = plan_channels(small((channels, 64)), pruning_ratio=0.5, round_to=16)
    assert kept(plan) == {"first": left, "second": 32, "head": 4}


# What to skip.


@pytest.mark.parametrize(
    ("skip", "whole"),
    [
        (["first"], {"first"}),
        ("first", {"first"}),
        (["fir*"], {"first"}),
        (["norm"], {"first"}),  # it goes along with the channels of the first
        (["Conv2D"], {"first", "second"}),
        ([layers.Conv2D], {"first", "second"}),
        (layers.BatchNormalization, {"first"}),
        (["*"], {"first", "second"}),
        ([], set()),
    ],
)
def test_skip(skip, whole):
    after = kept(plan_channels(small(), pruning_ratio=0.5, skip=skip))
    assert after == {
        "first": 16 if "first" in whole else 8,
        "second": 32 if "second" in whole else 16,
        "head": 4,
    }


def test_skip_reaches_into_nested_models():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(16, name="deep")], name="inner")
    inputs = keras.Input((4,))
    x = layers.Dense(16, name="after")(inner(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    for skip in ("inner", "inner/deep", "deep", "*/deep", "Sequential"):
        after = kept(plan_channels(model, pruning_ratio=0.5, skip=skip))
        assert after == {"inner/deep": 16, "after": 8, "head": 2}


def test_ratios_of_their_own():
    ratios = {"second": 0.25, layers.Conv2D: 0.0}
    assert kept(plan_channels(small(), target_macs=0.9, ratios=ratios)) == {
        "first": 16, "second": 24, "head": 4,
    }  # fmt: skip


@pytest.mark.parametrize("argument", ["skip", "ratios"])
def test_unknown_names_are_refused(argument):
    for name, message in (
        (
            "thrid",
            rf"{argument}='thrid'` matches no layer of model 'small'; its layers .*first",
        ),
        (layers.LSTM, f"{argument}='LSTM'` matches no layer"),
        ("relu", f"{argument}='relu'` matches no layer with channels of its own"),
    ):
        value = {name: 0.5} if argument == "ratios" else [name]
        with pytest.raises(InputError, match=message):
            plan_channels(small(), pruning_ratio=0.5, **{argument: value})


def test_a_criterion_of_ones_own():
    def last(group, model, data):
        assert model.name == "small"
        assert [len(y) for _, y in data] == [5]
        return np.arange(group.size)[::-1]

    x, y = np.ones((5, 8, 8, 3), np.float32), np.zeros((5, 4))
    plan = plan_channels(small(), pruning_ratio=0.5, criterion=last, data=(x, y))
    np.testing.assert_array_equal(plan.removed[0], np.arange(8, 16))


def test_data_are_looked_at_once_for_all_groups(monkeypatch):
    passes = []
    over = planning.Evidence._over_batches
    monkeypatch.setattr(
        planning.Evidence, "_over_batches", lambda self, step: passes.append(1) or over(self, step)
    )
    x, y = np.ones((40, 8, 8, 3), np.float32), np.zeros((40, 4))
    plan = plan_channels(
        small(), pruning_ratio=0.5, criterion="taylor_activation", data=(x, y), batches=2
    )
    assert len(plan.removed) == 2
    assert len(passes) == 1


def test_random_follows_the_seed():
    one, same, other = (
        plan_channels(small(), pruning_ratio=0.5, criterion="random", seed=seed).removed[1]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert list(one) != list(other)


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "got no budget; give exactly one"),
        ({"pruning_ratio": 0.5, "target_macs": 0.5}, "got pruning_ratio and target_macs"),
        ({"pruning_ratio": 1.0}, r"pruning_ratio=1.0` is outside \[0, 1\)"),
        ({"pruning_ratio": -0.1}, r"outside \[0, 1\)"),
        ({"pruning_ratio": float("nan")}, r"outside \[0, 1\)"),
        ({"pruning_ratio": "half"}, r"pruning_ratio='half'` is outside \[0, 1\)"),
        ({"target_macs": 0}, r"target_macs=0` is outside \(0, 1\]"),
        ({"target_parameters": 1.5}, r"target_parameters=1.5` is outside \(0, 1\]"),
        ({"pruning_ratio": 0.5, "criterion": "l3"}, "criterion='l3'` is unknown"),
        ({"pruning_ratio": 0.5, "criterion": "taylor"}, "'taylor'` needs `data`"),
        ({"pruning_ratio": 0.5, "ranking": "layer"}, "ranking='layer'` is unknown; supported"),
        ({"pruning_ratio": 0.5, "round_to": 0}, "round_to=0` is not a whole number"),
        ({"pruning_ratio": 0.5, "round_to": 2.5}, "round_to=2.5` is not"),
        ({"pruning_ratio": 0.5, "min_channels": 0}, "min_channels=0` is not"),
        ({"pruning_ratio": 0.5, "max_ratio": 1}, r"max_ratio=1` is outside \[0, 1\)"),
        ({"pruning_ratio": 0.5, "seed": "a"}, "seed='a'` is not a whole number from 0 on"),
        ({"pruning_ratio": 0.5, "skip": 3}, "skip=3` names no layers; give a layer's name"),
        ({"pruning_ratio": 0.5, "skip": [3]}, r"skip=\[3\]` names no layers"),
        ({"pruning_ratio": 0.5, "ratios": ["first"]}, r"ratios=\['first'\]` is unknown; give a"),
        ({"pruning_ratio": 0.5, "ratios": {"first": 2}}, r"ratios\['first'\]=2` is outside"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        plan_channels(small(), **arguments)


@pytest.mark.parametrize("criterion", ["l2", "random", lambda group, model, data: [0] * group.size])
def test_weights_that_are_not_finite_are_refused(criterion):
    model = small()
    model.get_layer("second").kernel.assign(np.full((3, 3, 16, 32), np.nan))
    with pytest.raises(InputError, match="layer 'second' has NaN"):
        plan_channels(model, pruning_ratio=0.5, criterion=criterion)


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(UnsupportedError, match=r"subclassed model .* wrap it"):
        plan_channels(Own(), pruning_ratio=0.5)
