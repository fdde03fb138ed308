"""A residual network with batch normalisation, He et al. 2016: y = relu(x + norm(conv(relu(norm(conv(x))))))."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from torch import Tensor, nn

from agents.networks.cnn import layout
from agents.networks.encode import Network, scaled
from agents.networks.transformer_options import require_whole
from rlcore.errors import UserError


def normalized(inputs: int, outputs: int, size: int, stride: int) -> list[nn.Module]:
    """Return a convolution, started as in He et al. 2015, and batch normalisation of what it returns."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(outputs)]


class ResidualBlock(nn.Module):
    """Two convolutions beside a way past them: (B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *normalized(inputs, outputs, 3, stride), nn.ReLU(), *normalized(outputs, outputs, 3, 1)
        )
        same = inputs == outputs and stride == 1
        self.past = nn.Identity() if same else nn.Sequential(*normalized(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Return y."""
        return (self.past(x) + self.layers(x)).relu()


class ResNet(Network):
    """Stages of residual blocks, each of half the size and twice the channels of the last, then the mean over pixels.

    In training, images are normalised by their batch, whose moments flow into running ones (in the state_dict); in
    evaluation by those. The loss of a batch then is no sum over independent images.

    Args:
        space: uint8 images, (C, H, W) stacks of frames or (H, W, C) with C of 1, 3 or 4; after the last stage at least
            2 x 2 pixels must be left.
        width: channels of the first stage.
        stages: how many.
        blocks: in each stage.
    """

    def __init__(self, space: gym.Space[Any], width: int = 16, stages: int = 3, blocks: int = 1) -> None:
        super().__init__()
        shape, channels, self.channels_last = layout(space, "resnet")
        for name, value in (("width", width), ("stages", stages), ("blocks", blocks)):
            require_whole(name, value)
        least = 2**stages
        if min(shape[:2] if self.channels_last else shape[1:]) < least:
            raise UserError(f"network 'resnet' with {stages} stages got images of {shape}; expected at least "
                            f"{least} x {least} pixels")  # fmt: skip
        layers: list[nn.Module] = [*normalized(channels, width, 3, 1), nn.ReLU()]
        inputs = width
        for stage in range(stages):
            outputs = width * 2**stage
            for block in range(blocks):
                layers.append(ResidualBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.out_features = inputs

    def forward(self, obs: Tensor) -> Tensor:
        """Return features (B, out_features)."""
        images = scaled(obs)
        return self.layers(images.movedim(-1, 1) if self.channels_last else images).mean((2, 3))
