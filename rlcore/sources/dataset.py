"""Draw labelled examples, or recorded transitions."""

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
from rlcore.vector import Task, VectorEnv


class Dataset(Source):
    """Draw a task's labelled examples, or recorded transitions, an epoch after the other; one batch an iteration.

    Args:
        env: gives the spaces; it is never stepped.
        config: batch size and order.
        seed: of the order.
        task: what is drawn from, such as `rlcore.recorded.Recorded`; None: the environment's own task.

    Raises:
        UserError: there is nothing to draw from.
    """

    def __init__(self, env: VectorEnv, config: DatasetConfig, seed: int, task: Task | None = None) -> None:
        super().__init__(env, seed)
        self.task: Task = env.task if task is None else task
        if self.task is None:
            raise UserError(
                "source.name: 'dataset' needs a task with labelled examples, or recorded transitions in source.data; "
                "this environment has none"
            )
        self.config = config
        self.batch_size = min(config.batch_size or self.task.size, self.task.size)
        self.order = torch.empty(0, dtype=torch.int64, device=env.device)  # of this epoch
        self.cursor = 0  # batches of this epoch already yielded
        self._drawn: list[Any] = []

    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Yield the next batch; an epoch's last one may be short and is used all the same."""
        if not clock.frames:  # normalisers see the data once, before anything is learnt
            for part in torch.arange(self.task.size, device=self.env.device).split(10_000):
                agent.observe(self.task.draw(part).obs)
        if not self._drawn:
            self._draw()
        data = self.task.augment(self._drawn.pop(), self.rng)
        self.cursor += 1
        n = len(next(leaves(data)))
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

    def why_inexact(self) -> str | None:
        """Return None: no environment is stepped, so a resume is exact."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch."""
        return super().state_dict() | {"order": self.order, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue in the middle of the epoch."""
        super().load_state_dict(state)
        self.order, self.cursor = state["order"].to(self.env.device), state["cursor"]
        self._drawn = []
