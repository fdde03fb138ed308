"""Behaviour cloning (Pomerleau 1989): maximum likelihood of the recorded actions.

loss = sum over items of -log pi(a|s)        cross-entropy; for a Box, of a Gaussian around tanh(f(s))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from agents.configs.offline import BCConfig
from agents.offline import Policy
from rlcore.agent import Agent
from rlcore.normalize import Normalizer
from rlcore.types import Act, Batch, Loss, Spec, Transition


class BC(Agent):
    """A policy that does what was done in the data; rewards are not looked at."""

    Config = BCConfig
    config: BCConfig

    def __init__(self, config: BCConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        self.obs = Normalizer(spec.obs_space) if config.normalize_obs else nn.Identity()
        self.policy = Policy(config, spec)

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
        return self.policy.distribution(self.obs(obs), mask).insight()

    def loss(self, batch: Batch) -> Loss:
        t: Transition = batch.data
        log_prob = self.policy.log_prob(self.obs(t.obs), t.action, t.extras.get("action_mask"))  # (B,)
        return Loss(-log_prob.sum(), len(log_prob), {"log_prob": log_prob.detach().mean()})
