"""Categorical DQN, "C51" (Bellemare et al. 2017): the return's distribution over fixed, evenly spaced atoms z.

Q(s, a) = sum_i z_i p_i(s, a),   p = softmax of the network's outputs
m = projection onto z of r + discount * z with probabilities p_target(s', a*)     a* the best next action by Q
loss = sum over items of weight * KL(m || p(s, a)),   priority = the item's KL

The divergence is the cross-entropy less m's own entropy, which is a constant: their gradients are the same.
Dueling sums the streams for each atom before the softmax (Wang et al. 2016; Hessel et al. 2018).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.configs.value import C51Config, CategoricalConfig
from agents.networks.encode import Network
from agents.networks.heads import QNetwork
from agents.value_based import Errors, ValueAgent, taken
from rlcore import losses
from rlcore.types import Spec, Transition


class C51(ValueAgent):
    """Learns the probabilities of returns between v_min and v_max."""

    Config: ClassVar[type[CategoricalConfig]] = C51Config  # pyright: ignore[reportIncompatibleVariableOverride]
    config: CategoricalConfig
    support: Tensor  # (Z,)

    def __init__(self, config: CategoricalConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        self.register_buffer("support", torch.linspace(config.v_min, config.v_max, config.atoms), persistent=False)

    def build(self, features: Network, heads: dict[str, Any]) -> QNetwork:
        return QNetwork(features, self.actions, self.config.atoms, **heads)

    def q_values(self, network: nn.Module, obs: Any, noise: Tensor | None = None) -> Tensor:
        return network(obs, noise).softmax(-1) @ self.support

    def errors(self, t: Transition, noise: dict[str, Tensor]) -> Errors:
        logits = taken(self.online(t.obs, noise.get("online")), t.action)  # (B, Z)
        with torch.no_grad():
            probs = self.bootstrap(t.next_obs, noise.get("target")).softmax(-1)  # (B, A, Z)
            probs = taken(probs, self.next_action(probs @ self.support, t, noise))  # (B, Z)
            atoms = t.reward.unsqueeze(-1) + t.discount.unsqueeze(-1) * self.support  # (B, Z)
            target = losses.categorical_projection(self.support, atoms, probs)  # (B, Z)
        divergence = losses.kl_divergence(logits, target)  # (B,)
        return Errors(divergence, divergence, logits.softmax(-1) @ self.support, target @ self.support)
