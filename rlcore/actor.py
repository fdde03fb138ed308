"""Acting in a vector environment: what every source that acts, and evaluation, have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import distributed
from rlcore.agent import Agent
from rlcore.compiled_acting import Acts, Inputs, compiled_act
from rlcore.compiled_play import Play, compiled_play
from rlcore.errors import UserError
from rlcore.seeding import derive, generator
from rlcore.tree import cut, tmap
from rlcore.types import Act, Step
from rlcore.vector import VectorEnv


class Acted(NamedTuple):
    """One act and its step, or several in order of time, (T, N, ...): everything a source may want to store."""

    obs: Any  # tree (N, ...): what the action was chosen on
    state: Any  # tree (N, ...): recurrent state before the act
    extras: dict[str, Tensor]  # Step.extras that belong to obs: action_mask
    act: Act
    step: Step


def random_actions(space: Any, n: int, rng: torch.Generator, mask: Tensor | None = None) -> Tensor:
    """Draw n uniform actions (allowed ones, under a mask (n, actions)).

    Raises:
        UserError: the space is neither Discrete, MultiDiscrete, MultiBinary nor a bounded Box.
    """
    device = rng.device
    if isinstance(space, spaces.Discrete):
        if mask is None:
            return torch.randint(int(space.n), (n,), generator=rng, device=device)
        scores = torch.rand(mask.shape, generator=rng, device=device)
        return scores.masked_fill_(~mask.bool(), -1.0).argmax(-1)
    if isinstance(space, spaces.Box) and space.is_bounded():
        low, high = (torch.as_tensor(edge, dtype=torch.float32, device=device) for edge in (space.low, space.high))
        return low + (high - low) * torch.rand(n, *space.shape, generator=rng, device=device)
    if isinstance(space, spaces.MultiDiscrete):
        sizes = torch.as_tensor(space.nvec, device=device)
        return (torch.rand(n, *space.shape, generator=rng, device=device) * sizes).long()
    if isinstance(space, spaces.MultiBinary):
        return torch.randint(2, (n, *space.shape), generator=rng, device=device)
    raise UserError(f"random actions cannot be drawn from {space}; expected a Discrete, Multi... or bounded Box space")


class EpisodeMeter:
    """Returns, lengths and, where the environment tells, successes of real episodes, without waiting for the device.

    Steps are kept as they come and counted many at once, always at the same ones: a float64 sum then does not depend on
    when the meter was saved.
    """

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.running = torch.zeros(2, num_envs, dtype=torch.float64, device=device)  # return, length so far
        # Sums over episodes of returns, lengths, 1 and successes.
        self.finished = torch.zeros(4, dtype=torch.float64, device=device)
        # Not counted yet: rewards, terminated, truncated, valid, successes, (T, N) each.
        self._steps: list[tuple[Tensor, ...]] = []
        self._held = 0  # steps, of all these
        self._many = max(1, min(128, 2**17 // num_envs))  # from which on they are counted
        self._judged = False  # whether the environment tells successes

    def add(self, step: Step) -> None:
        """Count successive steps of every environment, (T, N, ...); fake rows do not count."""
        self._judged = "is_success" in step.extras
        success = (step.extras["is_success"],) if self._judged else ()
        self._steps.append((step.reward, step.terminated, step.truncated, step.valid, *success))
        self._held += len(step.reward)
        if self._held >= self._many:
            self._count()

    def _count(self) -> None:
        if not self._steps:
            return
        reward, terminated, truncated, valid, *success = self._stacked()  # (T, N)
        self._steps.clear()
        self._held = 0
        done = (terminated | truncated) & valid
        episode = done.cumsum(0) - done.long()  # (T, N): how many episodes ended before a step
        sums = self.running.new_zeros(2, len(done) + 1, done.shape[1])  # returns and lengths of each env's episodes
        sums[:, 0] = self.running
        sums.scatter_add_(1, episode.expand(2, -1, -1), torch.stack((reward * valid, valid)).double())
        ended = done.sum(0)  # (N,)
        self.running = sums.gather(1, ended.expand(2, 1, -1)).squeeze(1)
        whole = torch.arange(len(done) + 1, device=done.device)[:, None] < ended  # (T + 1, N)
        self.finished[:2] += (sums * whole).sum((1, 2))
        self.finished[2] += ended.sum()
        if success:
            self.finished[3] += (success[0] & done).sum()

    def _stacked(self) -> list[Tensor]:
        return [torch.cat(column) for column in zip(*self._steps, strict=True)]

    def flush(self) -> dict[str, float]:
        """Return the mean return, length and success of the episodes finished since the last flush, if any."""
        self._count()
        distributed.sum_(self.finished)
        total, length, episodes, successes = self.finished.tolist()
        self.finished.zero_()
        if not episodes:
            return {}
        means = {"episode_return": total / episodes, "episode_length": length / episodes}
        return means | ({"success_rate": successes / episodes} if self._judged else {})

    def state_dict(self) -> dict[str, Any]:
        """Return the episodes so far."""
        held = tuple(self._stacked())
        return {"running": self.running, "finished": self.finished, "steps": held, "judged": self._judged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called."""
        self.running.copy_(state["running"])
        self.finished.copy_(state["finished"])
        held = tuple(column.to(self.running.device) for column in state["steps"])
        self._steps, self._held = ([held], len(held[0])) if held else ([], 0)
        self._judged = state.get("judged", len(state["steps"]) > 4)  # checkpoints of before only tell by the steps

    def cut(self) -> None:
        """Forget the episodes that have not ended."""
        self._count()
        self.running.zero_()


