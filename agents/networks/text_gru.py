"""A recurrent text model: gated recurrent units, Cho et al. 2014, over embedded tokens.

    x_0 = E[token];   x_{l+1}[t] = GRU_l(x_l[t], x_{l+1}[t - 1]);   features = x_layers

Padding leaves the memory as it is: a text's tokens are moved to its front, and the features back to their places.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from agents.networks.text_model import TextModel, places, require_tokens
from agents.networks.transformer_options import require_share, require_whole


class TextGRU(TextModel):
    """Tokens (B, T), each of which is read after those before it, to features (B, T, width).

    Its memory: the output of every layer, a tuple of (B, width).

    Args:
        space: `Tokens`.
        layers: of units.
        width: units of a layer, and of the embeddings.
        dropout: of the embeddings and of what each layer returns.
    """

    def __init__(self, space: gym.Space[Any], layers: int = 1, width: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        tokens = require_tokens(space, "text_gru")
        require_whole("layers", layers)
        require_whole("width", width)
        require_share("dropout", dropout)
        self.pad, self.out_features = tokens.pad, width
        self.embedding = nn.Embedding(tokens.vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.layers = nn.ModuleList(nn.GRU(width, width, batch_first=True) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features (B, T, width) of tokens (B, T); before the first real one they are zeros."""
        return self.dropout(self._read(tokens)[-1])

    def _read(self, tokens: Tensor) -> list[Tensor]:
        """Return what each layer returns at each token, (B, T, width) each."""
        seen = tokens != self.pad
        front = torch.sort(tokens == self.pad, dim=1, stable=True).indices  # the real tokens, then the padding
        x = self.embedding(tokens.gather(1, front))
        back = places(seen).unsqueeze(2).expand_as(x)  # of each token, or of the last one before it
        started = (seen.cumsum(1) > 0).unsqueeze(2)
        outputs: list[Tensor] = []
        for layer in self.layers:
            x = layer(self.dropout(x))[0]
            outputs.append(x.gather(1, back) * started)
        return outputs

    def given(self, prompt: Tensor, completion: Tensor) -> Tensor:
        steps = prompt.shape[1]
        return self(torch.cat([prompt, completion], 1))[:, steps - 1 : -1]

    @torch.no_grad()
    def begin(self, prompt: Tensor, length: int) -> tuple[Tensor, Any]:
        state = tuple(x[:, -1].contiguous() for x in self._read(prompt))
        return self.dropout(state[-1]), state

    @torch.no_grad()
    def extend(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        real = (token != self.pad)[:, None]
        x = self.embedding(token)
        after: list[Tensor] = []
        for layer, h in zip(self.layers, state, strict=True):
            x = torch.where(real, layer(self.dropout(x)[:, None], h[None])[0][:, 0], h)
            after.append(x)
        return self.dropout(x), tuple(after)
