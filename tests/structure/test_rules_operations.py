import numpy as np
import pytest
from structure.law import check_law
from structure.rule_models import followed, group_of, kept, keras, layers, positions, steps, without

ops = keras.ops
MATRIX = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)


def attention(x):
    """Two heads of 4, written by hand: (batch, 6, 8) -> (batch, 6, 2, 4)."""
    query = ops.reshape(x, (-1, 6, 2, 4))
    value = ops.reshape(layers.Dense(8, name="value")(x), (-1, 6, 2, 4))
    weights = ops.softmax(ops.einsum("bthd,bshd->bhts", query, query), axis=-1)
    return ops.einsum("bhts,bshd->bthd", weights, value)


@pytest.mark.parametrize(
    ("operate", "size"),
    [
        (lambda x: ops.mean(x, axis=1), 8),
        (lambda x: x * ops.max(x, axis=1, keepdims=True), 8),
        (lambda x: ops.moments(x, axes=[1])[0], 8),
        (lambda x: ops.sum(x, axis=-1, keepdims=True) * layers.Dense(4)(x), 8),
        (lambda x: ops.expand_dims(ops.sum(x, axis=(1, 2)), -1), 8),
        (lambda x: ops.norm(x, axis=-1), 8),
        (lambda x: ops.norm(x, ord=1, axis=-1), 8),
        (lambda x: ops.normalize(x, axis=-1), 8),
        (lambda x: ops.cumsum(x, axis=1), 8),
        (lambda x: ops.flip(x, axis=1), 8),
        (lambda x: ops.transpose(ops.transpose(x), (2, 1, 0)), 8),
        (lambda x: ops.swapaxes(ops.moveaxis(x, -1, 1), 1, -1), 8),
        (lambda x: ops.reshape(ops.reshape(x, (-1, 6, 2, 4)), (-1, 6, 8)), 4),
        (lambda x: ops.reshape(x, (-1, 48)), 8),
        (lambda x: ops.squeeze(ops.expand_dims(x, (1, -1)), (1, 4)), 8),
        (lambda x: ops.squeeze(ops.expand_dims(x, 2)), 8),
        (lambda x: ops.stack([x, layers.Dense(8)(x)], axis=1), 8),
        (lambda x: ops.unstack(x, axis=1)[2], 8),
        (lambda x: ops.concatenate(ops.split(x, 3, axis=1), axis=-1), 8),
        (lambda x: x[:, 1:4] + x[:, ::2], 8),
        (lambda x: x[:, 0], 8),
        (lambda x: x[:, None, ..., None], 8),
        (lambda x: ops.take(x, [0, 2], axis=1), 8),
        (lambda x: ops.pad(x, [[0, 0], [1, 2], [0, 0]], mode="reflect"), 8),
        (lambda x: ops.tile(ops.mean(x, axis=1, keepdims=True), (6, 1)), 8),
        (lambda x: ops.repeat(ops.repeat(x, 2, axis=1), 3, axis=2), 8),
        (lambda x: ops.matmul(x, MATRIX), 8),
        (lambda x: ops.matmul(x, MATRIX[:, 0]), 8),
        (lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))), 8),
        (lambda x: x @ ops.swapaxes(layers.Dense(8)(x), 1, 2), 8),
        (lambda x: ops.einsum("btc,bsc->bts", x, layers.Dense(8)(x)), 8),
        (lambda x: ops.einsum("...c,cd->...d", x, MATRIX), 8),
        (lambda x: ops.space_to_depth(ops.reshape(x, (-1, 2, 3, 8))[:, :, :2], 2), 8),
        (lambda x: ops.depth_to_space(ops.reshape(x, (-1, 2, 3, 8)), 2), 2),
        (lambda x: ops.max_pool(x, 2), 8),
        (attention, 4),
    ],
)
def test_channels_are_followed(operate, size):
    model = steps(operate)
    for seed in range(2):
        graph, _ = check_law(model, seed=seed)
    group = group_of(graph)
    assert not group.frozen.any(), group.reasons
    assert group.size == size


