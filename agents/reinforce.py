"""REINFORCE (Williams 1992): the policy gradient with Monte-Carlo returns.

G_t = r_{t+1} + gamma r_{t+2} + ...                              to the end of the episode
loss = sum over steps of  -(G_t - V(s_t)) log pi(a_t | s_t) + value_coef (V(s_t) - G_t)^2 / 2 - entropy_coef H

Where the rollout ends before the episode, or a time limit cuts it, G goes on with the baseline V. Without a baseline
V is 0 everywhere: G then counts the rewards seen, so rollouts should be longer than episodes. The loss is
`agents.actor_critic.ActorCritic.loss` with lam = 1.
"""

from __future__ import annotations

from agents.actor_critic import ActorCritic
from agents.configs.policy import ReinforceConfig
from rlcore.types import Spec


class Reinforce(ActorCritic):
    """Policy gradient by whole returns, with or without a baseline."""

    Config = ReinforceConfig

    def __init__(self, config: ReinforceConfig, spec: Spec) -> None:
        super().__init__(config, spec, lam=1.0, critic=config.baseline)
