"""MountainCar, batched: gymnasium's MountainCar-v0 step for step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control import MountainCarEnv

from envs.classic import draw, limit
from rlcore.arrays import constant, float32, library, stack
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
    on_arrays = alone = True

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
        device = torch.device(device)
        self.push = constant([-FORCE, 0.0, FORCE], device)  # by action
        bounds = (X_MIN, X_MAX, V_MAX, GOAL, goal_velocity, 0.0)
        self.x_min, self.x_max, self.v_max, self.goal, self.goal_velocity, self.zero = (
            constant(value, device, num_envs=num_envs) for value in bounds
        )
        self.reward = -torch.ones((), device=device).expand(num_envs)  # (N,), nobody can write to it
        self.artist = MountainCarEnv(render_mode=render_mode) if render_mode else None
        high = np.array([X_MAX, V_MAX], dtype=np.float32)
        super().__init__(
            num_envs, device, split, autoreset,
            obs_space=gym.spaces.Box(np.array([X_MIN, -V_MAX], dtype=np.float32), high, dtype=np.float32),
            action_space=gym.spaces.Discrete(3),
            max_episode_steps=limit(max_episode_steps, "MountainCar"),
        )  # fmt: skip

    def initial(self, u: Any) -> Any:
        """Return start states (N, 2) from ``u`` (N, 1): at rest, uniform in [-0.6, -0.4)."""
        x = u[:, 0] * 0.2 - 0.6
        return stack([x, x * 0.0]).T

    def observe(self, state: Any) -> Any:
        """Return observations (N, 2) float32."""
        return float32(state)

    def dynamics(self, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """Return states (N, 2), rewards and terminated (N,) after ``action`` (N,) in {0, 1, 2}."""
        x, v = state.T  # (N,) each
        m = library(x)
        v = v + (self.push[action] + m.cos(3 * x) * -GRAVITY)
        v = m.minimum(m.maximum(v, -self.v_max), self.v_max)
        x = m.minimum(m.maximum(x + v, self.x_min), self.x_max)
        v = m.where((x == self.x_min) & (v < 0), self.zero, v)  # the left end is a wall
        return stack([x, v]).T, self.reward, (x >= self.goal) & (v >= self.goal_velocity)

    def render(self) -> list[Any]:
        """Return one picture (height, width, 3) uint8 per environment, drawn by gymnasium; "human" shows the first."""
        return draw(self.artist, self._state)

    def close(self) -> None:
        """Close the window."""
        if self.artist is not None:
            self.artist.close()
