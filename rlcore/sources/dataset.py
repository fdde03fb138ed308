"""Draw labelled examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import DatasetConfig
from rlcore.errors import UserError
from rlcore.sources.base import Source
from rlcore.tree import leaves, tmap
from rlcore.types import Batch
from rlcore.vector import VectorEnv


class Dataset(Source):
    """Draw labelled examples of a one-step task, an epoch after the other; one batch an iteration."""

    def __init__(self, env: VectorEnv, config: DatasetConfig, seed: int) -> None:
        super().__init__(env, seed)
        if env.task is None:
            raise UserError("source.name: 'dataset' needs a task with labelled examples; this environment has none")
        self.task = env.task
        self.config = config
        self.batch_size = min(config.batch_size or self.task.size, self.task.size)
        self.order = torch.empty(0, dtype=torch.int64, device=env.device)  # of this epoch
        self.cursor = 0  # batches of this epoch already yielded
        self._drawn: list[Any] = []

    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Yield the next batch; an epoch's last one may be short and is used all the same."""
        if not self._drawn:
            self._draw()
        data = self._drawn.pop()
        self.cursor += 1
        n = len(next(leaves(data.target)))
        clock.frames += n
        yield Batch(data, self.annealed(agent, clock), agent.noise("loss", n, self.rng))

    def _draw(self) -> None:
        """Draw the examples of some batches at once: one gather serves them all."""
        if self.cursor * self.batch_size >= len(self.order):
            n, self.cursor = self.task.size, 0
            rng = self.rng
            device = self.env.device
            self.order = (
                torch.randperm(n, generator=rng, device=device)
                if self.config.shuffle
                else torch.arange(n, device=device)
            )
        start = self.cursor * self.batch_size
        examples = self.task.draw(self.order[start : start + 32 * self.batch_size])
        for at in reversed(range(0, len(next(leaves(examples))), self.batch_size)):
            self._drawn.append(tmap(lambda x, at=at: x[at : at + self.batch_size], examples))

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch."""
        return super().state_dict() | {"order": self.order, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue in the middle of the epoch."""
        super().load_state_dict(state)
        self.order, self.cursor = state["order"].to(self.env.device), state["cursor"]
        self._drawn = []
