"""What the native classic-control environments share: their pictures and the check of their time limit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlcore.errors import UserError


def limit(steps: int, name: str) -> int:
    """Return a time limit.

    Raises:
        UserError: it is not a positive whole number.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"{name}'s max_episode_steps: {steps!r} is not a whole number above 0")
    return steps


def draw(artist: Any, states: Tensor) -> list[Any]:
    """Return one picture (height, width, 3) uint8 per state (N, k), drawn by gymnasium's own environment.

    Raises:
        UserError: the environment was built without a render_mode.
    """
    if artist is None:
        raise UserError("the environment was built without a render_mode; expected 'rgb_array' or 'human'")
    frames = []
    for state in states.cpu().numpy()[: 1 if artist.render_mode == "human" else None]:
        artist.state = state
        frames.append(artist.render())
    return frames
