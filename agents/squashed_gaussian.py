"""The Gaussian policy squashed into a box (Haarnoja et al. 2018, appendix C).

u = mean + std * normal              u ~ N(mean, std**2), each of A actions on its own
a = tanh(u)                          in [-1, 1]
log pi(a) = log N(u; mean, std) - sum log(1 - a**2)      the change of variables from u

log(1 - tanh(u)**2) = 2 (log 2 - u - softplus(-2 u)), which neither rounds to log 0 nor overflows for large |u|.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def sample(mean: Tensor, log_std: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Return actions (B, A) in [-1, 1] and their log-densities (B,); both carry gradients.

    Args:
        mean: (B, A), before squashing.
        log_std: (B, A).
        normal: (B, A) standard normal draws.
    """
    u = mean + log_std.exp() * normal
    gaussian = -0.5 * normal.square() - log_std - 0.5 * math.log(2 * math.pi)
    squash = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
    return u.tanh(), (gaussian - squash).sum(-1)


def mode(mean: Tensor) -> Tensor:
    """Return the deterministic action (B, A) in [-1, 1] of evaluation: the squashed mean (B, A)."""
    return torch.tanh(mean)
