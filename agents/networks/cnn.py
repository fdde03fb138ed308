"""Convolutional networks for images."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from agents.networks.encode import Network, is_image
from rlcore.errors import UserError


class NatureCNN(Network):
    """The network of Mnih et al. (2015), "Human-level control through deep reinforcement learning".

    Args:
        space: uint8 images, (C, H, W) stacks of frames or (H, W, C) with C of 1, 3 or 4.
        features: width of the last layer.
    """

    def __init__(self, space: gym.Space[Any], features: int = 512) -> None:
        super().__init__()
        if not is_image(space):
            raise UserError(f"network 'nature_cnn' cannot read observation space {space}; expected uint8 images")
        assert space.shape is not None
        self.channels_last = space.shape[-1] in (1, 3, 4)
        shape = (space.shape[2], *space.shape[:2]) if self.channels_last else space.shape
        if min(shape[1:]) < 36:
            raise UserError(f"network 'nature_cnn' got images of {space.shape}; expected at least 36 x 36 pixels")
        convolutions = nn.Sequential(
            nn.Conv2d(shape[0], 32, 8, stride=4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        with torch.no_grad():
            width = convolutions(torch.zeros(1, *shape)).shape[1]
        self.layers = nn.Sequential(convolutions, nn.Linear(width, features), nn.ReLU())
        self.out_features = features

    def forward(self, obs: Tensor) -> Tensor:
        """Return the features (B, features)."""
        if self.channels_last:
            obs = obs.movedim(-1, 1)
        return self.layers(obs.float() / 255)
