"""From observations of any served space to feature vectors."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlcore.errors import UserError
from rlcore.tree import leaves, tmap


def is_image(space: gym.Space[Any]) -> bool:
    """Whether a space holds uint8 images (H, W, C) or stacks of grey frames (C, H, W)."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def scaled(obs: Tensor) -> Tensor:
    """Return float32 observations: uint8 divided by 255, anything else as it is."""
    return obs.float() * (1 / 255) if obs.dtype == torch.uint8 else obs.float()


def one_hot(x: Tensor, n: int) -> Tensor:
    """Return (B, n) float32 of integers (B,); unlike torch's own it does not look at the values."""
    return (x.unsqueeze(-1) == torch.arange(n, device=x.device)).float()


class Network(nn.Module):
    """A module from a space's observations, tree (B, ...), to features (B, out_features).

    A network with a memory overrides all but ``forward``; agents that call ``step`` and ``unroll`` serve both kinds.
    """

    out_features: int
    recurrent: bool = False
    per_token: bool = False  # features are (B, T, out_features), one vector for each token of the observation
    pretrained: bool = False  # begins with weights that were learnt, which no agent starts anew

    def initial_state(self, n: int) -> Any:
        """Return the memory at the start of an episode, all zeros: a tree of (n, ...) tensors, or ()."""
        return ()

    def step(self, obs: Any, state: Any) -> tuple[Tensor, Any]:
        """Return features (B, out_features) of one step's observations, and the memory after it."""
        return self(obs), state

    def unroll(self, obs: Any, state: Any, first: Tensor) -> tuple[Tensor, Any]:
        """Return the features (L, B, out_features) of L steps in order of time, and the memory after each of them.

        The memories are a tree (L, B, ...): the last row goes on, and a `step` from row t on the true successor of
        step t gives the features to bootstrap from, at a truncation too.

        Args:
            obs: tree (L, B, ...).
            state: the memory before the first step, tree (B, ...).
            first: (L, B) bool, True where a step begins an episode: the memory is zeroed before it.
        """
        steps, items = first.shape
        features = self(tmap(lambda x: x.flatten(0, 1), obs))
        return features.view(steps, items, self.out_features), ()


class Memory(Network):
    """A network with a memory, which `step` and `unroll` carry; to ``forward`` every observation is the first."""

    recurrent = True

    def forward(self, obs: Any) -> Tensor:
        """Return features (B, out_features) from an empty memory."""
        return self.step(obs, self.initial_state(len(next(leaves(obs)))))[0]


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
            columns = (obs.long() - self.start).reshape(obs.shape[0], -1).unbind(1)
            return torch.cat([one_hot(c, n) for c, n in zip(columns, self.sizes, strict=True)], dim=-1)
        return scaled(obs.reshape(obs.shape[0], -1))
