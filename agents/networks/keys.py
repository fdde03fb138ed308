"""An encoder for each key of a Dict observation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.networks import build_inner
from agents.networks.encode import Network, is_image
from agents.networks.mlp import MLP
from rlcore.errors import UserError, nearest


class Keys(Network):
    """Encode each key by a network of its own and combine the features by an MLP: Dict (B, ...) -> (B, out_features).

    Images go through nature_cnn (impala_cnn below 36 x 36 pixels), a Dict inside through a network like this one,
    anything else through mlp.

    Args:
        space: a Dict.
        encoders: other networks by key, as {key: {name: mlp, kwargs: {...}}}.
        hidden: widths of the layers after the encoders; [] hands on their features one after another.
        activation: of those layers, as of mlp.
        layer_norm: normalise before each activation.
    """

    def __init__(
        self,
        space: gym.Space[Any],
        encoders: Mapping[str, Any] = {},
        hidden: Sequence[int] = (128,),
        activation: str = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(space, spaces.Dict):
            raise UserError(f"network 'dict' cannot read observation space {space}; expected Dict")
        if not isinstance(encoders, Mapping):
            raise UserError(f"network.kwargs.encoders: got {encoders!r}, expected a mapping {{key: {{name: mlp}}}}")
        for key in encoders:
            if key not in space.spaces:
                where = f"network.kwargs.encoders.{key}"
                raise UserError(f"{where} is not a key of the observations{nearest(str(key), space.spaces)}")
        self.keys = list(space.spaces)
        self.encoders = nn.ModuleList(
            build_inner(encoders.get(key, default(part)), part, f"encoders.{key}") for key, part in space.spaces.items()
        )
        width = sum(int(encoder.out_features) for encoder in self.encoders)  # pyright: ignore[reportArgumentType]
        self.combine = MLP(spaces.Box(-1, 1, (width,)), hidden, activation, layer_norm)
        self.out_features = self.combine.out_features

    def forward(self, obs: dict[str, Any]) -> Tensor:
        """Return the features (B, out_features)."""
        parts = [encoder(obs[key]) for key, encoder in zip(self.keys, self.encoders, strict=True)]
        return self.combine(torch.cat(parts, 1))


def default(space: gym.Space[Any]) -> dict[str, Any]:
    """Return the encoder of a key for which none is named."""
    if isinstance(space, spaces.Dict):
        return {"name": "dict"}
    if not is_image(space):
        return {"name": "mlp"}
    assert space.shape is not None
    return {"name": "nature_cnn" if sorted(space.shape)[-2] >= 36 else "impala_cnn"}
