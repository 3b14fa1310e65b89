import numpy as np
import pytest

from edgeprune.export.cleanup import elementwise
from edgeprune.export.cleanup.ranges import Range, activated, anything, requantized
from edgeprune.export.graph import Quantization, Tensor


def tensor(dtype, channels, scale=None, zero_point=0):
    quantization = None
    if scale is not None:
        quantization = Quantization(np.float32([scale]), np.int64([zero_point]), 0)
    shape = (1, 4, 4, channels)
    return Tensor(0, "t", shape, shape, dtype, quantization, None, 0, None)


def between(low, high):
    return Range(np.array(low, float), np.array(high, float))


def bounds(given):
    return given.low.tolist(), given.high.tolist()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0, (-10, -10)),  # zero is the zero point in every kernel
        (1000, 1000, (0, 0)),  # 10.0 exactly, far from a tie
        (1050, 1050, (0, 1)),  # 10.5: up or to even
        (1049, 1049, (0, 1)),  # 10.49: a kernel that rounds twice may reach 10.5
        (1046, 1046, (0, 0)),  # 10.46: two units of the sum below the tie, and more
        (-300, 200, (-13, -8)),
    ],
)
def test_requantized_takes_in_every_rounding(low, high, expected):
    output = tensor("int8", 1, 0.5, -10)
    given = requantized(output, np.array([float(low)]), np.array([float(high)]), 0.01)
    assert bounds(given) == ([expected[0]], [expected[1]])


def test_relu_clamps_to_the_zero_point_and_relu6_to_its_bound():
    output = tensor("int8", 3, 0.05, -20)
    given = between([-300, -100, 40], [-50, 30, 900])
    assert bounds(activated(output, given, 1)) == ([-20, -20, 40], [-20, 30, 127])
    # 6 / 0.05 = 120, and 120 - 20 = 100.
    assert bounds(activated(output, given, 3)) == ([-20, -20, 40], [-20, 30, 100])
    assert bounds(activated(output, given, 0)) == ([-128, -100, 40], [-50, 30, 127])
    # tanh: anything that fits
    assert bounds(activated(output, given, 4)) == ([-128] * 3, [127] * 3)


def test_a_bound_on_a_tie_may_round_either_way():
    # 6 / 0.48 = 12.5
    given = activated(tensor("int8", 1, 0.48, 0), between([50], [60]), 3)
    assert bounds(given) == ([12], [13])


def test_float_activations():
    given = between([-3, -3, 7], [-1, 2, 8])
    assert bounds(activated(tensor("float32", 3), given, 1)) == ([0, 0, 7], [0, 2, 8])
    assert bounds(activated(tensor("float32", 3), given, 3)) == ([0, 0, 6], [0, 2, 6])


def test_padding_joins_the_zero_point():
    source = tensor("int8", 2, 0.1, -128)
    given = between([-128, 5], [-128, 5])
    assert bounds(elementwise.padded(source, source, given, None)) == ([-128, -128], [-128, 5])


def test_mean_of_a_constant_is_constant_unless_it_falls_on_a_tie():
    source, output = tensor("int8", 3, 0.1, -128), tensor("int8", 3, 0.2, -128)
    given = elementwise.averaged(source, output, between([-128, -28, 3], [-128, -28, 3]), 49)
    # Zero; 100 / 2 - 128 = -78; 131 / 2 - 128 = -62.5.
    assert bounds(given) == ([-128, -78, -63], [-128, -78, -62])


def test_sum_of_zero_points_is_exact_and_other_sums_near():
    one, other, output = (
        tensor("int8", 2, 0.1, -128),
        tensor("int8", 2, 0.3, 4),
        tensor("int8", 2, 0.2, 7),
    )
    operands = ((one, between([-128, -118], [-128, -118])), (other, between([4, 5], [4, 5])))
    given = elementwise.combined("ADD", output, operands)
    # (10 * 0.1 + 1 * 0.3) / 0.2 = 6.5
    assert bounds(given) == ([7, 13], [7, 14])


def test_product_with_zero_is_zero():
    one, other = tensor("float32", 3), tensor("float32", 3)
    operands = ((one, between([0, -1, 2], [0, 2, 3])), (other, between([-np.inf] * 3, [4] * 3)))
    given = elementwise.combined("MUL", tensor("float32", 3), operands)
    assert bounds(given) == ([0, -np.inf, -np.inf], [0, np.inf, 12])


def test_anything_is_what_the_type_holds():
    assert bounds(anything(tensor("int8", 2, 1.0))) == ([-128, -128], [127, 127])
    assert bounds(anything(tensor("float32", 1))) == ([-np.inf], [np.inf])
