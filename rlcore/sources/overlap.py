"""Learn while worker processes step. What happens when is fixed: only waiting is saved, and a resume is exact.

Replay      send a_t = policy(s_t); make the updates due, with all steps before t; receive step t and store it.
            The policy that acts is the newest; updates see one step of every environment less.
Rollout     iteration i learns from rollout i while a copy of the agent, as it was when the iteration began, makes
            rollout i + 1. So what is learnt from was done by a policy one iteration older, whose log-probabilities,
            values and targets it comes with (PPO's ratio takes account of that; A2C and REINFORCE do not).
            The copy is in evaluation mode: it acts without dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from rlcore import distributed
from rlcore.actor import is_empty, joined
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import ReplayConfig, RolloutConfig
from rlcore.errors import UserError
from rlcore.sources.replay import Replay
from rlcore.sources.rollout import Rollout
from rlcore.tree import tmap
from rlcore.types import Act, Batch, Step
from rlcore.types import Rollout as RolloutData
from rlcore.vector import VectorEnv
from rlcore.worker_env import WorkerEnv


class OverlappedReplay(Replay):
    """`Replay` whose updates are made while the environments step.

    With environments in order of arrival, those are acted on whose step has come; the others' rows are not valid.

    Raises:
        UserError: a memory and an order of arrival.
    """

    env: WorkerEnv

    def __init__(
        self, env: WorkerEnv, config: ReplayConfig, seed: int, save_buffer: bool = True, agent: Agent | None = None
    ) -> None:
        super().__init__(env, config, seed, save_buffer, agent)
        if env.order == "arrival" and agent is not None and not is_empty(agent.initial_state(1)):
            raise UserError("env.order: got arrival, expected fixed for an agent with a memory")
        self._sent: Act | None = None  # what the environments are doing
        self._told: Step | None = None  # what came of it, where that is known already

    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Step by step take in what the last acts led to, act anew and yield the updates that have come due."""
        self._begin(agent, clock)
        if self._sent is None:
            self._sent = self._send(agent, clock)
        for _ in range(self.steps):
            step = self.env.receive() if self._told is None else self._told
            acted = joined([self.actor.finish(agent, self._sent, step)])
            self._keep(agent, self.counted(agent, clock, acted))
            self._sent, self._told = self._send(agent, clock), None
            yield from self._due(agent, clock)

    def _send(self, agent: Agent, clock: Clock) -> Act:
        """Act; environments that are busy go on with what they are doing."""
        noise = agent.noise("act", self.env.num_envs, self.actor.rng)
        act = self.actor.choose(agent, self.knobs, noise, clock.frames < self.config.learning_starts)
        if self._sent is not None and self.env.order == "arrival":
            free = self.env.arrived.to(act.action.device).view(-1, *[1] * (act.action.dim() - 1))
            act = act._replace(action=torch.where(free, act.action, self._sent.action))
        self.env.send(act.action)
        return act

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next batches depend on, the step under way with what has come of it."""
        if self._sent is not None and self._told is None:
            self._told = self.env.receive(every=True)
        state = super().state_dict()
        under_way = None if self._sent is None or self._told is None else [tuple(self._sent), tuple(self._told)]
        return state | {"under_way": under_way if state["actor"]["env"] is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called."""
        super().load_state_dict(state)
        self._sent = self._told = None
        if state["under_way"] is not None:
            act, step = (tmap(lambda x: x.to(self.env.device), part) for part in state["under_way"])
            self._sent, self._told = Act(*act), Step(*step)
            self.env.arrived.fill_(True)

    def why_inexact(self) -> str | None:
        """Return why a resume is not exact: environments come as they like, or one of `Replay`'s reasons."""
        if self.env.order == "arrival":
            return "env.order is arrival: no two runs see the environments' steps in one order"
        return super().why_inexact()


class OverlappedRollout(Rollout):
    """`Rollout` that learns from one rollout while a thread makes the next.

    Raises:
        UserError: there are several ranks, whose exchanges must not mix.
    """

    def __init__(self, env: VectorEnv, config: RolloutConfig, seed: int) -> None:
        super().__init__(env, config, seed)
        if distributed.size() > 1:
            raise UserError(f"source.overlap: got true, expected false with {distributed.size()} ranks")
        # Threads of torch are counted by thread; as many make the same sums.
        self._thread = ThreadPoolExecutor(1, "acting", torch.set_num_threads, (torch.get_num_threads(),))
        self._policy: Agent | None = None  # the copy that acts
        self._next: tuple[RolloutData, Any, int] | None = None  # rollout, items, frames
        self._saved: dict[str, Any] | None = None  # of a checkpoint, from which these are made

    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Yield every epoch's minibatches of what was done in the iteration before, while acting for the next."""
        if self._policy is None:
            self._policy = copy.deepcopy(agent).eval()
        if self._saved is not None:
            self._next, self._saved = self._restored(self._policy, self._saved), None
        self.annealed(agent, clock)
        if self._next is None:
            self._next = self._thread.submit(self._ahead, self._policy, clock.frames).result()
        rollout, data, frames = self._next
        clock.frames += frames
        self._policy.load_state_dict(agent.state_dict())
        coming = self._thread.submit(self._ahead, self._policy, clock.frames)
        yield from self.learn(agent, rollout, data)
        self._next = coming.result()

    def _ahead(self, policy: Agent, frames: int) -> tuple[RolloutData, Any, int]:
        clock = Clock(0, 1, frames)  # the run's own clock counts the frames when they are learnt from
        rollout, data = self.gather(policy, clock)
        return rollout, data, clock.frames - frames

    def _restored(self, policy: Agent, saved: dict[str, Any]) -> tuple[RolloutData, Any, int]:
        rollout = RolloutData(**tmap(lambda x: x.to(self.env.device), saved["rollout"]))
        policy.load_state_dict(saved["policy"])
        with torch.no_grad():
            return rollout, policy.prepare(rollout), saved["frames"]

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next batches depend on, the rollout to learn from next with the policy that made it."""
        state = super().state_dict()
        if self._next is None or self._policy is None:
            return state | {"next": self._saved}
        rollout, _, frames = self._next
        policy: dict[str, Tensor] = dict(self._policy.state_dict())
        return state | {"next": {"rollout": rollout._asdict(), "frames": frames, "policy": policy}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called."""
        super().load_state_dict(state)
        self._next, self._saved = None, state["next"]
