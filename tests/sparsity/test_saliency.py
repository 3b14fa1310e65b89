import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeprune.sparsity.patterns import Block, Unstructured
from edgeprune.sparsity.saliency import Ranked, choose_masks, magnitude

kernels = st.lists(
    arrays(np.float32, st.integers(1, 12), elements=st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0])),
    min_size=1,
    max_size=5,
)


def test_magnitude_orders_by_distance_from_zero():
    weights = np.array([-3, 0.5, -0.25, 2])
    assert magnitude(weights.astype("float16")).dtype == np.float32
    assert magnitude(weights).tolist() == [3, 0.5, 0.25, 2]


@given(kernels, st.floats(0, 0.999))
def test_global_ranking_is_exact_and_leaves_no_kernel_empty(weights, sparsity):
    masks = choose_masks([Ranked(w, sparsity) for w in weights], Unstructured(), "global")
    total = sum(w.size for w in weights)
    dropped = sum(int((~mask).sum()) for mask in masks)
    assert dropped == min(round(sparsity * total), total - len(weights))
    assert all(mask.any() for mask in masks)

    # A slow and plain version: go through all in order, and pass over a kernel's last weight.
    flat = [(abs(v), i, j) for i, w in enumerate(weights) for j, v in enumerate(w)]
    left = [w.size for w in weights]
    expected = [np.ones(w.shape, bool) for w in weights]
    for _, i, j in sorted(flat):
        if dropped and left[i] > 1:
            expected[i][j] = False
            left[i] -= 1
            dropped -= 1
    for mask, plain in zip(masks, expected, strict=True):
        assert np.array_equal(mask, plain)


def test_global_ranking_takes_from_the_layer_of_small_weights():
    small, large = np.full((4, 4), 0.1, np.float32), np.full((4, 4), 1.0, np.float32)
    ranked = [Ranked(small, 0.25), Ranked(large, 0.25)]
    assert [int((~m).sum()) for m in choose_masks(ranked, Unstructured(), "global")] == [8, 0]
    assert [int((~m).sum()) for m in choose_masks(ranked, Unstructured(), "layer")] == [4, 4]
    # 8 blocks, 2 of them go, both from the layer of small weights.
    masks = choose_masks(ranked, Block(2, 2), "global")
    assert [int((~m).sum()) for m in masks] == [8, 0]


def test_layer_ranking_keeps_the_order_of_kernels():
    sizes = (5, 400, 20)
    ranked = [Ranked(np.arange(1.0, n + 1), 0.2) for n in sizes]
    masks = choose_masks(ranked, Unstructured(), "layer")
    assert [mask.size for mask in masks] == [5, 400, 20]
    assert [int((~mask).sum()) for mask in masks] == [1, 80, 4]
