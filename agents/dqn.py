"""Deep Q-networks: Mnih et al. 2015, with Double (van Hasselt et al. 2016) and Dueling (Wang et al. 2016).

y = r + discount * max_a' Q_target(s', a')                        discount = gamma^n (1 - terminated)
y = r + discount * Q_target(s', argmax_a' Q(s', a'))              Double
Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a')                       Dueling
loss = sum over items of weight * huber(y - Q(s, a))
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.value import DQNConfig
from agents.networks import build_network
from rlcore import losses
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.errors import UserError
from rlcore.exploration import epsilon_greedy
from rlcore.targets import hard_update, polyak_update
from rlcore.tree import tmap
from rlcore.types import Act, Batch, Loss, Rollout, Spec, Transition


class QNetwork(nn.Module):
    """Features, then one value per action: obs tree (B, ...) -> (B, actions)."""

    def __init__(self, config: DQNConfig, spec: Spec, actions: int) -> None:
        super().__init__()
        self.features = build_network(config.network, spec.obs_space)
        width = self.features.out_features
        self.advantage = nn.Linear(width, actions)
        self.value = nn.Linear(width, 1) if config.dueling else None

    def forward(self, obs: Any) -> Tensor:
        """Return the action values."""
        features = self.features(obs)
        q = self.advantage(features)
        if self.value is not None:
            q = self.value(features) + q - q.mean(-1, keepdim=True)
        return q


class DQN(Agent):
    """Q-learning with a replay buffer and a target network; online Q-learning with neither is a recipe of it."""

    Config = DQNConfig
    config: DQNConfig

    def __init__(self, config: DQNConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        if not isinstance(spec.action_space, spaces.Discrete):
            raise UserError(f"agent 'dqn' cannot serve action space {spec.action_space}; expected Discrete")
        self.actions = int(spec.action_space.n)
        self.gamma, self.n_step = config.gamma, config.n_step
        self.online = QNetwork(config, spec, self.actions)
        self.target = None if config.target == "none" else copy.deepcopy(self.online).requires_grad_(False)

    def schedules(self) -> dict[str, Any]:
        return {"epsilon": self.config.epsilon}

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        if what == "loss":
            return {}
        coins = torch.rand(n, self.actions + 1, generator=generator, device=generator.device)
        return {"coin": coins[:, 0], "scores": coins[:, 1:]}

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        q = losses.masked(self.online(obs), mask)  # (N, A)
        if not explore:
            return Act(q.argmax(-1), state, {"q": q})
        return Act(epsilon_greedy(q, knobs["epsilon"], noise["coin"], noise["scores"], mask), state)

    def loss(self, batch: Batch) -> Loss:
        t: Transition = batch.data
        q = self.online(t.obs)  # (B, A)
        with torch.no_grad():
            mask = t.extras.get("next_action_mask")
            q_next = (self.online if self.target is None else self.target)(t.next_obs)  # (B, A)
            if self.config.double:
                target = losses.double_q_target(t.reward, t.discount, q_next, self.online(t.next_obs), mask)
            else:
                target = losses.q_learning_target(t.reward, t.discount, q_next, mask)
        error = losses.td_error(q, t.action, target)  # (B,)
        penalty = losses.huber(error) if self.config.loss == "huber" else 0.5 * error.square()
        if t.weight is not None:
            penalty = t.weight * penalty
        metrics = {"q_value": (target - error.detach()).mean(), "target_q": target.mean()}
        return Loss(penalty.sum(), len(q), metrics, priority=error.detach().abs())

    def after_update(self, clock: Clock) -> None:
        if self.target is None:
            return
        if self.config.target == "polyak":
            polyak_update(self.target, self.online, self.config.tau)
        elif clock.crossed(self.config.target_every):
            hard_update(self.target, self.online)

    def prepare(self, rollout: Rollout) -> Transition:
        """One-step transitions of the rollout, for online Q-learning."""
        if self.n_step != 1:
            raise UserError(f"agent.n_step: got {self.n_step}, expected 1 with source.name=rollout")
        fields = {
            "obs": rollout.obs,
            "action": rollout.action,
            "reward": rollout.reward,
            "discount": self.gamma * (~rollout.terminated).float(),
            "next_obs": rollout.next_obs,
            "extras": {k: v for k, v in rollout.extras.items() if k == "next_action_mask"},
        }
        return Transition(**tmap(lambda x: x.flatten(0, 1), fields))
