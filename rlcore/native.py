"""The base of native environments: batched, branch-free torch code that lives on any device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rlcore.errors import UserError, nearest
from rlcore.tree import tmap
from rlcore.types import Spec, Step
from rlcore.vector import Autoreset, Split, VectorEnv

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's increment, as a signed 64-bit number


def array(x: Tensor) -> Any:
    """Return a NumPy view of ``x`` on a CPU (small arrays are three times faster there), else ``x`` itself.

    Code that uses operators only serves both.
    """
    return x.numpy() if x.device.type == "cpu" else x


def tensor(x: Any) -> Tensor:
    """Undo `array`."""
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def mix(z: Any) -> Any:
    """Scramble an int64 tensor or array: the output function of splitmix64 (Steele, Lea & Flood 2014)."""
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * (0xBF58476D1CE4E5B9 - 2**64)  # the masks make the shifts logical
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * (0x94D049BB133111EB - 2**64)
    return z ^ (z >> 31 & (1 << 33) - 1)


def uniforms(key: Tensor, episode: Tensor, n: int) -> Tensor:
    """Return (N, n) float64 in [0, 1): outputs episode*n ... episode*n + n-1 of splitmix64 seeded with ``key`` (N,)."""
    draw = array(torch.arange(1, n + 1, device=key.device))
    z = array(key)[:, None] + (array(episode)[:, None] * n + draw) * GOLDEN  # (N, n)
    return tensor(mix(z) >> 11 & (1 << 53) - 1).double() * 2.0**-53


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

    Args:
        obs_space: of one environment.
        action_space: of one environment.
        max_episode_steps: an episode's truncated is set when it is this many steps long.
    """

    num_uniforms: int

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
        self._key = mix(torch.arange(num_envs, device=self.device))  # (N,)
        self._episode = torch.zeros_like(self._key)  # (N,)
        self._steps = torch.zeros_like(self._key)  # (N,)
        self._ended = torch.zeros(num_envs, dtype=torch.bool, device=self.device)  # (N,)
        self._state = self.initial(uniforms(self._key, self._episode, self.num_uniforms))  # (N, k)

    @abstractmethod
    def initial(self, u: Tensor) -> Tensor:
        """Return start states (N, k) from uniform numbers ``u`` (N, num_uniforms) float64 in [0, 1)."""

    @abstractmethod
    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return new tensors: states (N, k), rewards (N,) float32 and terminated (N,) bool."""

    @abstractmethod
    def observe(self, state: Tensor) -> Any:
        """Return the observations, a tree (N, ...), of states (N, k); never the tensor ``state`` itself."""

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
        self._state.copy_(self._restart(mask, self._state))
        self._steps.masked_fill_(mask, 0)
        self._ended.masked_fill_(mask, False)
        return self.observe(self._state), {}

    def step(self, action: Tensor) -> Step:
        """Apply actions (N, ...); in DISABLED mode ended environments must have been reset."""
        valid = ~self._ended
        state, reward, terminated = self.dynamics(self._state, action)
        self._steps += 1
        if self.autoreset == "next_step":
            reward, terminated = reward * valid, terminated & valid
            self._steps *= valid
            state = self._restart(self._ended, state)
        truncated = self._steps >= self.max_episode_steps
        ended = terminated | truncated
        obs = next_obs = self.observe(state)
        if self.autoreset == "same_step":
            if self.device.type != "cpu" or bool(ended.any()):  # looking is free on a CPU only
                state = self._restart(ended, state)
                obs = tmap(torch.clone, self.observe(state))
                self._steps.masked_fill_(ended, 0)
        else:
            self._ended.copy_(ended)
        self._state.copy_(state)
        return Step(obs, reward, terminated, truncated, next_obs, valid, {})

    def _restart(self, mask: Tensor, state: Tensor) -> Tensor:
        """Begin the next episode where ``mask`` (N,) is set; return the states (N, k)."""
        self._episode += mask
        start = self.initial(uniforms(self._key, self._episode, self.num_uniforms))
        return torch.where(mask[:, None], start, state)

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


def check_states(states: list[dict[str, Any]], num_envs: int) -> None:
    """Check that captured states fit.

    Raises:
        UserError: not one state per environment.
    """
    if len(states) != num_envs:
        raise UserError(f"num_envs: {num_envs} environments cannot continue the captured {len(states)}; keep num_envs")
