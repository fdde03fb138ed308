"""Deep deterministic policy gradient (Lillicrap et al. 2016).

critic:  sum over items of weight * (r + discount * Q'(s', mu'(s')) - Q(s, a))^2 / 2      discount = gamma^n (1 - term.)
actor:   sum over items of -Q(s, mu(s))
explore: mu(s) + noise * normal, held within the Box                 Q' and mu' trail behind Q and mu by polyak
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from agents.configs.continuous import DDPGConfig
from agents.continuous import Actor, ContinuousAgent, Critic
from rlcore.agent import Phase
from rlcore.clock import Clock
from rlcore.exploration import gaussian
from rlcore.targets import polyak_update
from rlcore.types import Act, Batch, Loss, Spec, Transition


class DDPG(ContinuousAgent):
    """Follows the critic's gradient uphill; explores by Gaussian noise."""

    Config = DDPGConfig
    config: DDPGConfig
    critics = 1

    def __init__(self, config: DDPGConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        self.actor = Actor(config, spec, self.actions)
        self.critic = Critic(config, spec, self.actions, self.critics)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"critic": list(self.critic.parameters()), "actor": list(self.actor.parameters())}

    def phases(self, updates: int) -> list[Phase]:
        return [("critic", self.loss), ("actor", self.actor_loss)]

    def schedules(self) -> dict[str, Any]:
        return {"noise": self.config.noise}

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        if what == "loss":
            return {}
        return {"explore": torch.randn(n, *self.scale.low.shape, generator=generator, device=generator.device)}

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        scale = self.scale
        action = scale.to_env(self.actor(self.obs(obs)).tanh())
        if explore:
            action = gaussian(action, knobs["noise"] * scale.radius, noise["explore"], scale.low, scale.high)
        return Act(action, state)

    def loss(self, batch: Batch) -> Loss:
        """The critics' loss."""
        t: Transition = batch.data
        with torch.no_grad():
            next_obs = self.obs(t.next_obs)
            q_next = self.target_critic(next_obs, self.next_action(next_obs, batch.noise)).amin(0)
        return self.critic_loss(t, self.q(t), t.reward + t.discount * q_next)

    def next_action(self, next_obs: Any, noise: dict[str, Tensor]) -> Tensor:
        """Return the target's actions (B, A) in [-1, 1] for normalised observations."""
        return self.target_actor(next_obs).tanh()

    def actor_loss(self, batch: Batch) -> Loss:
        """Minus the first critic's value of the actor's actions."""
        obs = self.obs(batch.data.obs)
        q = self.critic(obs, self.actor(obs).tanh(), 1).squeeze(0)  # (B,)
        return Loss(-q.sum(), len(q))

    def after_update(self, clock: Clock) -> None:
        polyak_update(self.target_critic, self.critic, self.config.tau)
        polyak_update(self.target_actor, self.actor, self.config.tau)
