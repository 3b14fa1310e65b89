import numpy as np
import pytest
from structure.law import check_law
from structure.rule_models import (
    around,
    followed,
    group_of,
    image,
    kept,
    keras,
    layers,
    positions,
    randomize,
    steps,
    without,
)

from edgeprune.structure.graph import channel_graph

ops = keras.ops


@pytest.mark.parametrize(
    "operate",
    [
        lambda x: layers.MaxPooling2D(2)(x),
        lambda x: layers.AveragePooling2D(3, strides=1, padding="same")(x),
        lambda x: layers.AdaptiveAveragePooling2D((2, 3))(x),
        lambda x: layers.ZeroPadding2D(((1, 0), (2, 1)))(x),
        lambda x: layers.Cropping2D(1)(x),
        lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x),
        lambda x: layers.Resizing(5, 7)(x),
        lambda x: layers.GlobalAveragePooling2D()(x),
        lambda x: x * layers.GlobalMaxPooling2D(keepdims=True)(x),
        lambda x: layers.Permute((3, 1, 2))(x),
        lambda x: layers.RepeatVector(3)(layers.GlobalMaxPooling2D()(x)),
        lambda x: layers.Reshape((-1,))(x),
        lambda x: layers.Reshape((-1, 8))(x),
        lambda x: layers.Reshape((9, 4, 8))(x),
    ],
)
def test_channels_are_followed(operate):
    followed(image(operate), 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.MaxPooling1D(2),
        lambda: layers.AveragePooling1D(2),
        lambda: layers.ZeroPadding1D(1),
        lambda: layers.Cropping1D(1),
        lambda: layers.UpSampling1D(2),
        lambda: layers.GlobalAveragePooling1D(),
    ],
)
def test_channels_are_followed_in_one_dimension(make):
    followed(steps(lambda x: make()(x)), 8)


def test_flatten_lets_each_channel_be_many_positions():
    model = image(layers.Flatten())  # (6, 6, 8) -> 288
    group = followed(model, 8)
    assert positions(group, "head/kernel", 0)[3] == list(range(3, 288, 8))
    assert without(model, [0, 1]).get_layer("head").kernel.shape == (216, 2)


def test_flatten_of_channels_first_moves_them_last():
    # Permuted to (8, 6, 6), flattened in the order of (6, 6, 8).
    model = image(
        lambda x: layers.Flatten(data_format="channels_first")(layers.Permute((3, 1, 2))(x))
    )
    group = followed(model, 8)
    assert positions(group, "head/kernel", 0)[3] == list(range(3, 288, 8))


def test_flatten_of_channels_that_lie_first_keeps_them_together():
    group = followed(image(lambda x: layers.Flatten()(layers.Permute((3, 1, 2))(x))), 8)
    assert positions(group, "head/kernel", 0)[3] == list(range(108, 144))


def test_an_axis_that_is_split_is_followed_to_the_last_of_its_parts():
    def decoder(x):
        x = layers.Dense(3 * 3 * 5, name="made")(layers.Flatten()(x))
        x = layers.Reshape((3, 3, 5), name="shaped")(x)
        return layers.Conv2D(4, 2, name="reader")(x)

    model = steps(decoder)
    group = followed(model, 5, "made")
    assert group.widths.tolist() == [[9] * 5]
    assert positions(group, "made/kernel", 1)[2] == [2, 7, 12, 17, 22, 27, 32, 37, 42]
    smaller = without(model, [0, 4], "made")
    assert smaller.get_layer("made").units == 27
    assert tuple(smaller.get_layer("shaped").target_shape) == (3, 3, 3)
    assert smaller.get_layer("reader").kernel.shape == (2, 2, 3, 4)


def test_a_channel_shuffle_ties_the_same_channels_of_every_part():
    def shuffle(x):
        x = layers.Permute((1, 3, 2))(layers.Reshape((6, 2, 4))(x))
        return layers.Dense(3, name="reader")(layers.Reshape((6, 8))(x))

    group = followed(steps(shuffle), 4)
    assert positions(group, "source/kernel", 1)[1] == [1, 5]
    assert positions(group, "reader/kernel", 0)[1] == [2, 3]


def test_axes_that_merge_with_others_stay():
    """(6, 8), both followed: a place of the merged axis would leave with one or the other."""

    def merged(x):
        x = layers.Dense(5, name="across")(layers.Permute((2, 1))(x))  # (8, 5), 8 of them source's
        return layers.Reshape((40,))(x)

    model = steps(merged)
    reason = "reshapes them onto an axis with others"
    kept(model, reason)
    kept(model, reason, "across")


@pytest.mark.parametrize(
    ("operate", "size"),
    [
        (lambda x: layers.Reshape((-1, 2, 4))(x)[:, :, 0], 4),
        (lambda x: layers.Dense(4)(x), 8),
        (lambda x: ops.reshape(x, (-1, 1, 8)), 8),
    ],
)
def test_unknown_sizes_before_the_channels_do_not_matter(operate, size):
    entry = keras.Input((None, 3))
    x = operate(layers.Dense(8, name="source")(entry))
    model = keras.Model(entry, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))
    randomize(model)
    graph, _ = check_law(model)
    group = group_of(graph)
    assert group.size == size
    assert not group.frozen.any()


def test_a_reshape_that_depends_on_an_unknown_size_is_refused():
    entry = keras.Input((None, 3))
    x = layers.Reshape((-1, 4))(layers.Dense(8, name="source")(entry))
    model = keras.Model(entry, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))
    kept_group = group_of(channel_graph(model))
    assert kept_group.frozen.all()
    assert "depends on an unknown size" in kept_group.reasons[0]


def test_channels_are_followed_through_three_dimensions():
    def volume(x):
        return layers.Conv3D(4, (2, 2, 1))(layers.MaxPooling3D((2, 1, 1))(x))

    followed(around(volume, layers.Conv3D(8, 1, name="source"), (4, 4, 2, 3)), 8)


def test_a_model_of_all_of_them_is_saved_and_loaded(tmp_path):
    def everything(x):
        gate = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
        x = layers.GroupNormalization(4)(layers.Multiply()([x, layers.Dense(8)(gate)]))
        x = layers.Conv2D(12, 3, groups=4, activation="relu")(layers.ZeroPadding2D(1)(x))
        x = layers.PReLU(shared_axes=[1, 2])(layers.DepthwiseConv2D(3)(x))
        x = layers.LayerNormalization()(layers.MaxPooling2D(2)(x))
        x = ops.concatenate([x[..., 6:], x[..., :6] + np.arange(6, dtype=np.float32)], axis=-1)
        a, b = ops.split(ops.reshape(x, (-1, 4, 12)), 2, axis=-1)
        return layers.Permute((2, 1))(ops.pad(a * ops.sigmoid(b), [[0, 0], [1, 1], [0, 0]]))

    model = image(everything)
    _, smaller = check_law(model)
    assert smaller.count_params() < model.count_params()
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.saving.load_model(tmp_path / "smaller.keras")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded(x), smaller(x), rtol=1e-6, atol=1e-6)
