"""The base of native environments: batched, branch-free torch code that lives on any device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rlcore.arrays import GOLDEN, array, bits, mix, same, tensor, unit
from rlcore.errors import UserError, nearest
from rlcore.tree import leaves, tmap
from rlcore.types import Spec, Step
from rlcore.vector import Autoreset, Split, VectorEnv

_1 = np.array(1, np.uint64)


def seed_list(seed: int | Sequence[int], n: int) -> list[int]:
    """Return the n environments' seeds: ``seed + i``, or the given ones.

    Raises:
        UserError: not n whole numbers in [0, 2**63).
    """
    seeds = [seed + i for i in range(n)] if isinstance(seed, int) else [int(s) for s in seed]
    if len(seeds) != n or not all(0 <= s < 2**63 for s in seeds):
        raise UserError(f"seed: {seed} cannot seed {n} environments; expected one seed >= 0, or {n} of them")
    return seeds


def check_arguments(num_envs: int, autoreset: str) -> None:
    """Check what every vector environment is built with.

    Raises:
        UserError: ``num_envs`` is not a positive whole number, or ``autoreset`` names no mode.
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise UserError(f"num_envs: {num_envs!r} is not a number of environments; expected a whole number >= 1")
    if autoreset not in get_args(Autoreset):
        raise UserError(f"autoreset: '{autoreset}' is not a mode{nearest(autoreset, get_args(Autoreset))}")


