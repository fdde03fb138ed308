"""Exploration as closed functions: all randomness comes in as tensors, one draw per environment."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.losses import masked


def coins(n: int, actions: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw what `epsilon_greedy` needs: ``coin`` (n,) and ``scores`` (n, actions), uniform in [0, 1)."""
    drawn = torch.rand(n, actions + 1, generator=generator, device=generator.device)
    return {"coin": drawn[:, 0], "scores": drawn[:, 1:]}


def epsilon_greedy(
    q_values: Tensor, epsilon: Tensor | float, coin: Tensor, scores: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return actions (N,) int64: with probability epsilon a uniformly random allowed one, else the best allowed one.

    Args:
        q_values: (N, A).
        epsilon: a number, or a tensor () or (N,), in [0, 1].
        coin: (N,) uniforms in [0, 1): every environment flips its own.
        scores: (N, A) independent uniforms; the allowed action with the largest is the random one.
        mask: (N, A) bool, True where allowed; None: all are. A row without any yields action 0.
    """
    greedy = masked(q_values, mask).argmax(-1)
    random = masked(scores, mask).argmax(-1)
    return torch.where(coin < epsilon, random, greedy)


def gaussian(action: Tensor, scale: Tensor | float, normal: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return ``action + scale * normal`` (N, ...) clipped to the bounds ``low`` and ``high`` (...).

    ``scale`` is a standard deviation in units of the action; ``normal`` (N, ...) are standard normal draws.
    """
    return torch.clamp(action + scale * normal, low, high)
