"""MinAtar's games, made to depend on gymnasium's generator alone: their episodes can be repeated and resumed."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import gymnasium as gym
from gymnasium.utils import seeding


def register() -> None:
    """Make the ids MinAtar/... known to gymnasium.

    Raises:
        ImportError: the package MinAtar is not installed.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns that it lacks packages that only its own pictures need
    try:
        minatar = importlib.import_module("minatar.gym")
    finally:
        logging.disable(before)
    if "MinAtar/Breakout-v1" not in gym.registry:
        minatar.register_envs()


class Seeded(gym.Wrapper[Any, Any, Any, Any]):
    """Draws each episode's seed from the environment's generator, which MinAtar's own `reset` passes over.

    Its games keep one stream, and the last action that may stick, across episodes; with a seed for each episode, one
    depends on the generator before it and on its actions only.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Seed the game, then reset it."""
        core: Any = self.env.unwrapped
        if seed is not None:
            core._np_random, core._np_random_seed = seeding.np_random(seed)
        core.game.seed(int(core.np_random.integers(2**32)))
        core.game.last_action = 0
        return self.env.reset(options=options)
