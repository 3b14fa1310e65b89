"""Numbers of every type come back to the bit, at little more than they can be told in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.export.packing.classes import code_bytes
from edgeprune.export.packing.coder import Decoder, Encoder, count
from edgeprune.export.packing.kinds import KINDS, Kind
from edgeprune.export.packing.numbers import _code_split, code_numbers

BY_NAME = {name: kind for kind in KINDS for name in kind.dtypes}


def coded(values, dtype=None, channels=()):
    """Return how many bytes numbers take, after checking that they come back."""
    kind = BY_NAME[dtype or values.dtype.name]
    bits = np.ascontiguousarray(values).reshape(-1).view(kind.bits)
    encoder = Encoder()
    code_numbers(encoder, kind, bits.size, bits, channels)
    decoder = Decoder(*encoder.finish())
    np.testing.assert_array_equal(code_numbers(decoder, kind, bits.size), bits)
    decoder.check_end()
    return encoder.bits / 8


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.dtypes[0])
@settings(deadline=None, max_examples=20)
@given(st.data())
def test_any_numbers(kind: Kind, data):
    number = data.draw(st.integers(1, 60))
    content = data.draw(st.binary(min_size=number, max_size=number))
    # Repeated and shifted bytes: few distinct numbers, small ones, and any others.
    pattern = data.draw(st.sampled_from(["any", "few", "small"]))
    wide = np.frombuffer(content, np.uint8).astype(np.uint64)
    if pattern == "any":
        wide = wide * np.uint64(0x0101_0307_0F1F_3F7F)
    elif pattern == "few":
        wide = (wide % np.uint64(3)) << np.uint64(8 * kind.itemsize - 3)
    channels = ((number // 2, 1), (1, number)) if number % 2 == 0 else ((number, 1),)
    bits = wide.astype(kind.bits)
    encoder = Encoder()
    code_numbers(encoder, kind, number, bits, channels)
    decoder = Decoder(*encoder.finish())
    np.testing.assert_array_equal(code_numbers(decoder, kind, number), bits)
    decoder.check_end()


@pytest.mark.parametrize(
    "values",
    [
        np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-45], np.float32),
        np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 6e-8, 65504], np.float16),
        np.array([-(2**31), 2**31 - 1, 0, -1], np.int32),
        np.array([-(2**63), 2**63 - 1, 0, -1], np.int64),
        np.array([-(2**15), 2**15 - 1, 0, -1], np.int16),
        np.array([2**32 - 1, 0], np.uint32),
        np.zeros(100, np.float32),
        np.full(100, -0.0, np.float32),
        np.full(50, 1e-42, np.float32),
        np.array([-128, 127, 0], np.int8),
    ],
    ids=str,
)
def test_the_ends_of_every_type(values):
    coded(values)


def test_noise_takes_what_it_has():
    noise = np.random.default_rng(0).integers(0, 2**32, 2000, np.uint32)
    assert coded(noise.view(np.float32)) <= 8000 + 1
    assert coded(noise.view(np.int32)) <= 8000 + 1


def test_a_float_takes_its_exponent_and_its_mantissa():
    """Uniform in [1, 2): 23 bits and a sign, which is all there is."""
    values = np.random.default_rng(0).uniform(1, 2, 4000).astype(np.float32)
    assert 4000 * 23 / 8 <= coded(values) < 4000 * 23 / 8 + 60
    values[::2] *= -1
    assert 4000 * 24 / 8 <= coded(values) < 4000 * 24 / 8 + 60


def test_pruned_floats_take_a_flag_for_each_zero():
    rng = np.random.default_rng(0)
    values = rng.uniform(1, 2, 10_000).astype(np.float32)
    values[rng.random(10_000) < 0.9] = 0
    kept = np.count_nonzero(values)
    flags = 10_000 * 0.47  # the entropy of 0.9 and 0.1, in bits
    assert coded(values) < (flags + kept * 23) / 8 + 80


def test_halves_in_floats_take_what_halves_take():
    halves = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float16)
    assert coded(halves.astype(np.float32)) == pytest.approx(coded(halves), rel=0.01)


def test_few_values_take_a_dictionary():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.1, 16).astype(np.float32)[rng.integers(0, 16, 8000)]
    assert coded(values) < 8000 * 4 / 8 + 16 * 4 + 40


def test_biases_take_their_lengths():
    values = np.random.default_rng(0).normal(0, 3000, 1000).astype(np.int32)
    # Uniform in a length's range is not far from normal: 0.1 bit above 13.6, the entropy.
    assert coded(values) < 1000 * 13.9 / 8 + 40


def folded(channels=48, run=200):
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(0, 0.1, 15)).astype(np.float32)
    factors = (rng.lognormal(0, 1, channels) * rng.choice([-1, 1], channels)).astype(np.float32)
    ranks = rng.integers(0, 15, (channels, run))
    kernel = values[ranks] * factors[:, None]
    kernel[rng.random(kernel.shape) < 0.5] = 0
    return kernel


@pytest.mark.parametrize("last", [False, True])
def test_clusters_that_were_folded_take_a_factor_for_each_channel(last):
    kernel = folded()
    given = kernel.T if last else kernel
    channels = ((48, 1),) if last else ((48, 200),)
    zero_or_value = 1 + 0.5 * np.log2(15)
    bits = kernel.size * zero_or_value
    # 8 bytes a channel: its factor, and what products are off by.
    assert coded(given, channels=channels) < bits / 8 + 48 * 8 + 15 * 4 + 60


def test_signed_zeros_of_negative_factors():
    kernel = folded()
    kernel *= np.where(kernel == 0, np.float32(-1), np.float32(1))  # each 0.0 becomes -0.0
    assert coded(kernel, channels=((48, 200),)) < 0.5 * kernel.nbytes


def test_values_nearer_than_rounding_stay_apart():
    kernel = folded()
    kernel[5, 7:9] = [0.5, np.nextafter(np.float32(0.5), np.float32(1))]
    coded(kernel, channels=((48, 200),))


@pytest.mark.parametrize(
    ("rows", "run", "values"), [(0, 1, 4), (9, 0, 4), (2, 1, 4), (10, 1, 4), (9, 1, 40)]
)
def test_channels_that_do_not_fit_are_refused(rows, run, values):
    """The last would take 40 places for each number that there is."""
    encoder = Encoder()
    encoder.integer(4, 3)  # by values and factors
    count(encoder, rows)
    count(encoder, run)
    encoder.integer(256, values - 1)
    with pytest.raises(InputError, match="channels"):
        code_numbers(Decoder(*encoder.finish()), BY_NAME["float32"], 9)


def test_a_dictionary_without_the_entry_is_refused():
    encoder = Encoder()
    kind = BY_NAME["float32"]
    encoder.integer(4, 2)  # by dictionary
    encoder.integer(256, 0)  # of one number
    values = np.array([1.5], np.float32).view(np.uint32)
    _code_split(encoder, kind, 1, values, ())
    code_bytes(encoder, 9, np.full(9, 1, np.uint8))  # the second
    with pytest.raises(InputError, match="dictionary"):
        code_numbers(Decoder(*encoder.finish()), kind, 9)
