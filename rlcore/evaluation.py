"""Seeded evaluation: episode i starts from seed + i, whatever the number of environments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcore.actor import is_empty
from rlcore.agent import Agent
from rlcore.statistics import summary
from rlcore.vector import VectorEnv


class Episodes(NamedTuple):
    """Finished episodes, in order of their seeds."""

    returns: Tensor  # (E,) float64
    lengths: Tensor  # (E,) int64
    outcomes: dict[str, Tensor]  # the extras of each episode's last step, (E, ...)


@torch.no_grad()
def play(agent: Agent, env: VectorEnv, episodes: int, seed: int, max_steps: int = 30_000) -> Episodes:
    """Play ``episodes`` greedy episodes, a wave of ``env.num_envs`` at a time; each counts exactly once.

    An episode longer than ``max_steps`` counts as it stands. The agent's mode and torch's global
    random state are left as they were.
    """
    was_training = agent.training
    agent.eval()
    with torch.random.fork_rng(devices=[]):
        firsts = range(seed, seed + episodes, env.num_envs)
        waves = [_wave(agent, env, list(range(first, first + env.num_envs)), max_steps) for first in firsts]
    agent.train(was_training)
    returns = torch.cat([wave.returns for wave in waves])[:episodes]
    lengths = torch.cat([wave.lengths for wave in waves])[:episodes]
    outcomes = {k: torch.cat([wave.outcomes[k] for wave in waves])[:episodes] for k in waves[0].outcomes}
    return Episodes(returns, lengths, outcomes)


def _wave(agent: Agent, env: VectorEnv, seeds: list[int], max_steps: int) -> Episodes:
    n = env.num_envs
    obs, extras = env.reset(seeds)
    state = agent.initial_state(n)
    alive = torch.ones(n, dtype=torch.bool, device=env.device)
    returns = torch.zeros(n, dtype=torch.float64, device=env.device)
    lengths = torch.zeros(n, dtype=torch.int64, device=env.device)
    outcomes: dict[str, Tensor] = {}
    for _ in range(max_steps):
        act = agent.act(obs, state, {}, {}, extras.get("action_mask"), explore=False)
        step = env.step(act.action)
        returns += step.reward * alive
        lengths += alive
        ended = (step.terminated | step.truncated) & alive
        for name, value in step.extras.items():
            flag = ended.view(-1, *[1] * (value.dim() - 1))
            outcomes[name] = torch.where(flag, value, outcomes.get(name, value))
        alive = alive & ~ended
        # An environment goes on after its episode of this wave; what it does then is not looked at.
        if not alive.any():
            break
        obs, extras = step.obs, step.extras
        state = () if is_empty(act.state) else act.state
    return Episodes(returns, lengths, outcomes)


def evaluate(agent: Agent, env: VectorEnv, episodes: int, seed: int, max_steps: int = 30_000) -> dict[str, Any]:
    """Return the statistics of seeded episodes, the task's metrics and the single returns.

    Keys: episodes, seed, mean, std, iqm, ci_low, ci_high (95 % bootstrap interval of the
    interquartile mean over episodes), min, max, the task's metrics, returns.
    """
    played = play(agent, env, episodes, seed, max_steps)
    returns = played.returns.cpu().numpy()
    result: dict[str, Any] = {"episodes": episodes, "seed": seed, **summary(returns)}
    result |= env.metrics(played.outcomes)
    if "is_success" in played.outcomes:
        result["success_rate"] = played.outcomes["is_success"].double().mean().item()
    return result | {"returns": returns.tolist()}
