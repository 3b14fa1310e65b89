"""Symbols come back in the order in which they were written, at the price that was counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.export.packing.coder import Decoder, Encoder, cost, count, small

WEIGHTS = np.array([8.0, 4.0, 2.0, 1.0, 1.0])


def test_all_that_is_written_is_read_in_order():
    rng = np.random.default_rng(0)
    symbols, bits = rng.integers(0, 5, 3000), rng.integers(0, 2**16, 5)
    encoder = Encoder()
    encoder.integer(7, 6)
    encoder.symbols(WEIGHTS, 3000, symbols)
    encoder.raw(3, np.array([1, 2, 255], np.uint8))
    encoder.uniform(2**16, 5, bits)
    encoder.integer(1, 0)
    decoder = Decoder(*encoder.finish())
    assert decoder.integer(7) == 6
    np.testing.assert_array_equal(decoder.symbols(WEIGHTS, 3000), symbols)
    assert decoder.raw(3).tolist() == [1, 2, 255]
    np.testing.assert_array_equal(decoder.uniform(2**16, 5), bits)
    assert decoder.integer(1) == 0
    decoder.check_end()


def test_bits_are_what_the_symbols_take():
    # 8 of 16 take 1 bit each, 4 take 2, 2 take 3, 2 take 4.
    assert cost(np.array([8, 4, 2, 1, 1]), WEIGHTS) == 8 + 8 + 6 + 4 + 4
    encoder = Encoder()
    encoder.symbols(WEIGHTS, 1600, np.repeat([0, 1, 2, 3, 4], [800, 400, 200, 100, 100]))
    encoder.uniform(8, 1000, np.arange(1000) % 8)
    encoder.raw(10, np.zeros(10, np.uint8))
    assert encoder.bits == pytest.approx(3000 + 3000 + 80)
    coded, raw = encoder.finish()
    assert len(raw) == 10
    assert 750 <= len(coded) <= 750 + 8  # a word or two to end with


def test_appended_drafts_are_read_after_what_was_there():
    encoder, draft = Encoder(), Encoder()
    encoder.integer(10, 3)
    draft.integer(10, 4)
    draft.raw(1, np.array([9], np.uint8))
    encoder.append(draft)
    assert encoder.bits == pytest.approx(2 * np.log2(10) + 8)
    decoder = Decoder(*encoder.finish())
    assert (decoder.integer(10), decoder.integer(10), decoder.raw(1)[0]) == (3, 4, 9)


@pytest.mark.parametrize("value", [0, 1, 2, 255, 256, 65_537, 2**31 - 1])
def test_counts(value):
    encoder = Encoder()
    count(encoder, value)
    decoder = Decoder(*encoder.finish())
    assert count(decoder) == value
    decoder.check_end()


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=50))
def test_small_integers(values):
    encoder = Encoder()
    small(encoder, len(values), np.array(values, np.int64))
    decoder = Decoder(*encoder.finish())
    assert small(decoder, len(values)).tolist() == values
    decoder.check_end()


def test_small_integers_take_less_than_a_byte():
    encoder = Encoder()
    small(encoder, 100, np.arange(100) % 3)
    assert encoder.bits < 220


def test_the_stream_is_the_same_for_ever():
    """What was packed once must unpack with every later version of the coder."""
    encoder = Encoder()
    encoder.symbols(WEIGHTS, 40, np.arange(40) % 5)
    small(encoder, 8, np.array([0, 1, 0, 3, 0, 0, 7, 2]))
    encoder.uniform(100, 3, np.array([99, 0, 42]))
    assert encoder.finish()[0].hex() == GOLDEN


GOLDEN = "8fe3f03fc061eb159bcfc89f7d450107d77f16ff570a0000"


@pytest.mark.parametrize("coded", [b"\1\2\3", bytes(8), b"\1\0\0\0" + bytes(4)])
def test_what_no_encoder_leaves_is_refused(coded):
    with pytest.raises(InputError, match="damaged"):
        Decoder(coded, b"")


def test_raw_bytes_that_are_missing_or_left_over():
    with pytest.raises(InputError, match="ends before"):
        Decoder(b"", b"ab").raw(3)
    with pytest.raises(InputError, match="damaged"):
        Decoder(b"", b"ab").check_end()
