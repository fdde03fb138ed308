"""A network with a linear head whose outputs are predictions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from agents.networks.encode import Network
from rlcore.errors import UserError
from rlcore.types import Features


class Predictor(nn.Module):
    """A trunk's features to predictions: (B, outputs), or of a trunk of tokens (B, T, outputs).

    Args:
        trunk: the network below.
        outputs: numbers predicted for each observation, or for each token.
        tie: the head's weights are the embedding's (Press and Wolf 2017); the trunk must be a `TextModel`.
    """

    def __init__(self, trunk: Network, outputs: int, tie: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.out_features, outputs, bias=not tie)
        if tie:
            embedding: Any = getattr(trunk, "embedding", None)
            if embedding is None or embedding.weight.shape != self.head.weight.shape:
                raise UserError(
                    "agent.tie: got true, expected false: this network has no embedding of the tokens that it predicts"
                )
            self.head.weight = embedding.weight

    def forward(self, obs: Any) -> Tensor:
        """Return the predictions for observations, tree (B, ...), or for their `Features`."""
        return self.head(obs.features if isinstance(obs, Features) else self.trunk(obs))
