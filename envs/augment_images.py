"""Augmentation of batches of images, by name: every image of a batch is changed by random numbers of its own.

Images are (B, H, W, C) uint8 on any device. All randomness is drawn from the generator given, the same amount for
every image, so that what is drawn depends on the batch's shape alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor
from torch.nn import functional as F

from rlcore.config import Model
from rlcore.errors import UserError, nearest
from rlcore.fields import explain


class Augmentation(Model):
    """A random change of images."""

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed images (B, H, W, C) uint8."""


class Flip(Augmentation):
    """Mirror an image with probability ``p``."""

    name: Literal["flip"] = "flip"
    p: float = Field(default=0.5, ge=0, le=1, description="probability")
    axis: Literal["horizontal", "vertical"] = Field(default="horizontal", description="what changes sides")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images, some mirrored."""
        chosen = _uniform(images, 1, generator) < self.p  # (B, 1)
        return torch.where(_per_image(chosen), images.flip(2 if self.axis == "horizontal" else 1), images)


class Crop(Augmentation):
    """Pad an image with black and cut its size out again at a random place: shifts of -padding .. padding pixels."""

    name: Literal["crop"] = "crop"
    padding: int = Field(default=4, ge=0, description="pixels added on each side")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images shifted."""
        _, height, width, _ = images.shape
        padded = F.pad(images, (0, 0, *[self.padding] * 4))  # (B, H + 2p, W + 2p, C)
        corner = (_uniform(images, 2, generator) * (2 * self.padding + 1)).long()  # (B, 2)
        rows = corner[:, 0, None, None] + torch.arange(height, device=images.device)[:, None]  # (B, H, 1)
        columns = corner[:, 1, None, None] + torch.arange(width, device=images.device)  # (B, 1, W)
        return padded[torch.arange(len(images), device=images.device)[:, None, None], rows, columns]


class Rotate(Augmentation):
    """Turn an image about its centre by an angle uniform in [-degrees, degrees]; bilinear, what comes in is black."""

    name: Literal["rotate"] = "rotate"
    degrees: float = Field(default=10.0, ge=0, le=180, description="largest angle")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images turned."""
        b, height, width, channels = images.shape
        angle = torch.deg2rad(_signed(images, 1, generator)[:, 0] * self.degrees)  # (B,)
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        # grid_sample measures in half widths and half heights; turning is in pixels.
        top = torch.stack([cos, -sin * height / width, zero], 1)
        bottom = torch.stack([sin * width / height, cos, zero], 1)
        theta = torch.stack([top, bottom], 1)  # (B, 2, 3)
        grid = F.affine_grid(theta, [b, channels, height, width], align_corners=False)
        turned = F.grid_sample(images.movedim(-1, 1).float(), grid, align_corners=False)
        return _pixels(turned.movedim(1, -1))


class Color(Augmentation):
    """Change brightness, then contrast, then saturation, each by a factor uniform in [1 - strength, 1 + strength].

    Brightness scales the pixels, contrast their distance from the image's mean grey, saturation that from their own
    grey (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B). Grey images have no saturation to change.
    """

    name: Literal["color"] = "color"
    brightness: float = Field(default=0.2, ge=0, le=1, description="strength")
    contrast: float = Field(default=0.2, ge=0, le=1, description="strength")
    saturation: float = Field(default=0.2, ge=0, le=1, description="strength")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images recoloured."""
        factor = 1 + _signed(images, 3, generator) * torch.tensor(
            [self.brightness, self.contrast, self.saturation], device=images.device
        )  # (B, 3)
        brightness, contrast, saturation = (_per_image(f) for f in factor.split(1, dim=1))
        x = (images.float() * brightness).clamp(0, 255)
        mean = _grey(x).mean((1, 2, 3), keepdim=True)
        x = (mean + contrast * (x - mean)).clamp(0, 255)
        grey = _grey(x)
        return _pixels(grey + saturation * (x - grey))


class Noise(Augmentation):
    """Add Gaussian noise to every channel of every pixel."""

    name: Literal["noise"] = "noise"
    std: float = Field(default=0.05, ge=0, le=1, description="standard deviation, as a fraction of white")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images with noise."""
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return _pixels(images.float() + 255 * self.std * noise)


class Cutout(Augmentation):
    """Blacken a square centred on a random pixel; parts of it may lie outside (DeVries and Taylor 2017)."""

    name: Literal["cutout"] = "cutout"
    size: int = Field(default=2, ge=0, description="side of the square in pixels")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images with a hole."""
        _, height, width, _ = images.shape
        u = _uniform(images, 2, generator)
        inside = [self._covers(u[:, :1], height), self._covers(u[:, 1:], width)]  # (B, H), (B, W)
        hole = inside[0][:, :, None, None] & inside[1][:, None, :, None]  # (B, H, W, 1)
        return images.masked_fill(hole, 0)

    def _covers(self, u: Tensor, length: int) -> Tensor:
        """Return which pixels of one side the square covers, (B, length) bool, from uniform numbers (B, 1)."""
        first = (u * length).long() - self.size // 2
        at = torch.arange(length, device=u.device)
        return (at >= first) & (at < first + self.size)


KINDS: dict[str, type[Augmentation]] = {
    "flip": Flip, "crop": Crop, "rotate": Rotate, "color": Color, "noise": Noise, "cutout": Cutout
}  # fmt: skip


class Sequence(tuple[Augmentation, ...]):
    """Augmentations, one after the other."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed images (B, H, W, C) uint8."""
        for part in self:
            images = part(images, generator)
        return images


def augmentation(steps: Iterable[Mapping[str, Any]], where: str) -> Sequence:
    """Return the augmentations named, in order.

    Args:
        steps: mappings such as {"name": "crop", "padding": 1}.
        where: the setting, for messages.

    Raises:
        UserError: a name or an option is unknown, or a value is out of range.
    """
    return Sequence(_step(step, f"{where}[{i}]") for i, step in enumerate(steps))


def _step(step: Mapping[str, Any], where: str) -> Augmentation:
    name = step.get("name")
    if not isinstance(name, str):
        raise UserError(f"{where}: got {dict(step)!r}, expected a name, such as {{name: flip}}")
    if name not in KINDS:
        raise UserError(f"{where}.name: augmentation '{name}' is unknown{nearest(name, KINDS)}")
    try:
        return KINDS[name].model_validate(step)
    except ValidationError as error:
        raise UserError(explain(error, KINDS[name], f"{where}.")) from None


def _uniform(images: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Return n numbers in [0, 1) for each image, (B, n)."""
    return torch.rand(len(images), n, generator=generator, device=images.device)


def _signed(images: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Return n numbers in [-1, 1) for each image, (B, n)."""
    return 2 * _uniform(images, n, generator) - 1


def _per_image(x: Tensor) -> Tensor:
    """Return (B, 1) as (B, 1, 1, 1)."""
    return x[:, :, None, None]


def _grey(x: Tensor) -> Tensor:
    """Return the grey of pixels (B, H, W, C), (B, H, W, 1)."""
    if x.shape[-1] == 1:
        return x
    return (x * torch.tensor([0.299, 0.587, 0.114], device=x.device)).sum(-1, keepdim=True)


def _pixels(x: Tensor) -> Tensor:
    """Return the nearest uint8."""
    return x.round().clamp(0, 255).to(torch.uint8)
