"""Periods of the clock, against a count of the multiples that went by."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlcore.clock import Clock


def test_a_period_fires_once_per_crossing_however_far_the_counter_jumps() -> None:
    clock, due, crossed = Clock(budget=100, horizon=100), [], []
    for frames in (7, 9, 11, 12, 20, 29, 55, 59, 60):
        clock.frames = frames
        due.append(clock.due(10))
        crossed.append(clock.crossed(10))
        clock.iterated = clock.updated = frames
    assert due == crossed == [False, False, True, False, True, False, True, False, True]


@given(st.integers(0, 10**12), st.integers(0, 10**5), st.integers(1, 10**4))
def test_a_period_fires_exactly_where_a_multiple_went_by(start: int, jump: int, period: int) -> None:
    clock = Clock(budget=1, horizon=1, frames=start + jump, iterated=start, updated=start)
    multiple = -(-(start + 1) // period) * period  # the first after the start
    assert clock.due(period) == clock.crossed(period) == (multiple <= start + jump)


def test_agents_and_callbacks_have_counters_of_their_own() -> None:
    clock = Clock(budget=100, horizon=100, frames=12, updated=3, iterated=11)
    assert clock.crossed(10) and not clock.due(10)
    clock = Clock(budget=100, horizon=100, frames=12, updated=11, iterated=3)
    assert clock.due(10) and not clock.crossed(10)


def test_a_period_of_zero_is_never_due() -> None:
    assert not Clock(budget=1, horizon=1, frames=10).due(0)
