import numpy as np
import pytest
from structure.rule_models import followed, image, kept, keras, layers, steps, without

from edgeprune.structure.graph import channel_graph

ops = keras.ops


@pytest.mark.parametrize(
    "make",
    [
        layers.ReLU,
        layers.LeakyReLU,
        layers.ELU,
        layers.Identity,
        lambda: layers.PReLU(),
        lambda: layers.PReLU(shared_axes=[1, 2]),
        lambda: layers.Softmax(axis=(1, 2)),
        lambda: layers.Dropout(0.5, noise_shape=(None, 1, 1, 8)),
        lambda: layers.SpatialDropout2D(0.5),
        lambda: layers.GaussianNoise(0.1),
        lambda: layers.AlphaDropout(0.1),
        lambda: layers.Rescaling(2.0, offset=1.0),
    ],
)
def test_channels_pass(make):
    followed(image(lambda x: make()(x)), 8)


ACTIVATIONS = (
    *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu"),
    *("hard_tanh", "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu"),
    *("sigmoid", "silu", "soft_shrink", "softplus", "softsign", "sparse_plus", "sparse_sigmoid"),
    *("squareplus", "tanh", "tanh_shrink", "threshold"),
)


def test_every_activation_that_works_entry_by_entry_passes():
    """A chain of all of them: a single one that were refused would freeze the channels."""

    def chain(x):
        for name in ACTIVATIONS:
            arguments = {"threshold": 0.0, "default_value": 0.1} if name == "threshold" else {}
            function = getattr(keras.activations, name)
            x = function(x, **arguments) if arguments else layers.Activation(name)(x)
            x = layers.Rescaling(0.5)(x)  # keeps `exponential` from growing
        return x

    followed(steps(chain), 8)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax"])
def test_an_activation_over_channels_keeps_them(name):
    kept(steps(lambda x: layers.Activation(name)(x)), f"is a {name} over these channels")


def test_a_softmax_within_a_layer_keeps_what_the_layer_makes():
    model = steps(lambda x: x * layers.Dense(8, activation="softmax", name="gate")(x))
    kept(model, "is a softmax over these channels", "gate")


def test_an_activation_layer_within_a_layer_passes():
    model = steps(lambda x: layers.Dense(4, activation=layers.LeakyReLU(0.3), name="inner")(x))
    followed(model, 4, "inner")


@keras.saving.register_keras_serializable("edgeprune_tests")
def shares(x):
    return x / (1 + ops.max(ops.abs(x), axis=-1, keepdims=True))


def test_a_function_of_the_users_own_is_not_guessed():
    kept(steps(lambda x: layers.Activation(shares)(x)), "may look across channels")
    model = steps(lambda x: layers.Dense(4, activation=shares, name="inner")(x))
    kept(model, "may look across channels", "inner")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: layers.Softmax(), "softmax"),
        (lambda: layers.Rescaling([2.0] * 8), "for each channel"),
        (lambda: layers.Lambda(lambda x: x[..., ::-1]), "has no rule"),
    ],
)
def test_channels_stay_for_a_reason(make, reason):
    kept(image(lambda x: make()(x)), reason)


class Reversed(layers.Dense):
    def call(self, x):
        return super().call(x)[..., ::-1]


def test_a_subclass_does_not_inherit_its_parents_rule():
    kept(steps(lambda x: Reversed(4)(x)), "'reversed' (Reversed) has no rule")


def test_a_rule_for_a_class_of_keras_itself_is_found(monkeypatch):
    from edgeprune.structure import registry

    before = registry.rule_for(layers.Lambda(lambda x: x))
    assert before is None
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    registry.register_pruning_rule(layers.Lambda)(lambda call: [call.inputs[0]])
    followed(steps(lambda x: layers.Lambda(lambda t: t * 2)(x)), 8)


def test_slopes_and_the_shape_of_noise_shrink_along():
    model = image(lambda x: layers.Dropout(0.5, noise_shape=(None, 1, 1, 8))(layers.PReLU()(x)))
    smaller = without(model, [1, 6])
    assert smaller.layers[2].alpha.shape == (6, 6, 6)
    np.testing.assert_array_equal(
        smaller.layers[2].alpha, np.delete(np.asarray(model.layers[2].alpha), [1, 6], axis=2)
    )
    assert list(smaller.layers[3].noise_shape) == [None, 1, 1, 6]
    assert np.isfinite(smaller(np.zeros((2, 8, 8, 3), np.float32), training=True)).all()


@pytest.mark.filterwarnings("ignore:Layer .flatten")
def test_masking_passes_where_it_compares_with_zero():
    followed(steps(lambda x: layers.Masking(0.0)(x)), 8)
    kept(steps(lambda x: layers.Masking(1.0)(x)), "compares these channels")


UNARY = (
    *("absolute", "negative", "sign", "square", "expm1", "ceil", "floor", "round", "trunc", "sin"),
    *("cos", "tanh", "arctan", "arcsinh", "sigmoid", "relu6", "hard_silu", "log_sigmoid", "erf"),
    *("nan_to_num", "stop_gradient", "softsign", "copy", "deg2rad", "sinc", "isfinite"),
)


@pytest.mark.parametrize("name", UNARY)
def test_operations_entry_by_entry_pass(name):
    def operate(x):
        function = getattr(ops, name, None) or getattr(ops.numpy, name)
        return ops.cast(function(x), "float32")

    graph = channel_graph(steps(operate))
    assert not graph.groups[0].frozen.any(), graph.groups[0].reasons
    assert graph.groups[0].size == 8


def test_a_chain_of_operations_holds_the_law():
    def chain(x):
        x = ops.clip(ops.negative(ops.absolute(ops.tanh(x))), -0.9, 0.9)
        return ops.cast(ops.cast(ops.square(ops.sin(x)), "float64"), "float32")

    followed(steps(chain), 8)


def test_operations_over_other_axes_pass():
    followed(steps(lambda x: ops.softmax(x, axis=1)), 8)
    kept(steps(lambda x: ops.softmax(x, axis=-1)), "softmax")
    kept(steps(lambda x: ops.softmax(x, axis=None)), "softmax")
