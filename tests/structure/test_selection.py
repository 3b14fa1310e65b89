import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.structure.group import PruningGroup
from edgeprune.structure.selection import Limits, choose


def group(size, widths=None, frozen=(), name="g"):
    widths = np.ones((1, size), np.int64) if widths is None else np.asarray(widths)
    return PruningGroup(
        name=name,
        kind="channels",
        size=size,
        slices=(),
        reads=(),
        widths=widths,
        layers=tuple(f"{name}{axis}" for axis in range(len(widths))),
        frozen=np.isin(np.arange(size), frozen),
    )


FREE = Limits(round_to=1)


def chosen(groups, scores, **how):
    removed = choose(groups, dict(enumerate(map(np.asarray, scores))), **({"limits": FREE} | how))
    return {index: list(channels) for index, channels in removed.items()}


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0, {}), (0.2, {0: [3]}), (0.4, {0: [1, 3]}), (0.5, {0: [1, 2, 3]}), (0.6, {0: [1, 2, 3]})],
)
def test_the_lowest_scores_leave_first(ratio, expected):
    # 0.5 of five is 2.5, which is rounded up.
    assert chosen([group(5)], [[9.0, 2.0, 3.0, 1.0, 5.0]], pruning_ratio=ratio) == expected


def test_among_equals_the_lower_channel_leaves():
    assert chosen([group(4)], [[1.0, 1.0, 1.0, 1.0]], pruning_ratio=0.5) == {0: [0, 1]}


def test_ranking_by_group_takes_its_share_of_each():
    scores = [[1.0, 2.0, 3.0, 4.0], [100.0, 200.0]]
    assert chosen([group(4), group(2)], scores, pruning_ratio=0.5) == {0: [0, 1], 1: [0]}


def test_global_ranking_compares_with_the_mean_of_the_group():
    # Divided by 10 and by 100: (0.1, 0.9, 1, 2) and (0.2, 0.3, 1.5, 2).
    scores = [[1.0, 9.0, 10.0, 20.0], [20.0, 30.0, 150.0, 200.0]]
    how = {"ranking": "global"}
    groups = [group(4), group(4)]
    assert chosen(groups, scores, pruning_ratio=0.375, **how) == {0: [0], 1: [0, 1]}
    assert chosen(groups, scores, pruning_ratio=0.5, **how) == {0: [0, 1], 1: [0, 1]}


def test_frozen_channels_stay_and_count():
    # Half of six is three, and the three that may leave are not the lowest.
    scores = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    assert chosen([group(6, frozen=[0, 2, 4])], scores, pruning_ratio=0.5) == {0: [1, 3, 5]}
    assert chosen([group(6, frozen=[0, 2, 4, 5])], scores, pruning_ratio=0.5) == {0: [1, 3]}


def test_a_group_without_scores_stays():
    removed = choose([group(4), group(4)], {1: np.arange(4.0)}, pruning_ratio=0.5, limits=FREE)
    assert list(removed) == [1]


@pytest.mark.parametrize(
    ("size", "ratio", "kept"),
    [
        (32, 0.5, 16),
        (32, 0.4, 16),  # 19.2: 16 is nearer than 24
        (32, 0.37, 24),  # 20.16
        (24, 0.5, 16),  # 12 lies between 8 and 16: the larger
        (20, 0.05, 20),  # 19: 20 is nearer than 16
        (20, 0.2, 16),
        (16, 0.9, 8),  # at least one multiple
        (8, 0.9, 4),  # no larger than a multiple: the largest power of two up to its half
        (5, 0.9, 2),
    ],
)
def test_what_stays_is_the_nearest_multiple(size, ratio, kept):
    removed = chosen([group(size)], [np.arange(size)], pruning_ratio=ratio, limits=Limits(8))
    assert size - len(removed.get(0, [])) == kept


def test_channels_of_two_positions_are_rounded_to_half_as_many():
    # Four channels of width 2 are eight positions.
    removed = chosen([group(16, [[2] * 16])], [np.arange(16)], pruning_ratio=0.7, limits=Limits(8))
    assert 16 - len(removed[0]) == 4


