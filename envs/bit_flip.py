"""BitFlip: reach a goal of n bits by flipping one a step, told only when it is reached (Andrychowicz et al. 2017)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.errors import UserError
from rlcore.native import BatchedEnv
from rlcore.types import Step
from rlcore.vector import Autoreset, Split

_SET, _CLEAR = (0, 114, 178), (222, 222, 222)  # colours of a bit


class BitFlip(BatchedEnv):
    """A goal environment: action i flips bit i of n, start and goal are uniform in {0, 1}^n.

    The reward is 0 for a step that reaches the goal, which ends the episode, and -1 for any other; after n steps
    the episode is truncated. Observations are dicts of observation, achieved_goal (both the bits) and desired_goal,
    (N, n) float32 each. The extra is_success says whether a step reached the goal. Without relabelled goals a
    reward is met with a probability of about n * 2^-n an episode: beyond some 13 bits practically never.

    Args:
        num_envs: environments stepped together.
        device: where states and observations live.
        split: ignored; nothing is held out.
        autoreset: "same_step", "next_step" or "disabled".
        bits: n.
        render_mode: "rgb_array".

    Raises:
        UserError: ``bits`` is no whole number above 1, or ``render_mode`` another.
    """

    has_goals = True

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        *,
        bits: int = 15,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"BitFlip's render_mode: '{render_mode}' cannot be had; expected 'rgb_array'")
        if isinstance(bits, bool) or not isinstance(bits, int) or bits < 2:
            raise UserError(f"BitFlip's bits: {bits!r} is not a whole number above 1")
        self.bits, self.num_uniforms = bits, 2 * bits
        part: gym.Space[Any] = spaces.Box(0, 1, (bits,))
        super().__init__(
            num_envs, device, split, autoreset,
            obs_space=spaces.Dict({"observation": part, "achieved_goal": part, "desired_goal": part}),
            action_space=spaces.Discrete(bits),
            max_episode_steps=bits,
        )  # fmt: skip
        self.spec = self.spec._replace(extras=frozenset({"is_success"}))
        self._bit = torch.arange(bits, device=self.device)  # (n,)

    def initial(self, u: Tensor) -> Tensor:
        """Return bits and goals side by side, (N, 2n) float32."""
        return (u < 0.5).float()

    def observe(self, state: Tensor) -> dict[str, Tensor]:
        """Return the three parts, (N, n) each."""
        bits, goal = state[:, : self.bits].clone(), state[:, self.bits :].clone()
        return {"observation": bits, "achieved_goal": bits, "desired_goal": goal}

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return states (N, 2n), rewards and terminated (N,) after flipping the bits ``action`` (N,)."""
        bits, goal = state[:, : self.bits], state[:, self.bits :]
        bits = (bits - (action[:, None] == self._bit).float()).abs()
        return torch.cat([bits, goal], 1), self.compute_reward(bits, goal), self.compute_terminated(bits, goal)

    def render(self) -> list[Any]:
        """Return one picture (80, 24 n, 3) uint8 per environment: the bits, dark where set, above their goal."""
        rows = self._state.view(-1, 2, self.bits).cpu().numpy()  # (N, 2, n)
        cells = np.where(rows[..., None] > 0, _SET, _CLEAR).astype(np.uint8)  # (N, 2, n, 3)
        pictures = np.kron(cells, np.ones((1, 40, 24, 1), np.uint8))
        pictures[:, ::40] = pictures[:, :, ::24] = 255
        return [*pictures]

    def step(self, action: Tensor) -> Step:
        """Apply actions (N,); see `VectorEnv.step`."""
        step = super().step(action)
        return step._replace(extras={"is_success": step.terminated.clone()})

    def compute_reward(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Return 0 where goals (B, n) are equal, else -1: (B,) float32."""
        return self.compute_terminated(achieved, desired).float() - 1.0

    def compute_terminated(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Return whether goals (B, n) are equal, (B,) bool."""
        return (achieved == desired).all(-1)
