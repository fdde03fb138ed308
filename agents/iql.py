"""Implicit Q-learning (Kostrikov et al. 2021): values of the best recorded actions, without trying any other.

value:   sum over items of |tau - 1{u < 0}| u^2,  u = min_k Q'_k(s, a) - V(s)        the expectile tau of Q, equation 5
critics: sum over items of sum_k (r + discount V(s') - Q_k(s, a))^2 / 2              k = 1, 2; equation 6
policy:  sum over items of -min(exp(beta u), max_weight) log pi(a|s)                 equation 7
discount = gamma^n (1 - terminated);  Q' trails behind Q by polyak

Each term reaches its own network only, so one sum serves all three.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.offline import IQLConfig
from agents.continuous import Critic
from agents.offline import Heads, Policy
from rlcore import losses
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.errors import UserError
from rlcore.normalize import Normalizer
from rlcore.targets import polyak_update
from rlcore.types import Act, Batch, Loss, Spec, Transition


def expectile_loss(error: Tensor, tau: float) -> Tensor:
    """Return ``|tau - 1{error < 0}| * error**2``, elementwise, for errors target - prediction."""
    return torch.where(error < 0, 1 - tau, tau) * error.square()


def advantage_weight(advantage: Tensor, beta: float, largest: float) -> Tensor:
    """Return ``min(exp(beta * advantage), largest)``, elementwise and without gradient."""
    return (beta * advantage.detach()).exp().clamp(max=largest)


class IQL(Agent):
    """For Discrete and bounded Box actions."""

    Config = IQLConfig
    config: IQLConfig

    def __init__(self, config: IQLConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        space = spec.action_space
        if not isinstance(space, spaces.Discrete | spaces.Box):
            raise UserError(f"agent 'iql' cannot serve action space {space}; expected Discrete or a bounded Box")
        self.gamma, self.n_step = config.gamma, config.n_step
        self.obs = Normalizer(spec.obs_space) if config.normalize_obs else nn.Identity()
        self.policy = Policy(config, spec)
        self.value = Heads(config, spec, 1)
        discrete = isinstance(space, spaces.Discrete)
        self.critic = Heads(config, spec, int(space.n), 2) if discrete else Critic(config, spec, self.policy.outputs, 2)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"policy": self.policy.noise(n, generator)} if what == "act" else {}

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        return Act(self.policy.sample(self.obs(obs), noise["policy"] if explore else None, mask), state)

    def insight(self, obs: Any, state: Any, mask: Tensor | None = None) -> dict[str, Tensor]:
        seen, action = self.obs(obs), self.act(obs, state, {}, {}, mask, explore=False).action
        if self.policy.scale is None:
            q = losses.masked(self.critic(seen).amin(0), mask)  # (N, A)
        else:
            q = self.q(self.critic, seen, action).amin(0)  # (N,)
        return {"q": q, "value": self.value(seen).view(-1), **self.policy.distribution(seen, mask).insight()}

    def loss(self, batch: Batch) -> Loss:
        t: Transition = batch.data
        obs, config = self.obs(t.obs), self.config
        with torch.no_grad():
            target = t.reward + t.discount * self.value(self.obs(t.next_obs)).view(-1)  # (B,)
            best = self.q(self.target_critic, obs, t.action).amin(0)  # (B,)
        value = self.value(obs).view(-1)  # (B,)
        q = self.q(self.critic, obs, t.action)  # (2, B)
        log_prob = self.policy.log_prob(obs, t.action, t.extras.get("action_mask"))  # (B,)
        weight = advantage_weight(best - value, config.beta, config.max_weight)
        value_loss = expectile_loss(best - value, config.expectile)
        critic_loss = 0.5 * (target - q).square().sum(0)
        metrics = {
            "q_value": q.detach().mean(),
            "target_q": target.mean(),
            "value": value.detach().mean(),
            "advantage_weight": weight.mean(),
            "log_prob": log_prob.detach().mean(),
        }
        return Loss((value_loss + critic_loss - weight * log_prob).sum(), len(value), metrics)

    def q(self, critic: nn.Module, obs: Any, action: Tensor) -> Tensor:
        """Return both critics' values (2, B) of the environment's actions (B, ...)."""
        if self.policy.scale is not None:
            return critic(obs, self.policy.scale.from_env(action))
        return critic(obs).gather(-1, action.expand(2, -1).unsqueeze(-1)).squeeze(-1)

    def after_update(self, clock: Clock) -> None:
        polyak_update(self.target_critic, self.critic, self.config.tau)
