"""What every measured process shares: its job, a clock that stands still during evaluations, and the rule for "solved".

A contender is run as ``python -m rlcore.speed.NAME JOB`` with the job as JSON and ends its output with one line,
``RESULT`` and JSON. It uses one thread on one core. Needs gymnasium (0.29 or later), NumPy and torch only, so that a
library with other demands can have an interpreter of its own.

CartPole is solved at the first evaluation whose 100 greedy episodes average 475 or more, if 100 episodes from other
start states confirm it; else training goes on. All libraries are evaluated by this file, every so many frames.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

Job = dict[str, Any]
Policy = Callable[[np.ndarray[Any, Any]], Any]  # observations (N, 4) float32 -> greedy actions (N,)

EPISODES, GOAL = 100, 475.0
LOOKS, CONFIRMATIONS = 3_000_000, 4_000_000  # seeds of the start states


class Solved(Exception):
    """Training has reached its end: for libraries that have no other way to stop."""


class Watch:
    """A stopwatch of training.

    Args:
        every: frames between evaluations; 0: none.
    """

    def __init__(self, every: int = 0) -> None:
        self.every, self.solved = every, False
        self.seconds, self.frames = 0.0, 0  # of training; `frames` as of the last look
        self._begun: float | None = None
        self.compiling = 0.0  # seconds of it, which are not counted but told

    def start(self) -> None:
        """Begin, or go on."""
        self._begun = time.perf_counter()

    def stop(self) -> None:
        """Stand still."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        if self._begun is not None:
            self.seconds += time.perf_counter() - self._begun
            self._begun = None

    def look(self, frames: int, policy: Policy) -> bool:
        """Evaluate the policy if it is time; return whether CartPole is solved."""
        last, self.frames = self.frames, frames
        if self.every and frames // self.every > last // self.every:
            self.stop()
            self.solved = score(policy, LOOKS) >= GOAL and score(policy, CONFIRMATIONS + frames) >= GOAL
            self.start()
        return self.solved

    def result(self, frames: int, updates: float, library: str, **more: Any) -> dict[str, Any]:
        """Return what a contender reports; ``library`` is a distribution's name, or any text."""
        self.stop()
        done = {"seconds": self.seconds - self.compiling, "frames": frames, "updates": updates, "solved": self.solved}
        told = {"compile_seconds": self.compiling} if self.compiling else {}
        return {**done, **told, "library": _named(library), **more}


def score(policy: Policy, seed: int, episodes: int = EPISODES) -> float:
    """Return the mean return of greedy episodes of gymnasium's CartPole-v1, all played at once."""
    from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

    env = CartPoleVectorEnv(num_envs=episodes, max_episode_steps=500)
    obs, _ = env.reset(seed=seed)
    alive, returns = np.ones(episodes, bool), np.zeros(episodes)
    while alive.any():
        obs, reward, terminated, truncated, _ = env.step(np.asarray(policy(obs.astype(np.float32)), np.int64))
        returns += reward * alive
        alive &= ~(terminated | truncated)  # it goes on with another episode, which is not looked at
    env.close()
    return float(returns.mean())


def _named(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except Exception:
        return library


def one_thread(cores: int = 1) -> None:
    """Compute with one thread, and keep this process, and what it starts, on one core (``cores`` 0: on any)."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)


def main(measure: Callable[[Job], dict[str, Any]]) -> None:
    """Measure the job of the command line, and print the result; a library that is not installed is said to be."""
    job = json.loads(sys.argv[1])
    one_thread(job.get("cores", 1))
    result: dict[str, Any]
    try:
        result = measure(job)
    except ModuleNotFoundError as error:
        result = {"missing": error.name}
    import torch

    result["versions"] = {"python": sys.version.split()[0], "torch": torch.__version__}
    print(f"\nRESULT {json.dumps(result)}", flush=True)
