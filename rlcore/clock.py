"""What time it is in a run: environment frames, updates and iterations, and when periods fire."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Counters of one run and the budget that ends it.

    ``horizon`` is what schedules run over; it stays when a finished run's budget is extended, so that
    schedules hold their last values. Frames of supervised tasks are examples drawn.
    """

    budget: int  # frames
    horizon: int  # frames
    frames: int = 0
    updates: int = 0
    iterations: int = 0

    @property
    def progress(self) -> float:
        """Position in the schedules' horizon, in [0, 1]."""
        return min(1.0, self.frames / self.horizon)

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.frames >= self.budget

    def state_dict(self) -> dict[str, int]:
        """Return the counters (the budget belongs to the configuration)."""
        return {"frames": self.frames, "updates": self.updates, "iterations": self.iterations}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set the counters."""
        self.frames, self.updates, self.iterations = state["frames"], state["updates"], state["iterations"]


class Every:
    """A period in frames or updates. Fires when the counter crosses a multiple, however far it jumps.

    >>> every = Every(100)
    >>> [every.crossed(count) for count in (64, 128, 192, 256)]
    [False, True, False, True]
    """

    def __init__(self, period: int, count: int = 0) -> None:
        self.period = period  # 0: never
        self.last = count // period if period else 0

    def crossed(self, count: int) -> bool:
        """Whether a multiple of the period lies in (count at the last call, count]."""
        if not self.period:
            return False
        now = count // self.period
        fired = now > self.last
        self.last = now
        return fired
