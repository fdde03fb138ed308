"""What all sources have in common, and those that act in an environment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlcore import distributed
from rlcore.actor import Acted, Actor
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import Reward
from rlcore.graphs import Graphs, record
from rlcore.meter import Meter
from rlcore.normalize import RewardScale
from rlcore.seeding import generator
from rlcore.tree import leaves, tmap
from rlcore.types import Batch, Loss, Step
from rlcore.vector import VectorEnv


class Source(ABC):
    """Yields the batches of one iteration at a time and owns all that they depend on."""

    any_ranks: ClassVar[bool] = False  # True: the state is that of all ranks, so another number of them can go on

    def __init__(self, env: VectorEnv, seed: int, stream: str = "source") -> None:
        self.env = env
        self.rng = generator(seed, stream, env.device)
        self.knobs: dict[str, Tensor] = {}
        self.meter = Meter()  # watches observations and rewards for NaN and infinity, by frame

    @abstractmethod
    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Advance the clock's frames by one iteration's and yield its batches."""

    def feedback(self, batch: Batch, out: Loss) -> None:  # noqa: B027 - most sources need none
        """Take note of a batch's loss: priorities, early stop."""

    def statistics(self) -> dict[str, float]:
        """Return what happened since the last call, for the log (train/NAME)."""
        self.meter.flush()
        return {}

    def why_inexact(self) -> str | None:
        """Return why a resume from this source's checkpoints is not exact, in a clause; None: it is."""
        return self.env.why_not_capturable

    def nbytes(self) -> int:
        """Return the bytes that a checkpoint of this source will grow by while it fills."""
        return 0

    def annealed(self, agent: Agent, clock: Clock) -> dict[str, Tensor]:
        """Write the agent's schedules at this moment into 0-dim tensors and return them."""
        for name, schedule in agent.schedules().items():
            value = schedule(clock.progress)
            if name in self.knobs:
                self.knobs[name].fill_(value)
            else:
                self.knobs[name] = torch.tensor(value, dtype=torch.float32, device=self.env.device)
        return self.knobs

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next batches depend on."""
        return {"rng": self.rng.get_state(), "meter": self.meter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called."""
        self.rng.set_state(state["rng"].cpu())
        self.meter.load_state_dict(state["meter"])


class Acting(Source):
    """A source that acts in its environment.

    ``reward`` says what is learnt from: "raw" rewards, their "sign", or "normalize", see `RewardScale`. What is
    logged and evaluated stays raw.
    """

    stores: ClassVar[bool] = False  # True: rewards are kept unscaled, and scaled when they are drawn

    def __init__(self, env: VectorEnv, seed: int, reward: Reward = "raw") -> None:
        super().__init__(env, seed, distributed.stream("source"))
        self.actor = Actor(env, seed)
        self.num_envs = distributed.total(env.num_envs)  # of all ranks
        self.reward = reward
        self.graphs = Graphs()
        self.scale = RewardScale(env.num_envs).to(env.device)

    def compile(self) -> None:
        """Compile acting; on CUDA let what goes through `Graphs` be graphs."""
        self.actor.compiled = True
        if self.env.device.type == "cuda":
            self.graphs.record = record

    def act(self, agent: Agent, clock: Clock, steps: int, random_until: int = 0) -> Acted:
        """Act so many times in every environment and count the frames; return it all, (T, N, ...).

        Rewards are those to keep. Up to the frame ``random_until`` actions are uniform.
        """
        parts: list[Acted] = []
        while steps > 0:
            left, count = random_until - clock.frames, steps
            if left > 0:  # one by one where a step may be of fewer environments than there are
                count = min(steps, -(-left // self.num_envs)) if self.env.always_valid else 1
            parts += [
                self.counted(agent, clock, acted) for acted in self.actor.steps(agent, self.knobs, count, left > 0)
            ]
            steps -= count
        return parts[0] if len(parts) == 1 else tmap(lambda *x: torch.cat(x), *parts)

    def counted(self, agent: Agent, clock: Clock, acted: Acted) -> Acted:
        """Count the frames of steps (T, N, ...), watch their numbers and return them with the rewards to keep."""
        step = acted.step
        self.actor.episodes.add(step)
        if self.env.always_valid:
            counts = [self.num_envs] * len(step.reward)
        else:
            counts = [distributed.total(int(valid.sum())) for valid in step.valid]
        frames = list(accumulate(counts, initial=clock.frames))[1:]
        clock.frames = frames[-1]
        for leaf in leaves(step.next_obs):
            if leaf.is_floating_point():
                self.meter.watch(frames, "observation", leaf)
        self.meter.watch(frames, "reward", step.reward)
        return acted if self.reward == "raw" else acted._replace(step=self._transformed(step, agent.gamma))

    def _transformed(self, step: Step, gamma: float) -> Step:
        if self.reward == "sign":
            return step._replace(reward=step.reward.sign())
        ended, kept = step.terminated | step.truncated, []
        for reward, done, valid in zip(step.reward, ended, step.valid, strict=True):
            self.scale.observe(reward, done, valid, gamma)
            kept.append(reward if self.stores else self.scale(reward))
        return step._replace(reward=torch.stack(kept))

    def statistics(self) -> dict[str, float]:
        """Return the mean return and length of the episodes finished since the last call."""
        return super().statistics() | self.actor.episodes.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next batches depend on."""
        return super().state_dict() | {"actor": self.actor.state_dict(), "scale": dict(self.scale.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called."""
        super().load_state_dict(state)
        self.actor.load_state_dict(state["actor"])
        self.scale.load_state_dict(state["scale"])
        if state["actor"]["env"] is None:
            self.scale.running.zero_()  # the environments started new episodes