class Actor:
    """Acts in an environment. Owns the last observation, the recurrent state, a generator and the episode meter."""

    def __init__(self, env: VectorEnv, seed: int) -> None:
        self.env = env
        self.seed = seed
        self.rng = generator(seed, distributed.stream("act"), env.device)
        self.episodes = EpisodeMeter(env.num_envs, env.device)
        before = sum(distributed.every(env.num_envs)[: distributed.rank()])  # environments of lower ranks
        self.obs, self.extras = env.reset(derive(seed, "env") % 2**31 + before)
        self.state: Any = None  # built by the first act, which knows the agent
        self.compiled = False  # whether the agent's act is to be
        self.acts: tuple[Agent, Acts] | None = None  # the agent, and what is called in its place, once it is
        self.plays: tuple[Agent, Play | None] | None = None  # the agent, and what acts and steps, if that is compiled

    def steps(self, agent: Agent, knobs: dict[str, Tensor], count: int, random: bool = False) -> list[Acted]:
        """Act so many times in every environment; return it in order of time, in parts (T, N, ...).

        The randomness of all is drawn at once, which is cheaper. ``random``: actions are uniform, whatever the agent
        would do.
        """
        if random:
            return [joined(self._random(agent, knobs, count))]
        drawn = agent.noise("act", count * self.env.num_envs, self.rng)
        rows = {name: x.unflatten(0, (count, -1)) for name, x in drawn.items()}
        play = self._play(agent, knobs, rows) if self.compiled and self.env.autoreset != "disabled" else None
        if play is None:
            each = cut(drawn, count)
            return [joined([self.step(agent, knobs, noise) for noise in each])]
        parts = []
        for act, step in play(self.obs, rows, count):
            obs = tmap(lambda first, later: torch.cat((first.unsqueeze(0), later[:-1])), self.obs, step.obs)
            parts.append(Acted(obs, self.state, {}, act, step))
            self.obs, self.extras = tmap(lambda x: x[-1], (step.obs, step.extras))
        return parts

    def _random(self, agent: Agent, knobs: dict[str, Tensor], count: int) -> list[Acted]:
        n, space = self.env.num_envs, self.env.spec.action_space
        if self.state is None:
            self.state = agent.initial_state(n)
        if "action_mask" in self.extras or not is_empty(self.state):  # either depends on the steps before
            return [self.step(agent, knobs, agent.noise("act", n, self.rng), random=True) for _ in range(count)]
        actions = random_actions(space, count * n, self.rng).unflatten(0, (count, n)).unbind()
        return [self.finish(agent, Act(action), self.env.step(action)) for action in actions]

    def _play(self, agent: Agent, knobs: dict[str, Tensor], rows: dict[str, Tensor]) -> Play | None:
        if self.plays is None or self.plays[0] is not agent:
            if self.state is None:
                self.state = agent.initial_state(self.env.num_envs)
            noise = {name: x[0].contiguous() for name, x in rows.items()}
            self.plays = agent, compiled_play(agent, self.env, self.obs, self.state, knobs, noise)
        return self.plays[1]

    def step(self, agent: Agent, knobs: dict[str, Tensor], noise: dict[str, Tensor], random: bool = False) -> Acted:
        """Act once in every environment; ``random``: uniformly, whatever the agent would do."""
        act = self.choose(agent, knobs, noise, random)
        return self.finish(agent, act, self.env.step(act.action))

    def choose(self, agent: Agent, knobs: dict[str, Tensor], noise: dict[str, Tensor], random: bool) -> Act:
        """Return what to do next in every environment."""
        if self.state is None:
            self.state = agent.initial_state(self.env.num_envs)
        mask = self.extras.get("action_mask")
        if random and is_empty(self.state):  # what the agent would do changes nothing
            return Act(random_actions(self.env.spec.action_space, self.env.num_envs, self.rng, mask))
        inputs = self.obs, self.state, knobs, noise, mask
        with torch.inference_mode():
            act = self._act(agent, inputs) if self.compiled else agent.act(*inputs)
        if random:
            action = random_actions(self.env.spec.action_space, self.env.num_envs, self.rng, mask)
            act = act._replace(action=action, state=agent.took(act.state, action))
        return act

    def _act(self, agent: Agent, inputs: Inputs) -> Act:
        if self.acts is None or self.acts[0] is not agent:
            self.acts = agent, compiled_act(agent, inputs)
        return self.acts[1](inputs)

    def finish(self, agent: Agent, act: Act, step: Step) -> Acted:
        """Take note of what became of the chosen actions."""
        masks = {name: x for name, x in self.extras.items() if name == "action_mask"}
        acted = Acted(self.obs, self.state, masks, act, step)
        self.obs, self.extras = step.obs, step.extras
        ended = step.terminated | step.truncated
        if self.env.autoreset == "disabled":  # it goes on where it is until told to begin anew
            self.obs, self.extras = self.env.reset(mask=ended)
        if not is_empty(act.state):
            fresh = ended | ~step.valid
            start = agent.initial_state(self.env.num_envs)
            self.state = tmap(lambda s, zero: torch.where(_like(fresh, s), zero, s), act.state, start)
        return acted

    def state_dict(self) -> dict[str, Any]:
        """Return everything that acting depends on, the environments' state included where it can be captured."""
        return {
            "obs": self.obs,
            "extras": self.extras,
            "state": self.state,
            "rng": self.rng.get_state(),
            "episodes": self.episodes.state_dict(),
            "env": self.env.capture(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called; without an environment state, start new episodes."""
        self.rng.set_state(state["rng"].cpu())
        self.episodes.load_state_dict(state["episodes"])
        if state["env"] is None:
            self.episodes.cut()
            self.obs, self.extras = self.env.reset(
                int(torch.randint(2**31, (), generator=self.rng, device=self.rng.device))
            )
            return
        self.env.restore(state["env"])
        device = self.env.device
        self.obs, self.extras = tmap(lambda x: x.to(device), (state["obs"], state["extras"]))
        self.state = None if state["state"] is None else tmap(lambda x: x.to(device), state["state"])


def joined(acted: Sequence[Acted]) -> Acted:
    """Return single acts and steps one after the other, every tensor (T, N, ...)."""
    return tmap(lambda *x: torch.stack(x), *acted) if len(acted) > 1 else tmap(lambda x: x.unsqueeze(0), acted[0])


def _like(flags: Tensor, x: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (x.dim() - 1))


def is_empty(state: Any) -> bool:
    """Whether a recurrent state is (), that of an agent without one."""
    return isinstance(state, tuple) and not state
