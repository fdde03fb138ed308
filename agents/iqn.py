"""Implicit quantile networks (Dabney et al. 2018b): the return's quantile at any fraction tau.

Z_tau(s, a) = head(psi(s) * phi(tau))                     phi: see `QuantileNetwork`
Q(s, a) = mean over K evenly spaced tau of Z_tau(s, a)    fixed ones, so that acting is deterministic
y_j = r + discount * Z_target_tau'_j(s', a*)              tau_i, tau'_j uniform, drawn per item; a* the best by Q
loss = sum over items of weight * sum_i mean_j |tau_i - 1{y_j < Z_tau_i}| huber(y_j - Z_tau_i) / kappa
priority = |mean_j y_j - mean_i Z_tau_i(s, a)|
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from agents.configs.value import IQNConfig
from agents.networks.encode import Network
from agents.networks.heads import QuantileNetwork
from agents.value_based import Errors, ValueAgent, taken
from rlcore import losses
from rlcore.types import Spec, Transition


class IQN(ValueAgent):
    """Learns the return's quantile function from sampled fractions."""

    Config = IQNConfig
    config: IQNConfig
    tau: Tensor  # (K,)

    def __init__(self, config: IQNConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        self.register_buffer("tau", losses.midpoints(config.policy_samples), persistent=False)

    def build(self, features: Network, heads: dict[str, Any]) -> QuantileNetwork:
        return QuantileNetwork(features, self.actions, self.config.cosines, **heads)

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = super().noise(what, n, generator)
        if what == "loss":
            sizes = {"tau": self.config.samples, "target_tau": self.config.target_samples}
            drawn |= {k: torch.rand(n, size, generator=generator, device=generator.device) for k, size in sizes.items()}
        return drawn

    def q_values(self, network: nn.Module, obs: Any, noise: Tensor | None = None) -> Tensor:
        return network(obs, self.tau, noise).mean(1)

    def errors(self, t: Transition, noise: dict[str, Tensor]) -> Errors:
        tau = noise["tau"]  # (B, M)
        z = self.online(t.obs, tau, noise.get("online"))  # (B, M, A)
        z = taken(z.transpose(1, 2), t.action)  # (B, M)
        with torch.no_grad():
            fractions = noise["target_tau"]  # (B, M')
            if not self.config.double:  # one pass for the samples and for the values that choose the action
                fractions = torch.cat([fractions, self.tau.expand(len(tau), -1)], dim=-1)  # (B, M' + K)
            z_t = self.bootstrap(t.next_obs, fractions, noise.get("target")).transpose(1, 2)  # (B, A, M' (+ K))
            samples, policy = z_t.tensor_split([self.config.target_samples], dim=-1)  # with double the latter is empty
            z_t = taken(samples, self.next_action(policy.mean(-1), t, noise))  # (B, M')
            target = t.reward.unsqueeze(-1) + t.discount.unsqueeze(-1) * z_t  # (B, M')
        penalty = losses.quantile_huber(z, target, tau, self.config.kappa)
        q, y = z.mean(-1), target.mean(-1)
        return Errors(penalty, (y - q).abs(), q, y)
