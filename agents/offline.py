"""What the agents that learn from recorded data share: value networks and policies for every space.

pi(a|s) = softmax(f(s))[a]                                                    Discrete; MultiDiscrete: the product
pi(a|s) = N(a; tanh(f(s)), diag(std**2)), std independent of s                Box, actions scaled to [-1, 1]
"""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.offline import BCConfig, CQLConfig, IQLConfig
from agents.continuous import ActionScale, StackedMLP
from agents.networks import build_network
from rlcore.errors import UserError
from rlcore.losses import masked
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

    def __init__(self, config: BCConfig | IQLConfig, spec: Spec) -> None:
        super().__init__()
        space = spec.action_space
        self.scale: ActionScale | None = None
        if isinstance(space, spaces.Box):
            self.scale = ActionScale(config.name, space)
            outputs = len(self.scale.radius)
            self.log_std = nn.Parameter(torch.zeros(outputs))
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            self.shape = space.shape or ()
            self.sizes = (
                [int(n) for n in space.nvec.flat] if isinstance(space, spaces.MultiDiscrete) else [int(space.n)]
            )
            outputs = sum(self.sizes)
        else:
            wanted = "Discrete, MultiDiscrete or a bounded Box"
            raise UserError(f"agent '{config.name}' cannot serve action space {space}; expected {wanted}")
        self.outputs = outputs
        self.net = Heads(config, spec, outputs)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Return what `sample` needs for n rows, (n, outputs)."""
        draw = torch.rand if self.scale is None else torch.randn
        return draw(n, self.outputs, generator=generator, device=generator.device)

    def log_prob(self, obs: Any, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return log pi(action|obs) (B,); of a Box, the density of actions scaled to [-1, 1]."""
        x = self.net(obs).squeeze(0)  # (B, outputs)
        if self.scale is not None:
            log_std = self.log_std.clamp(*LOG_STD)
            z = (self.scale.from_env(action) - x.tanh()) * (-log_std).exp()
            return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)
        chosen = action.reshape(len(action), -1, 1).unbind(1)
        parts = zip(masked(x, mask).split(self.sizes, -1), chosen, strict=True)
        return torch.stack([part.log_softmax(-1).gather(-1, a).squeeze(-1) for part, a in parts]).sum(0)

    def sample(self, obs: Any, noise: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """Return actions (B, ...) drawn from the policy; without noise, its mode."""
        x = self.net(obs).squeeze(0)  # (B, outputs)
        if self.scale is not None:
            a = x.tanh() if noise is None else x.tanh() + self.log_std.clamp(*LOG_STD).exp() * noise
            return self.scale.to_env(a)
        if noise is not None:  # the largest of logits plus Gumbel noise is a draw from their softmax
            x = x - (-noise.clamp(1e-20, 1 - 1e-7).log()).log()
        best = [part.argmax(-1) for part in masked(x, mask).split(self.sizes, -1)]
        return torch.stack(best, -1).view(-1, *self.shape)
