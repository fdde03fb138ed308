"""Hindsight experience replay (Andrychowicz et al. 2017), strategy "future", goals chosen when sampled.

A transition of a goal environment is relabelled with probability ``fraction``: its desired goal becomes the goal
achieved by a step drawn uniformly from those of the same episode stored so far, from itself on, and its reward
is computed anew. What is achieved always succeeds at something.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlcore.errors import UserError
from rlcore.replay import ReplayBuffer
from rlcore.types import Transition
from rlcore.vector import VectorEnv


class Hindsight:
    """Relabels one-step transitions of a replay buffer.

    Knows each stored step's episode by its number among its environment's, and each episode's latest step. No
    more than ``rows`` episodes of an environment are stored at once, so their numbers modulo ``rows`` differ.

    Args:
        buffer: where transitions are stored; tell `add` of each.
        env: a goal environment, for its reward.
        fraction: of transitions relabelled.

    Raises:
        UserError: the environment is no goal environment.
    """

    def __init__(self, buffer: ReplayBuffer, env: VectorEnv, fraction: float) -> None:
        if not env.has_goals:
            raise UserError(
                f"source.hindsight: got {fraction:g}, expected 0: the environment is no goal environment (observations "
                "with observation, achieved_goal and desired_goal, and a method compute_reward)"
            )
        self.buffer, self.env, self.fraction = buffer, env, fraction
        device = buffer.device
        self._episode = torch.full((buffer.slots + 1,), -1, device=device)  # number of each stored step's episode
        self._last = torch.full((buffer.slots + 1,), buffer.slots, device=device)  # slot of an episode's latest step
        self._running = torch.zeros(buffer.num_envs, dtype=torch.int64, device=device)  # (N,) number of the episode
        self._env = torch.arange(buffer.num_envs, device=device)

    def add(self, slot: Tensor, ended: Tensor) -> None:
        """Note the steps stored in slots (N,), and whether each ended its episode, (N,) bool."""
        stored = slot != self.buffer.slots
        self._episode.index_copy_(0, slot, self._running)
        self._last.index_copy_(0, torch.where(stored, self._entry(self._running, self._env), slot), slot)
        self._running += ended & stored

    def cut(self) -> None:
        """End every environment's running episode, as `ReplayBuffer.cut` does."""
        self._running += self._episode.index_select(0, self.buffer.newest) == self._running

    def relabel(self, data: Transition, index: Tensor, gamma: float, generator: torch.Generator) -> Transition:
        """Return the one-step transitions stored in slots ``index`` (B,) with some goals replaced.

        The discount stays, unless the environment knows which goals terminate.
        """
        n = self.buffer.num_envs
        uniform = torch.rand(2, len(index), dtype=torch.float64, device=index.device, generator=generator)
        last = self._last.index_select(0, self._entry(self._episode.index_select(0, index), index % n))
        left = (last - index) // n % self.buffer.rows  # (B,) stored steps of the episode beyond this one
        ahead = (uniform[0] * (left + 1)).long()
        reached = self.buffer.select("next_obs", (index + ahead * n) % self.buffer.slots)["achieved_goal"]
        chosen = uniform[1] < self.fraction  # (B,)
        goal = _where(chosen, reached, data.obs["desired_goal"])
        achieved = data.next_obs["achieved_goal"]
        terminated = self.env.compute_terminated(achieved, goal)
        return data._replace(
            obs=data.obs | {"desired_goal": goal},
            next_obs=data.next_obs | {"desired_goal": goal},
            reward=torch.where(chosen, self.env.compute_reward(achieved, goal), data.reward),
            discount=data.discount if terminated is None else torch.where(chosen, gamma * ~terminated, data.discount),
        )

    def _entry(self, episode: Tensor, env: Tensor) -> Tensor:
        """Return the places in ``_last`` of episodes (B,) of environments (B,)."""
        return episode % self.buffer.rows * self.buffer.num_envs + env

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self._episode.nbytes + self._last.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of episodes and their latest steps: views, to be saved before the next change."""
        return {"episode": self._episode, "last": self._last, "running": self._running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was called."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])


def _where(flag: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(flag.view(-1, *[1] * (x.dim() - 1)), x, y)