@pytest.mark.parametrize(
    ("operate", "reason"),
    [
        (lambda x: ops.mean(x, axis=-1, keepdims=True) * x, "reduces over these channels"),
        (lambda x: ops.max(x, axis=-1), "reduces over these channels"),
        (lambda x: x * ops.var(x), "reduces over these channels"),
        (lambda x: ops.norm(x, ord=np.inf, axis=-1), "takes a norm over these channels"),
        (lambda x: x[..., 2], "takes out one of these channels"),
        (lambda x: x[..., ::2], "takes some of these channels by their number"),
        (lambda x: ops.take(x, [1, 2], axis=2), "looks up entries along these channels"),
        (lambda x: ops.sort(x, axis=-1), "in their order"),
        (lambda x: ops.flip(x, axis=-1), "in their order"),
        (lambda x: ops.unstack(x, axis=2)[1], "takes these channels apart"),
        (lambda x: ops.repeat(x, [1, 2] * 4, axis=2), "a number of times of its own"),
        (lambda x: ops.reshape(ops.repeat(x, 2), (-1, 96)), "flattens them"),
        (
            lambda x: ops.pad(x, [[0, 0], [0, 0], [1, 2]], mode="reflect"),
            "copies of",
        ),
        (lambda x: ops.einsum("btc,bcc->bt", x, ops.matmul(ops.swapaxes(x, 1, 2), x)), "computes"),
        (lambda x: ops.roll(x, 1), "in their order"),
        (lambda x: ops.diff(x, axis=-1), "has no rule"),
    ],
)
def test_channels_stay_for_a_reason(operate, reason):
    kept(steps(operate), reason)


def test_equal_pieces_lose_the_same_channels():
    def gated(x):
        value, gate = ops.split(x, 2, axis=-1)
        return value * ops.sigmoid(gate)

    model = steps(gated)
    group = followed(model, 4)
    assert positions(group, "source/kernel", 1)[1] == [1, 5]


def test_unequal_pieces_lose_their_own():
    def pieces(x):
        return ops.concatenate([layers.Dense(3)(part) for part in ops.split(x, [2, 5], axis=-1)])

    model = steps(pieces)
    group = followed(model, 8)
    # One channel of every piece must stay: each is a producing axis of its own.
    assert sorted(np.flatnonzero(width).tolist() for width in group.widths[1:]) == [
        [0, 1],
        [2, 3, 4],
        [5, 6, 7],
    ]
    smaller = without(model, [0, 3, 4, 7])
    (split,) = [op for op in smaller.operations if type(op).__name__ == "Split"]
    assert list(split.indices_or_sections) == [1, 2]
    (before,) = [op for op in model.operations if type(op).__name__ == "Split"]
    assert list(before.indices_or_sections) == [2, 5]


def test_a_slice_of_the_channels_is_cut_anew():
    def halves(x):
        return layers.Dense(3, name="low")(x[..., :3]) + layers.Dense(3, name="high")(x[..., -5:])

    model = steps(halves)
    followed(model, 8)
    smaller = without(model, [1, 2, 6])
    assert smaller.get_layer("low").kernel.shape == (1, 3)
    assert smaller.get_layer("high").kernel.shape == (4, 3)


def test_channels_are_padded_with_zeros_that_stay():
    model = steps(lambda x: layers.Dense(3, name="reader")(ops.pad(x, [[0, 0], [0, 0], [2, 1]])))
    group = followed(model, 8)
    assert positions(group, "reader/kernel", 0)[0] == [2]
    assert without(model, [5]).get_layer("reader").kernel.shape == (10, 3)


def test_sizes_in_an_operations_arguments_shrink():
    def operate(x):
        x = ops.broadcast_to(ops.reshape(x[:1, ...], (1, 6, 2, 4)), (1, 6, 2, 4))
        return ops.reshape(x, [-1, 6, 8])

    model = steps(operate)
    graph, _ = check_law(model)
    group = group_of(graph)
    assert group.size == 4
    smaller = without(model, [0])
    found = {type(op).__name__: op for op in smaller.operations}
    assert tuple(found["BroadcastTo"].shape) == (1, 6, 2, 3)
    assert list(found["Reshape"].newshape) == [-1, 6, 6]


def test_an_array_that_is_multiplied_is_sliced():
    model = steps(lambda x: ops.matmul(x, MATRIX))
    smaller = without(model, [0, 2])
    (matmul,) = [op for op in smaller.operations if type(op).__name__ == "Matmul"]
    np.testing.assert_array_equal(
        matmul._inbound_nodes[0].arguments.args[1], np.delete(MATRIX, [0, 2], axis=0)
    )


def test_operations_that_were_given_numpys_numbers_are_made_again():
    def operate(x):
        x = ops.reshape(x, (-1, 6, np.int64(2), np.prod([2, 2])))
        return ops.reshape(ops.clip(x, np.float32(-1), 1.0), (-1, 48))

    model = steps(operate)
    followed(model, 4)
    shapes = [op.newshape for op in without(model, [0]).operations if hasattr(op, "newshape")]
    assert [list(shape) for shape in shapes] == [[-1, 6, 2, 3], [-1, 36]]


def test_bounds_that_are_arrays_keep_the_channels():
    kept(steps(lambda x: ops.clip(x, -np.ones(8, np.float32), 1.0)), "bounds that are arrays")
