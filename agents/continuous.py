"""What agents for continuous control share: the scale of actions, and the networks of actor and critics.

Agents think in actions a in [-1, 1]^A; those of the environment are ``middle + radius * a``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.continuous import ContinuousConfig
from agents.networks import build_network
from agents.networks.encode import Network
from rlcore.agent import Agent
from rlcore.errors import UserError
from rlcore.normalize import Normalizer
from rlcore.types import Loss, Spec, Transition


class ActionScale(nn.Module):
    """Maps [-1, 1]^A onto a bounded Box of any shape, A numbers in all, and back.

    Raises:
        UserError: the space is something else.
    """

    low: Tensor  # of the Box's shape, as are the others
    high: Tensor
    middle: Tensor
    radius: Tensor

    def __init__(self, agent: str, space: Any) -> None:
        super().__init__()
        box = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
        if not (box and space.is_bounded() and (space.low < space.high).all()):
            raise UserError(f"agent '{agent}' cannot serve action space {space}; expected a bounded Box of floats")
        low, high = (torch.as_tensor(edge, dtype=torch.float64) for edge in (space.low, space.high))
        numbers = {"low": low, "high": high, "middle": (low + high) / 2, "radius": (high - low) / 2}
        for name, value in numbers.items():
            self.register_buffer(name, value.float(), persistent=False)

    def to_env(self, a: Tensor) -> Tensor:
        """Return the environment's actions (B, ...) for a (B, A); held within the Box against rounding."""
        return torch.clamp(self.middle + self.radius * a.view(-1, *self.low.shape), self.low, self.high)

    def from_env(self, action: Tensor) -> Tensor:
        """Return a (B, A) of the environment's actions (B, ...)."""
        return ((action - self.middle) / self.radius).view(len(action), -1)


class StackedMLP(nn.Module):
    """K networks of one shape as one, with ReLU between their layers: (B, sizes[0]) -> (K, B, sizes[-1]).

    A layer of all K is one batched product, with one call's overhead. Initialised as `nn.Linear`.
    """

    def __init__(self, networks: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = 1 / math.sqrt(fan_in)
            self.weights.append(torch.empty(networks, fan_in, fan_out).uniform_(-bound, bound))
            self.biases.append(torch.empty(networks, 1, fan_out).uniform_(-bound, bound))

    def forward(self, x: Tensor, networks: int | None = None) -> Tensor:
        """Return the outputs of the first ``networks``; None: of all."""
        layers: list[tuple[Tensor, Tensor]] = list(zip(self.weights, self.biases, strict=True))
        if networks is not None:
            layers = [(weight[:networks], bias[:networks]) for weight, bias in layers]
        x = x.expand(len(layers[0][0]), *x.shape)
        for weight, bias in layers[:-1]:
            x = torch.baddbmm(bias, x, weight).relu_()
        weight, bias = layers[-1]
        return torch.baddbmm(bias, x, weight)


class Actor(nn.Module):
    """Observations, tree (B, ...) -> (B, outputs)."""

    def __init__(self, config: ContinuousConfig, spec: Spec, outputs: int) -> None:
        super().__init__()
        self.features = _encoder(config, spec)
        self.layers = StackedMLP(1, (self.features.out_features, *config.hidden, outputs))

    def forward(self, obs: Any) -> Tensor:
        """Return the outputs."""
        return self.layers(self.features(obs)).squeeze(0)


class Critic(nn.Module):
    """Observations, tree (B, ...), and actions (B, A) -> the values of K critics (K, B) over one encoder."""

    def __init__(self, config: ContinuousConfig, spec: Spec, actions: int, critics: int) -> None:
        super().__init__()
        self.features = _encoder(config, spec)
        self.layers = StackedMLP(critics, (self.features.out_features + actions, *config.hidden, 1))

    def forward(self, obs: Any, a: Tensor, critics: int | None = None) -> Tensor:
        """Return the values by the first ``critics``; None: by all."""
        return self.layers(torch.cat((self.features(obs), a), -1), critics).squeeze(-1)


class ContinuousAgent(Agent):
    """An agent for a bounded Box of actions, with critics and a normaliser of observations."""

    critic: Critic

    def __init__(self, config: ContinuousConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        self.scale = ActionScale(config.name, spec.action_space)
        self.actions = self.scale.radius.numel()
        self.gamma, self.n_step = config.gamma, config.n_step
        self.obs = Normalizer(spec.obs_space) if config.normalize_obs else nn.Identity()

    def insight(self, obs: Any, state: Any, mask: Tensor | None = None) -> dict[str, Tensor]:
        action = self.act(obs, state, {}, {}, mask, explore=False).action
        return {"q": self.critic(self.obs(obs), self.scale.from_env(action)).amin(0)}

    def q(self, t: Transition) -> Tensor:
        """Return the critics' values (K, B) of the actions that were taken."""
        return self.critic(self.obs(t.obs), self.scale.from_env(t.action))

    def critic_loss(self, t: Transition, q: Tensor, target: Tensor) -> Loss:
        """Return the sum over items of ``weight * sum_k (target - q_k)^2 / 2`` for values (K, B), targets (B,)."""
        error = target - q
        penalty = 0.5 * error.square().sum(0)  # (B,)
        if t.weight is not None:
            penalty = t.weight * penalty
        metrics = {"q_value": q.detach().mean(), "target_q": target.mean()}
        return Loss(penalty.sum(), len(target), metrics, priority=error.detach().abs().mean(0))


def _encoder(config: ContinuousConfig, spec: Spec) -> Network:
    network = build_network(config.network, spec.obs_space)
    if network.recurrent:
        got = f"agent '{config.name}' keeps no memory"
        raise UserError(f"agent.network.name: '{config.network.name}' needs one and {got}; expected another network")
    return network
