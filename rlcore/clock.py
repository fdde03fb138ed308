"""What time it is in a run: environment frames, updates and iterations, and when periods fire.

A period of k frames fires when the counter crosses a multiple of k, however far it jumps.
"""

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
    updated: int = 0  # frames at the last update
    iterated: int = 0  # frames at the end of the last iteration

    @property
    def progress(self) -> float:
        """Position in the schedules' horizon, in [0, 1]."""
        return min(1.0, self.frames / self.horizon)

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.frames >= self.budget

    def crossed(self, period: int) -> bool:
        """Whether a multiple of ``period`` frames went by since the last update. For agents."""
        return self.frames // period > self.updated // period

    def due(self, period: int) -> bool:
        """Whether a multiple of ``period`` frames went by in this iteration; 0: never. For callbacks."""
        return period > 0 and self.frames // period > self.iterated // period

    def state_dict(self) -> dict[str, int]:
        """Return the counters (the budget belongs to the configuration)."""
        return {name: getattr(self, name) for name in _COUNTERS}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set the counters."""
        for name in _COUNTERS:
            setattr(self, name, state[name])


_COUNTERS = ("frames", "updates", "iterations", "updated", "iterated")