class BatchedEnv(VectorEnv):
    """N copies of an environment as tensor operations, without a branch or a host synchronisation.

    A subclass sets ``num_uniforms`` (random numbers that a start state needs) and writes `initial`,
    `dynamics` and `observe`. The time limit, autoreset, seeds and capture are done here. Start states
    come from a counter-based generator: a hash of (seed of the environment, episode, index of the draw).

    With ``on_arrays`` these three take and return what `array` makes of tensors: on a CPU NumPy's arrays. A step
    of a simple environment is some thirty operations on small arrays, and NumPy's cost a third of torch's. With
    ``alone`` as well, `dynamics` of one environment on a CPU gets and returns its numbers without the axis of
    environments: state (k,), action, reward and terminated without N. Operations on NumPy's scalars cost a tenth.

    Compiled runs step it as a graph of a `twin`, which is built with the same arguments: nothing else may be set on it
    later, and all that changes is in the state.

    Args:
        obs_space: of one environment.
        action_space: of one environment.
        max_episode_steps: an episode's truncated is set when it is this many steps long.
    """

    num_uniforms: int
    on_arrays: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    _built_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Remember what it is built with, for `twin`."""
        self = super().__new__(cls)
        self._built_with = args, kwargs
        return self

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str,
        split: Split,
        autoreset: Autoreset,
        *,
        obs_space: gym.Space[Any],
        action_space: gym.Space[Any],
        max_episode_steps: int,
    ) -> None:
        check_arguments(num_envs, autoreset)
        self.num_envs, self.device, self.split, self.autoreset = num_envs, torch.device(device), split, autoreset
        self.always_valid = autoreset != "next_step"
        self.spec = Spec(obs_space, action_space)
        self.max_episode_steps = max_episode_steps
        self._take, self._give = (array, same) if self.on_arrays else (same, tensor)  # of actions; of all else
        key = mix(torch.arange(num_envs, device=self.device))  # (N,)
        ended = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._all = torch.ones((), dtype=torch.bool, device=self.device).expand(num_envs)  # (N,), not to be written to
        self._one = array(torch.tensor(1, device=self.device))
        n = self.num_uniforms
        self._stride = bits(torch.tensor(n, device=self.device) * GOLDEN)  # of the generator's state by episode
        self._draws = bits(torch.arange(1, n + 1, device=self.device) * GOLDEN)  # (n,)
        start = tensor(self._start(bits(key), bits(torch.zeros_like(key))))  # (N, k)
        state = torch.empty_like(start.t(), memory_format=torch.contiguous_format).t()  # columns are contiguous
        self.place(state.copy_(start), key, torch.zeros_like(key), torch.zeros_like(key), ended)
        self._lone = self.alone and num_envs == 1 and isinstance(self._now, np.ndarray)

    def place(self, state: Tensor, key: Tensor, episode: Tensor, steps: Tensor, ended: Tensor) -> None:
        """Keep all that changes in the tensors given, (N, k) and (N,) each, and go on from what they hold."""
        self._state, self._key, self._episode, self._steps, self._ended = state, key, episode, steps, ended
        self._now = array(state)  # a view, as those are:
        self._counters = bits(key), bits(episode), array(steps), array(ended)
        self._used = np.ones(self.num_envs, dtype=np.bool_)  # (N,): on a CPU, whose next start is to be made

    def placed(self) -> list[Tensor]:
        """Return the tensors of `place`; whoever writes to them calls `written` afterwards."""
        return [self._state, self._key, self._episode, self._steps, self._ended]

    def written(self) -> None:
        """Take note that the tensors of `placed` were written to: next starts made before are no longer next."""
        self._used.fill(True)

    def twin(self) -> BatchedEnv:
        """Return one like it that works on tensors wherever it is. To be called, and used, under `on_tensors`."""
        args, kwargs = self._built_with
        return type(self)(*args, **kwargs)

    @abstractmethod
    def initial(self, u: Any) -> Any:
        """Return start states (N, k) from uniform numbers ``u`` (N, num_uniforms) float64 in [0, 1)."""

    @abstractmethod
    def dynamics(self, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """Return new tensors: states (N, k), rewards (N,) float32 and terminated (N,) bool.

        It is fast where the columns of the states are contiguous, as those given are.
        """

    @abstractmethod
    def observe(self, state: Any) -> Any:
        """Return the observations, a tree (N, ...), of states (N, k); never ``state`` itself."""

    def reset(
        self, seed: int | Sequence[int] | None = None, mask: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Start new episodes; see `VectorEnv.reset`."""
        if mask is None:
            mask = torch.ones_like(self._ended)
        if seed is not None:
            key = mix(torch.tensor(seed_list(seed, self.num_envs), device=self.device))
            self._key.copy_(torch.where(mask, key, self._key))
            self._episode.masked_fill_(mask, -1)
            self.written()
        self._restart(array(mask))
        self._ended.masked_fill_(mask, False)
        return tmap(tensor, self._look(self._now)), {}

    def step(self, action: Tensor) -> Step:
        """Apply actions (N, ...); in DISABLED mode ended environments must have been reset."""
        if self._lone:
            state, reward, terminated = map(_row, self.dynamics(self._now[0], self._take(action)[0]))
        else:
            state, reward, terminated = self.dynamics(self._give(self._now), self._take(action))
        terminated, (_, _, steps, late) = array(terminated), self._counters
        self._now[...] = array(state)
        steps += self._one
        valid = self._all
        if self.autoreset != "same_step":
            valid = tensor(~late)
        if self.autoreset == "next_step":
            reward, terminated = array(reward) * ~late, terminated & ~late
            self._restart(late)
        truncated = steps >= self.max_episode_steps
        ended = terminated | truncated
        seen = self._look(self._now)
        obs = next_obs = tmap(tensor, seen)
        if self.autoreset == "same_step":
            rows = self._restart(ended)
            if rows is None:
                obs = self._look(self._now)
            elif rows.size:
                obs = tmap(lambda x, new: _put(x, rows, new), seen, self._next_obs)
        else:
            late[...] = ended
        return Step(obs, tensor(reward), tensor(terminated), tensor(truncated), next_obs, valid, {})

    def _look(self, state: Any) -> Any:
        return tmap(array, self.observe(self._give(state)))

    def _restart(self, mask: Any) -> np.ndarray | None:
        """Begin the next episode where ``mask`` (N,) is set; on a CPU, where looking is free, return those rows."""
        key, episode, steps, _ = self._counters
        if not isinstance(mask, np.ndarray):
            episode += mask
            steps *= ~mask
            self._now[...] = torch.where(mask[:, None], self._start(key, episode), self._now)
            return None
        rows = mask.nonzero()[0]
        if rows.size:
            if np.count_nonzero(self._used[rows]):
                self._prepare()
            self._used[rows] = True
            episode[rows] += _1
            steps[rows] = 0
            self._now[rows] = self._next[rows]
        return rows

    def _prepare(self) -> None:
        """Make the next start of every environment that used its own: those of many cost hardly more than one's."""
        key, episode, _, _ = self._counters
        rows = self._used.nonzero()[0]
        start = self._start(key[rows], episode[rows] + _1)
        if len(rows) == self.num_envs:
            self._next, self._next_obs = start, self._look(start)
        else:
            self._next[rows] = start
            for x, new in zip(leaves(self._next_obs), leaves(self._look(start)), strict=True):
                x[rows] = new
        self._used[rows] = False

    def _start(self, key: Any, episode: Any) -> Any:
        """Return the start states of the chosen environments' episodes; their numbers are those of `uniforms`."""
        position = key + episode * self._stride
        return array(self.initial(self._give(unit(mix(position[:, None] + self._draws)))))

    def capture(self) -> list[dict[str, Any]]:
        """Return one state per environment; see `VectorEnv.capture`."""
        counters = torch.stack([self._key, self._episode, self._steps, self._ended.long()], 1).tolist()  # (N, 4)
        return [
            {"state": state, "key": key, "episode": episode, "steps": steps, "ended": ended}
            for state, (key, episode, steps, ended) in zip(self._state.cpu().clone(), counters, strict=True)
        ]

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Continue exactly where `capture` was called.

        Raises:
            UserError: the states are those of another number of environments.
        """
        check_states(states, self.num_envs)
        self._state.copy_(torch.stack([s["state"] for s in states]))
        buffers = {"key": self._key, "episode": self._episode, "steps": self._steps, "ended": self._ended}
        for name, buffer in buffers.items():
            buffer.copy_(torch.tensor([s[name] for s in states]))
        self.written()


def _row(x: Any) -> Any:
    """Return a lone environment's array (...) or number as that of one environment, (1, ...)."""
    return x if isinstance(x, Tensor) else np.asarray(x)[None]


def _put(x: np.ndarray, rows: np.ndarray, new: np.ndarray) -> Tensor:
    """Return a copy of ``x`` (N, ...) with the chosen rows of ``new`` (N, ...)."""
    x = x.copy()
    x[rows] = new[rows]
    return torch.from_numpy(x)


def check_states(states: list[dict[str, Any]], num_envs: int) -> None:
    """Check that captured states fit.

    Raises:
        UserError: not one state per environment.
    """
    if len(states) != num_envs:
        raise UserError(f"num_envs: {num_envs} environments cannot continue the captured {len(states)}; keep num_envs")
