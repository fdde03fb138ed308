"""Proximal policy optimisation (Schulman et al. 2017), for any action space, with or without memory.

ratio = pi(a | s) / pi_old(a | s)
loss = sum over steps of   -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)                 A: scaled per minibatch
                         + value_coef (V(s) - G)^2 / 2 - entropy_coef H(pi(. | s))        G = A + V_old(s)

Advantages are generalised (`agents.actor_critic`). The updates of a rollout end once the approximate divergence
KL(pi_old, pi) = mean (ratio - 1 - log ratio) exceeds 1.5 target_kl.
"""

from __future__ import annotations

from agents.actor_critic import ActorCritic
from agents.configs.policy import PPOConfig
from rlcore import losses
from rlcore.types import Batch, Loss, Spec


class PPO(ActorCritic):
    """A few epochs of clipped policy gradient on each rollout."""

    Config = PPOConfig
    config: PPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: PPOConfig, spec: Spec) -> None:
        super().__init__(config, spec, config.lam)

    def loss(self, batch: Batch) -> Loss:
        config = self.config
        policy, value, item = self.evaluate(batch.data)
        log_prob = policy.log_prob(item.action)  # (B,)
        policy_loss = losses.clipped_surrogate(log_prob, item.log_prob, item.advantage, config.clip)
        if config.value_clip:
            value_loss = losses.clipped_value_loss(value, item.value, item.target, config.value_clip)
        else:
            value_loss = 0.5 * (value - item.target).square()
        log_ratio = (log_prob - item.log_prob).detach()
        diagnostics = {
            "approx_kl": log_ratio.exp() - 1 - log_ratio,
            "clip_fraction": ((log_ratio.exp() - 1).abs() > config.clip).float(),
        }
        out = self.summed(item, policy_loss, value_loss, policy.entropy(), diagnostics)
        stop = out.metrics["approx_kl"] > 1.5 * config.target_kl if config.target_kl else False
        return out._replace(stop=stop)
