import sys

import numpy as np
import pytest
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

from edgeprune.errors import InputError, UnsupportedError
from edgeprune.structure.residual import find_blocks


def names(model, granularity="block"):
    return [block.name for block in find_blocks(model, granularity).found]


def refusals(model, granularity="block"):
    return {row.layer: row.reason for row in find_blocks(model, granularity).refused}


def test_blocks_of_a_resnet_are_those_without_a_projection():
    expected = ["stage0_block1", "stage0_block2", "stage1_block1", "stage1_block2"]
    assert names(resnet_v1()) == names(resnet_v1(), "branch") == expected
    refused = refusals(resnet_v1())
    assert list(refused) == ["stage0_block0", "stage1_block0"]
    assert all("projection or downsampling shortcut" in reason for reason in refused.values())


def test_blocks_of_a_pre_activation_resnet():
    assert names(resnet_v2()) == ["block0", "block2", "block3"]
    assert list(refusals(resnet_v2())) == ["block1"]


def test_inverted_residuals_with_squeeze_and_excite():
    model = mobilenet_v2()
    blocks = find_blocks(model)
    assert [block.name for block in blocks.found] == ["block0", "block2", "block3"]
    assert not blocks.refused
    kinds = [type(layer).__name__ for layer in blocks.found[1].operations.values()]
    # Expand, depthwise, squeeze, excite, project; nothing of the blocks beside it.
    assert kinds.count("Conv2D") == 3
    assert kinds.count("DepthwiseConv2D") == 1
    assert len(kinds) == 13


def test_a_pre_norm_encoder_layer_is_two_branches_and_its_norms():
    model = transformer()
    assert names(model) == [f"e{k}_add2" for k in range(4)]
    assert names(model, "branch") == [f"e{k}_add{n}" for k in range(4) for n in (1, 2)]
    (_, block, *_), last = find_blocks(model).found, find_blocks(model).found[-1]
    assert set(block.operations) == {
        f"e1_{part}"
        for part in ("norm1", "attention", "dropout", "add1", "norm2", "up", "down", "add2")
    }
    assert block.attention
    assert "final_norm" not in last.operations  # it reads what stays


def test_a_post_norm_encoder_layer_takes_both_norms_along():
    model = transformer(post_norm=True)
    assert names(model) == [f"e{k}_norm2" for k in range(4)]
    assert names(model, "branch") == [f"e{k}_add{n}" for k in range(4) for n in (1, 2)]
    block = find_blocks(model).found[1]
    assert set(block.operations) == {
        f"e1_{part}"
        for part in ("attention", "dropout", "add1", "norm1", "up", "down", "add2", "norm2")
    }
    assert block.entry is model.get_layer("e0_norm2").output


def test_a_decoder_layer_is_one_block_of_three_branches():
    target, memory = keras.Input((4, 8)), keras.Input((6, 8))
    x = layers.Dense(8)(target)
    source = layers.Dense(8)(memory)
    for number in range(2):
        for other in (x, source):
            h = layers.LayerNormalization()(x)
            h = layers.MultiHeadAttention(2, 4)(h, h if other is x else source)
            x = layers.Add(name=f"d{number}_{'self' if other is not source else 'cross'}")([x, h])
        x = layers.Add(name=f"d{number}_ffn")([x, layers.Dense(8)(layers.Dense(9)(x))])
    model = keras.Model([target, memory], x)
    assert names(model) == ["d0_ffn", "d1_ffn"]
    assert names(model, "branch") == [
        f"d{number}_{part}" for number in range(2) for part in ("self", "cross", "ffn")
    ]


def test_attention_alone_and_feed_forward_alone_stay_blocks_of_one_branch():
    x = inputs = keras.Input((4, 8))
    for number in range(3):
        x = layers.Add(name=f"a{number}")([x, layers.MultiHeadAttention(2, 4)(x, x)])
    assert names(keras.Model(inputs, x)) == ["a0", "a1", "a2"]
    y = inputs = keras.Input((8,))
    for number in range(3):
        y = layers.Add(name=f"f{number}")([y, layers.Dense(8)(y)])
        y = layers.LayerNormalization(name=f"n{number}")(y)
    # Post-norm: the normalization behind an addition leaves with the block, not the branch.
    assert names(keras.Model(inputs, y)) == ["n0", "n1", "n2"]
    assert names(keras.Model(inputs, y), "branch") == ["f0", "f1", "f2"]


