"""Breakout on 10 x 10 pixels, batched: the rules of MinAtar's game, state for state.

MinAtar is Young and Tian's (2019, "MinAtar: An Atari-inspired testbed for thorough and reproducible reinforcement
learning experiments"; github.com/kenjyoung/MinAtar, GPL-3.0). The rules are theirs; none of the code is.

A state is eleven whole numbers: where the generator of the sticky actions is, the last action, paddle, ball (x, y),
where the ball was, its direction, whether it struck a brick last, and the wall, one bit for each of 3 x 10 bricks.
"""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch

from envs.classic import limit
from rlcore.arrays import GOLDEN, bits, constant, float32, library, mix, stack, unit, whole
from rlcore.errors import UserError
from rlcore.native import BatchedEnv
from rlcore.vector import Autoreset, Split

SIZE, PLANES = 10, 4  # the planes are paddle, ball, trail and bricks
WALL = (1 << 30) - 1  # bit 10 * (y - 1) + x is the brick at (x, y), y in 1, 2, 3
BITS = [1 << i for i in range(30)]
COLOURS = np.array([[0, 0, 0], [90, 160, 255], [255, 255, 255], [120, 120, 120], [220, 90, 60]], dtype=np.uint8)
SCALE = 16  # a pixel is drawn this wide and high


class PixelBreakout(BatchedEnv):
    """Bounce a ball off a paddle and break three rows of bricks: stay (0), move left (1) or right (2).

    The reward is 1 for each brick; when the ball comes down and none is left, three new rows are there. An episode
    terminates when the ball passes the paddle. Observations are planes (10, 10, 4) bool of paddle, ball, trail and
    bricks. With some probability the last action is repeated instead of the one given. Episodes are those of MinAtar's
    Breakout with its minimal actions; its difficulty does not ramp either.

    Args:
        num_envs: environments stepped together.
        device: where states and observations live.
        split: ignored; nothing is held out.
        autoreset: "same_step", "next_step" or "disabled".
        sticky_action_prob: probability that the last action is repeated.
        max_episode_steps: steps until an episode is truncated; None: none is, as in MinAtar.
        render_mode: "rgb_array".

    Raises:
        UserError: an argument is out of range.
    """

    num_uniforms = 2
    on_arrays = True

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        *,
        sticky_action_prob: float = 0.1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if not 0 <= sticky_action_prob <= 1:
            raise UserError(f"PixelBreakout's sticky_action_prob: {sticky_action_prob} is not in [0, 1]")
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"PixelBreakout's render_mode: '{render_mode}' cannot be had; expected 'rgb_array'")
        self.sticky_action_prob, self.render_mode = sticky_action_prob, render_mode
        self.bits = constant(BITS, torch.device(device), torch.int64)  # (30,)
        super().__init__(
            num_envs, device, split, autoreset,
            obs_space=gym.spaces.Box(0, 1, (SIZE, SIZE, PLANES), dtype=cast(Any, np.bool_)),
            action_space=gym.spaces.Discrete(3),
            max_episode_steps=2**62 if max_episode_steps is None else limit(max_episode_steps, "PixelBreakout"),
        )  # fmt: skip

    def initial(self, u: Any) -> Any:
        """Return start states (N, 11) from ``u`` (N, 2): the ball comes from the left or the right edge."""
        generator, right = whole(u[:, 0] * 2.0**53), whole(u[:, 1] >= 0.5)  # (N,) each
        none, x = right * 0, right * 9
        start = [generator, none, none + 4, x, none + 3, x, none + 3, 1 - 2 * right, none + 1, none, none + WALL]
        return stack(start).T

    def dynamics(self, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """Return states (N, 11), rewards and terminated (N,) after ``action`` (N,) in {0, 1, 2}."""
        generator, last, paddle, old_x, old_y, _, _, dx, dy, struck, wall = state.T  # (N,) each
        m, generator = library(paddle), generator + GOLDEN
        action = m.where(unit(mix(bits(generator))) < self.sticky_action_prob, last, action)
        paddle = (paddle + whole(action == 2) - whole(action == 1)).clip(0, SIZE - 1)

        x, y = old_x + dx, old_y + dy
        side = (x < 0) | (x >= SIZE)
        x, dx = x.clip(0, SIZE - 1), m.where(side, -dx, dx)
        top = y < 0
        y = m.where(top, 0, y)
        at = (SIZE * (y - 1) + x).clip(0, 63)  # above the wall bit 0 or another: `row` says that it is none
        row = (y >= 1) & (y <= 3)
        brick = row & ((wall >> at & 1) == 1)
        breaks = brick & (struck == 0)  # one brick at a time: after a hit the ball passes through others
        wall = wall ^ (whole(breaks) << at)

        bottom = y == SIZE - 1
        wall = m.where(bottom & (wall == 0), WALL, wall)
        meets = bottom & (old_x == paddle)  # straight, and back where it came from at the paddle's edge
        edge = bottom & ~meets & (x == paddle)
        back = breaks | meets | edge
        y = m.where(back, old_y, y)
        dy, dx = m.where(back | top, -dy, dy), m.where(edge, -dx, dx)
        new = [generator, action, paddle, x, y, old_x, old_y, dx, dy, whole(brick), wall]
        return stack(new).T, float32(breaks), bottom & ~back

    def observe(self, state: Any) -> Any:
        """Return planes (N, 10, 10, 4) bool."""
        _, _, paddle, x, y, old_x, old_y, _, _, _, wall = state.T  # (N,) each
        cells = stack([paddle + (SIZE - 1) * SIZE, y * SIZE + x, old_y * SIZE + old_x])  # (3, N)
        bricks = (wall[:, None] & self.bits) != 0  # (N, 30)
        n = len(wall)
        if isinstance(wall, np.ndarray):
            planes = np.zeros((n, SIZE * SIZE, PLANES), np.bool_)
            for i in range(3):
                planes[np.arange(n), cells[i], i] = True
        else:
            planes = torch.zeros((n, SIZE * SIZE, PLANES), dtype=torch.bool, device=wall.device)
            planes[:, :, :3].scatter_(1, cells.T[:, None], True)
        planes[:, SIZE : 4 * SIZE, 3] = bricks
        return planes.reshape(n, SIZE, SIZE, PLANES)

    def render(self) -> list[Any]:
        """Return one picture (160, 160, 3) uint8 per environment."""
        if self.render_mode is None:
            raise UserError("PixelBreakout was built without a render_mode; expected 'rgb_array'")
        planes = self._look(self._now)
        planes = planes if isinstance(planes, np.ndarray) else planes.cpu().numpy()
        highest = (planes * np.arange(1, PLANES + 1)).max(-1)  # (N, 10, 10): of what lies in one place
        return [*np.kron(COLOURS[highest], np.ones((1, SCALE, SCALE, 1), np.uint8))]
