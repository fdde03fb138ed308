"""Convolutional networks for images."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.networks.encode import Network, is_image, scaled
from rlcore.errors import UserError


class Convolutional(Network):
    """Convolutions, then a linear layer: images (B, C, H, W) or (B, H, W, C) -> (B, out_features).

    uint8 is divided by 255; anything else is taken to be scaled already.

    Args:
        convolutions: layers (B, channels, H, W) -> (B, ...).
        shape: of one image.
        channels_last: whether the shape is (H, W, C).
        features: width of the last layer.
        layer_norm: normalise that layer's outputs before its activation.
    """

    def __init__(
        self, convolutions: nn.Module, shape: tuple[int, ...], channels_last: bool, features: int, layer_norm: bool
    ) -> None:
        super().__init__()
        if isinstance(features, bool) or not isinstance(features, int) or features < 1:
            raise UserError(f"network.kwargs.features: got {features!r}, expected a positive integer")
        self.channels_last = channels_last
        with torch.no_grad():
            width = convolutions(self._channels_first(torch.zeros(1, *shape))).flatten(1).shape[1]
        norm = [nn.LayerNorm(features)] if layer_norm else []
        self.layers = nn.Sequential(convolutions, nn.Flatten(), nn.Linear(width, features), *norm, nn.ReLU())
        self.out_features = features

    def forward(self, obs: Tensor) -> Tensor:
        """Return the features (B, features)."""
        return self.layers(self._channels_first(scaled(obs)))

    def _channels_first(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1) if self.channels_last else x


def convolution(layer: nn.Conv2d, layer_norm: bool) -> list[nn.Module]:
    """Return the layer, followed, if asked, by layer normalisation over its channels, rows and columns."""
    return [layer, nn.GroupNorm(1, layer.out_channels)] if layer_norm else [layer]


def layout(space: gym.Space[Any], name: str) -> tuple[tuple[int, ...], int, bool]:
    """Return an image space's shape, number of channels, and whether they come last: where there are 1, 3 or 4.

    Raises:
        UserError: the space does not hold uint8 images.
    """
    if not is_image(space):
        raise UserError(f"network '{name}' cannot read observation space {space}; expected uint8 images")
    assert space.shape is not None
    last = space.shape[-1] in (1, 3, 4)
    return space.shape, space.shape[-1 if last else 0], last


class NatureCNN(Convolutional):
    """The network of Mnih et al. (2015), "Human-level control through deep reinforcement learning".

    Args:
        space: uint8 images, (C, H, W) stacks of frames or (H, W, C) with C of 1, 3 or 4, at least 36 x 36 pixels.
        features: width of the last layer.
        layer_norm: normalise before each activation.
    """

    def __init__(self, space: gym.Space[Any], features: int = 512, layer_norm: bool = False) -> None:
        shape, channels, last = layout(space, "nature_cnn")
        if min(shape[:2] if last else shape[1:]) < 36:
            raise UserError(f"network 'nature_cnn' got images of {shape}; expected at least 36 x 36 pixels")
        convolutions = nn.Sequential(
            *convolution(nn.Conv2d(channels, 32, 8, stride=4), layer_norm), nn.ReLU(),
            *convolution(nn.Conv2d(32, 64, 4, stride=2), layer_norm), nn.ReLU(),
            *convolution(nn.Conv2d(64, 64, 3, stride=1), layer_norm), nn.ReLU(),
        )  # fmt: skip
        super().__init__(convolutions, shape, last, features, layer_norm)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))): (B, channels, H, W) -> the same."""

    def __init__(self, channels: int, layer_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.ReLU(), *convolution(nn.Conv2d(channels, channels, 3, padding=1), layer_norm)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return x + self.layers(x)


class ImpalaCNN(Convolutional):
    """The deep network of Espeholt et al. (2018), "IMPALA", figure 3: three sections of two residual blocks.

    Args:
        space: uint8 images of any size, (C, H, W) stacks of frames or (H, W, C) with C of 1, 3 or 4.
        features: width of the last layer.
        width: factor on the channels, which are 16, 32 and 32.
        layer_norm: normalise what every convolution, and the last layer, returns.
    """

    def __init__(self, space: gym.Space[Any], features: int = 256, width: int = 1, layer_norm: bool = False) -> None:
        shape, channels, last = layout(space, "impala_cnn")
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise UserError(f"network.kwargs.width: got {width!r}, expected a positive integer")
        layers: list[nn.Module] = []
        for out in (16 * width, 32 * width, 32 * width):
            layers += convolution(nn.Conv2d(channels, out, 3, padding=1), layer_norm)
            layers += [nn.MaxPool2d(3, stride=2, padding=1), Residual(out, layer_norm), Residual(out, layer_norm)]
            channels = out
        super().__init__(nn.Sequential(*layers, nn.ReLU()), shape, last, features, layer_norm)


class SmallCNN(Convolutional):
    """For small images, such as digits: each stage has two 3 x 3 convolutions and halves the image.

    Args:
        space: uint8 images, (C, H, W) stacks of frames or (H, W, C) with C of 1, 3 or 4, at least 2**stages pixels
            a side.
        features: width of the last layer.
        width: channels of the first stage; each later one has twice as many.
        stages: how often the image is halved.
        layer_norm: normalise before each activation.
    """

    def __init__(
        self, space: gym.Space[Any], features: int = 128, width: int = 32, stages: int = 2, layer_norm: bool = False
    ) -> None:
        shape, channels, last = layout(space, "small_cnn")
        for name, value in (("width", width), ("stages", stages)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"network.kwargs.{name}: got {value!r}, expected a positive integer")
        if min(shape[:2] if last else shape[1:]) < 2**stages:
            raise UserError(f"network 'small_cnn' got images of {shape}; expected at least {2**stages} pixels a side "
                            f"for {stages} stages")  # fmt: skip
        layers: list[nn.Module] = []
        for stage in range(stages):
            out = width * 2**stage
            for inputs in (channels, out):
                layers += [*convolution(nn.Conv2d(inputs, out, 3, padding=1), layer_norm), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels = out
        super().__init__(nn.Sequential(*layers), shape, last, features, layer_norm)


class MinAtarCNN(Convolutional):
    """The network of Young and Tian (2019), "MinAtar": 16 convolutions of 3 x 3 and a linear layer.

    Args:
        space: planes (H, W, C) of zeros and ones, bool or float, one for each kind of object; at least 3 x 3.
        features: width of the last layer.
        layer_norm: normalise before each activation.
    """

    def __init__(self, space: gym.Space[Any], features: int = 128, layer_norm: bool = False) -> None:
        planes = isinstance(space, spaces.Box) and len(space.shape) == 3 and min(space.shape[:2]) >= 3
        if not planes or is_image(space):
            raise UserError(f"network 'minatar_cnn' cannot read observation space {space}; expected bool or float "
                            "planes (H, W, C) of at least 3 x 3")  # fmt: skip
        assert space.shape is not None
        convolutions = nn.Sequential(*convolution(nn.Conv2d(space.shape[2], 16, 3), layer_norm), nn.ReLU())
        super().__init__(convolutions, space.shape, True, features, layer_norm)