def test_one_cut_makes_all_axes_of_a_group_multiples():
    # Two layers of 12, concatenated and added to one of 24: once it is cut, 8 + 8 stay.
    columns = [[1] * 12 + [0] * 12, [0] * 12 + [1] * 12, [1] * 24]
    how = {"limits": Limits(8)}
    removed = chosen([group(24, columns)], [np.arange(24)], pruning_ratio=0.2, **how)
    assert removed == {0: [0, 1, 2, 3, 12, 13, 14, 15]}
    assert chosen([group(24, columns)], [np.arange(24)], pruning_ratio=0.05, **how) == {}


def test_floors():
    scores = [np.arange(10.0)]
    for limits, kept in ((Limits(1, min_channels=4), 4), (Limits(1, max_ratio=0.7), 3)):
        removed = chosen([group(10)], scores, pruning_ratio=0.9, limits=limits)
        assert 10 - len(removed[0]) == kept
    removed = chosen([group(10)], scores, pruning_ratio=0.9, limits=Limits(1, min_channels=11))
    assert removed == {}


def test_ratios_of_their_own_hold_whatever_the_budget():
    groups, scores = [group(10), group(10)], [np.arange(10.0), np.arange(10.0)]
    for budget in (
        {"pruning_ratio": 0.5},
        {"pruning_ratio": 0.5, "ranking": "global"},
        {"target": 7, "cost": lambda removed: 20 - sum(map(len, removed.values()))},
    ):
        removed = chosen(groups, scores, ratios={0: 0.8}, **budget)
        assert removed[0] == list(range(8))
        assert len(removed[1]) == 5
    assert len(chosen(groups, scores, pruning_ratio=0.1, ratios={0: 0.0})) == 1


def test_a_target_is_met_with_the_fewest_cuts():
    groups, scores = [group(16, name=name) for name in "ab"], [np.arange(16.0), np.arange(16.0)]

    def cost(removed):
        return 32 - sum(map(len, removed.values()))

    how = {"cost": cost, "limits": Limits(8)}
    assert len(chosen(groups, scores, target=32, **how)) == 0
    assert len(chosen(groups, scores, target=30, **how)) == 1  # 24, and not 16
    assert len(chosen(groups, scores, target=23, **how)) == 2
    assert len(chosen(groups, scores, target=3, **how)) == 2  # out of reach: all that may leave


def test_a_cut_that_takes_too_much_is_passed_over():
    # A channel of the first group costs 10, one of the second 1; the first is to leave first.
    groups, scores = [group(2), group(20)], [np.array([0.0, 2.0]), np.arange(1.0, 21)]

    def cost(removed):
        return 40 - 10 * len(removed.get(0, [])) - len(removed.get(1, []))

    how = {"cost": cost, "ranking": "global", "limits": FREE}
    assert chosen(groups, scores, target=38, **how) == {1: [0, 1]}
    assert chosen(groups, scores, target=30, **how) == {0: [0]}
    assert chosen(groups, scores, target=28, **how) == {0: [0], 1: [0, 1]}


def test_each_block_is_cut_to_one_or_the_other_multiple_next_to_its_share():
    # 16 -> 8 and 32 -> 24 are next to every share up to a quarter, 16 -> 8 and 24 -> 16 to those
    # from there to a half.
    groups, scores = [group(16), group(32)], [np.arange(16.0), np.arange(32.0)]

    def sizes(removed):
        return tuple(own.size - len(removed.get(index, [])) for index, own in enumerate(groups))

    def cost(removed):
        first, second = sizes(removed)
        return second / 32 * (0.2 + 0.8 * first / 16)

    def left(target, **how):
        return sizes(chosen(groups, scores, target=target, cost=cost, limits=Limits(8), **how))

    assert left(0.8) == (16, 24)  # 0.75
    assert left(0.7) == (8, 32)  # 0.6, and not 0.45 with the cut that comes before that
    assert left(0.55) == (16, 16)  # 0.5, the same
    assert left(0.48) == (8, 24)  # 0.45
    assert left(0.35) == (8, 16)  # 0.3
    # On the way to (8, 16), the second group's first cut comes first,
    assert left(0.35, stop=0.9) == (16, 24)
    assert left(0.35, stop=0.5) == (8, 24)
    # and on the way to (8, 32) not at all.
    assert left(0.7, stop=0.9) == (8, 32)


