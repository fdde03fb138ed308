"""The loop. Where batches come from is the source's affair, what they teach the agent's."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from rlcore import distributed
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.errors import UserError
from rlcore.meter import Meter
from rlcore.optim import Optim, redistributed
from rlcore.overheads import flushed, unswept
from rlcore.sources import Source
from rlcore.types import Batch, Loss


class Callback(Protocol):
    """Work between iterations: evaluate, log, checkpoint, stop early."""

    def maybe(self, trainer: Trainer) -> None:
        """Look at the clock after an iteration, and act if it is time."""
        ...

    def end(self, trainer: Trainer) -> None:
        """Act once more when the run ends; when it was interrupted, do only what a resume needs."""
        ...


class Trainer:
    """Trains any agent on any source. There is no other loop, and no subclass.

    Args:
        agent: on its device already.
        source: yields batches; owns environment, buffer and generators.
        optim: turns losses into weight changes.
        clock: counters and budget.
        callbacks: run in order between iterations; put the one that checkpoints last.
        seed: of torch's global random stream (dropout), which the trainer owns and checkpoints.
    """

    def __init__(
        self,
        agent: Agent,
        source: Source,
        optim: Optim,
        clock: Clock,
        callbacks: Sequence[Callback] = (),
        seed: int = 0,
    ) -> None:
        self.agent, self.source, self.optim, self.clock = agent, source, optim, clock
        self.callbacks = list(callbacks)
        self.meter = Meter()
        self.row: dict[str, float] = {}  # what callbacks have to log at this moment
        self.stopping: str | None = None  # why the run ends before its budget is spent
        self.interrupted = False  # by Ctrl-C: end this iteration, keep everything for a resume
        self.train_seconds = 0.0  # without evaluation, logging and checkpoints
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._stream = _global_stream()
        self._streaming = False

    def fit(self) -> None:
        """Train until the budget is spent, a callback stops the run, or it is interrupted.

        Raises:
            Diverged: a loss, an observation or a reward is no longer finite.
        """
        with self.training():
            self._answer(self.run())

    def run(self) -> Generator[Batch, Loss, None]:
        """Yield each batch to learn from; what is sent back is its loss, once the weights have moved (see `update`).

        That is all of a run but the learning, which may so be done for several runs at once (`rlcore.together`).

        Raises:
            Diverged: as `fit`.
        """
        ended = self._ended()
        while not ended:
            yield from self._iteration()
            for callback in self.callbacks:
                callback.maybe(self)
            ended = self._ended()
        for callback in self.callbacks:
            callback.end(self)
        self.check_finite()

    def _answer(self, asking: Generator[Batch, Loss, None]) -> None:
        """Learn from every batch that is asked for."""
        batch = next(asking, None)
        while batch is not None:
            batch = sent(asking, self.update(batch))

    def _ended(self) -> bool:
        """Whether the run is over, the same on all ranks, though a signal may reach one before another."""
        own = self.interrupted, self.stopping
        if distributed.anywhere(any(own)):
            interrupted, stopping = zip(*distributed.every(own), strict=True)
            self.interrupted = any(interrupted)
            self.stopping = next(filter(None, stopping), None)
            return True
        return self.clock.done

    def iterate(self) -> None:
        """Collect once and learn from every batch that comes of it."""
        self._answer(self._iteration())

    def _iteration(self) -> Generator[Batch, Loss, None]:
        start = time.perf_counter()
        self.clock.iterated = self.clock.frames
        for batch in self.source.collect(self.agent, self.clock):
            self.source.feedback(batch, (yield batch))
        self.clock.iterations += 1
        self.train_seconds += time.perf_counter() - start

    @contextmanager
    def training(self) -> Iterator[None]:
        """Put the agent into training mode and make torch's global random stream (for dropout) the trainer's own."""
        self.agent.train()
        outside = _global_stream()
        _set_global_stream(self._stream)
        self._streaming = True
        try:
            with unswept():
                yield
        finally:
            self._stream, self._streaming = _global_stream(), False
            _set_global_stream(outside)

    @flushed
    def update(self, batch: Batch) -> Loss:
        """Learn from one batch."""
        out, stepped = self.optim.update(self.agent, batch, self.clock)
        if stepped:  # else the batch was added to an accumulation
            self.clock.updates += 1
            self.agent.after_update(self.clock)
            self.clock.updated = self.clock.frames
        if batch.counts:  # else another rank's items are measured there
            self.meter.add(self.clock.updates, out.metrics)
        return out

    def check_finite(self) -> None:
        """Look through all that the meters gathered since they were last read.

        Raises:
            Diverged: something in it is NaN or infinite.
        """
        self.source.meter.check()
        self.meter.check()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a continuation needs beside the agent's own state_dict; on rank 0 that of all ranks."""
        own = {
            "optim": self.optim.state_dict(),
            "source": self.source.state_dict(),
            "clock": self.clock.state_dict(),
            "meter": self.meter.state_dict(),
            "torch_rng": _global_stream() if self._streaming else self._stream,
            "train_seconds": self.train_seconds,
            "stopping": self.stopping,
            "callbacks": [getattr(callback, "state_dict", dict)() for callback in self.callbacks],
            # Of batch normalisation every rank has statistics of its own; the agent's own state is rank 0's.
            "buffers": dict(self.agent.named_buffers()) if distributed.rank() else {},
        }
        return {**own, "others": distributed.gathered(own)[1:]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was called.

        Raises:
            UserError: it was called with another number of ranks, and the source's state belongs to single ranks.
        """
        ranks = [state, *state["others"]]
        same = len(ranks) == distributed.size()
        if not same and not self.source.any_ranks:
            raise UserError(
                f"ranks: got {distributed.size()}, expected {len(ranks)}, those that the checkpoint was saved by"
            )
        state = ranks[distributed.rank() if same else 0]
        optim = state["optim"] if same else redistributed([of_rank["optim"] for of_rank in ranks])
        self.optim.load_state_dict(optim)
        self.source.load_state_dict(state["source"])
        self.clock.load_state_dict(state["clock"])
        self.meter.load_state_dict(state["meter"])
        if same or not distributed.rank():  # a new rank begins its own
            self._stream = state["torch_rng"]
        if self._streaming:
            _set_global_stream(self._stream)
        for name, buffer in self.agent.named_buffers():
            buffer.copy_(state["buffers"].get(name, buffer))
        self.train_seconds = state["train_seconds"]
        self.stopping = ranks[0]["stopping"]
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            if saved:
                callback.load_state_dict(saved)  # type: ignore[attr-defined]


def sent(asking: Generator[Batch, Loss, None], out: Loss) -> Batch | None:
    """Send a loss to a run that asked to learn and return what it asks for next; None: it has ended."""
    try:
        return asking.send(out)
    except StopIteration:
        return None


def _global_stream() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_global_stream(stream: dict[str, Any]) -> None:
    torch.set_rng_state(stream["cpu"])
    if stream["cuda"]:
        torch.cuda.set_rng_state_all(stream["cuda"])
