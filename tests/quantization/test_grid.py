"""The int8 weight grid, by hand-derived values and laws."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeprune.quantization import grid

kernels = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements=st.floats(-4, 4, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0),
)


def test_scale_is_the_largest_weight_of_each_output_channel_over_127():
    kernel = tf.constant([[1.0, -0.5], [-2.54, 0.25]])
    np.testing.assert_allclose(grid.scales(kernel, (1,)), [[0.02, 0.5 / 127]], rtol=1e-6)
    np.testing.assert_allclose(grid.scales(kernel, ()), [[0.02]], rtol=1e-6)
    np.testing.assert_allclose(grid.scales(kernel, (0,)), [[1 / 127], [0.02]], rtol=1e-6)


def test_weights_are_rounded_to_the_nearest_step():
    # Scale 0.02: 1.0 is step 50, 0.031 step 1.55, -0.009 step -0.45.
    kernel = np.float32([[2.54], [1.0], [0.031], [-0.009]])
    assert grid.integers(kernel, (1,)).tolist() == [[127], [50], [2], [0]]
    np.testing.assert_allclose(
        grid.to_grid(kernel, (1,)), [[2.54], [1.0], [0.04], [0.0]], rtol=1e-6
    )


def test_a_channel_of_zeros_stays_zero_and_finite():
    kernel = np.float32([[0.0, 1.0], [0.0, -3.0]])
    rounded = grid.to_grid(kernel, (1,)).numpy()
    assert np.isfinite(rounded).all()
    assert rounded[:, 0].tolist() == [0.0, 0.0]


@given(kernels)
@settings(deadline=None, max_examples=60)
def test_laws_of_the_grid(kernel):
    rounded = grid.to_grid(kernel, (1,)).numpy()
    integers = grid.integers(kernel, (1,))
    scale = grid.scales(tf.constant(kernel), (1,)).numpy()
    assert not rounded[kernel == 0].any()
    assert (np.abs(rounded - kernel) <= scale * 0.5001).all()
    live = (kernel != 0).any(axis=0)
    assert (np.abs(integers.astype(int)).max(axis=0)[live] == 127).all()
    # On the grid already: the same integers again, which is why conversion finds them.
    np.testing.assert_array_equal(grid.integers(rounded, (1,)), integers)


def test_it_is_the_grid_of_tensorflows_own_fake_quantization():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype("float32")
    largest = np.abs(kernel).max(axis=(0, 1, 2))
    reference = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        kernel, -largest, largest, narrow_range=True
    )
    np.testing.assert_allclose(grid.to_grid(kernel, (3,)), reference, atol=1e-6)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
def test_gradients_pass_straight_through_the_largest_weight_too(axes):
    kernel = tf.Variable(np.random.default_rng(0).normal(size=(5, 3)).astype("float32"))
    upstream = tf.constant(np.random.default_rng(1).normal(size=(5, 3)).astype("float32"))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(grid.to_grid(kernel, axes) * upstream)
    np.testing.assert_array_equal(tape.gradient(loss, kernel), upstream)
