"""Distributions over actions as closed functions of tensors, and the head that makes one from features.

Every row's action may have several parts (the entries of a MultiDiscrete, MultiBinary or Box action), independent of
each other: log-densities and entropies are sums over them. ``sample`` takes its randomness as a tensor.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlcore.errors import UserError
from rlcore.losses import masked

TINY = torch.finfo(torch.float32).tiny


class Categorical:
    """One of A numbers for each part: logits (B, *parts, A); those that ``mask``, of that shape, forbids have none."""

    def __init__(self, logits: Tensor, mask: Tensor | None = None) -> None:
        self.log_p = masked(logits, mask).log_softmax(-1)  # (B, *parts, A)

    def sample(self, noise: Tensor) -> Tensor:
        """Return actions (B, *parts) int64 by the Gumbel-max trick, from uniform ``noise`` (B, *parts, A) above 0."""
        return (self.log_p - (-noise.log()).log()).argmax(-1)

    def mode(self) -> Tensor:
        """Return the most probable actions (B, *parts)."""
        return self.log_p.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log p(action) (B,) of actions (B, *parts)."""
        return _joint(self.log_p.gather(-1, action.long().unsqueeze(-1)).squeeze(-1))

    def insight(self) -> dict[str, Tensor]:
        """Return the probabilities (B, *parts, A) under their name in `Agent.insight`."""
        return {"probabilities": self.log_p.exp()}

    def entropy(self) -> Tensor:
        """Return the entropy (B,) in nats."""
        return _joint(-(self.log_p.exp() * self.log_p).sum(-1))


class Gaussian:
    """Independent normal numbers: mean (B, *parts), log_std (*parts)."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std

    def sample(self, noise: Tensor) -> Tensor:
        """Return actions (B, *parts) from standard normal ``noise`` (B, *parts)."""
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """Return the means (B, *parts)."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density (B,) of actions (B, *parts)."""
        z = (action - self.mean) * (-self.log_std).exp()
        return _joint(-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi))

    def insight(self) -> dict[str, Tensor]:
        """Return nothing: the means are the actions."""
        return {}

    def entropy(self) -> Tensor:
        """Return the differential entropy (B,) in nats."""
        return _joint((self.log_std + 0.5 * math.log(2 * math.pi * math.e)).expand_as(self.mean))


def _joint(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1) if x.dim() > 1 else x


class DiscreteHead(nn.Module):
    """Features to a `Categorical`. Parts with fewer numbers than the largest never take the surplus ones."""

    allowed: Tensor | None

    def __init__(self, space: gym.Space[Any], width: int) -> None:
        super().__init__()
        if isinstance(space, spaces.Discrete):
            sizes = np.array(space.n)
        else:
            sizes = np.full(space.shape, 2) if isinstance(space, spaces.MultiBinary) else space.nvec  # pyright: ignore
        allowed = torch.as_tensor(sizes[..., None] > np.arange(sizes.max()))
        self.shape = allowed.shape  # (*parts, A)
        self.register_buffer("allowed", None if allowed.all() else allowed, persistent=False)
        self.logits = orthogonal(nn.Linear(width, allowed.numel()), 0.01)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Categorical:
        """Return the policy of features (B, width), under an action mask (B, actions) of a Discrete space."""
        logits = self.logits(features).view(features.shape[0], *self.shape)
        return Categorical(logits, self.allowed if mask is None else mask)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw what n samples need."""
        return torch.rand(n, *self.shape, generator=generator, device=generator.device).clamp_min_(TINY)


class GaussianHead(nn.Module):
    """Features to a `Gaussian` whose standard deviation does not depend on the state.

    Where the Box is bounded both are in units of its half width, around its middle; samples may lie outside.
    """

    middle: Tensor
    radius: Tensor

    def __init__(self, space: spaces.Box, width: int, log_std: float) -> None:
        super().__init__()
        low, high = torch.as_tensor(space.low).float(), torch.as_tensor(space.high).float()
        bounded = low.isfinite() & high.isfinite() & (low < high)
        self.register_buffer("middle", torch.where(bounded, (low + high) / 2, 0.0), persistent=False)
        self.register_buffer("radius", torch.where(bounded, (high - low) / 2, 1.0), persistent=False)
        self.mean = orthogonal(nn.Linear(width, self.middle.numel()), 0.01)
        self.log_std = nn.Parameter(torch.full(self.middle.shape, log_std))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Gaussian:
        """Return the policy of features (B, width)."""
        mean = self.mean(features).view(features.shape[0], *self.middle.shape)
        return Gaussian(self.middle + self.radius * mean, self.log_std + self.radius.log())

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw what n samples need."""
        return torch.randn(n, *self.middle.shape, generator=generator, device=generator.device)


def action_head(space: gym.Space[Any], width: int, agent: str, log_std: float = 0.0) -> DiscreteHead | GaussianHead:
    """Return the head for an action space.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary or Box.
        width: features.
        agent: the agent's name, for the error.
        log_std: initial log standard deviation of a Box's actions.

    Raises:
        UserError: the space is another.
    """
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(space, width, log_std)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return DiscreteHead(space, width)
    raise UserError(
        f"agent '{agent}' cannot serve action space {space}; expected Discrete, MultiDiscrete, MultiBinary or a Box of "
        "floats"
    )


def orthogonal(module: nn.Module, gain: float) -> Any:
    """Make the weights of a module's layers orthogonal (Saxe et al. 2014) and their biases 0, and return it.

    Linear and convolutional layers are scaled by ``gain``, the weights of recurrent cells are not. Pretrained networks
    stay as they are.
    """
    learnt = {layer for part in module.modules() if getattr(part, "pretrained", False) for layer in part.modules()}
    for layer in module.modules():
        if layer in learnt or not isinstance(layer, nn.Linear | nn.Conv2d | nn.RNNCellBase):
            continue
        for parameter in layer.parameters(recurse=False):
            if parameter.dim() == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.orthogonal_(parameter, 1.0 if isinstance(layer, nn.RNNCellBase) else gain)
    return module
