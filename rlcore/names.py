"""What the numbers of well-known observations and actions mean, by the environment's name without its version."""

from __future__ import annotations

from typing import Any

_SWING = ("cos angle", "sin angle", "angular velocity (rad/s)")
_ACROBOT = ("cos angle 1", "sin angle 1", "cos angle 2", "sin angle 2", "velocity 1 (rad/s)", "velocity 2 (rad/s)")
_LANDER = ("x", "y", "x velocity", "y velocity", "angle (rad)", "angular velocity", "left leg down", "right leg down")
_CAR = ("position", "velocity")
_GRID = ("left", "down", "right", "up")

OBSERVATIONS: dict[str, tuple[str, ...]] = {
    "CartPole": ("cart position", "cart velocity", "pole angle (rad)", "pole velocity (rad/s)"),
    "CartPolePositions": ("cart position", "pole angle (rad)"),
    "Pendulum": _SWING,
    "Acrobot": _ACROBOT,
    "MountainCar": _CAR,
    "MountainCarContinuous": _CAR,
    "LunarLander": _LANDER,
}
ACTIONS: dict[str, tuple[str, ...]] = {
    "CartPole": ("left", "right"),
    "CartPolePositions": ("left", "right"),
    "Pendulum": ("torque (N m)",),
    "Acrobot": ("torque -1", "none", "torque +1"),
    "MountainCar": ("left", "coast", "right"),
    "MountainCarContinuous": ("force",),
    "LunarLander": ("nothing", "left engine", "main engine", "right engine"),
    "PixelBreakout": ("stay", "left", "right"),
    "FrozenLake": _GRID,
    "CliffWalking": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pick up", "drop off"),
}


def observations(env_id: str, count: int) -> list[str]:
    """Return names of the ``count`` numbers of an observation; ``obs[i]`` where none are known."""
    return _named(OBSERVATIONS, env_id, count, "obs[{}]")


def actions(env_id: str, count: int, env: Any = None) -> list[str]:
    """Return names of ``count`` actions, or numbers of a continuous one; ``env`` may know them, as Atari's games do."""
    meanings = getattr(getattr(env, "unwrapped", None), "get_action_meanings", None)
    if meanings is not None and len(meant := meanings()) == count:
        return [str(name).lower() for name in meant]
    return _named(ACTIONS, env_id, count, "action {}")


def _named(table: dict[str, tuple[str, ...]], env_id: str, count: int, other: str) -> list[str]:
    known = table.get(env_id.rpartition("/")[2].partition("-v")[0], ())
    return [*known] if len(known) == count else [other.format(i) for i in range(count)]
