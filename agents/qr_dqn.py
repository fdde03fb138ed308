"""Quantile-regression DQN (Dabney et al. 2018a): the return's quantiles theta_i at tau_i = (i - 1/2) / N.

Q(s, a) = mean_i theta_i(s, a)
y_j = r + discount * theta_target_j(s', a*)                                       a* the best next action by Q
loss = sum over items of weight * sum_i mean_j |tau_i - 1{y_j < theta_i}| huber(y_j - theta_i) / kappa
priority = |mean_j y_j - Q(s, a)|
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from agents.configs.value import QRDQNConfig
from agents.networks.encode import Network
from agents.networks.heads import QNetwork
from agents.value_based import Errors, ValueAgent, taken
from rlcore import losses
from rlcore.types import Spec, Transition


class QRDQN(ValueAgent):
    """Learns evenly spaced quantiles of the return."""

    Config = QRDQNConfig
    config: QRDQNConfig
    tau: Tensor  # (N,)

    def __init__(self, config: QRDQNConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        self.register_buffer("tau", losses.midpoints(config.quantiles), persistent=False)

    def build(self, features: Network, heads: dict[str, Any]) -> QNetwork:
        return QNetwork(features, self.actions, self.config.quantiles, **heads)

    def q_values(self, network: nn.Module, obs: Any, noise: Tensor | None = None) -> Tensor:
        return network(obs, noise).mean(-1)

    def errors(self, t: Transition, noise: dict[str, Tensor]) -> Errors:
        theta = taken(self.online(t.obs, noise.get("online")), t.action)  # (B, N)
        with torch.no_grad():
            theta_t = self.bootstrap(t.next_obs, noise.get("target"))  # (B, A, N)
            theta_t = taken(theta_t, self.next_action(theta_t.mean(-1), t, noise))  # (B, N)
            target = t.reward.unsqueeze(-1) + t.discount.unsqueeze(-1) * theta_t  # (B, N)
        penalty = losses.quantile_huber(theta, target, self.tau, self.config.kappa)
        q, y = theta.mean(-1), target.mean(-1)
        return Errors(penalty, (y - q).abs(), q, y)