def test_attention_made_of_operations_counts():
    x = inputs = keras.Input((4, 8))
    for number in range(2):
        q, k, v = (layers.Dense(8)(x) for _ in range(3))
        weights = keras.ops.softmax(keras.ops.matmul(q, keras.ops.transpose(k, (0, 2, 1))))
        x = layers.Add(name=f"a{number}")([x, keras.ops.matmul(weights, v)])
        x = layers.Add(name=f"f{number}")([x, layers.Dense(8)(x)])
    assert names(keras.Model(inputs, x)) == ["f0", "f1"]


def test_parallel_branches_that_share_a_norm_are_one():
    x = inputs = keras.Input((4, 8))
    for _ in range(2):
        h = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, 4)(h, h) + layers.Dense(8)(h)
    model = keras.Model(inputs, x)
    blocks = find_blocks(model, "branch")
    assert len(blocks.found) == 2
    assert not blocks.refused
    kinds = [type(layer).__name__ for layer in blocks.found[0].operations.values()]
    assert sorted(kinds) == ["Add", "Add", "Dense", "LayerNormalization", "MultiHeadAttention"]


def test_an_addition_of_more_than_two():
    x = inputs = keras.Input((8,))
    h = layers.Dense(4)(x)
    x = layers.Add(name="sum")([layers.Dense(8)(h), x, layers.Dense(8, name="other")(h)])
    (block,) = find_blocks(keras.Model(inputs, x)).found
    assert block.entry is inputs
    assert len(block.operations) == 4


def test_a_mask_that_every_layer_reads_is_no_hindrance():
    inputs, mask = keras.Input((5, 8)), keras.Input((5,), dtype="bool")
    x = layers.Dense(8)(inputs)
    pairs = layers.Reshape((1, 5))(mask)
    for number in range(2):
        x = encoder_layer(x, f"e{number}", attention_mask=pairs)
    assert names(keras.Model([inputs, mask], x)) == ["e0_add2", "e1_add2"]


def test_nested_models():
    assert names(nested()) == ["whole/add", "outer", "part/add"]
    assert names(sequential_of_nested()) == ["a/add", "b/add", "pair/c/add", "pair/d/add"]
    (block, *_) = find_blocks(sequential_of_nested()).found
    assert [path for path, _ in block.layers()] == ["a/dense", "a/add"]


def test_a_nested_model_that_is_called_twice_is_found_once():
    inputs = keras.Input((8,))
    shared = residual_model("shared")
    model = keras.Model(inputs, shared(layers.Dense(8)(shared(inputs))))
    assert names(model) == ["shared/add"]


def test_a_layer_that_is_called_twice_gives_two_names():
    x = inputs = keras.Input((8,))
    add, dense = layers.Add(name="add"), layers.Dense(8, name="dense")
    for _ in range(2):
        x = add([x, dense(x)])
    (_, second) = find_blocks(keras.Model(inputs, x)).found
    assert list(second.operations) == ["dense#2", "add#2"]


def test_what_is_read_outside_keeps_its_branch():
    x = inputs = keras.Input((8,))
    h = layers.Dense(8, name="read_twice")(x)
    y = layers.Add(name="sum")([x, layers.Dense(8)(h)])
    read = keras.Model(inputs, layers.Concatenate()([y, h]))
    output = keras.Model(inputs, [y, h])
    for model in (read, output):
        assert not names(model)
        assert "'read_twice' inside its branch is read outside" in refusals(model)["sum"]
    assert names(keras.Model(inputs, y)) == ["sum"]


