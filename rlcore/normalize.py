"""Running mean and variance; observations and rewards scaled by them.

A batch's moments are merged into the running ones (Chan, Golub and LeVeque 1979), with n and m items, means mu and
nu, sums of squared deviations S and R, and delta = nu - mu::

    mu <- mu + delta m / (n + m)          S <- S + R + delta**2 n m / (n + m)          n <- n + m

All of it by tensors in place, in float64: nothing waits for a value, and float32 would stop learning after some
10**7 items. What is learnt is state of the module, so it is saved, copied and restored with its owner.
"""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlcore import distributed


class Moments(nn.Module):
    """Count, mean and sum of squared deviations of all items of one shape ever seen, in float64."""

    count: Tensor  # ()
    mean: Tensor  # shape
    squares: Tensor  # shape: sum of squared deviations from the mean

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Merge items (M, *shape); rows where ``valid`` (M,) bool is False do not count, None: all do."""
        x = x.double()
        mask = x.new_ones(len(x)) if valid is None else valid.double()
        weight = mask.view(-1, *[1] * (x.dim() - 1))  # (M, 1, ...)
        count, sums = mask.sum(), (x * weight).sum(0)
        distributed.sum_(count, sums)
        mean = sums / count.clamp(min=1)
        squares = ((x - mean).square() * weight).sum(0)
        distributed.sum_(squares)
        delta, total = mean - self.mean, (self.count + count).clamp(min=1)
        self.mean += delta * (count / total)
        self.squares += squares + delta.square() * (self.count * count / total)
        self.count += count

    def variance(self) -> Tensor:
        """Return the variance (shape) float64 of all items; 1 before the first."""
        return torch.where(self.count > 0, self.squares / self.count.clamp(min=1), 1.0)


class Normalizer(nn.Module):
    """Scale a space's observations by their running mean and variance: ``clip((x - mean) / sqrt(var + 1e-8), +-10)``.

    Serves trees of any space. Floating-point Box leaves are scaled, elementwise, to float32; all others (images,
    Discrete, ...) pass through. Before the first ``observe`` nothing but the clip is done. Statistics change in
    ``observe`` alone, which sources call while they act and nothing else does: evaluation leaves them frozen.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()
        self.parts: nn.ModuleList | None = None
        self.moments: Moments | None = None
        if isinstance(space, spaces.Dict):
            self.keys: list[str] | range = list(space.spaces)
            self.parts = nn.ModuleList(Normalizer(part) for part in space.spaces.values())
        elif isinstance(space, spaces.Tuple):
            self.keys = range(len(space.spaces))
            self.parts = nn.ModuleList(Normalizer(part) for part in space.spaces)
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            self.moments = Moments(space.shape)
            self.register_buffer("shift", torch.zeros(space.shape))
            self.register_buffer("scale", torch.ones(space.shape))

    def forward(self, obs: Any) -> Any:
        """Return observations, tree (M, ...), scaled; of the same layout."""
        if self.moments is not None:
            return ((obs.float() - self.shift) * self.scale).clamp(-10, 10)
        if self.parts is None:
            return obs
        parts = {key: part(obs[key]) for key, part in zip(self.keys, self.parts, strict=True)}
        return parts if isinstance(obs, dict) else tuple(parts.values())

    def observe(self, obs: Any, valid: Tensor | None = None) -> None:
        """Learn from observations, tree (M, ...); rows where ``valid`` (M,) is False do not count."""
        if self.moments is not None:
            self.moments.update(obs, valid)
            self.shift.copy_(self.moments.mean)
            self.scale.copy_((self.moments.variance() + 1e-8).rsqrt())
        elif self.parts is not None:
            for key, part in zip(self.keys, self.parts, strict=True):
                cast(Normalizer, part).observe(obs[key], valid)


class RewardScale(nn.Module):
    """Divide the rewards of N environments by the running deviation of their discounted returns (Engstrom et al. 2020).

    With R_t = gamma R_{t-1} + r_t, begun anew with every episode: ``clip(r / sqrt(var(R) + 1e-8), +-10)``.
    """

    running: Tensor

    def __init__(self, num_envs: int) -> None:
        super().__init__()
        self.returns = Moments()
        self.register_buffer("running", torch.zeros(num_envs, dtype=torch.float64))  # R of the running episodes

    def forward(self, reward: Tensor) -> Tensor:
        """Return rewards, of any shape, divided by the deviation learnt so far and clipped."""
        scale = (self.returns.variance() + 1e-8).rsqrt()
        return (reward * scale.float()).clamp(-10, 10)

    @torch.no_grad()
    def observe(self, reward: Tensor, ended: Tensor, valid: Tensor, gamma: float) -> None:
        """Learn from one step of every environment.

        Args:
            reward: (N,).
            ended: (N,) bool, terminated or truncated.
            valid: (N,) bool; fake steps change nothing.
            gamma: discount per step.
        """
        self.running.copy_(torch.where(valid, gamma * self.running + reward, self.running))
        self.returns.update(self.running, valid)
        self.running.masked_fill_(ended & valid, 0.0)
