import pytest

from edgeprune.errors import InputError
from edgeprune.steps.scope import Scope

ALL = {"shared", "lstm", "gru", "attention", "einsum", "conv1d", "separable", "transpose"}
ALL |= {"timed", "head"}


@pytest.fixture
def everything(k):
    """A model with a layer of each kind, some of them nested and one shared."""
    layers = k.layers
    shared = layers.Dense(6, name="shared")
    inner_in = k.Input((4, 6))
    inner = k.Model(inner_in, shared(shared(inner_in)), name="inner")
    tokens = k.Input((4,), dtype="int32")
    x = layers.Embedding(10, 6, name="table")(tokens)
    x = inner(x)
    x = layers.LSTM(3, return_sequences=True, name="lstm")(x)
    x = layers.Bidirectional(layers.GRU(2, return_sequences=True, name="gru"), name="both")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 6), name="einsum")(x)
    x = layers.Conv1D(4, 2, name="conv1d")(x)
    x = layers.Reshape((3, 2, 2))(x)
    x = layers.SeparableConv2D(3, 2, padding="same", name="separable")(x)
    x = layers.DepthwiseConv2D(2, padding="same", name="depthwise")(x)
    x = layers.Conv2DTranspose(2, 2, name="transpose")(x)
    x = layers.TimeDistributed(layers.Dense(2, name="timed"), name="wrapped")(x)
    head = k.Sequential([k.Input((4, 3, 2)), layers.Flatten(), layers.Dense(2, name="head")])
    return k.Model(tokens, head(x), name="everything")


def names(model, **arguments):
    return [kernel.name for kernel, _ in Scope("prune", **arguments).select(model)]


def layers_of(model, **arguments):
    """The layer that each kernel is named after, without what differs between the flavours."""
    known = ALL | {"table", "depthwise"}
    return {word for name in names(model, **arguments) for word in known if word in name}


def test_what_is_pruned_by_default(everything):
    found = names(everything)
    words = layers_of(everything)
    assert words == ALL
    assert sum("shared" in name for name in found) == 1
    assert sum("lstm" in name for name in found) == 2  # kernel and recurrent kernel
    assert sum("gru" in name for name in found) == 4  # in both directions
    assert sum("attention" in name for name in found) == 4  # query, key, value, output
    assert [name for name in found if "separable" in name] == ["separable/pointwise_kernel"]
    assert len(found) == len(set(found))


def test_what_is_pruned_when_asked_for(everything):
    assert "table" in layers_of(everything, include_embeddings=True)
    found = names(everything, include_depthwise=True)
    assert sum("depthwise" in name for name in found) == 2  # the layer, and in separable


@pytest.mark.parametrize(
    "selector", ["lstm", "LSTM", "lstm/*", "*lstm*", "lstm/lstm_cell/*", "lstm/lstm_cell"]
)
def test_skip_by_name_path_and_class_name(everything, selector):
    assert layers_of(everything, skip=[selector]) == layers_of(everything) - {"lstm"}


def test_skip_and_only_by_class(everything, k):
    assert layers_of(everything, only=[k.layers.MultiHeadAttention]) == {"attention"}
    assert layers_of(everything, only=["inner", "head"]) == {"shared", "head"}
    assert layers_of(everything, only=["inner", "head"], skip=[k.Sequential]) == {"shared"}


def test_own_targets_are_those_of_the_first_match(everything):
    chosen = Scope("prune", layers=[("lstm", 0.25), ("LSTM", 0.5), ("conv1d", 0.75)]).select(
        everything
    )
    targets = {kernel.name: target for kernel, target in chosen}
    assert {target for name, target in targets.items() if "lstm" in name} == {0.25}
    assert targets["conv1d/kernel"] == 0.75
    assert targets["einsum/kernel"] is None


def test_frozen_kernels_are_left_alone_however_they_were_frozen(everything):
    everything.get_layer("inner").trainable = False
    everything.get_layer("einsum").trainable = False
    assert layers_of(everything) == ALL - {"shared", "einsum"}
    everything.trainable = False
    with pytest.raises(InputError, match="nothing to prune in model 'everything': of its"):
        names(everything)


@pytest.mark.parametrize("argument", ["skip", "only"])
def test_a_selector_that_matches_nothing_is_an_error(everything, argument):
    with pytest.raises(InputError, match=f"{argument}='lstn' matches no kernel.*table/embeddings"):
        names(everything, **{argument: ["lstn"]})


def test_a_target_that_matches_nothing_is_an_error(everything):
    with pytest.raises(InputError, match="layers='dence' matches no kernel"):
        names(everything, layers=[("dence", 0.5)])
