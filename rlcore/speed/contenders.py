"""Contenders of `benchmark.py speed` by library."""

from __future__ import annotations

from typing import Any

from rlcore.speed.settings import Contender, Size

EAGER, COMPILED = {"compile": "off"}, {"compile": "on"}


def mine(name: str, config: Any, frames: int, about: float, compiled: bool = False, **more: Any) -> Contender:
    """Return ours: settings or a recipe; of a compiled one, what compiling takes is told apart."""
    overrides = {**(COMPILED if compiled else EAGER), **more.pop("overrides", {})}
    job = {"config": config, "overrides": overrides, "frames": frames, **({"apart": True} if compiled else {}), **more}
    return Contender(name, "ours", job, about + 8 * compiled)


def sb3(
    algorithm: str, options: dict[str, Any], frames: int, about: float, num_envs: int = 1, **more: Any
) -> Contender:
    """Return an algorithm of Stable-Baselines3 on CartPole with its own options."""
    job = {"algorithm": algorithm, "env": "CartPole-v1", "num_envs": num_envs, "options": options, "frames": frames}
    return Contender(f"Stable-Baselines3 {algorithm}", "sb3", {**job, **more}, about)


def cleanrl(script: str, frames: int, updates: float, about: float, **more: Any) -> Contender:
    """Return a script of CleanRL, which makes so many updates a frame."""
    job = {"script": script, "arguments": [], "updates": updates, "frames": frames, **more}
    return Contender(f"CleanRL {script}", "cleanrl", job, about, needs="cleanrl")


def peer(name: str, module: str, options: dict[str, Any], frames: int, about: float, **more: Any) -> Contender:
    """Return a library with settings in short."""
    return Contender(name, module, {"options": options, "frames": frames, **more}, about)


def by_size(size: Size, quick: int, standard: int, full: int) -> int:
    """Return what belongs to the size."""
    return {"quick": quick, "standard": standard, "full": full}[size]
