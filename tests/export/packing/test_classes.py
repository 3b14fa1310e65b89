"""Bytes in classes of channels: always the same bytes, and fewer where channels differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.export.packing.classes import code_bytes
from edgeprune.export.packing.coder import Decoder, Encoder, count
from edgeprune.export.packing.tables import best_table, code_table


def coded(values, channels=()):
    """Return how many bits bytes take, after checking that they come back."""
    encoder = Encoder()
    code_bytes(encoder, values.size, values, channels)
    decoder = Decoder(*encoder.finish())
    np.testing.assert_array_equal(code_bytes(decoder, values.size), values)
    decoder.check_end()
    return encoder.bits


@settings(deadline=None, max_examples=40)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 12), st.integers(1, 4))
def test_any_bytes(content, channels, run):
    values = np.frombuffer(content, np.uint8)
    whole = values.size - values.size % (channels * run)
    if whole:
        coded(values[:whole], ((channels, run),))
    coded(values)


def channels_of_two_kinds():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 16, (40, 500))
    rows[::3] += 100
    return rows.astype(np.uint8)


@pytest.mark.parametrize("last", [False, True])
def test_channels_that_differ_have_tables_of_their_own(last):
    rows = channels_of_two_kinds()
    values = rows.T.reshape(-1) if last else rows.reshape(-1)
    channels = ((40, 1),) if last else ((40, 500),)
    alone = coded(np.ascontiguousarray(values))
    assert alone > 4.85 * 20_000  # 4 bits, and 0.92 for which of the two
    assert coded(np.ascontiguousarray(values), channels) < 4 * 20_000 + 450


def test_the_better_of_two_ways_to_have_channels_is_taken():
    rows = channels_of_two_kinds()
    bits = coded(rows.reshape(-1), ((500, 1), (40, 500)))
    assert bits < 4 * 20_000 + 450


def test_alike_channels_share_one_table():
    values = np.random.default_rng(0).normal(128, 20, 30_000).clip(1, 255).astype(np.uint8)
    assert coded(values, ((100, 300),)) <= coded(values) + 1


def test_noise_is_stored_as_it_is():
    values = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)
    assert coded(values) == 8 * 5000 + 1


@pytest.mark.parametrize(("channels", "run"), [(0, 1), (7, 1), (4, 0), (4, 3), (5000, 1)])
def test_channels_that_do_not_fit_are_refused(channels, run):
    encoder = Encoder()
    encoder.integer(2, 0)
    encoder.integer(32, 1)
    count(encoder, channels)
    count(encoder, run)
    with pytest.raises(InputError, match="channels"):
        code_bytes(Decoder(*encoder.finish()), 20)


def test_a_class_that_is_not_there_is_refused():
    encoder = Encoder()
    encoder.integer(2, 0)
    encoder.integer(32, 1)  # two classes
    count(encoder, 4)
    count(encoder, 5)
    code_table(encoder, best_table(np.bincount([2], minlength=256)))  # all channels of the third
    with pytest.raises(InputError, match="channels"):
        code_bytes(Decoder(*encoder.finish()), 20)
