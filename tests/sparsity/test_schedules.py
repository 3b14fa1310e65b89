import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.sparsity.schedules import ConstantSparsity, PolynomialDecay


# 0.8 - 0.6 * (1 - (step - 100) / 10) ** 3 by hand: 0.8 ** 3 = 0.512, 0.5 ** 3 = 0.125.
@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.2), (100, 0.2), (102, 0.4928), (105, 0.725), (110, 0.8), (999, 0.8)],
)
def test_polynomial_decay(step, expected):
    schedule = PolynomialDecay(
        initial_sparsity=0.2, final_sparsity=0.8, begin_step=100, end_step=110
    )
    assert schedule.sparsity(step) == pytest.approx(expected)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_matches_tfmot_at_every_step(power):
    import tensorflow_model_optimization as tfmot

    arguments = {
        "initial_sparsity": 0.1,
        "final_sparsity": 0.9,
        "begin_step": 7,
        "end_step": 47,
        "power": power,
        "frequency": 5,
    }
    ours = PolynomialDecay(**arguments)
    theirs = tfmot.sparsity.keras.PolynomialDecay(**arguments)
    for step in range(60):
        due, sparsity = theirs(step)
        assert ours.sparsity(step) == pytest.approx(float(sparsity), abs=1e-6)
        assert ours.is_due(step - 1, step) == bool(due)


def test_the_end_is_due_even_off_the_beat_unlike_tfmot():
    import tensorflow_model_optimization as tfmot

    ours = PolynomialDecay(0.0, 0.5, 0, 25, frequency=10)
    theirs = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, 0, 25, frequency=10)
    assert [step for step in range(40) if bool(theirs(step)[0])] == [0, 10, 20]
    assert [step for step in range(40) if ours.is_due(step - 1, step)] == [0, 10, 20, 25]


def test_constant_sparsity_matches_tfmot():
    import tensorflow_model_optimization as tfmot

    for end in (-1, 20):
        ours = ConstantSparsity(0.5, begin_step=5, end_step=end, frequency=5)
        theirs = tfmot.sparsity.keras.ConstantSparsity(0.5, 5, end, 5)
        for step in range(40):
            due, sparsity = theirs(step)
            assert ours.is_due(step - 1, step) == bool(due)
            assert ours.sparsity(step) == pytest.approx(float(sparsity))


schedules = st.builds(
    lambda begin, length, frequency, final: PolynomialDecay(
        0.0, final, begin, begin + length, frequency=frequency
    ),
    st.integers(0, 50),
    st.integers(0, 200),
    st.integers(1, 60),
    st.floats(0.01, 0.99),
)


@given(schedules, st.lists(st.integers(1, 9), min_size=1, max_size=60))
def test_no_due_step_is_lost_between_executions_of_several_steps(schedule, strides):
    """Steps taken several at a time find a due step exactly where single steps do."""
    step = 0
    for stride in strides:
        due = any(schedule.is_due(s - 1, s) for s in range(step + 1, step + stride + 1))
        assert schedule.is_due(step, step + stride) == due
        step += stride


@given(schedules)
def test_rises_to_its_target(schedule):
    steps = range(schedule.end_step + 2)
    assert all(
        schedule.sparsity(a) <= schedule.sparsity(b) + 1e-12 for a, b in itertools.pairwise(steps)
    )
    last = schedule.last_due(10**9)
    assert last == schedule.end_step
    assert schedule.sparsity(last) == schedule.target


def test_steps_left_out_are_fractions_of_the_fit():
    schedule = PolynomialDecay(final_sparsity=0.8).resolve(first_step=1000, total_steps=400)
    assert (schedule.begin_step, schedule.end_step, schedule.frequency) == (1000, 1300, 15)
    long = PolynomialDecay(final_sparsity=0.8).resolve(0, 100_000)
    assert (long.begin_step, long.end_step, long.frequency) == (0, 75_000, 100)
    own = PolynomialDecay(final_sparsity=0.8, begin_step=0.1, end_step=0.5, frequency=7)
    assert own.resolve(0, 200) == PolynomialDecay(0.0, 0.8, 20, 100, frequency=7)


def test_whole_steps_stay_and_take_tfmots_frequency():
    schedule = PolynomialDecay(0.0, 0.8, 5, 50).resolve(first_step=10, total_steps=None)
    assert (schedule.begin_step, schedule.end_step, schedule.frequency) == (5, 50, 100)
    constant = ConstantSparsity(0.5).resolve(first_step=10, total_steps=None)
    assert (constant.begin_step, constant.end_step) == (10, -1)


def test_a_fit_of_unknown_length_has_no_fractions():
    with pytest.raises(InputError, match="give steps_per_epoch to fit, or whole steps"):
        PolynomialDecay(final_sparsity=0.8).resolve(0, None)


def test_with_target():
    schedule = PolynomialDecay(0.5, 0.8, 0, 10)
    assert schedule.with_target(0.25) == PolynomialDecay(0.25, 0.25, 0, 10)
    assert ConstantSparsity(0.5).with_target(0.3) == ConstantSparsity(0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolynomialDecay(final_sparsity=80), r"got 80, did you mean 0\.8\?"),
        (lambda: ConstantSparsity("0.8"), r"fraction in \[0, 1\); got '0\.8'$"),
        (lambda: PolynomialDecay(0.8), "needs final_sparsity"),
        (lambda: PolynomialDecay(final_sparsity=1.0), r"in \[0, 1\); got 1.0$"),
        (lambda: PolynomialDecay(final_sparsity="0.8"), "got '0.8'"),
        (lambda: ConstantSparsity(-0.1), "got -0.1"),
        (lambda: PolynomialDecay(0.0, 0.8, 10, 5), "begin_step 10 lies after end_step 5"),
        (lambda: PolynomialDecay(0.0, 0.8, -1, 5), "begin_step must be 0 or more"),
        (lambda: PolynomialDecay(0.0, 0.8, 0, -1), "end_step must be 0 or more"),
        (lambda: PolynomialDecay(0.0, 0.8, 0, 1.5), "a fraction of the fit's steps"),
        (lambda: PolynomialDecay(0.0, 0.8, 0, 5, frequency=0), "frequency must be 1 or more"),
        (lambda: PolynomialDecay(0.0, 0.8, 0, 5, power=0), "power must be above 0"),
        (lambda: PolynomialDecay(0.0, 0.8, 50, 0.5).resolve(0, 60), "after end_step"),
        (lambda: PolynomialDecay(final_sparsity=0.8).sparsity(3), "call resolve"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError, match=message):
        make()
