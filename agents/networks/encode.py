"""From observations of any served space to feature vectors."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlcore.errors import UserError


def is_image(space: gym.Space[Any]) -> bool:
    """Whether a space holds uint8 images (H, W, C) or stacks of grey frames (C, H, W)."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def one_hot(x: Tensor, n: int) -> Tensor:
    """Return (B, n) float32 of integers (B,); unlike torch's own it does not look at the values."""
    return (x.unsqueeze(-1) == torch.arange(n, device=x.device)).float()


class Network(nn.Module):
    """A module from a space's observations, tree (B, ...), to features (B, out_features)."""

    out_features: int


class Flatten(Network):
    """Flatten a batch of observations: tree (B, ...) -> (B, out_features) float32.

    Box is flattened (uint8 divided by 255), Discrete and MultiDiscrete become one-hot, MultiBinary
    float; the parts of Dict and Tuple follow one another in the space's order.

    Raises:
        UserError: the space holds something else.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()
        self.parts: nn.ModuleList | None = None
        if isinstance(space, spaces.Dict):
            self.keys: list[str] | range = list(space.spaces)
            self.parts = nn.ModuleList(Flatten(part) for part in space.spaces.values())
        elif isinstance(space, spaces.Tuple):
            self.keys = range(len(space.spaces))
            self.parts = nn.ModuleList(Flatten(part) for part in space.spaces)
        elif not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            raise UserError(f"networks cannot read observation space {space}; expected Box, Discrete, "
                            "MultiBinary, MultiDiscrete, or a Dict or Tuple of these")  # fmt: skip
        self.space = space
        self.out_features = int(spaces.flatdim(space))
        if isinstance(space, spaces.Discrete):
            self.start: Any = int(space.start)
        elif isinstance(space, spaces.MultiDiscrete):
            self.sizes = [int(n) for n in space.nvec.flatten()]
            self.register_buffer("start", torch.as_tensor(space.start), persistent=False)

    def forward(self, obs: Any) -> Tensor:
        """Return the features (B, out_features)."""
        if self.parts is not None:
            return torch.cat([part(obs[key]) for key, part in zip(self.keys, self.parts, strict=True)], dim=-1)
        if isinstance(self.space, spaces.Discrete):
            return one_hot(obs.long() - self.start, self.out_features)
        if isinstance(self.space, spaces.MultiDiscrete):
            columns = (obs.long() - self.start).reshape(len(obs), -1).unbind(1)
            return torch.cat([one_hot(c, n) for c, n in zip(columns, self.sizes, strict=True)], dim=-1)
        scale = 1 / 255 if obs.dtype == torch.uint8 else None
        flat = obs.reshape(len(obs), -1).float()
        return flat * scale if scale else flat
