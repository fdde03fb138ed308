"""Acrobot, batched: gymnasium's Acrobot-v1 step for step."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control import AcrobotEnv

from envs.classic import draw, limit
from rlcore.arrays import constant, float32, library, stack
from rlcore.native import BatchedEnv
from rlcore.vector import Autoreset, Split

SPEED_MAX = (4 * math.pi, 9 * math.pi)  # of the two joints, rad/s
GRAVITY = 9.8
DT = 0.2  # s
START = 0.1  # start states are uniform in [-START, START) in every coordinate


class Acrobot(BatchedEnv):
    """Swing two links up past a line by a torque of -1 (0), 0 (1) or 1 (2) on their joint (Sutton 1996).

    The reward is -1 a step and 0 on the one that reaches the line, which terminates the episode. Observations are
    the cosine and sine of both angles and their velocities. Links have mass and length 1 and their centre of mass
    in the middle. Fourth-order Runge-Kutta in float64; a step differs from gymnasium's by rounding only.

    Args:
        num_envs: environments stepped together.
        device: where states and observations live.
        split: ignored; nothing is held out.
        autoreset: "same_step", "next_step" or "disabled".
        max_episode_steps: steps until an episode is truncated.
        render_mode: "rgb_array" or "human" (a window of the first environment).

    Raises:
        UserError: ``max_episode_steps`` is not a positive whole number.
    """

    num_uniforms = 4
    on_arrays = alone = True

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        *,
        max_episode_steps: int = 500,
        render_mode: str | None = None,
    ) -> None:
        self.one = constant(1.0, torch.device(device))
        self.torque = constant([-1.0, 0.0, 1.0], torch.device(device))  # by action
        self.artist = AcrobotEnv(render_mode=render_mode) if render_mode else None
        high = np.array([1.0, 1.0, 1.0, 1.0, *SPEED_MAX], dtype=np.float32)
        super().__init__(
            num_envs, device, split, autoreset,
            obs_space=gym.spaces.Box(-high, high, dtype=np.float32),
            action_space=gym.spaces.Discrete(3),
            max_episode_steps=limit(max_episode_steps, "Acrobot"),
        )  # fmt: skip

    def initial(self, u: Any) -> Any:
        """Return start states (N, 4) from ``u`` (N, 4): both angles and velocities, in float32's precision."""
        return float32(u * (2 * START) - START) * self.one

    def observe(self, state: Any) -> Any:
        """Return observations (N, 6) float32."""
        first, second, speed1, speed2 = state.T
        m = library(first)
        return float32(stack([m.cos(first), m.sin(first), m.cos(second), m.sin(second), speed1, speed2]).T)

    def dynamics(self, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """Return states (N, 4), rewards and terminated (N,) after ``action`` (N,) in {0, 1, 2}."""
        y, torque = state.T, self.torque[action]  # (4, N), (N,)
        k1 = _derivative(y, torque)
        k2 = _derivative(y + DT / 2 * k1, torque)
        k3 = _derivative(y + DT / 2 * k2, torque)
        k4 = _derivative(y + DT * k3, torque)
        first, second, speed1, speed2 = y + DT / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)  # (N,) each
        first, second, m = _wrap(first), _wrap(second), library(first)
        terminated = -m.cos(first) - m.cos(second + first) > 1.0
        speed1, speed2 = m.clip(speed1, -SPEED_MAX[0], SPEED_MAX[0]), m.clip(speed2, -SPEED_MAX[1], SPEED_MAX[1])
        return stack([first, second, speed1, speed2]).T, float32(terminated) - 1.0, terminated

    def render(self) -> list[Any]:
        """Return one picture (height, width, 3) uint8 per environment, drawn by gymnasium; "human" shows the first."""
        return draw(self.artist, self._state)

    def close(self) -> None:
        """Close the window."""
        if self.artist is not None:
            self.artist.close()


def _derivative(y: Any, torque: Any) -> Any:
    """Return the time derivative (4, N) of angles and velocities ``y`` (4, N) (Sutton and Barto 1998, section 11.3).

    Put in are masses 1, lengths 1, centres of mass 1/2 and moments of inertia 1; angles count from hanging down.
    """
    theta1, theta2, speed1, speed2 = y
    sin, cos = library(theta1).sin, library(theta1).cos
    sin2, cos2 = sin(theta2), cos(theta2)
    d1 = 3.5 + cos2
    d2 = 1.25 + 0.5 * cos2
    phi2 = 0.5 * GRAVITY * sin(theta1 + theta2)
    phi1 = -0.5 * (speed2 * speed2) * sin2 - speed2 * speed1 * sin2 + 1.5 * GRAVITY * sin(theta1) + phi2
    acc2 = (torque + d2 / d1 * phi1 - 0.5 * (speed1 * speed1) * sin2 - phi2) / (1.25 - d2 * d2 / d1)
    acc1 = -(d2 * acc2 + phi1) / d1
    return stack([speed1, speed2, acc1, acc2])


def _wrap(angle: Any) -> Any:
    """Return the angle less whole turns, in [-pi, pi)."""
    return library(angle).remainder(angle + math.pi, 2 * math.pi) - math.pi
