"""MountainCar, batched: gymnasium's MountainCar-v0 step for step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control import MountainCarEnv
from torch import Tensor

from envs.classic import draw, limit
from rlcore.native import BatchedEnv
from rlcore.vector import Autoreset, Split

X_MIN, X_MAX, GOAL = -1.2, 0.6, 0.5
V_MAX = 0.07
FORCE, GRAVITY = 0.001, 0.0025


class MountainCar(BatchedEnv):
    """Rock a weak car out of a valley by accelerating left (0), not (1) or right (2) (Moore 1990).

    The reward is -1 a step; an episode terminates at the goal. Observations are (position, velocity). Physics in
    float64; a step differs from gymnasium's by the rounding of the cosine at most (1 ulp).

    Args:
        num_envs: environments stepped together.
        device: where states and observations live.
        split: ignored; nothing is held out.
        autoreset: "same_step", "next_step" or "disabled".
        goal_velocity: the least velocity at the goal.
        max_episode_steps: steps until an episode is truncated.
        render_mode: "rgb_array" or "human" (a window of the first environment).

    Raises:
        UserError: ``max_episode_steps`` is not a positive whole number.
    """

    num_uniforms = 1

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        *,
        goal_velocity: float = 0.0,
        max_episode_steps: int = 200,
        render_mode: str | None = None,
    ) -> None:
        self.goal_velocity = goal_velocity
        self.artist = MountainCarEnv(render_mode=render_mode) if render_mode else None
        high = np.array([X_MAX, V_MAX], dtype=np.float32)
        super().__init__(
            num_envs, device, split, autoreset,
            obs_space=gym.spaces.Box(np.array([X_MIN, -V_MAX], dtype=np.float32), high, dtype=np.float32),
            action_space=gym.spaces.Discrete(3),
            max_episode_steps=limit(max_episode_steps, "MountainCar"),
        )  # fmt: skip

    def initial(self, u: Tensor) -> Tensor:
        """Return start states (N, 2) from ``u`` (N, 1): at rest, uniform in [-0.6, -0.4)."""
        return torch.cat([u * 0.2 - 0.6, torch.zeros_like(u)], 1)

    def observe(self, state: Tensor) -> Tensor:
        """Return observations (N, 2) float32."""
        return state.float()

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return states (N, 2), rewards and terminated (N,) after ``action`` (N,) in {0, 1, 2}."""
        x, v = state.unbind(1)  # (N,) each
        push = (action - 1).to(state.dtype)
        v = (v + (push * FORCE + torch.cos(3 * x) * -GRAVITY)).clamp(-V_MAX, V_MAX)
        x = (x + v).clamp(X_MIN, X_MAX)
        v = torch.where((x == X_MIN) & (v < 0), 0.0, v)  # the left end is a wall
        terminated = (x >= GOAL) & (v >= self.goal_velocity)
        return torch.stack([x, v], 1), -torch.ones_like(x, dtype=torch.float32), terminated

    def render(self) -> list[Any]:
        """Return one picture (height, width, 3) uint8 per environment, drawn by gymnasium; "human" shows the first."""
        return draw(self.artist, self._state)

    def close(self) -> None:
        """Close the window."""
        if self.artist is not None:
            self.artist.close()
