"""What a step of N environments costs: ours, gymnasium's batched one, its loop, EnvPool, MinAtar as hosted.

All take random actions, drawn before, and turns of some milliseconds each, so that what else the machine does meets
all alike. Times are wall-clock; every contender has one thread (EnvPool one worker thread). Ended episodes begin anew,
which counts. What is stepped one by one is left out above 1,024 environments.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rlcore import registry
from rlcore.command import positive
from rlcore.errors import UserError, nearest
from rlcore.make import make_env

IDS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "PixelBreakout-v0")
SIZES = (1, 8, 64, 1024, 16384)
ONE_BY_ONE = 1024  # at most
BATCHES = 32  # of actions
Step = Callable[[Any], Any]


def add(commands: Any) -> None:
    """Add the subcommand to `benchmark.py`'s."""
    parser = commands.add_parser("envs", help="steps of environments", text=" ".join(str(__doc__).split()))
    parser.add_argument("--ids", default=",".join(IDS), metavar="A,B", help=f"native environments [{','.join(IDS)}]")
    sizes = ",".join(map(str, SIZES))
    parser.add_argument("--num-envs", default=sizes, metavar="N,M", help=f"how many are stepped together [{sizes}]")
    parser.add_argument("--repeats", type=positive, default=15, metavar="N", help="turns of every contender [15]")


def run(options: argparse.Namespace) -> None:
    """Measure and print, a line for each contender.

    Raises:
        UserError: an environment is not native, or a size is not a whole number above 0.
    """
    ids, sizes = options.ids.split(","), options.num_envs.split(",")
    for name in ids:
        if name not in registry.names("envs"):
            raise UserError(f"--ids: '{name}' is no native environment{nearest(name, registry.names('envs'))}")
    for size in sizes:
        if not size.isdigit() or int(size) < 1:
            raise UserError(f"--num-envs: '{size}' is not a whole number above 0")
    for env_id, size in ((i, int(n)) for i in ids for n in sizes):
        for row in measure(ids=[env_id], num_envs=[size], repeats=options.repeats):
            print(
                f"{env_id:18} {size:6} {row['by']:24} {row['us']:10.1f} us ({row['from']:.1f} to {row['to']:.1f}) "
                f"{row['steps_per_second']:12,.0f} steps/s {row['ratio']:8.2f} times ours",
                flush=True,
            )


def measure(
    *,
    ids: Sequence[str] = IDS,
    num_envs: Sequence[int] = SIZES,
    repeats: int = 15,
    turn: float = 0.02,
    quick: bool = False,
) -> list[dict[str, Any]]:
    """Return rows by environment, size and contender.

    A row has ``us`` (median microseconds a step of all N), ``from`` and ``to`` (its quartiles), ``steps_per_second``
    (N divided by the median) and ``ratio`` (the median of the contender's time divided by ours of the same turn).

    Args:
        ids: native environments.
        num_envs: how many are stepped together.
        repeats: turns of every contender.
        turn: seconds of a turn.
        quick: only show that it runs.
    """
    if quick:
        ids, num_envs, repeats, turn = ids[:1], (1, 64), 3, 0.002
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of precision in others' spaces
            return [row for env_id in ids for n in num_envs for row in _rows(env_id, n, repeats, turn)]
    finally:
        torch.set_num_threads(threads)


def _rows(env_id: str, n: int, repeats: int, turn: float) -> list[dict[str, Any]]:
    contenders = _contenders(env_id, n, np.random.default_rng(0))
    return [{"env": env_id, "environments": n, **row} for row in compared(contenders, n, repeats, turn)]


def compared(
    contenders: Mapping[str, tuple[Step, list[Any]]], n: int, repeats: int, turn: float
) -> list[dict[str, Any]]:
    """Let contenders step n environments in turn; return the rows of `measure`, with ratios to the first contender.

    Args:
        contenders: by name how to step, and `BATCHES` of actions.
        n: environments of a step.
        repeats: turns of every contender.
        turn: seconds of a turn.
    """
    times: dict[str, list[float]] = {}
    runs = {}
    for name, (step, actions) in contenders.items():
        _take(step, actions, 4)
        count = max(4, int(turn / _take(step, actions, 4)))
        runs[name], times[name] = (step, actions, count), []
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(1e6 * _take(*run))
    rows, first = [], next(iter(times.values()))
    for name, found in times.items():
        low, middle, high = np.quantile(found, [0.25, 0.5, 0.75]).tolist()
        ratio = statistics.median(x / reference for x, reference in zip(found, first, strict=True))
        row = {"by": name, "us": middle, "from": low, "to": high}
        rows.append(row | {"steps_per_second": 1e6 * n / middle, "ratio": ratio})
    return rows


def random_batches(space: gym.Space[Any], n: int, rng: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    """Return `BATCHES` of n random actions of a Discrete or a bounded Box space."""
    if isinstance(space, gym.spaces.Discrete):
        return [rng.integers(0, int(space.n), n) for _ in range(BATCHES)]
    assert isinstance(space, gym.spaces.Box)
    return [rng.uniform(space.low, space.high, (n, *space.shape)).astype(np.float32) for _ in range(BATCHES)]


def _take(step: Step, actions: list[Any], count: int) -> float:
    """Return the mean seconds of so many steps."""
    start = time.perf_counter()
    for i in range(count):
        step(actions[i % BATCHES])
    return (time.perf_counter() - start) / count


def _contenders(env_id: str, n: int, rng: np.random.Generator) -> dict[str, tuple[Step, list[Any]]]:
    """Return by name how to step, and batches of actions as the contender takes them."""
    ours = make_env(env_id, n)
    ours.reset(0)
    space = ours.spec.action_space
    drawn = random_batches(space, n, rng)
    found: dict[str, tuple[Step, list[Any]]] = {"ours": (ours.step, [torch.from_numpy(a) for a in drawn])}
    if env_id == "PixelBreakout-v0":
        if n <= ONE_BY_ONE and importlib.util.find_spec("minatar"):
            hosted = make_env("MinAtar/Breakout-v1", n)
            hosted.reset(0)
            found["MinAtar, as hosted"] = hosted.step, found["ours"][1]
        return found
    modes = {"gymnasium, batched": "vector_entry_point"} if gym.spec(env_id).vector_entry_point else {}
    modes |= {"gymnasium, one by one": "sync"} if n <= ONE_BY_ONE else {}
    for name, mode in modes.items():
        vector = gym.make_vec(env_id, n, vectorization_mode=mode)
        vector.reset(seed=0)
        found[name] = vector.step, drawn
    if importlib.util.find_spec("envpool"):
        envpool: Any = importlib.import_module("envpool")
        pool = envpool.make_gymnasium(env_id, num_envs=n, num_threads=1, seed=0)
        pool.reset()
        dtype = np.int32 if isinstance(space, gym.spaces.Discrete) else np.float32
        found["EnvPool"] = pool.step, [a.astype(dtype) for a in drawn]
    return found
