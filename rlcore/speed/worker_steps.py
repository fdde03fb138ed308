"""What a step of N environments costs in one process, by our worker processes, and by gymnasium's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rlcore.make import make_env
from rlcore.speed.envs import Step, compared, random_batches


def measure(
    *,
    env_id: str,
    num_envs: int,
    workers: Sequence[int] = (1, 2),
    repeats: int = 15,
    turn: float = 0.1,
    quick: bool = False,
) -> list[dict[str, Any]]:
    """Return a row for each contender, as `envs.measure` does; ratios are to one process of ours."""
    if quick:
        repeats, turn = 3, 0.01
    made: list[Any] = [make_env(env_id, num_envs, workers=count) for count in (0, *workers)]
    names = ["one process", *(f"{count} worker{'s' * (count > 1)}" for count in workers)]
    same = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    modes = {"gymnasium's SyncVectorEnv": "sync", "gymnasium's AsyncVectorEnv": "async"}
    try:
        drawn = random_batches(made[0].spec.action_space, num_envs, np.random.default_rng(0))
        ours = [torch.from_numpy(a) for a in drawn]
        contenders: dict[str, tuple[Step, list[Any]]] = {
            name: (env.step, ours) for name, env in zip(names, made, strict=True)
        }
        for name, mode in modes.items():
            made.append(gym.make_vec(env_id, num_envs, vectorization_mode=mode, vector_kwargs=same))
            contenders[name] = made[-1].step, drawn
        for env in made:
            env.reset(seed=0)
        found = compared(contenders, num_envs, repeats, turn)
        return [{"env": env_id, "environments": num_envs, **row} for row in found]
    finally:
        for env in made:
            env.close()
