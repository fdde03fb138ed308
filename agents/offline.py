"""What the agents that learn from recorded data share: value networks and policies for every space.

pi(a|s) = softmax(f(s))[a]                                                    Discrete; MultiDiscrete: the product
pi(a|s) = N(a; tanh(f(s)), diag(std**2)), std independent of s                Box, actions scaled to [-1, 1]
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.offline import BCConfig, CQLConfig, IQLConfig
from agents.continuous import ActionScale, StackedMLP
from agents.distributions import TINY, Categorical, Gaussian
from agents.networks import build_network
from rlcore.errors import UserError
from rlcore.types import Spec

LOG_STD = (-5.0, 2.0)


class Heads(nn.Module):
    """Observations, tree (B, ...) -> (K, B, outputs): K networks over one encoder.

    Raises:
        UserError: the encoder keeps a memory.
    """

    def __init__(self, config: BCConfig | CQLConfig | IQLConfig, spec: Spec, outputs: int, networks: int = 1) -> None:
        super().__init__()
        self.features = build_network(config.network, spec.obs_space)
        if self.features.recurrent:
            name = config.network.name
            raise UserError(f"agent '{config.name}' learns from single steps; network '{name}' needs a memory of them")
        self.layers = StackedMLP(networks, (self.features.out_features, *config.hidden, outputs))

    def forward(self, obs: Any) -> Tensor:
        """Return the outputs."""
        return self.layers(self.features(obs))


class Policy(nn.Module):
    """Distributions over the actions of a Discrete, MultiDiscrete or bounded Box space.

    Raises:
        UserError: the space is something else.
    """

    allowed: Tensor

    def __init__(self, config: BCConfig | IQLConfig, spec: Spec) -> None:
        super().__init__()
        space = spec.action_space
        self.scale: ActionScale | None = None
        if isinstance(space, spaces.Box):
            self.scale = ActionScale(config.name, space)
            self.shape = (self.scale.radius.numel(),)
            self.log_std = nn.Parameter(torch.zeros(self.shape))
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            sizes = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec)  # (*parts)
            # Parts with fewer numbers than the largest never take the surplus ones.
            allowed = torch.as_tensor(sizes[..., None] > np.arange(sizes.max()))
            self.register_buffer("allowed", allowed, persistent=False)
            self.shape = tuple(allowed.shape)  # (*parts, A)
        else:
            wanted = "Discrete, MultiDiscrete or a bounded Box"
            raise UserError(f"agent '{config.name}' cannot serve action space {space}; expected {wanted}")
        self.outputs = math.prod(self.shape)
        self.net = Heads(config, spec, self.outputs)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Return what `sample` needs for n rows."""
        draw = torch.rand if self.scale is None else torch.randn
        noise = draw(n, *self.shape, generator=generator, device=generator.device)
        return noise.clamp_min_(TINY) if self.scale is None else noise

    def distribution(self, obs: Any, mask: Tensor | None = None) -> Categorical | Gaussian:
        """Return pi(.|obs), under a mask (B, actions) of a Discrete space; of a Box, over actions in [-1, 1]."""
        x = self.net(obs).view(-1, *self.shape)  # (B, ...)
        if self.scale is not None:
            return Gaussian(x.tanh(), self.log_std.clamp(*LOG_STD))
        return Categorical(x, self.allowed if mask is None else mask)

    def log_prob(self, obs: Any, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return log pi(action|obs) (B,); of a Box, the density of actions scaled to [-1, 1]."""
        action = action if self.scale is None else self.scale.from_env(action)
        return self.distribution(obs, mask).log_prob(action)

    def sample(self, obs: Any, noise: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """Return actions (B, ...) drawn from the policy; without noise, its mode."""
        policy = self.distribution(obs, mask)
        action = policy.mode() if noise is None else policy.sample(noise)
        return action if self.scale is None else self.scale.to_env(action)
