"""Draw labelled examples, or recorded transitions."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rlcore import distributed
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import DatasetConfig
from rlcore.errors import UserError
from rlcore.normalize import Normalizer
from rlcore.sources.base import Source
from rlcore.tree import leaves, tmap
from rlcore.types import Batch, Features
from rlcore.vector import Task, VectorEnv


class Dataset(Source):
    """Draw a task's labelled examples, or recorded transitions, an epoch after the other; one batch an iteration.

    Examples in memory are gathered for many batches at once. Those of a streamed task are fetched ahead by
    ``source.workers`` processes, in the source's own order: what is learnt does not depend on how many these are.

    Args:
        env: gives the spaces; it is never stepped.
        config: batch size and order.
        seed: of the order.
        task: what is drawn from, such as `rlcore.recorded.Recorded`; None: the environment's own task.

    Raises:
        UserError: there is nothing to draw from.
    """

    any_ranks = True

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
        self._epoch: Tensor | None = None  # the generator's state before it drew that order
        self.cursor = 0  # batches of this epoch already yielded
        self._drawn: list[Any] = []
        self._kept: Any = None  # all examples (size, ...) with what frozen layers make of them, where there are any
        self._asked = False  # whether there are
        self._ahead: Iterator[Any] | None = None  # the rest of this epoch's batches, of a streamed task
        self._fetch = _Fetch(self.task, config.workers, env.device) if self.task.streamed else None

    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Yield the next batch; an epoch's last one may be short and is used all the same."""
        if not clock.frames:  # normalisers see the data once, before anything is learnt
            self._show(agent)
        if not self._asked:
            self._keep(agent)
        if not self._drawn:
            self._draw()
        data = self.task.augment(self._drawn.pop(), self.rng)
        self.cursor += 1
        n = len(next(leaves(data)))
        clock.frames += n
        noise = agent.noise("loss", n, self.rng)
        counts = True
        if distributed.size() > 1:  # all ranks draw alike, and each learns from its share
            part = distributed.share(n)
            counts = part.start < part.stop
            data, noise = tmap(lambda x: x[part if counts else slice(1)], (data, noise))
        yield Batch(data, self.annealed(agent, clock), noise, counts=counts)

    def _show(self, agent: Agent) -> None:
        """Let the agent observe all examples, where it does something with them."""
        if type(agent).observe is Agent.observe and not any(isinstance(m, Normalizer) for m in agent.children()):
            return
        everything = torch.arange(self.task.size, device=self.env.device)
        if self._fetch is None:
            for part in everything.split(10_000):
                agent.observe(self.task.draw(part[distributed.share(len(part))]).obs)
        else:
            parts = everything.split(self.batch_size)
            for examples in self._fetch.batches(tuple(part[distributed.share(len(part))] for part in parts)):
                agent.observe(examples.obs)

    @torch.no_grad()
    def _keep(self, agent: Agent) -> None:
        """Let the agent's frozen layers, if any, read all examples once; not saved: a resume does it again."""
        self._asked = True
        training, parts = agent.training, torch.arange(self.task.size, device=self.env.device).split(64)
        agent.eval()
        if not self.task.augments and agent.frozen(self.task.draw(parts[0][:1]).obs) is not None:
            drawn = map(self.task.draw, parts) if self._fetch is None else self._fetch.batches(parts)
            kept = [examples._replace(obs=Features(agent.frozen(examples.obs))) for examples in drawn]
            self._kept = tmap(lambda *x: torch.cat(x), *kept)
        agent.train(training)

    def _draw(self) -> None:
        """Draw the examples of some batches at once, where one gather serves them all; of a streamed task the next."""
        if self.cursor * self.batch_size >= len(self.order):
            self.cursor, self._ahead = 0, None
            self._epoch, self.order = self.rng.get_state(), self._shuffled()
        start = self.cursor * self.batch_size
        if self._fetch is not None and self._kept is None:
            self._ahead = self._ahead or self._fetch.batches(self.order[start:].split(self.batch_size))
            self._drawn.append(next(self._ahead))
            return
        index = self.order[start : start + 32 * self.batch_size]
        examples = self.task.draw(index) if self._kept is None else tmap(lambda x: x.index_select(0, index), self._kept)
        parts = tmap(lambda x: iter(x.split(self.batch_size)), examples)
        self._drawn = [tmap(next, parts) for _ in index.split(self.batch_size)][::-1]

    def _shuffled(self) -> Tensor:
        n, device = self.task.size, self.env.device
        if self.config.shuffle:
            return torch.randperm(n, generator=self.rng, device=device)
        return torch.arange(n, device=device)

    def why_inexact(self) -> str | None:
        """Return None: no environment is stepped, so a resume is exact."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch."""
        return super().state_dict() | {"epoch": self._epoch, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue in the middle of the epoch."""
        super().load_state_dict(state)
        self._epoch, self.cursor = state["epoch"], state["cursor"]
        self._drawn, self._ahead = [], None
        if self._epoch is not None:
            now = self.rng.get_state()
            self.rng.set_state(self._epoch.cpu())
            self.order = self._shuffled()
            self.rng.set_state(now)


class _Fetch:
    """Draws batches of a streamed task ahead of time, in worker processes, and yields them in the order asked for."""

    def __init__(self, task: Task, workers: int, device: torch.device) -> None:
        self.device = device
        self._wanted: list[Tensor] = []
        self._loader = _Loader(
            cast("Any", _Items(task)),
            batch_size=None,
            sampler=self._wanted,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # else it draws from torch's global stream, which dropout draws from
        )

    def batches(self, indices: tuple[Tensor, ...]) -> Iterator[Any]:
        """Yield the items at each index (B,), on the source's device; ends what was asked for before."""
        self._wanted[:] = [index.cpu() for index in indices]
        for items in self._loader:
            if isinstance(items, UserError):
                raise items
            yield tmap(lambda x: x.to(self.device, non_blocking=True), items)


class _Loader(DataLoader):
    """Starts as many workers as it is told to: on few processors, too, they may have files to wait for."""

    def check_worker_number_rationality(self) -> None:
        """Do without torch's warning."""


class _Items:
    """A task as the loader wants it: batches by their indices."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getitem__(self, index: Tensor) -> Any:
        try:
            return self.task.draw(index)
        except UserError as error:  # raised by a worker, the loader would wrap its traceback into the message
            return error


def _as_it_is(items: Any) -> Any:
    return items


def _ignore_signals(worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends its iteration; it ends its workers itself, if need be by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
