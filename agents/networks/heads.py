"""Networks of action values: features, then one number or one vector of Z numbers per action."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from agents.networks.encode import Network
from agents.networks.noisy import NoisyLinear


class Stream(nn.Module):
    """Features (..., F) through a hidden layer to outputs (..., out); its layers are of the class ``linear``."""

    def __init__(self, linear: type[nn.Linear], width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.hidden, self.out = linear(width, hidden), linear(hidden, out)
        self.noise_sizes = [layer.noise_size for layer in (self.hidden, self.out) if isinstance(layer, NoisyLinear)]
        self.noise_size = sum(self.noise_sizes)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the outputs under ``noise`` (..., noise_size); None: silent."""
        if noise is None:
            return self.out(self.hidden(x).relu())
        first, second = noise.split(self.noise_sizes, dim=-1)
        return self.out(self.hidden(x, first).relu(), second)


class Heads(nn.Module):
    """Features (..., F) to values (..., A), or to outputs (..., A, Z) of distributional agents.

    Args:
        features: the network below.
        actions: A.
        outputs: Z; None: one value per action, without that dimension.
        dueling: ``V(s) + A(s, a) - mean_a' A(s, a')``, for each of the Z outputs (Wang et al. 2016, equation 9).
        hidden: width of a hidden layer in the advantages' and the value's stream; 0: they are linear.
        noisy: the streams' layers are noisy.
    """

    def __init__(
        self,
        features: Network,
        actions: int,
        outputs: int | None = None,
        dueling: bool = False,
        hidden: int = 0,
        noisy: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.outputs = outputs
        linear, width, size = NoisyLinear if noisy else nn.Linear, features.out_features, outputs or 1

        def stream(out: int) -> nn.Module:
            return Stream(linear, width, hidden, out) if hidden else linear(width, out)

        self.advantage = stream(actions * size)
        self.value = stream(size) if dueling else None
        streams = [self.advantage] if self.value is None else [self.advantage, self.value]
        self.noise_sizes = [part.noise_size for part in streams if isinstance(part, NoisyLinear | Stream)]
        self.noise_size = sum(self.noise_sizes)  # numbers of noise per row; 0 without noisy layers

    def head(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the outputs under ``noise`` (..., noise_size); None: silent."""
        if noise is None:
            advantage = self.advantage(features)
            value = None if self.value is None else self.value(features)
        else:  # each stream its part
            parts = noise.split(self.noise_sizes, dim=-1)
            advantage = self.advantage(features, parts[0])
            value = None if self.value is None else self.value(features, parts[1])
        if self.outputs is not None:
            advantage = advantage.unflatten(-1, (-1, self.outputs))  # (..., A, Z)
            value = None if value is None else value.unsqueeze(-2)  # (..., 1, Z)
        if value is None:
            return advantage
        return value + advantage - advantage.mean(-1 if self.outputs is None else -2, keepdim=True)


class QNetwork(Heads):
    """Observations, tree (B, ...), to values (B, A) or outputs (B, A, Z)."""

    def forward(self, obs: Any, noise: Tensor | None = None) -> Tensor:
        """Return the outputs under ``noise`` (B, noise_size); None: silent."""
        return self.head(self.features(obs), noise)


class QuantileNetwork(Heads):
    """Values at quantile fractions tau (Dabney et al. 2018, Implicit quantile networks, equation 4)::

        Z_tau(s, a) = head(psi(s) * phi(tau)),    phi(tau) = relu(linear(cos(pi i tau), i = 0 ... cosines - 1))

    psi are the features of the observation; phi has their width. It starts around 1: no unit is 0 at all
    fractions, where it would stay, and values start as without fractions.
    """

    frequencies: Tensor

    def __init__(self, features: Network, actions: int, cosines: int, **options: Any) -> None:
        super().__init__(features, actions, **options)
        self.embedding = nn.Linear(cosines, features.out_features)
        nn.init.ones_(self.embedding.bias)
        self.register_buffer("frequencies", math.pi * torch.arange(cosines).float(), persistent=False)

    def forward(self, obs: Any, tau: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the values (B, M, A) at fractions ``tau`` (B, M) or (M,), all of a row under its own noise."""
        phi = self.embedding((tau.unsqueeze(-1) * self.frequencies).cos()).relu()  # (B, M, F) or (M, F)
        return self.head(self.features(obs).unsqueeze(1) * phi, None if noise is None else noise.unsqueeze(1))
