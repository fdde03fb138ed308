"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018): DDPG with three changes.

a' = clip(mu'(s') + clip(smoothing * normal, -c, c), -1, 1)      target policy smoothing
y = r + discount * min_k Q'_k(s', a')                            clipped double Q, k = 1, 2
actor and targets move on every d-th update of the critics       delay
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.configs.continuous import TD3Config
from agents.ddpg import DDPG
from rlcore.agent import Phase
from rlcore.clock import Clock


class TD3(DDPG):
    """DDPG whose critics overestimate less and whose actor waits for them."""

    Config = TD3Config
    config: TD3Config  # pyright: ignore[reportIncompatibleVariableOverride]
    critics = 2

    def phases(self, updates: int) -> list[Phase]:
        phases = super().phases(updates)
        return phases if (updates + 1) % self.config.policy_delay == 0 else phases[:1]

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        if what == "act":
            return super().noise(what, n, generator)
        return {"smoothing": torch.randn(n, self.actions, generator=generator, device=generator.device)}

    def next_action(self, next_obs: Any, noise: dict[str, Tensor]) -> Tensor:
        limit = self.config.smoothing_clip
        smoothing = (self.config.smoothing * noise["smoothing"]).clamp(-limit, limit)
        return (super().next_action(next_obs, noise) + smoothing).clamp(-1.0, 1.0)

    def after_update(self, clock: Clock) -> None:
        if clock.updates % self.config.policy_delay == 0:  # the update just done had the actor's phase
            super().after_update(clock)
