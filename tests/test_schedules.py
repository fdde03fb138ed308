"""Annealed numbers against values worked by hand, and their properties."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import OptimConfig
from rlcore.errors import UserError
from rlcore.schedules import Schedule

KINDS = ("constant", "linear", "cosine", "exponential")
HALF = math.sqrt(0.5)
POINTS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
BY_HAND = {  # warm-up over the first 0.2, the end reached at 1
    "constant": (0, 0.5, 1, 1, 1, 1, 1),
    "linear": (0, 0.5, 1, 0.775, 0.55, 0.325, 0.1),
    "cosine": (0, 0.5, 1, 0.1 + 0.9 * (1 + HALF) / 2, 0.55, 0.1 + 0.9 * (1 - HALF) / 2, 0.1),
    "exponential": (0, 0.5, 1, 10**-0.25, 10**-0.5, 10**-0.75, 0.1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_then_the_shape(kind: Any) -> None:
    schedule = Schedule(kind=kind, start=1.0, end=0.1, warmup=0.2)
    assert [schedule(p) for p in POINTS] == pytest.approx(BY_HAND[kind], abs=1e-12)
    assert schedule(0.0) == 0.0
    assert schedule(0.2) == pytest.approx(1.0, abs=1e-15), "the end of the warm-up is the start of the shape"


@pytest.mark.parametrize(("kind", "middle"), [("linear", 2.5), ("cosine", 2.5), ("exponential", 2.0)])
def test_the_end_is_reached_at_the_fraction_and_held(kind: Any, middle: float) -> None:
    schedule = Schedule(kind=kind, start=4.0, end=1.0, fraction=0.5)
    assert [schedule(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([4.0, middle, 1.0, 1.0, 1.0])


def test_a_warm_up_is_part_of_the_fraction() -> None:
    schedule = Schedule(kind="linear", start=1.0, end=0.0, fraction=0.5, warmup=0.1)
    assert [schedule(p) for p in (0.0, 0.05, 0.1, 0.3, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0, 0.0])


@given(
    kind=st.sampled_from(KINDS),
    start=st.floats(0.01, 10),
    end=st.floats(0.01, 10),
    fraction=st.floats(0.6, 1),
    warmup=st.floats(0, 0.5),
    progress=st.floats(0, 1),
)
def test_schedules_stay_between_their_ends_and_hold_the_last(
    kind: Any, start: float, end: float, fraction: float, warmup: float, progress: float
) -> None:
    schedule = Schedule(kind=kind, start=start, end=end, fraction=fraction, warmup=warmup)
    low, high = min(start, end), max(start, end)
    assert (low if progress >= warmup else 0.0) - 1e-9 <= schedule(progress) <= high + 1e-9
    assert schedule(1.0) == pytest.approx(start if kind == "constant" else end)
    later = min(1.0, progress + 0.01)
    slope = (schedule(later) - schedule(progress)) * (end - start)
    assert progress < warmup or slope >= -1e-9, "no way back after the warm-up"


def test_the_learning_rate_follows_from_the_recipe() -> None:
    raw = {"kind": "cosine", "warmup": 0.05, "start": 1.0, "end": 0.1}
    config = configs.validate(configs.override(configs.read("line"), {"optim.schedule": raw, "optim.lr": 0.2}))
    assert config.optim.schedule == Schedule(kind="cosine", warmup=0.05, start=1.0, end=0.1)
    clock = Clock(budget=100, horizon=200, iterated=105)  # over the horizon, not the budget
    assert config.optim.schedule(clock.iterated / clock.horizon) == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"kind": "linear", "warmup": 0.5, "fraction": 0.5}, "a warmup below fraction, by which end is reached"),
        ({"kind": "linear", "warmup": 1.0}, "less than 1"),
        ({"kind": "linear", "warmup": -0.1}, "greater than or equal to 0"),
        ({"kind": "linear", "fraction": 0.0}, "greater than 0"),
        ({"kind": "exponential", "end": 0.0}, "start and end above 0 for an exponential schedule"),
        ({"kind": "lin"}, "'constant', 'linear', 'cosine' or 'exponential'"),
    ],
)
def test_bad_schedules_are_told(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Schedule.model_validate(raw)
    with pytest.raises(UserError, match=rf"^optim\.schedule.*: got .*, expected .*{told}$"):
        configs.validate({"optim": {"schedule": raw}})


def test_a_learning_rate_never_climbs() -> None:
    with pytest.raises(ValidationError, match="factors of 0 or more"):
        OptimConfig(schedule=Schedule(kind="linear", start=1.0, end=-0.5))
    assert OptimConfig(schedule=Schedule(end=-0.5)).schedule(1.0) == 1.0, "constant has no end"