# The laws.


@st.composite
def problems(draw):
    groups, scores = [], []
    for index in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 70))
        axes = draw(st.integers(1, 3))
        seed = draw(st.integers(0, 1000))
        rng = np.random.default_rng(seed)
        # Every channel lies on the first axis; long runs of equal columns on the others.
        widths = np.ones((axes, size), np.int64) * draw(st.sampled_from([1, 1, 2, 3]))
        for axis in range(1, axes):
            start, stop = sorted(rng.integers(0, size + 1, 2))
            widths[axis, start:stop] = 0
            if stop - start == size:
                widths[axis, 0] = 1
        frozen = np.flatnonzero(rng.random(size) < draw(st.sampled_from([0, 0, 0.3])))
        groups.append(group(size, widths, frozen, f"g{index}"))
        scores.append(rng.integers(0, draw(st.sampled_from([3, 1000])), size).astype(float))
    limits = Limits(
        round_to=draw(st.sampled_from([1, 2, 4, 8])),
        min_channels=draw(st.integers(1, 5)),
        max_ratio=draw(st.sampled_from([0.5, 0.7, 0.9, 1.0])),
    )
    return groups, scores, limits, draw(st.sampled_from(["group", "global"]))


ratios = st.floats(0, 0.99)
few = settings(max_examples=150, deadline=None)


@few
@given(problems(), ratios, ratios)
def test_a_larger_ratio_removes_a_superset(problem, one, other):
    groups, scores, limits, ranking = problem
    low, high = (
        chosen(groups, scores, pruning_ratio=ratio, limits=limits, ranking=ranking)
        for ratio in sorted((one, other))
    )
    for index, channels in low.items():
        assert set(channels) <= set(high[index])


@few
@given(problems(), ratios)
def test_limits_hold(problem, ratio):
    groups, scores, limits, ranking = problem
    removed = chosen(groups, scores, pruning_ratio=ratio, limits=limits, ranking=ranking)
    for index, own in enumerate(groups):
        leaving = np.isin(np.arange(own.size), removed.get(index, []))
        assert not (leaving & own.frozen).any()
        assert leaving.sum() <= limits.max_ratio * own.size + 1e-9
        for width in own.widths:
            before, after = width.sum(), width[~leaving].sum()
            assert after >= min(limits.min_channels, before)
        blocks, of = np.unique(own.widths, axis=1, return_inverse=True)
        for number, column in enumerate(blocks.T):
            here = of.ravel() == number
            gone = leaving[here]
            # Along every axis, what a cut block keeps is a multiple.
            if gone.any():
                axis = own.widths.sum(1)[column > 0].max()
                multiple = limits.round_to
                if axis <= multiple:  # the largest power of two up to its half
                    multiple = max([2**power for power in range(3) if 2**power <= axis / 2] or [1])
                assert (((~gone).sum() * column) % multiple == 0).all()
            # Its lowest left.
            values = np.asarray(scores[index])[here & ~own.frozen]
            out = gone[~own.frozen[here]]
            if out.any() and not out.all():
                assert values[out].max() <= values[~out].min()


@few
@given(problems(), ratios)
def test_axes_of_large_blocks_come_in_multiples(problem, ratio):
    groups, scores, limits, ranking = problem
    groups = [group(own.size, own.widths) for own in groups]
    limits = Limits(limits.round_to)
    removed = chosen(groups, scores, pruning_ratio=ratio, limits=limits, ranking=ranking)
    for index, channels in removed.items():
        own = groups[index]
        kept = ~np.isin(np.arange(own.size), channels)
        blocks = np.unique(own.widths, axis=1, return_counts=True)[1]
        if (blocks > limits.round_to).all():
            assert (own.widths[:, kept].sum(1) % limits.round_to == 0).all()


