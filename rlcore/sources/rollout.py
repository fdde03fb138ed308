"""Act for a horizon, let the agent attach targets, learn for a few epochs, forget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rlcore import distributed
from rlcore.actor import Acted
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import RolloutConfig
from rlcore.errors import UserError
from rlcore.sources.base import Acting
from rlcore.tree import leaves, tmap
from rlcore.types import Batch, Loss
from rlcore.types import Rollout as RolloutData
from rlcore.vector import VectorEnv


class Rollout(Acting):
    """Act for a horizon, let the agent attach targets, learn for a few epochs, forget."""

    def __init__(self, env: VectorEnv, config: RolloutConfig, seed: int) -> None:
        super().__init__(env, seed, config.reward)
        self.config = config
        self.stopped = False
        items = config.horizon * env.num_envs
        if config.minibatches > items:
            raise UserError(
                f"source.minibatches: got {config.minibatches}, expected at most the {items} steps of a rollout"
            )

    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Act for the horizon, then yield every epoch's minibatches."""
        self.annealed(agent, clock)
        rollout, data = self.gather(agent, clock)
        yield from self.learn(agent, rollout, data)

    def gather(self, agent: Agent, clock: Clock) -> tuple[RolloutData, Any]:
        """Act for the horizon; return what happened, (T, N, ...), and the items made of it."""
        rollout = _rollout(self.act(agent, clock, self.config.horizon))
        with torch.no_grad():
            data = self.graphs(
                "prepare",
                agent.prepare,
                rollout,
                of=agent,
                places=lambda: [*agent.parameters()],
                changed=lambda: [*agent.buffers()],
            )
        return rollout, data

    def learn(self, agent: Agent, rollout: RolloutData, data: Any) -> Iterator[Batch]:
        """Yield every epoch's minibatches of a rollout's items."""
        valid = rollout.valid.flatten()
        with torch.no_grad():
            agent.observe(tmap(lambda x: x.flatten(0, 1), rollout.obs), valid)
        count = len(next(leaves(data)))
        if self.config.minibatches > count:
            raise UserError(
                f"source.minibatches: got {self.config.minibatches}, expected at most the {count} items of a rollout"
            )
        for _ in range(self.config.epochs):
            order = torch.randperm(count, generator=self.rng, device=valid.device)
            if not self.env.always_valid and count == len(valid):  # items are steps, not sequences
                order = order[valid[order]]
            for index in order.tensor_split(self.config.minibatches):
                counts = len(index) > 0
                if not counts and distributed.size() == 1:  # else another rank may have items
                    continue
                index = index if counts else order.new_zeros(1)
                items = agent.minibatch(tmap(lambda x, i=index: x.index_select(0, i), data))
                yield Batch(items, self.knobs, agent.noise("loss", len(index), self.rng), counts=counts)
                if self.stopped:
                    return

    def feedback(self, batch: Batch, out: Loss) -> None:
        """Remember the wish to stop this iteration, of any rank."""
        self.stopped = out.stop if out.stop is False else distributed.anywhere(bool(out.stop))


def _rollout(acted: Acted) -> RolloutData:
    """Return a horizon's steps (T, N, ...) as agents take them."""
    step = acted.step
    return RolloutData(
        obs=acted.obs,
        action=acted.act.action,
        reward=step.reward,
        terminated=step.terminated,
        truncated=step.truncated,
        next_obs=step.next_obs,
        valid=step.valid,
        act=acted.act.extras,
        extras={**step.extras, **acted.extras},  # Step.extras has the masks of the observation to come
        state=acted.state,
    )
