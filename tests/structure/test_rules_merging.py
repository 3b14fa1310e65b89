import numpy as np
import pytest
from structure.rule_models import (
    around,
    followed,
    image,
    kept,
    keras,
    layers,
    positions,
    steps,
    without,
)

ops = keras.ops
VECTOR = np.linspace(-1, 1, 8).astype(np.float32)


@pytest.mark.parametrize("kind", ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"])
def test_channels_that_meet_leave_together(kind):
    model = steps(lambda x: getattr(layers, kind)()([x, layers.Dense(8, name="other")(x)]))
    assert followed(model, 8).layers == ("source", "other")


def test_an_input_of_lower_rank_meets_the_last_axes():
    model = steps(lambda x: layers.Add()([x, layers.Dense(8, name="other")(layers.Flatten()(x))]))
    assert followed(model, 8).layers == ("source", "other")


def test_squeeze_and_excite_is_one_group():
    def excite(x):
        squeezed = layers.Dense(4, activation="relu", name="squeeze")(
            layers.GlobalAveragePooling2D()(x)
        )
        gate = layers.Dense(8, activation="sigmoid", name="excite")(squeezed)
        return layers.Multiply()([x, layers.Reshape((1, 1, 8), name="spread")(gate)])

    model = image(excite)
    assert followed(model, 8).layers == ("source", "excite")
    followed(model, 4, "squeeze")
    assert tuple(without(model, [0, 1, 2]).get_layer("spread").target_shape) == (1, 1, 5)


def test_a_gate_of_one_channel_is_spread_over_all():
    model = image(lambda x: layers.Multiply()([x, layers.Conv2D(1, 1, name="gate")(x)]))
    followed(model, 8)
    assert followed(model, 1, "gate").layers == ("gate",)


def test_concatenation_shifts_positions():
    def joined(x):
        both = layers.Concatenate()([x, layers.Dense(4, name="other")(x), x])
        return layers.Dense(3, name="reader")(both)

    model = steps(joined)
    group = followed(model, 8)
    assert positions(group, "reader/kernel", 0)[2] == [2, 14]
    other = followed(model, 4, "other")
    assert positions(other, "reader/kernel", 0) == {0: [8], 1: [9], 2: [10], 3: [11]}


def test_concatenation_with_the_models_inputs_leaves_those_whole():
    entry = keras.Input((6, 3))
    x = layers.Dense(8, name="source")(entry)
    x = layers.Dense(4, name="reader")(layers.Concatenate()([entry, x]))
    model = keras.Model(entry, layers.Dense(2)(layers.Flatten()(x)))
    group = followed(model, 8)
    assert positions(group, "reader/kernel", 0)[0] == [3]
    assert without(model, [0, 7]).get_layer("reader").kernel.shape == (9, 4)


def test_concatenation_along_positions_ties_the_channels():
    model = steps(lambda x: layers.Concatenate(axis=1)([x, layers.Dense(8, name="other")(x)]))
    assert followed(model, 8).layers == ("source", "other")


@pytest.mark.parametrize(
    "operate",
    [
        lambda x: x + VECTOR,
        lambda x: ops.multiply(VECTOR, 2.0 - x),
        lambda x: ops.add(x, np.ones((6, 8), np.float32)),
        lambda x: ops.where(x > VECTOR, x, 0.5),
        lambda x: ops.abs(x) ** 2,
        lambda x: x / 3.0 - 1,
        lambda x: ops.maximum(x, layers.Dense(8)(x)),
        lambda x: ops.logaddexp(x, ops.mean(x, axis=1, keepdims=True)),
        lambda x: ops.concatenate([x, x * 2], axis=-1),
    ],
)
def test_operations_on_tensors_arrays_and_numbers_hold_the_law(operate):
    followed(steps(operate), 8)


def test_an_array_is_sliced_with_the_channels_it_meets():
    model = steps(lambda x: x + VECTOR)
    smaller = without(model, [0, 3])
    for made, expected in ((smaller, np.delete(VECTOR, [0, 3])), (model, VECTOR)):
        (add,) = [op for op in made.operations if type(op).__name__ == "Add"]
        np.testing.assert_array_equal(add._inbound_nodes[0].arguments.args[1], expected)


def test_a_variable_that_no_layer_owns_keeps_its_channels():
    kept(steps(lambda x: x * keras.Variable(VECTOR)), "keeps its size")


def test_channels_that_meet_the_models_inputs_stay():
    entry = keras.Input((6, 8))
    x = layers.Add()([layers.Dense(8, name="source")(entry), entry])
    model = keras.Model(entry, layers.Dense(2)(layers.Flatten()(x)))
    kept(model, "meets an axis that keeps its size")


@pytest.mark.parametrize("normalize", [False, True])
def test_the_axes_of_a_dot_product_lose_the_same_channels(normalize):
    model = steps(
        lambda x: layers.Dot(axes=-1, normalize=normalize)([x, layers.Dense(8, name="other")(x)])
    )
    assert followed(model, 8).layers == ("source", "other")


def test_a_dot_product_of_vectors_holds_the_law():
    def operate(x):
        x = layers.Flatten()(x)
        return layers.Dot(axes=1)([layers.Dense(5, name="one")(x), layers.Dense(5)(x)])

    followed(around(operate, layers.Dense(8, name="source"), (6, 3)), 5, "one")


def test_the_other_axes_of_a_dot_product_are_handed_on():
    def operate(x):
        product = layers.Dot(axes=1)([x, layers.Dense(4, name="other")(x)])  # (batch, 8, 4)
        return ops.sum(product, axis=-1)

    model = steps(operate)
    followed(model, 8)
    followed(model, 4, "other")