def test_what_stands_between_two_branches_and_is_read_elsewhere_parts_them():
    def model(tapped):
        x = inputs = keras.Input((4, 8))
        x = layers.Add(name="a")([x, layers.MultiHeadAttention(2, 4)(x, x)])
        y = layers.Add(name="f")([x, layers.Dense(8)(x)])
        return keras.Model(inputs, [y, x] if tapped else y)

    assert names(model(tapped=False)) == ["f"]
    assert names(model(tapped=True)) == ["a", "f"]


def test_a_long_skip_is_kept_for_the_blocks_inside_it():
    x = first = inputs = keras.Input((8,))
    for number in range(2):
        x = layers.Add(name=f"inner{number}")([x, layers.Dense(8)(x)])
    model = keras.Model(inputs, layers.Add(name="long")([first, layers.Dense(8)(x)]))
    assert names(model) == ["inner0", "inner1"]
    assert "'inner0', which can leave by itself" in refusals(model)["long"]


@pytest.mark.parametrize(
    "add",
    [
        lambda x, y: layers.Add()([layers.Dense(8)(x), layers.Dense(8)(y)]),  # two streams
        lambda x, y: layers.Add()([x, layers.Dense(8)(y)]),  # what is added is not made of x
        lambda x, y: layers.Add()([layers.Dense(1)(x), x[:, :1]]),  # two parts of x
        lambda x, y: layers.Add()([layers.Dense(1)(y), layers.Dense(8)(layers.Dense(1)(y))]),
    ],
)
def test_sums_that_are_no_residual_branch_are_refused(add):
    x, y = keras.Input((8,)), keras.Input((8,))
    model = keras.Model([x, y], add(x, y))
    assert not names(model)
    (refusal,) = find_blocks(model).refused
    assert "none of which is where the others begin" in refusal.reason


def test_a_sum_with_a_constant_is_no_branch():
    x = inputs = keras.Input((8,))
    x = layers.Add()([x, x]) + np.ones(8, np.float32)
    blocks = find_blocks(keras.Model(inputs, x))
    assert not blocks.found
    assert not blocks.refused


@pytest.mark.parametrize(
    ("application", "size", "blocks", "refused"),
    [
        # Of stages of 3, 4, 6 and 3 blocks, the first of each is projected.
        ("ResNet50", 32, 12, 4),
        # Stages of 1, 2, 3, 4, 3, 3 and 1 inverted residuals; the first of each changes the shape.
        ("MobileNetV2", 32, 10, 0),
    ],
)
def test_applications(application, size, blocks, refused):
    model = getattr(keras.applications, application)(weights=None, input_shape=(size, size, 3))
    found = find_blocks(model)
    assert (len(found.found), len(found.refused)) == (blocks, refused)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("application", "size", "blocks"),
    [
        ("ResNet50V2", 32, 9),  # also the last block of three stages is strided
        ("EfficientNetB0", 32, 9),  # 1, 2, 2, 3, 3, 4, 1
        ("ConvNeXtTiny", 32, 18),  # 3, 3, 9, 3: downsampling lies between the stages
        ("Xception", 71, 8),  # the middle flow
        ("InceptionResNetV2", 75, 40),  # 10, 20, 10
        ("MobileNetV3Small", 32, 6),
        ("DenseNet121", 32, 0),
        ("VGG16", 32, 0),
    ],
)
def test_more_applications(application, size, blocks):
    build = getattr(keras.applications, application)
    model = build(weights=None, input_shape=(size, size, 3), include_top=False)
    assert len(find_blocks(model).found) == blocks


def test_a_deep_chain_and_long_skips_over_it():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # Keras follows a graph by recursion
    try:
        x = inputs = keras.Input((2,))
        for _ in range(1000):
            x = x + keras.ops.relu(x)
        model = keras.Model(inputs, layers.Add(name="long")([inputs, layers.Dense(2)(x)]))
    finally:
        sys.setrecursionlimit(limit)
    blocks = find_blocks(model)
    assert len(blocks.found) == 1000
    assert [row.layer for row in blocks.refused] == ["long"]


def test_bad_input():
    with pytest.raises(InputError, match="granularity='layer'; supported: block, branch"):
        find_blocks(transformer(("e0",)), "layer")

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(UnsupportedError, match="subclassed"):
        find_blocks(Own())
