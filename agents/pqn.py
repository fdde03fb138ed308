"""Parallelised Q-network: Q(lambda) over many environments, no replay, no target network (Gallici et al. 2024).

G_t = r_{t+1} + gamma (1 - terminated) ((1 - lam) max_a Q(s_{t+1}, a) + lam G_{t+1})
      with G_{t+1} = max_a Q(s_{t+1}, a) where the episode was truncated or the rollout ends
loss = sum over steps of (G_t - Q(s_t, a_t))^2 / 2

The targets are computed once per rollout, with the network that acted. Layer normalisation in the network stands in for
the target network: it bounds how far the values of unseen actions run away.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.value import PQNConfig
from agents.networks import build_network
from rlcore import losses, returns
from rlcore.agent import Agent
from rlcore.errors import UserError
from rlcore.exploration import coins, epsilon_greedy
from rlcore.normalize import Normalizer
from rlcore.tree import tmap
from rlcore.types import Act, Batch, Loss, Rollout, Spec


class Item(NamedTuple):
    """A step to learn from."""

    obs: Any  # tree (B, ...)
    action: Tensor  # (B,)
    target: Tensor  # (B,): the lambda-return


class PQN(Agent):
    """On-policy Q-learning from the rollouts of many environments side by side."""

    Config = PQNConfig
    config: PQNConfig

    def __init__(self, config: PQNConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        if not isinstance(spec.action_space, spaces.Discrete):
            raise UserError(f"agent 'pqn' cannot serve action space {spec.action_space}; expected Discrete")
        self.actions = int(spec.action_space.n)
        self.gamma = config.gamma
        self.obs = Normalizer(spec.obs_space) if config.normalize_obs else nn.Identity()
        features = build_network(config.network, spec.obs_space)
        if features.recurrent:
            raise UserError(
                f"agent 'pqn' cannot use network '{config.network.name}', which has a memory; "
                "expected a feed-forward network"
            )
        self.q = nn.Sequential(features, nn.Linear(features.out_features, self.actions))

    def schedules(self) -> dict[str, Any]:
        return {"epsilon": self.config.epsilon}

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return coins(n, self.actions, generator) if what == "act" else {}

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        q = losses.masked(self.q(self.obs(obs)), mask)  # (N, A)
        if not explore:
            return Act(q.argmax(-1), state, {"q": q})
        return Act(epsilon_greedy(q, knobs["epsilon"], noise["coin"], noise["scores"], mask), state)

    def prepare(self, rollout: Rollout) -> Item:
        steps, envs = rollout.reward.shape
        successors = tmap(lambda x: x.flatten(0, 1), rollout.next_obs)
        q_next = self.q(self.obs(successors)).view(steps, envs, -1)  # (T, N, A)
        value = losses.masked(q_next, rollout.extras.get("next_action_mask")).amax(-1)  # (T, N)
        target = returns.lambda_returns(
            rollout.reward, value, rollout.terminated, rollout.truncated, self.gamma, self.config.lam, rollout.valid
        )
        return tmap(lambda x: x.flatten(0, 1), Item(rollout.obs, rollout.action, target))

    def loss(self, batch: Batch) -> Loss:
        item: Item = batch.data
        error = losses.td_error(self.q(self.obs(item.obs)), item.action, item.target)  # (B,)
        metrics = {"q_value": (item.target - error.detach()).mean(), "target_q": item.target.mean()}
        return Loss(0.5 * error.square().sum(), len(error), metrics)
