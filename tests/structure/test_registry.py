"""Rules of the user's own: what can be registered, and what they may return."""

import keras
import numpy as np
import pytest

from edgeprune import plan_channels, register_pruning_rule
from edgeprune.errors import InputError
from edgeprune.structure import registry
from edgeprune.structure.graph import channel_graph


class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale


@pytest.fixture
def rule(monkeypatch):
    """Register a rule of `Scale`, for one test."""
    registry.rule_for(None)  # so that all rules are there
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    return register_pruning_rule(Scale)


def model():
    inputs = keras.Input((4,))
    x = Scale(name="scaled")(keras.layers.Dense(16, name="wide")(inputs))
    return keras.Model(inputs, keras.layers.Dense(2, name="last")(x))


def test_a_sound_rule_is_followed(rule):
    @rule
    def scales(call):
        call.carries(call.layer.scale, 0, call.inputs[0][-1])
        return [call.inputs[0]]

    smaller = plan_channels(model(), pruning_ratio=0.5).apply()
    assert smaller.get_layer("scaled").scale.shape == (8,)


def fails(call):
    return call.nothing


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda call: None, "returned None; return a list with the axes of each output, here 1"),
        (lambda call: [], "returned 0 of them; return a list"),
        (lambda call: call.inputs[0], "returned 2 of them; return a list"),
        (lambda call: [None], r"returned None for an output of shape \(None, 16\)"),
        (lambda call: [(None,)], r"returned 1 axes for an output of shape \(None, 16\)"),
        (lambda call: [(None, 5)], r"returned 5 for axis 1 of an output of shape \(None, 16\)"),
        (lambda call: [(None, call.inputs[0][1][:3])], "returned 3 channels for axis 1"),
        (fails, r"failed with AttributeError: 'Call' object has no attribute 'nothing'; mend it"),
    ],
)
def test_what_a_bad_rule_does_is_one_line(rule, function, message):
    rule(function)
    with pytest.raises(InputError, match=message) as raised:
        channel_graph(model())
    text = str(raised.value)
    assert text.startswith(f"the pruning rule {function.__name__}() of layer 'scaled' (Scale) ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ((), "got nothing; name the types whose rule it is"),
        ((fails,), "got fails; name the types"),
        ((Scale, Scale(name="made")), "got Scale, .*; name the types"),
        (("Conv2d",), "got 'Conv2d', which is no layer of Keras's; did you mean 'Conv2D'"),
        ((int,), "got int, which is no layer or operation"),
    ],
)
def test_what_cannot_be_registered(rule, types, message):
    before = dict(registry._RULES)
    with pytest.raises(InputError, match=message):
        register_pruning_rule(*types)(lambda call: [call.inputs[0]])
    assert before == registry._RULES


@pytest.mark.parametrize("name", ["Conv2D", "ops.Add"])
def test_classes_of_keras_go_by_their_names(rule, name):
    def own(call):
        return [call.inputs[0]]

    register_pruning_rule(name)(own)
    assert registry._RULES[name] is own


def test_every_rule_of_edgeprunes_is_of_a_class_that_there_is(rule):
    for kind in registry._RULES:
        registry._check_kind(kind)


def test_labels_beyond_the_classes_are_refused_by_criteria_too():
    x = keras.Input((4,))
    classifier = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(16)(x)))
    classifier.compile("sgd", "sparse_categorical_crossentropy")
    data = (np.zeros((8, 4), "float32"), np.full(8, 9))
    with pytest.raises(InputError, match=r"y holds 9, and model '.*' has 2 classes"):
        plan_channels(classifier, pruning_ratio=0.5, criterion="taylor", data=data)
