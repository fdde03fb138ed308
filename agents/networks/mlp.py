"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from torch import Tensor, nn

from agents.networks.encode import Flatten, Network
from rlcore.errors import UserError, nearest

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}


class MLP(Network):
    """Linear layers with an activation after each: tree (B, ...) -> (B, out_features).

    Args:
        space: observations of one environment; flattened.
        hidden: widths of the layers; [] passes the flat observation on, which makes a linear model.
        activation: relu, tanh, gelu, silu or elu.
        layer_norm: normalise before each activation.
    """

    def __init__(
        self,
        space: gym.Space[Any],
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"network.kwargs.activation '{activation}' is unknown{nearest(activation, ACTIVATIONS)}")
        if not all(isinstance(width, int) and width > 0 for width in hidden):
            raise UserError(f"network.kwargs.hidden: got {hidden!r}, expected a list of positive integers")
        encoder = Flatten(space)
        layers: list[nn.Module] = [encoder]
        width = encoder.out_features
        for out in hidden:
            layers.append(nn.Linear(width, out))
            if layer_norm:
                layers.append(nn.LayerNorm(out))
            layers.append(ACTIVATIONS[activation]())
            width = out
        self.layers = nn.Sequential(*layers)
        self.out_features = width

    def forward(self, obs: Any) -> Tensor:
        """Return the features (B, out_features)."""
        x = obs
        for layer in self.layers:
            x = layer.forward(x)  # not layer(x): a module's call costs as much as a small layer itself
        return x
