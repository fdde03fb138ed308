"""Pendulum, batched: gymnasium's Pendulum-v1 step for step."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control import PendulumEnv

from envs.classic import draw, limit
from rlcore.arrays import constant, float32, library, stack
from rlcore.native import BatchedEnv
from rlcore.vector import Autoreset, Split

SPEED_MAX, TORQUE_MAX = 8.0, 2.0
DT = 0.05  # s


class Pendulum(BatchedEnv):
    """Swing a pendulum up and keep it upright with a torque in [-2, 2].

    The reward is -(angle**2 + 0.1 velocity**2 + 0.001 torque**2), the angle in [-pi, pi) from upright; an episode
    never terminates. Observations are (cos, sin, velocity). Physics in float64; a step differs from gymnasium's by
    the rounding of sine and cosine at most (1 ulp).

    Args:
        num_envs: environments stepped together.
        device: where states and observations live.
        split: ignored; nothing is held out.
        autoreset: "same_step", "next_step" or "disabled".
        g: gravity, m/s**2.
        max_episode_steps: steps until an episode is truncated.
        render_mode: "rgb_array" or "human" (a window of the first environment).

    Raises:
        UserError: ``max_episode_steps`` is not a positive whole number.
    """

    num_uniforms = 2
    on_arrays = alone = True

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        *,
        g: float = 10.0,
        max_episode_steps: int = 200,
        render_mode: str | None = None,
    ) -> None:
        device, self.g = torch.device(device), g
        self.widths = constant([2 * math.pi, 2.0], device)  # of the start states
        self.speed_max, self.pi = (constant(x, device, num_envs=num_envs) for x in (SPEED_MAX, math.pi))
        self.terminated = torch.zeros((), dtype=torch.bool, device=device).expand(num_envs)  # nobody can write to it
        self.artist = PendulumEnv(render_mode=render_mode) if render_mode else None
        if self.artist is not None:
            self.artist.last_u = None  # draws no arrow
        high = np.array([1.0, 1.0, SPEED_MAX], dtype=np.float32)
        super().__init__(
            num_envs, device, split, autoreset,
            obs_space=gym.spaces.Box(-high, high, dtype=np.float32),
            action_space=gym.spaces.Box(-TORQUE_MAX, TORQUE_MAX, (1,), dtype=np.float32),
            max_episode_steps=limit(max_episode_steps, "Pendulum"),
        )  # fmt: skip

    def initial(self, u: Any) -> Any:
        """Return start states (N, 2) from ``u`` (N, 2): angle uniform in [-pi, pi), velocity in [-1, 1)."""
        return (u - 0.5) * self.widths

    def observe(self, state: Any) -> Any:
        """Return observations (N, 3) float32."""
        angle, velocity = state.T
        m = library(angle)
        return float32(stack([m.cos(angle), m.sin(angle), velocity]).T)

    def dynamics(self, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """Return states (N, 2), rewards and terminated (N,) under the torque ``action`` (N, 1)."""
        angle, velocity = state.T  # (N,) each
        m = library(angle)
        # Products of the torque are rounded to float32, like gymnasium's.
        torque = m.clip(action[..., 0], -TORQUE_MAX, TORQUE_MAX)
        upright = m.remainder(angle + self.pi, 2 * self.pi) - self.pi
        cost = upright * upright + 0.1 * (velocity * velocity) + 0.001 * (torque * torque)
        velocity = velocity + (1.5 * self.g * m.sin(angle) + 3.0 * torque) * DT  # mass and length are 1
        velocity = m.minimum(m.maximum(velocity, -self.speed_max), self.speed_max)
        return stack([angle + velocity * DT, velocity]).T, float32(-cost), self.terminated

    def render(self) -> list[Any]:
        """Return one picture (height, width, 3) uint8 per environment, drawn by gymnasium; "human" shows the first."""
        return draw(self.artist, self._state)

    def close(self) -> None:
        """Close the window."""
        if self.artist is not None:
            self.artist.close()
