"""What drawing from and adding to a full replay buffer costs, beside a bare ``index_select`` of as many bytes.

The yardstick gathers 256 random rows, given, of one float32 tensor whose rows are as long as a transition of CartPole
(observation, action, reward, two flags, next observation). All contenders take turns and other rows are drawn
every time, so that nothing is in the caches that would not be there in training. Times are those that the thread ran.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlcore.prioritized import Prioritized
from rlcore.replay import ReplayBuffer, split
from rlcore.seeding import Uniforms
from rlcore.tree import leaves

BATCH, GAMMA, ENVS = 256, 0.99, 16
CHUNK = 16  # batches of one gather, as the source draws them for 256 items


def measure(*, transitions: int = 1_000_000, repeats: int = 400, quick: bool = False) -> list[dict[str, Any]]:
    """Return rows of ``{"replay": what, "us": microseconds, "ratio": to the yardstick for as many rows}``.

    Additions have no ratio.
    """
    if quick:
        transitions, repeats = 20_000, 20
    rng = torch.Generator().manual_seed(0)
    return [*sampling(transitions, repeats, rng), *(adding(n, transitions, rng) for n in (1, 16, 64))]


def sampling(transitions: int, repeats: int, rng: torch.Generator) -> list[dict[str, Any]]:
    """Measure draws, each batch of 256 apart and, where the source does so, several in one gather."""
    buffer = ReplayBuffer(transitions, ENVS, cartpole(ENVS, rng))
    chosen = Prioritized(buffer, 0.6)
    step = cartpole(ENVS, rng)
    for at in range(buffer.rows):
        if at % 1000 == 0:
            step = cartpole(ENVS, rng)
        buffer.add(step)
    chosen.update(torch.arange(transitions), torch.rand(transitions, generator=rng))
    width = sum(x[0].nbytes for x in leaves(step))
    bare = torch.rand(transitions, -(-width // 4), generator=rng)
    rows = torch.randint(0, transitions, (257 * BATCH * CHUNK,), generator=rng)  # most of those that there are
    given = {batches: itertools.cycle(rows.split(BATCH * batches)) for batches in (1, CHUNK)}
    numbers = Uniforms(rng)

    def yardstick(batches: int) -> Tensor:
        return bare.index_select(0, next(given[batches]))

    def uniform(n_step: int, batches: int) -> Any:
        index = buffer.choose(numbers.take(BATCH * batches))
        return split(buffer.gather(index, GAMMA, n_step), index, batches)

    def prioritised(n_step: int) -> Any:
        index, weight = chosen.choose(numbers.take(BATCH), 0.4)
        return split(buffer.gather(index, GAMMA, n_step)._replace(weight=weight), index, 1)

    priority = torch.rand(BATCH, generator=rng)
    single = {
        "yardstick": lambda: yardstick(1),
        "uniform": lambda: uniform(1, 1),
        "3 steps": lambda: uniform(3, 1),
        "5 steps": lambda: uniform(5, 1),
        "prioritised": lambda: prioritised(1),
        "prioritised, 3 steps": lambda: prioritised(3),
        "new priorities": lambda: chosen.update(next(given[1]), priority),
    }
    several = {
        "yardstick": lambda: yardstick(CHUNK),
        "uniform": lambda: uniform(1, CHUNK),
        "3 steps": lambda: uniform(3, CHUNK),
        "5 steps": lambda: uniform(5, CHUNK),
    }
    apart, together = taken(single, repeats), taken(several, repeats)
    return [
        {"replay": f"{name}, {what}", "us": us / batches, "ratio": us / found["yardstick"]}
        for what, batches, found in (
            (f"{BATCH} drawn", 1, apart),
            (f"{CHUNK} times {BATCH} in one gather, each", CHUNK, together),
        )
        for name, us in found.items()
    ]


def adding(num_envs: int, transitions: int, rng: torch.Generator) -> dict[str, Any]:
    """Measure the addition of one step of so many environments to a buffer."""
    step = cartpole(num_envs, rng)
    buffer = ReplayBuffer(transitions, num_envs, step)
    us = taken({"add": lambda: buffer.add(step)}, 2_000)["add"]
    return {"replay": f"adding a step of {num_envs} environments", "us": us}


def taken(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median microseconds of each contender; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.thread_time()
            run()
            times[name].append(time.thread_time() - start)
    return {name: 1e6 * statistics.median(found) for name, found in times.items()}


def cartpole(num_envs: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Return a step as CartPole's would be, with an end in 50."""
    end = torch.rand(num_envs, generator=rng) < 0.02
    return {
        "obs": torch.rand(num_envs, 4, generator=rng),
        "action": torch.randint(0, 2, (num_envs,), generator=rng),
        "reward": torch.ones(num_envs),
        "terminated": end,
        "truncated": torch.zeros_like(end),
        "next_obs": torch.rand(num_envs, 4, generator=rng),
    }
