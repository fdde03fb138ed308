"""Seeded evaluation: episode i starts from seed + i, whatever the number of environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.actor import is_empty
from rlcore.agent import Agent
from rlcore.recorded import Steps
from rlcore.seeding import generator
from rlcore.statistics import summary
from rlcore.tree import tmap
from rlcore.types import Step
from rlcore.vector import VectorEnv


class Episodes(NamedTuple):
    """Finished episodes, in order of their seeds."""

    returns: Tensor  # (E,) float64
    lengths: Tensor  # (E,) int64
    outcomes: dict[str, Tensor]  # the extras of each episode's last step, (E, ...)
    steps: list[Steps] = []  # of each episode, where they were asked for


@torch.no_grad()
def play(
    agent: Agent,
    env: VectorEnv,
    episodes: int,
    seed: int,
    max_steps: int = 30_000,
    explore: bool = False,
    record: bool = False,
) -> Episodes:
    """Play ``episodes`` episodes, a wave of ``env.num_envs`` at a time; each counts exactly once.

    An episode longer than ``max_steps`` counts as it stands, as one truncated there. The agent's mode and torch's
    global random state are left as they were.

    Args:
        agent: plays.
        env: is reset; it ends in no particular state.
        episodes: how many.
        seed: episode i starts from ``seed + i``.
        max_steps: of an episode.
        explore: act as at the end of training instead of greedily; such play depends on ``env.num_envs``.
        record: keep the steps.
    """
    was_training = agent.training
    agent.eval()
    rng = generator(seed, "evaluation", env.device) if explore else None
    with torch.random.fork_rng(devices=[]):
        firsts = range(seed, seed + episodes, env.num_envs)
        waves = [wave(agent, env, list(range(at, at + env.num_envs)), max_steps, rng, record) for at in firsts]
    agent.train(was_training)
    returns = torch.cat([wave.returns for wave in waves])[:episodes]
    lengths = torch.cat([wave.lengths for wave in waves])[:episodes]
    outcomes = {k: torch.cat([wave.outcomes[k] for wave in waves])[:episodes] for k in waves[0].outcomes}
    return Episodes(returns, lengths, outcomes, [steps for wave in waves for steps in wave.steps][:episodes])


def wave(
    agent: Any,
    env: VectorEnv,
    seeds: list[int],
    max_steps: int,
    rng: torch.Generator | None = None,
    record: bool = False,
) -> Episodes:
    """Play one episode from each of the N environments' ``seeds``; explore if a generator is given. See `play`."""
    n = env.num_envs
    obs, extras = env.reset(seeds)
    state = agent.initial_state(n)
    alive = torch.ones(n, dtype=torch.bool, device=env.device)
    returns = torch.zeros(n, dtype=torch.float64, device=env.device)
    lengths = torch.zeros(n, dtype=torch.int64, device=env.device)
    outcomes: dict[str, Tensor] = {}
    rows: list[Steps] = []
    knobs = {} if rng is None else {k: torch.tensor(at(1.0), device=env.device) for k, at in agent.schedules().items()}
    for _ in range(max_steps):
        noise = {} if rng is None else agent.noise("act", n, rng)
        mask = extras.get("action_mask")
        act = agent.act(obs, state, knobs, noise, mask, explore=rng is not None)
        step = env.step(act.action)
        if record:
            rows.append(_row(obs, mask, _taken(act.action, env.spec.action_space), step))
        returns += step.reward * alive
        lengths += alive
        ended = (step.terminated | step.truncated) & alive
        for name, value in step.extras.items():
            flag = alive.view(-1, *[1] * (value.dim() - 1))
            outcomes[name] = torch.where(flag, value, outcomes.get(name, value))
        alive = alive & ~ended
        # An environment goes on after its episode of this wave; what it does then is not looked at.
        if not alive.any():
            break
        obs, extras = step.obs, step.extras
        if env.autoreset == "disabled":
            obs, extras = env.reset(mask=step.terminated | step.truncated)
        state = () if is_empty(act.state) else act.state
    return Episodes(returns, lengths, outcomes, _by_episode(rows, lengths.tolist()) if record else [])


def _taken(action: Tensor, space: Any) -> Tensor:
    """Return actions (N, ...) as the environment takes them: it holds those of a Box within the bounds."""
    if not isinstance(space, spaces.Box):
        return action
    low, high = (torch.as_tensor(edge, dtype=action.dtype, device=action.device) for edge in (space.low, space.high))
    return action.clamp(low, high)


def _row(obs: Any, mask: Tensor | None, action: Tensor, step: Step) -> Steps:
    """Return one step of N environments, (N, ...)."""
    masks = {} if mask is None else {"action_mask": mask, "next_action_mask": step.extras["next_action_mask"]}
    return Steps(obs, action, step.reward, step.terminated, step.truncated, step.next_obs, masks)


def _by_episode(rows: list[Steps], lengths: list[int]) -> list[Steps]:
    """Return the steps of each environment's first episode; one that was left running is marked truncated."""
    stacked = tmap(lambda *x: torch.stack(x).cpu(), *rows)  # (T, N, ...)
    episodes = [tmap(lambda x, i=i, end=end: x[:end, i], stacked) for i, end in enumerate(lengths)]
    for steps in episodes:
        steps.truncated[-1] |= ~steps.terminated[-1]
    return episodes


def evaluate(
    agent: Agent,
    env: VectorEnv,
    episodes: int,
    seed: int,
    max_steps: int = 30_000,
    explore: bool = False,
    record: Callable[[Steps], None] | None = None,
    look: Callable[[dict[str, Tensor]], None] | None = None,
    player: Callable[..., Episodes] = play,
) -> dict[str, Any]:
    """Return the statistics of seeded episodes, the task's metrics and the single returns.

    ``record`` is given the steps of all episodes, one after the other, ``look`` the episodes' outcomes, from which
    environments make figures and lists of mistakes; ``player`` plays them; for the rest see `play`.

    Keys: episodes, seed, mean, std, iqm, ci_low, ci_high (95 % bootstrap interval of the
    interquartile mean over episodes), min, max, the task's metrics, returns.
    """
    played = player(agent, env, episodes, seed, max_steps, explore, record is not None)
    if record is not None:
        record(tmap(lambda *x: torch.cat(x), *played.steps))
    if look is not None:
        look(played.outcomes)
    returns = played.returns.cpu().numpy()
    result: dict[str, Any] = {"episodes": episodes, "seed": seed, **summary(returns)}
    result |= env.metrics(played.outcomes)
    if "is_success" in played.outcomes:
        result["success_rate"] = played.outcomes["is_success"].double().mean().item()
    return result | {"returns": returns.tolist()}
