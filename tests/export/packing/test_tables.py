"""Tables come back as they were, hold every byte that occurs, and cost next to nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.export.packing import tables
from edgeprune.export.packing.coder import Decoder, Encoder
from edgeprune.export.packing.tables import Curve, Listed, best_table, code_table, expand


def entropy_bits(counts):
    used = counts[counts > 0]
    return float((used * np.log2(counts.sum() / used)).sum())


def histogram(values):
    return np.bincount(np.asarray(values), minlength=256)


def reread(table):
    encoder = Encoder()
    code_table(encoder, table)
    decoder = Decoder(*encoder.finish())
    found = code_table(decoder)
    decoder.check_end()
    return found


def test_powers_are_rounded_exactly():
    for index, power in enumerate(tables._POWERS.astype(int).tolist()):
        # 2**(16 + index / 64) lies within half of it: compare the 64th powers of the doubles.
        assert (2 * power - 1) ** 64 < 2 ** (64 * 17 + index) < (2 * power + 1) ** 64


def test_a_depth_of_an_octave_halves_the_weight():
    weights = tables._weights(np.array([0, 64, 128, 32]))
    assert weights[0] == 2 * weights[1] == 4 * weights[2]
    assert weights[3] / weights[0] == pytest.approx(2**-0.5, rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.integers(0, 255), st.integers(1, 10_000), min_size=1, max_size=256),
)
def test_any_counts(occurring):
    counts = np.zeros(256, np.int64)
    counts[list(occurring)] = list(occurring.values())
    table = best_table(counts)
    values, weights = expand(table)
    assert set(occurring) <= set(values.tolist())
    assert (np.diff(values.astype(int)) > 0).all()
    assert (weights > 0).all()
    for before, after in zip(expand(table), expand(reread(table)), strict=True):
        np.testing.assert_array_equal(before, after)
    # Never much more than a list in the coarsest steps, each weight at most half an octave off.
    assert tables.table_bits(counts, table) <= entropy_bits(counts) + 0.1 * counts.sum() + 9 * 256


@pytest.mark.parametrize("scale", [6, 15, 40])
@pytest.mark.parametrize("shape", ["normal", "laplace"])
def test_trained_weights_take_a_curve_of_few_bytes(shape, scale):
    drawn = getattr(np.random.default_rng(0), shape)(0, scale, 20_000)
    counts = histogram(np.rint(drawn).clip(-127, 127).astype(int) + 128)
    table = best_table(counts)
    assert isinstance(table, Curve)
    assert tables.table_bits(counts, table) < entropy_bits(counts) * 1.005 + 120


def test_pruning_by_magnitude_leaves_a_gap():
    drawn = np.random.default_rng(0).normal(0, 40, 50_000).clip(-127, 127)
    kept = np.where(np.abs(drawn) < 50, 0, np.rint(drawn)).astype(int)
    counts = histogram(kept + 128)
    table = best_table(counts)
    assert isinstance(table, Curve)
    assert (table.centre, table.low, table.high) == (128, 50, 127)
    assert tables.table_bits(counts, table) < entropy_bits(counts) * 1.005 + 120


def test_clusters_take_a_list():
    values = np.array([3, 17, 60, 61, 90, 128, 140, 155, 170, 200, 201, 220, 240, 250, 254, 255])
    counts = np.zeros(256, np.int64)
    counts[values] = 500
    table = best_table(counts)
    assert isinstance(table, Listed)
    assert tables.table_bits(counts, table) < 4 * 8000 + 160


def test_a_lone_value_takes_no_more_than_its_name():
    counts = np.zeros(256, np.int64)
    counts[77] = 10**6
    table = best_table(counts)
    assert tables.table_bits(counts, table) == 1 + 8 + 8
    assert expand(table)[0].tolist() == [77]


def test_a_curve_at_the_edge_has_no_bytes_beyond():
    curve = Curve(250, 1, 200, 1, 3, np.array([0, 4, 1, 2, 3]))
    values, _ = expand(curve)
    assert values.tolist() == list(range(50, 256))
    absent = Curve(10, 5, 9, 2, 2, np.array([tables._ABSENT, 4, 1, 2, 3, 4]))
    assert expand(absent)[0].tolist() == [1, 2, 3, 4, 5, 15, 16, 17, 18, 19]


@pytest.mark.parametrize(
    "integers",
    [
        [(2, 1), (16, 0), (256, 128), (2**16, 0x0005)],  # a curve from distance 0
        [(2, 1), (16, 0), (256, 128), (2**16, 0x0905)],  # from 9 to 5
        [(2, 1), (16, 0), (256, 128), (2**16, 0x01FF)],  # farther than any byte
        [(2, 0), (256, 1), (256, 255), (8, 0)],  # a second byte after 255
    ],
)
def test_impossible_tables_are_refused(integers):
    encoder = Encoder()
    for size, value in integers:
        encoder.integer(size, value)
    encoder.uniform(256, 40, np.zeros(40, np.int64))
    with pytest.raises(InputError, match="table"):
        code_table(Decoder(*encoder.finish()))
