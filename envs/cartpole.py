"""CartPole, batched: gymnasium's CartPole-v1 step for step, with its physical constants as options."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from rlcore.arrays import constant, float32, library, stack
from rlcore.errors import UserError
from rlcore.native import BatchedEnv
from rlcore.vector import Autoreset, Split

X_LIMIT = 2.4  # m
THETA_LIMIT = 12 * 2 * math.pi / 360  # rad
START = 0.05  # start states are uniform in [-START, START) in every coordinate


class CartPole(BatchedEnv):
    """Balance a pole on a cart by pushing the cart left (0) or right (1) (Barto, Sutton & Anderson 1983).

    The reward is 1 a step. An episode terminates when the cart is further than 2.4 m from the centre or the
    pole further than 12 degrees from upright. Physics in float64, observations (x, v, angle, angular
    velocity) in float32: on a CPU trajectories are bit-identical to gymnasium's CartPole-v1 from the same
    state; elsewhere a step differs by the device's rounding of sin, cos and division (1 ulp of float64 each).

    Args:
        num_envs: environments stepped together.
        device: where states and observations live.
        split: ignored; nothing is held out.
        autoreset: "same_step", "next_step" or "disabled".
        gravity: m/s**2.
        masscart: kg.
        masspole: kg.
        length: half of the pole's length, m.
        force_mag: N.
        tau: seconds per step.
        max_episode_steps: steps until an episode is truncated.
        render_mode: "rgb_array" or "human" (a window of the first environment).

    Raises:
        UserError: a constant is not a positive finite number.
    """

    num_uniforms = 4
    on_arrays = alone = True
    observed = slice(None)  # which of the state's columns (x, v, angle, angular velocity) are seen

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        *,
        gravity: float = 9.8,
        masscart: float = 1.0,
        masspole: float = 0.1,
        length: float = 0.5,
        force_mag: float = 10.0,
        tau: float = 0.02,
        max_episode_steps: int = 500,
        render_mode: str | None = None,
    ) -> None:
        constants = {
            "gravity": gravity, "masscart": masscart, "masspole": masspole, "length": length,
            "force_mag": force_mag, "tau": tau, "max_episode_steps": max_episode_steps,
        }  # fmt: skip
        for name, value in constants.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UserError(f"CartPole's {name}: {value!r} is not a positive finite number")
        if not isinstance(max_episode_steps, int):
            raise UserError(f"CartPole's max_episode_steps: {max_episode_steps} is not a whole number")
        device, self.pole, mass = torch.device(device), length, masspole + masscart
        self.gravity, self.masspole, self.length, self.tau, self.total_mass, self.polemass_length = (
            constant(value, device, num_envs=num_envs)
            for value in (gravity, masspole, length, tau, mass, masspole * length)
        )
        self.force = constant([-force_mag, force_mag], device)  # by action
        self.four_thirds, self.x_limit, self.theta_limit = (
            constant(x, device, num_envs=num_envs) for x in (4 / 3, X_LIMIT, THETA_LIMIT)
        )
        self.reward = torch.ones((), device=device).expand(num_envs)  # (N,), nobody can write to it
        self.artist = CartPoleEnv(render_mode=render_mode) if render_mode else None
        high = np.array([X_LIMIT * 2, np.inf, THETA_LIMIT * 2, np.inf], dtype=np.float32)
        super().__init__(
            num_envs, device, split, autoreset,
            obs_space=gym.spaces.Box(-high[self.observed], high[self.observed], dtype=np.float32),
            action_space=gym.spaces.Discrete(2),
            max_episode_steps=max_episode_steps,
        )  # fmt: skip

    def initial(self, u: Any) -> Any:
        """Return start states (N, 4) from ``u`` (N, 4)."""
        return u * (2 * START) - START

    def observe(self, state: Any) -> Any:
        """Return observations (N, 4) float32."""
        return float32(state[:, self.observed])

    def dynamics(self, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """Return states (N, 4), rewards and terminated (N,) after pushing by ``action`` (N,) in {0, 1}.

        The operations are those of gymnasium in the same order, so that every rounding is the same.
        """
        y = state.T  # (4, N)
        x_dot, theta, theta_dot = y[1], y[2], y[3]  # (N,) each
        sin, cos = library(theta).sin(theta), library(theta).cos(theta)
        temp = (self.force[action] + self.polemass_length * (theta_dot * theta_dot) * sin) / self.total_mass
        theta_acc = (self.gravity * sin - cos * temp) / (
            self.length * (self.four_thirds - self.masspole * (cos * cos) / self.total_mass)
        )
        x_acc = temp - self.polemass_length * theta_acc * cos / self.total_mass
        y = y + self.tau * stack([x_dot, x_acc, theta_dot, theta_acc])  # explicit Euler uses the old velocities
        return y.T, self.reward, (abs(y[0]) > self.x_limit) | (abs(y[2]) > self.theta_limit)

    def render(self) -> list[Any]:
        """Return one picture (height, width, 3) uint8 per environment, drawn by gymnasium; "human" shows the first."""
        if self.artist is None:
            raise UserError("CartPole was built without a render_mode; expected 'rgb_array' or 'human'")
        frames = []
        for state in self._state.cpu().numpy()[: 1 if self.artist.render_mode == "human" else None]:
            self.artist.state, self.artist.length = state, self.pole
            frames.append(self.artist.render())
        return frames

    def close(self) -> None:
        """Close the window."""
        if self.artist is not None:
            self.artist.close()


class CartPolePositions(CartPole):
    """CartPole without velocities: observations are (x, angle), so that one alone does not tell what to do.

    Dynamics, rewards, episodes and options are those of `CartPole`.
    """

    observed = slice(None, None, 2)
