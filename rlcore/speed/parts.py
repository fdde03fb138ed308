"""What `benchmark.py speed` measures: comparisons of contenders, each set up in its own library's words.

Sizes: "quick" only shows that everything runs; "standard" takes about 70 minutes with nothing else running; "full"
trains as long as each library's published settings do.
"""

from __future__ import annotations

from rlcore.speed.accelerator import accelerated
from rlcore.speed.alone import compiling, costs, data_parallel, profiles, seeds_together, worker_processes
from rlcore.speed.language import language_models
from rlcore.speed.races import dqn, many, on_policy, sac, solve
from rlcore.speed.settings import Comparison, Size

PARTS = (
    "dqn",
    "dqn_long",
    "solve",
    "ppo",
    "pqn",
    "many",
    "sac",
    "compile",
    "seeds",
    "envs",
    "workers",
    "ranks",
    "replay",
    "hosting",
    "memory",
    "startup",
    "nanogpt",
    "nanogpt_loss",
    "gpu",
    "profile",
)


def comparisons(size: Size) -> list[Comparison]:
    """Return all that is measured, in the order of the page."""
    envs, *others = costs(size)
    return [
        *dqn(size),
        solve(size),
        *on_policy(size),
        many(size),
        sac(size),
        compiling(size),
        *seeds_together(size),
        envs,
        *worker_processes(size),
        data_parallel(size),
        *others,
        *language_models(size),
        *accelerated(size),
        profiles(size),
    ]
