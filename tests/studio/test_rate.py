"""The estimate of a stage: exact at a steady rate, steady at a changing one, absent without a step or a total."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.rate import Rate


@given(unit=st.floats(1e-3, 100), step=st.integers(1, 50), steps=st.integers(1, 40))
def test_at_a_steady_rate_the_estimate_is_exact(unit, step, steps):
    rate, total = Rate(10.0, 0), 10 * step * steps
    for n in range(1, steps + 1):
        rate.add(10.0 + n * step * unit, n * step)
    now, left = 10.0 + steps * step * unit, (total - steps * step) * unit
    assert rate.eta(now, total) == pytest.approx(left)
    assert rate.eta(now + step * unit / 2, total) == pytest.approx(left - step * unit / 2)


def test_the_estimate_follows_a_new_rate_without_jumping_to_it():
    rate, now = Rate(0.0, 0), 0.0
    for done in range(1, 31):
        now += 1.0
        rate.add(now, done)
    assert rate.eta(now, 130) == pytest.approx(100)
    rate.add(now + 10, 31)
    assert 99 < rate.eta(now + 10, 131) < 1000, "one slow step out of many"
    for done in range(32, 62):
        now += 10.0
        rate.add(now + 10, done)
    assert rate.eta(now + 10, 161) == pytest.approx(1000, rel=0.01)


def test_a_late_step_counts_down_to_what_follows_it_and_no_further():
    rate = Rate(0.0, 0)
    rate.add(4.0, 2)
    assert [rate.eta(4.0 + late, 8) for late in (0, 2, 4, 100)] == [12.0, 10.0, 8.0, 8.0]
    assert rate.eta(100.0, 2) == 0.0


def test_there_is_no_estimate_before_the_first_step_or_without_a_total():
    rate = Rate(0.0, 0)
    assert rate.eta(5.0, 10) is None
    rate.add(5.0, 1)
    assert rate.eta(5.0, 0) is None
