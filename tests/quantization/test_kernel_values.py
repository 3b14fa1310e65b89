"""How few values a kernel has, counted by hand and by a plain loop; what counts as clustered."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeprune.models import Kernel
from edgeprune.quantization.kernel_values import KernelValues, values_of


def kernel(weights, output_axes):
    variable = types.SimpleNamespace(numpy=lambda: np.asarray(weights, "float32"))
    return Kernel("layer/kernel", None, variable, "kernel", output_axes)


def test_values_of_a_small_kernel():
    # Columns are channels: three values; one value and two zeros; two values.
    found = values_of(kernel([[1, 0, 5], [2, 1, 6], [3, 0, 6]], (1,)))
    assert found == KernelValues(
        "layer/kernel", size=9, zeros=2, distinct=5, distinct_in_channel=3, nonzero_in_channel=3
    )


def test_a_kernel_of_zeros():
    found = values_of(kernel(np.zeros((2, 3)), (1,)))
    assert (found.zeros, found.distinct, found.distinct_in_channel) == (6, 0, 0)
    assert not found.clustered


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))


@given(
    hnp.arrays("float32", SHAPES, elements=st.sampled_from([-0.5, -0.0, 0.0, 0.25, 1.0, 3.0])),
    st.sampled_from([(2,), (1, 2), (0,)]),
)
def test_counts_are_those_of_a_loop(weights, axes):
    found = values_of(kernel(weights, axes))
    channels = {}
    for index, weight in np.ndenumerate(weights):
        if weight:
            channels.setdefault(tuple(index[axis] for axis in axes), []).append(float(weight))
    assert found.zeros == weights.size - sum(map(len, channels.values()))
    assert found.distinct == len({one for values in channels.values() for one in values})
    assert found.distinct_in_channel == max((len(set(v)) for v in channels.values()), default=0)
    assert found.nonzero_in_channel == max(map(len, channels.values()), default=0)


rng = np.random.default_rng(0)
CASES = {
    "normal floats": (rng.normal(size=(300, 64)), False),
    "pruned normal floats": (rng.normal(size=(300, 64)) * (rng.random((300, 64)) < 0.2), False),
    "16 values": (rng.choice(rng.normal(size=16), (50, 4)), True),
    "17 weights of 16 values": (np.arange(1, 18).clip(2)[:, None], True),
    "as many values as weights": (np.arange(1, 17).reshape(4, 4), False),
    "8 values of 9 weights in each of many channels": (
        np.arange(9).clip(1)[:, None] + rng.normal(size=512),
        True,
    ),
    "of very many weights some equal by chance": (
        np.concatenate([rng.normal(size=(4000, 1)), np.ones((20, 1))]),
        False,
    ),
    "1000 values of 8000 weights": (rng.choice(rng.normal(size=1000), (8000, 1)), True),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_clustered(case):
    weights, clustered = CASES[case]
    assert values_of(kernel(weights, (1,))).clustered == clustered
