"""Noisy linear layers: exploration whose scale is learnt, per weight (Fortunato et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def factorised(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw n rows of factorised noise (n, size): ``f(x) = sign(x) sqrt(|x|)`` of standard normal x (equation 11)."""
    x = torch.randn(n, size, generator=generator, device=generator.device)
    return x.sign() * x.abs().sqrt()


class NoisyLinear(nn.Linear):
    """A linear layer (..., in) -> (..., out) with noise on each weight (Fortunato et al. 2018, equations 9 and 10)::

        y = W x + b + (S_w * (eps_out eps_in^T)) x + S_b * eps_out
          = W x + b + eps_out * (S_w (eps_in * x) + S_b)

    The second form gives every row noise of its own for the price of one more layer. ``weight`` and ``bias`` are
    W and b, uniform within 1 / sqrt(in) at first; ``sigma`` holds S_w and S_b, 0.5 / sqrt(in) at first.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.sigma = nn.Linear(in_features, out_features)
        for p in self.sigma.parameters():
            nn.init.constant_(p, 0.5 / in_features**0.5)
        self.noise_size = in_features + out_features

    def forward(self, input: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the outputs under ``noise`` (..., in + out), eps_in then eps_out; None: silent, W x + b alone."""
        y = super().forward(input)
        if noise is None:
            return y
        eps_in, eps_out = noise.split((self.in_features, self.out_features), dim=-1)
        return y + eps_out * self.sigma(eps_in * input)
