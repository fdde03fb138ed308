"""Soft actor-critic with automatic temperature (Haarnoja et al. 2018, "Soft actor-critic algorithms and applications").

a' ~ pi(s'):  y = r + discount * (min_k Q'_k(s', a') - alpha log pi(a'|s'))      discount = gamma^n (1 - terminated)
critics:      sum over items of weight * sum_k (y - Q_k(s, a))^2 / 2             k = 1, 2; Q' trail behind by polyak
actor:        sum over items of alpha log pi(a~|s) - min_k Q_k(s, a~)            a~ = tanh(mean(s) + std(s) * normal)
temperature:  sum over items of -log alpha * (log pi(a~|s) + target entropy)     the direction of equation 18

Log-densities and entropies are those of actions a in [-1, 1], which the Box's scale maps to the environment's: a reward
for entropy in the environment's units would pay, or charge, every step for the Box's width.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from agents import squashed_gaussian
from agents.configs.continuous import SACConfig
from agents.continuous import Actor, ContinuousAgent, Critic
from rlcore.agent import Phase
from rlcore.clock import Clock
from rlcore.targets import polyak_update
from rlcore.types import Act, Batch, Loss, Spec, Transition

LOG_STD = (-20.0, 2.0)


class SAC(ContinuousAgent):
    """Maximises the return plus the policy's entropy, weighted to keep the entropy near its target."""

    Config = SACConfig
    config: SACConfig

    def __init__(self, config: SACConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        self.actor = Actor(config, spec, 2 * self.actions)
        self.critic = Critic(config, spec, self.actions, critics=2)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        self.target_entropy = -self.actions if config.target_entropy is None else config.target_entropy

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "critic": list(self.critic.parameters()),
            "actor": list(self.actor.parameters()),
            "temperature": [self.log_temperature],
        }

    def phases(self, updates: int) -> list[Phase]:
        return [("critic", self.loss), ("actor", self.actor_loss), ("temperature", self.temperature_loss)]

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        names = ("explore",) if what == "act" else ("next", "policy")
        normal = torch.randn(n, len(names), self.actions, generator=generator, device=generator.device)
        return dict(zip(names, normal.unbind(1), strict=True))

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        if not explore:
            mean, _ = self.actor(self.obs(obs)).chunk(2, -1)
            return Act(self.scale.to_env(squashed_gaussian.mode(mean)), state)
        return Act(self.scale.to_env(self._policy(self.obs(obs), noise["explore"])[0]), state)

    def loss(self, batch: Batch) -> Loss:
        """The critics' loss."""
        return self.critic_loss(batch.data, self.q(batch.data), self.target(batch))

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """Return y (B,)."""
        t: Transition = batch.data
        next_obs = self.obs(t.next_obs)
        a, log_prob = self._policy(next_obs, batch.noise["next"])
        soft = self.target_critic(next_obs, a).amin(0) - self.log_temperature.exp() * log_prob
        return t.reward + t.discount * soft

    def actor_loss(self, batch: Batch) -> Loss:
        """The expected divergence from the soft-greedy policy."""
        obs = self.obs(batch.data.obs)
        a, log_prob = self._policy(obs, batch.noise["policy"])
        q = self.critic(obs, a).amin(0)  # (B,)
        loss = self.log_temperature.detach().exp() * log_prob - q
        return Loss(loss.sum(), len(q), {"entropy": -log_prob.detach().mean()})

    def temperature_loss(self, batch: Batch) -> Loss:
        """Raises the temperature where the entropy is below its target."""
        with torch.no_grad():
            _, log_prob = self._policy(self.obs(batch.data.obs), batch.noise["policy"])
        loss = -self.log_temperature * (log_prob + self.target_entropy)
        return Loss(loss.sum(), len(loss), {"temperature": self.log_temperature.detach().exp()})

    def after_update(self, clock: Clock) -> None:
        polyak_update(self.target_critic, self.critic, self.config.tau)

    def _policy(self, obs: Any, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions in [-1, 1] (B, A) and their log-densities (B,) for normalised observations."""
        mean, log_std = self.actor(obs).chunk(2, -1)
        return squashed_gaussian.sample(mean, log_std.clamp(*LOG_STD), normal)
