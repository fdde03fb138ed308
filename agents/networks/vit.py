"""A Transformer over the patches of an image, Dosovitskiy et al. 2021."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from agents.networks.cnn import layout
from agents.networks.encode import Network, scaled
from agents.networks.positions import Positions
from agents.networks.transformer_blocks import Sight, Stack
from agents.networks.transformer_options import Options, require_known, require_whole, takes_options
from rlcore.errors import UserError


@takes_options("context", "padding")
class ViT(Network):
    """Patches as tokens, all of which see one another: images (B, H, W, C) or (B, C, H, W) -> (B, width).

    Patches are numbered row by row, after the class token where there is one.

    Args:
        space: uint8 images, (C, H, W) stacks of frames or (H, W, C) with C of 1, 3 or 4.
        patch: side of a patch in pixels, a divisor of H and W.
        pool: class (the features of a token that stands for the image) or mean of the patches'.
        options: see `Options`.
    """

    def __init__(self, space: gym.Space[Any], patch: int = 4, pool: str = "class", **options: Any) -> None:
        super().__init__()
        chosen = Options(**options)
        shape, channels, self.channels_last = layout(space, "vit")
        require_whole("patch", patch)
        require_known("pool", pool, ("class", "mean"))
        height, width = shape[:2] if self.channels_last else shape[1:]
        if height % patch or width % patch:
            raise UserError(f"network.kwargs.patch: got {patch}, expected a divisor of the images' height {height} "
                            f"and width {width}")  # fmt: skip
        self.patches = nn.Conv2d(channels, chosen.width, patch, stride=patch)
        self.token = nn.Parameter(torch.empty(1, 1, chosen.width)) if pool == "class" else None
        tokens = (height // patch) * (width // patch) + (self.token is not None)
        self.positions = Positions(chosen.positions, tokens, chosen.width, chosen.head)
        self.embedding_norm = chosen.normalizer() if chosen.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(chosen.dropout)
        self.stack = Stack(chosen)
        if self.token is not None:
            nn.init.normal_(self.token, std=0.02)
        self.out_features = chosen.width

    def forward(self, obs: Tensor) -> Tensor:
        """Return features (B, width)."""
        images = scaled(obs)
        x = self.patches(images.movedim(-1, 1) if self.channels_last else images).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x, rotation = self.positions(x, None)
        x = self.stack(self.dropout(self.embedding_norm(x)), Sight(rotation=rotation))
        return x.mean(1) if self.token is None else x[:, 0]
