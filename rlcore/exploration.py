"""Exploration as closed functions: all randomness comes in as tensors, one draw per environment."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.losses import masked


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


def boltzmann(q_values: Tensor, temperature: Tensor | float, uniform: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return actions (N,) int64 drawn with probability proportional to exp(q / temperature).

    The Gumbel-max trick: argmax of ``q / temperature - log(-log(uniform))`` has that distribution.

    Args:
        q_values: (N, A); with temperature 1, any logits.
        temperature: a number, or a tensor that broadcasts to (N, A), above 0.
        uniform: (N, A) independent uniforms in [0, 1).
        mask: (N, A) bool, True where allowed; None: all are.
    """
    uniform = uniform.clamp_min(torch.finfo(uniform.dtype).tiny)  # 0 would rank below a masked action
    return masked(q_values / temperature - (-uniform.log()).log(), mask).argmax(-1)


def gaussian(action: Tensor, scale: Tensor | float, normal: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return ``action + scale * normal`` (N, ...) clipped to the bounds ``low`` and ``high`` (...).

    ``scale`` is a standard deviation in units of the action; ``normal`` (N, ...) are standard normal draws.
    """
    return torch.clamp(action + scale * normal, low, high)
