"""Deep Q-networks (Mnih et al. 2015), with improvements that may be combined at will.

y = r + discount * max_a' Q_target(s', a')                        discount = gamma^n (1 - terminated)
y = r + discount * Q_target(s', argmax_a' Q(s', a'))              Double (van Hasselt et al. 2016)
Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a')                       Dueling (Wang et al. 2016)
loss = sum over items of weight * huber(y - Q(s, a))              weight: prioritised replay (Schaul et al. 2016)

Noisy layers (Fortunato et al. 2018) add learnt noise to Q's weights. Munchausen (Vieillard et al. 2020), with the
policy pi = softmax(Q_target / temperature), values softly and adds the action's scaled log-probability to its reward::

    y = r + alpha * clip(temperature * log pi(a | s), clip, 0)
          + discount * sum_a' pi(a' | s') (Q_target(s', a') - temperature * log pi(a' | s'))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from agents.configs.value import DQNConfig
from agents.networks.encode import Network
from agents.networks.heads import QNetwork
from agents.value_based import Errors, ValueAgent
from rlcore import losses
from rlcore.types import Transition


class DQN(ValueAgent):
    """Q-learning with a replay buffer and a target network; online Q-learning with neither is a recipe of it."""

    Config = DQNConfig
    config: DQNConfig

    def build(self, features: Network, heads: dict[str, Any]) -> QNetwork:
        return QNetwork(features, self.actions, **heads)

    def q_values(self, network: nn.Module, obs: Any, noise: Tensor | None = None) -> Tensor:
        return network(obs, noise)

    def errors(self, t: Transition, noise: dict[str, Tensor]) -> Errors:
        q = self.online(t.obs, noise.get("online"))  # (B, A)
        with torch.no_grad():
            target = self.targets(t, noise)  # (B,)
        error = losses.td_error(q, t.action, target)  # (B,)
        penalty = losses.huber(error) if self.config.loss == "huber" else 0.5 * error.square()
        error = error.detach()
        return Errors(penalty, error.abs(), target - error, target)

    def targets(self, t: Transition, noise: dict[str, Tensor]) -> Tensor:
        """Return the targets (B,)."""
        c, mask = self.config, t.extras.get("next_action_mask")
        q_t = self.bootstrap(t.next_obs, noise.get("target"))  # (B, A)
        if c.munchausen:
            q_tm1 = self.bootstrap(t.obs, noise.get("target"))  # (B, A)
            log_policy = losses.scaled_log_policy(q_tm1, c.munchausen_temperature, t.extras.get("action_mask"))
            bonus = log_policy.gather(-1, t.action.unsqueeze(-1)).squeeze(-1).clamp(c.munchausen_clip, 0.0)
            soft = losses.soft_value(q_t, c.munchausen_temperature, mask)
            return t.reward + c.munchausen_alpha * bonus + t.discount * soft
        if c.double:
            return losses.double_q_target(t.reward, t.discount, q_t, self.selector(t, noise), mask)
        return losses.q_learning_target(t.reward, t.discount, q_t, mask)
