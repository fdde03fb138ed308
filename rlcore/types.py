"""The records that pass between environments, sources, agents and the optimiser.

Shapes use N for environments and B for items of a batch. A field marked *tree* is a tensor, or a
dict or tuple of tensors that share the leading dimension (see `rlcore.tree`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
from torch import Tensor


class Spec(NamedTuple):
    """What an agent may know of its environment: spaces, and the loss where the reward is a known function."""

    obs_space: gym.Space[Any]  # of one environment
    action_space: gym.Space[Any]  # of one environment
    extras: frozenset[str] = frozenset()  # keys of Step.extras the environment declares
    action_start: Any = 0  # what the environment adds to discrete actions, which agents count from 0
    # Of one-step tasks with a differentiable reward: (prediction (B, ...), target (B, ...)) -> minus the sum of the
    # rewards, (), and what a mean is taken over: the items, or of texts the tokens that count.
    loss: Callable[[Any, Any], tuple[Tensor, Tensor | int]] | None = None


class Step(NamedTuple):
    """One step of N environments, whatever autoreset mode produced it."""

    obs: Any  # tree (N, ...): what the next action is chosen on (after a reset, the new episode's first)
    reward: Tensor  # (N,) float32
    terminated: Tensor  # (N,) bool: the episode reached a terminal state; the bootstrap stops
    truncated: Tensor  # (N,) bool: the episode was cut (time limit); the bootstrap goes on
    next_obs: Any  # tree (N, ...): the true successor, before any reset
    valid: Tensor  # (N,) bool: False for the fake row of NEXT_STEP autoreset; neither stored nor counted
    extras: dict[str, Tensor]  # declared keys only, each (N, ...)


class Act(NamedTuple):
    """What an agent answers to an observation."""

    action: Tensor  # (N, ...)
    state: Any = ()  # tree (N, ...): recurrent state after this step, or ()
    extras: dict[str, Tensor] = {}  # by name, each (N, ...): log_prob, value, q


class Transition(NamedTuple):
    """An item of experience. ``discount`` is gamma**n * (1 - terminated): truncation never cuts the bootstrap."""

    obs: Any  # tree (B, ...)
    action: Tensor  # (B, ...)
    reward: Tensor  # (B,): the n-step sum of discounted rewards
    discount: Tensor  # (B,)
    next_obs: Any  # tree (B, ...): n steps on, or the episode's last
    extras: dict[str, Tensor] = {}  # action_mask, next_action_mask
    weight: Tensor | None = None  # (B,): importance weights of prioritised replay


class Rollout(NamedTuple):
    """A horizon of T steps of N environments, in order of time; every field (T, N, ...)."""

    obs: Any  # tree
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    next_obs: Any  # tree: true successors
    valid: Tensor
    act: dict[str, Tensor]  # Act.extras of each step: log_prob, value
    extras: dict[str, Tensor]  # Step.extras of each step, plus action_mask
    state: Any = ()  # tree: recurrent state before each act; of sequences from replay before the first, (N, ...)
    weight: Tensor | None = None  # (N,): importance weights of sequences from prioritised replay


class Example(NamedTuple):
    """Labelled examples of a one-step task."""

    obs: Any  # tree (B, ...)
    target: Any  # tree (B, ...)


class Features(NamedTuple):
    """In place of observations, what layers of the agent that never learn have made of them."""

    features: Any  # tree (B, ...), as `Agent.frozen` returned it


class Batch(NamedTuple):
    """All that a loss may depend on beside the agent's own parameters and buffers."""

    data: Any  # Transition, Example, or what Agent.prepare made of a Rollout
    knobs: dict[str, Tensor] = {}  # annealed numbers, 0-dim tensors
    noise: dict[str, Tensor] = {}  # what Agent.noise("loss", ...) asked for
    index: Any = None  # for Source.feedback; agents never read it
    counts: bool = True  # False: stands in for the items of a rank that has none, and teaches nothing


class Loss(NamedTuple):
    """A loss that adds up over its items, so that accumulation, masks and uneven ranks stay exact."""

    total: Tensor  # SUM over items; () or (K,) for K seeds trained together
    count: Tensor | int  # items summed  # pyright: ignore[reportIncompatibleMethodOverride]
    metrics: dict[str, Tensor] = {}  # 0-dim tensors; read only when logged
    priority: Tensor | None = None  # (B,): |TD error| for prioritised replay
    stop: Tensor | bool = False  # True: abandon the rest of this iteration's batches (PPO's target KL)
