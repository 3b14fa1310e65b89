import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeprune.errors import InputError
from edgeprune.sparsity.patterns import NM, Block, Unstructured, keep_largest

# Few distinct values, so that ties are the rule.
tied = arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
fractions = st.floats(0, 0.999)
matrices = arrays(
    np.float32,
    st.tuples(st.integers(1, 13), st.integers(1, 9)),
    elements=st.floats(0, 4, width=16),
)


def test_ties_go_lower_index_first():
    assert keep_largest(np.array([1.0, 1, 2, 1, 1]), 0.6).tolist() == [0, 0, 1, 0, 1]
    assert keep_largest(np.zeros(4), 0.5).tolist() == [0, 0, 1, 1]


@given(tied, fractions)
def test_counts_are_exact_and_the_order_is_that_of_a_stable_sort(scores, sparsity):
    zeros = min(round(sparsity * scores.size), scores.size - 1)
    expected = np.ones(scores.size, bool)
    expected[np.argsort(scores, kind="stable")[:zeros]] = False
    assert np.array_equal(Unstructured().mask(scores, sparsity), expected)


@given(tied, fractions, fractions)
def test_a_pruned_weight_stays_zero_while_sparsity_rises(scores, one, other):
    low, high = sorted((one, other))
    first = Unstructured().mask(scores, low)
    second = Unstructured().mask(np.where(first, scores + 0.25, 0), high)
    assert not np.any(second & ~first)


def test_one_weight_is_always_kept():
    for pattern in (Unstructured(), Block(2, 2)):
        assert pattern.mask(np.ones((1, 1)), 0.99).tolist() == [[True]]
    assert Unstructured().mask(np.arange(5.0), 0.999).tolist() == [0, 0, 0, 0, 1]


def test_blocks_by_hand():
    # Blocks of 2 x 2 with means 1, 9, 5 and, at the right edge, 2 x 1 blocks of mean 2 and 7.
    scores = np.array(
        [[1, 1, 9, 9, 2], [1, 1, 9, 9, 2], [5, 5, 3, 3, 7], [5, 5, 3, 3, 7]], np.float32
    )
    assert Block(2, 2).units(scores).tolist() == [1, 9, 2, 5, 3, 7]
    mask = Block(2, 2).mask(scores, 0.5)  # the blocks of 1, 2 and 3 go
    expected = [[0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [1, 1, 0, 0, 1], [1, 1, 0, 0, 1]]
    assert mask.astype(int).tolist() == expected


@given(matrices, st.integers(1, 5), st.integers(1, 5), fractions)
def test_blocks_fall_whole_and_in_exact_number(scores, rows, cols, sparsity):
    mask = Block(rows, cols).mask(scores, sparsity)
    blocks = [
        mask[i : i + rows, j : j + cols]
        for i in range(0, scores.shape[0], rows)
        for j in range(0, scores.shape[1], cols)
    ]
    assert all(block.all() or not block.any() for block in blocks)
    dropped = sum(not block.any() for block in blocks)
    assert dropped == min(round(sparsity * len(blocks)), len(blocks) - 1)


@given(matrices, st.integers(1, 5), st.integers(1, 5))
def test_block_scores_are_means(scores, rows, cols):
    means = [
        scores[i : i + rows, j : j + cols].mean(dtype=np.float64)
        for i in range(0, scores.shape[0], rows)
        for j in range(0, scores.shape[1], cols)
    ]
    assert Block(rows, cols).units(scores) == pytest.approx(means, rel=1e-5)


def test_two_of_four_by_hand():
    column = np.array([[4], [1], [2], [3], [5], [5], [5], [5], [6], [7]], np.float32)
    # 1 and 2 go; of four equals the first two; the short group of two keeps both.
    assert NM(2, 4).mask(column, 0.5)[:, 0].astype(int).tolist() == [1, 0, 0, 1, 0, 0, 1, 1, 1, 1]
    # On the way, at a quarter, one goes of every whole group.
    quarter = NM(2, 4).mask(column, 0.3)[:, 0].astype(int).tolist()
    assert quarter == [1, 0, 1, 1, 0, 1, 1, 1, 1, 1]


@given(matrices, st.integers(1, 4), st.integers(1, 4))
def test_groups_hold_no_more_than_they_may(scores, keep, more):
    pattern = NM(keep, keep + more)
    mask = pattern.mask(scores, 1 - keep / pattern.of)
    for start in range(0, scores.shape[0], pattern.of):
        group = mask[start : start + pattern.of]
        assert np.all(group.sum(axis=0) == min(keep, group.shape[0]))


def test_groups_run_along_the_inputs_of_one_output():
    """A Conv2D kernel: the 4 input channels of one tap and one filter are a group."""
    kernel = np.random.default_rng(0).random((3, 3, 4, 5), np.float32)
    mask = NM(1, 4).mask(kernel, 0.75)
    assert np.array_equal(mask, kernel == kernel.max(axis=2, keepdims=True))


def test_output_axes_need_not_be_last():
    """A transposed convolution keeps (kh, kw, c_out, c_in): it masks as its mirror image does."""
    kernel = np.random.default_rng(0).random((3, 3, 5, 8), np.float32)
    mirror = kernel.transpose(0, 1, 3, 2)
    for pattern, sparsity in ((NM(2, 4), 0.5), (Block(4, 2), 0.6)):
        assert np.array_equal(
            pattern.mask(kernel, sparsity, (2,)),
            pattern.mask(mirror, sparsity, (3,)).transpose(0, 1, 3, 2),
        )


def test_a_pattern_of_n_of_m_has_one_target():
    NM(2, 4).check(0.5)
    NM(1, 3).check(2 / 3)
    with pytest.raises(InputError, match=r"ends at a sparsity of 0.5; got a target of 0.8"):
        NM(2, 4).check(0.8)


@pytest.mark.parametrize("make", [lambda: NM(4, 4), lambda: NM(0, 4), lambda: Block(0, 1)])
def test_refuses(make):
    with pytest.raises(InputError, match="got"):
        make()
