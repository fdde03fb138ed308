"""Advantage actor-critic (Mnih et al. 2016, the synchronous variant): one update per short rollout.

loss = sum over steps of  -A log pi(a | s) + value_coef (V(s) - G)^2 / 2 - entropy_coef H(pi(. | s))
G = A + V_old(s)

With lam = 1, the default, G is the sum of all rewards to the rollout's end and the value there; below, A is the
generalised advantage. The loss is `agents.actor_critic.ActorCritic.loss`.
"""

from __future__ import annotations

from agents.actor_critic import ActorCritic
from agents.configs.policy import A2CConfig
from rlcore.types import Spec


class A2C(ActorCritic):
    """Plain policy gradient with a learnt value."""

    Config = A2CConfig

    def __init__(self, config: A2CConfig, spec: Spec) -> None:
        super().__init__(config, spec, config.lam)