@few
@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), ratios, st.integers(0, 9))
def test_without_rounding_each_group_loses_its_share(sizes, ratio, seed):
    rng = np.random.default_rng(seed)
    groups, scores = [group(size) for size in sizes], [rng.random(size) for size in sizes]
    removed = chosen(groups, scores, pruning_ratio=ratio, limits=Limits(1, 1, 1.0))
    for index, size in enumerate(sizes):
        lost = len(removed.get(index, []))
        assert abs(lost - min(ratio * size, size - 1)) <= 0.5 + 1e-6
    removed = chosen(
        groups, scores, pruning_ratio=ratio, limits=Limits(1, 1, 1.0), ranking="global"
    )
    lost = sum(map(len, removed.values()))
    assert abs(lost - min(ratio * sum(sizes), sum(sizes) - len(sizes))) <= 0.5 + 1e-6


@few
@given(problems(), st.floats(0.05, 1))
def test_a_target_is_met_wherever_the_limits_allow(problem, fraction):
    groups, scores, limits, ranking = problem

    def cost(removed):
        return sum(
            own.widths.sum() - own.widths[:, list(removed.get(index, []))].sum()
            for index, own in enumerate(groups)
        )

    target = fraction * cost({})
    how = {"limits": limits, "ranking": ranking}
    removed = chosen(groups, scores, target=target, cost=cost, **how)
    least = cost(chosen(groups, scores, target=0, cost=cost, **how))
    assert cost(removed) <= max(target, least)


@few
@given(problems(), ratios, st.integers(1, 4))
def test_rounds_end_where_one_cut_would(problem, ratio, rounds):
    groups, scores, limits, _ = problem
    groups = [group(own.size, own.widths[:1], np.flatnonzero(own.frozen)) for own in groups]
    at_once = chosen(groups, scores, pruning_ratio=ratio, limits=limits)
    left = [np.arange(own.size) for own in groups]
    for number in range(rounds):
        now = [
            group(len(rest), own.widths[:, rest], np.flatnonzero(own.frozen[rest]))
            for own, rest in zip(groups, left, strict=True)
        ]
        removed = chosen(
            now,
            [np.asarray(own)[rest] for own, rest in zip(scores, left, strict=True)],
            pruning_ratio=ratio * (number + 1) / rounds,
            limits=limits,
            before={index: own.size for index, own in enumerate(groups)},
        )
        left = [np.delete(rest, removed.get(index, [])) for index, rest in enumerate(left)]
    for index, own in enumerate(groups):
        gone = np.setdiff1d(np.arange(own.size), left[index])
        np.testing.assert_array_equal(gone, at_once.get(index, []))


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0.05, 1), st.integers(1, 4))
def test_groups_stay_comparable_and_rounds_end_no_lower(sizes, fraction, rounds):
    groups = [group(8 * size) for size in sizes]
    scores = [np.arange(own.size, dtype=float) for own in groups]

    def share(kept):  # a chain of layers, each of which reads the one before
        widths = [3, *kept]
        return sum(a * b for a, b in itertools.pairwise(widths))

    before = [own.size for own in groups]
    target = fraction * share(before)

    def cut(now, **how):
        def cost(removed):
            return share([own.size - len(removed.get(i, [])) for i, own in enumerate(now)])

        removed = choose(
            now,
            {i: scores[i][: own.size] for i, own in enumerate(now)},
            target=target,
            cost=cost,
            limits=Limits(8),
            before=dict(enumerate(before)),
            **how,
        )
        return [own.size - len(removed.get(i, [])) for i, own in enumerate(now)]

    once = cut(groups)
    kept = before
    for number in range(rounds):
        part = 1 - (1 - fraction) * (number + 1) / rounds
        kept = cut([group(size) for size in kept], stop=part * share(before))
    if share(once) <= target:
        assert share(once) <= share(kept) <= target
    # A share of which every group keeps one or the other multiple next to it.
    lost = [1 - after / size for after, size in zip(once, before, strict=True)]
    steps = [(8 if size > 8 else 4) / size for size in before]
    if share(once) <= target:
        assert max(a - b for a, b in zip(lost, steps, strict=True)) <= min(
            a + b for a, b in zip(lost, steps, strict=True)
        )


def test_many_groups_take_one_pass():
    groups = [group(64) for _ in range(500)]
    scores = [np.random.default_rng(seed).random(64) for seed in range(500)]
    removed = chosen(groups, scores, pruning_ratio=0.5, ranking="global", limits=Limits(8))
    assert sum(map(len, removed.values())) == 16000
    assert all(len(channels) % 8 == 0 for channels in itertools.chain(removed.values()))
