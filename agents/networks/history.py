"""A causal Transformer over the latest observations: memory as what was seen, not as what was made of it.

    y = x + attention(norm(x));   x' = y + W gelu(W norm(y))                  Vaswani et al. 2017, norms in front
    score(t, s) = q_t . k_s / sqrt(d) + bias[head, t - s],   0 <= t - s < K   distances as in Raffel et al. 2020

Attention slides (Beltagy et al. 2020): every layer sees the last K steps of the layer below, none of an earlier
episode. A layer thus turns n tokens into the n - (K - 1) that have a whole window, as an unpadded convolution does,
and M = layers (K - 1) observations before a sequence are all that it depends on. They are the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.networks import build_inner
from agents.networks.attention import attend
from agents.networks.encode import Memory
from rlcore.errors import UserError
from rlcore.tree import tmap


def empty(space: gym.Space[Any], n: int, steps: int, device: torch.device) -> Any:
    """Return zeros for n times ``steps`` observations: tree (n, steps, ...)."""
    if isinstance(space, spaces.Dict):
        return {key: empty(part, n, steps, device) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(empty(part, n, steps, device) for part in space.spaces)
    dtype = torch.int64
    if isinstance(space, spaces.Box):
        dtype = torch.uint8 if space.dtype == np.uint8 else torch.float32
    return torch.zeros(n, steps, *(space.shape or ()), dtype=dtype, device=device)


class Block(nn.Module):
    """One layer: tokens (B, n, width) -> (B, n - (K - 1), width)."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.context = heads, context
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.keys, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(heads, context))  # by distance
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, episode: Tensor) -> Tensor:
        """Return the last tokens; ``episode`` (B, n) numbers the episode of each, and only equal ones attend."""
        tokens = x.shape[1]
        at = torch.arange(tokens, device=x.device)
        distance = at[self.context - 1 :, None] - at  # (n - (K - 1), n)
        seen = (distance >= 0) & (distance < self.context)
        seen = seen & (episode[:, self.context - 1 :, None] == episode[:, None])  # (B, n - (K - 1), n)
        bias = self.bias[:, distance.clamp(0, self.context - 1)]  # (heads, n - (K - 1), n)
        y = self.norm(x)
        x = x[:, self.context - 1 :]
        q = self.query(y[:, self.context - 1 :])
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, *self.keys(y).chunk(2, 2)))
        x = x + self.out(attend(q, k, v, bias.masked_fill(~seen[:, None], -torch.inf), False, 0.0))
        return x + self.feed(self.norm2(x))


class History(Memory):
    """A Transformer over the history of observations.

    Its memory holds observations as they are: M of them for every environment, and for every stored step. That is
    little for vectors and much for images.

    Args:
        space: observations of one environment.
        context: K, the steps that a layer sees, the present one included; at least 2.
        features: width of the tokens, a multiple of ``heads``.
        layers: how many; all together look back ``layers * (context - 1)`` steps.
        heads: of attention.
        encoder: the network that makes tokens of observations, as {name: mlp, kwargs: {...}}.
    """

    def __init__(
        self,
        space: gym.Space[Any],
        context: int = 16,
        features: int = 64,
        layers: int = 1,
        heads: int = 4,
        encoder: Mapping[str, Any] = {"name": "mlp"},
    ) -> None:
        super().__init__()
        for name, value, least in (("context", context, 2), ("layers", layers, 1), ("heads", heads, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"network.kwargs.{name}: got {value!r}, expected a whole number >= {least}")
        if not isinstance(features, int) or features < 1 or features % heads:
            raise UserError(f"network.kwargs.features: got {features!r}, expected a multiple of heads = {heads}")
        self.space, self.depth, self.out_features = space, layers * (context - 1), features
        encoded = build_inner(encoder, space, "encoder")
        self.encoder = nn.Sequential(encoded, nn.Linear(encoded.out_features, features))
        self.blocks = nn.ModuleList(Block(features, heads, context) for _ in range(layers))
        self.norm = nn.LayerNorm(features)

    def initial_state(self, n: int) -> dict[str, Any]:
        """Return no observations: ``seen`` (n,) counts those at the end of ``obs``, tree (n, M, ...), that are any."""
        device = self.norm.weight.device
        seen = torch.zeros(n, dtype=torch.int64, device=device)
        return {"obs": empty(self.space, n, self.depth, device), "seen": seen}

    def step(self, obs: Any, state: Any) -> tuple[Tensor, Any]:
        """Return features (B, features) and the memory after them."""
        steps = tmap(lambda x: x.unsqueeze(0), obs)
        features, states = self.unroll(steps, state, torch.zeros_like(state["seen"], dtype=torch.bool).unsqueeze(0))
        return features[0], tmap(lambda x: x[0], states)

    def unroll(self, obs: Any, state: Any, first: Tensor) -> tuple[Tensor, Any]:
        """Return features (L, B, features) and the memory after each step; see `Network.unroll`."""
        steps, items = first.shape
        known = tmap(lambda old, x: torch.cat([old, x.to(old.dtype).transpose(0, 1)], 1), state["obs"], obs)
        at = torch.arange(self.depth, device=first.device)
        held = at >= self.depth - state["seen"][:, None]  # (B, M)
        episode = torch.cat([held.long() - 1, first.t().cumsum(1)], 1)  # (B, M + L): -1 before all memory, 0 the one
        tokens = self.encoder(tmap(lambda x: x.flatten(0, 1), known))  # in memory, then one more a step
        x = tokens.unflatten(0, (items, self.depth + steps))
        for block in self.blocks:
            x = block(x, episode[:, -x.shape[1] :])
        return self.norm(x).transpose(0, 1), self._after(known, episode)

    def _after(self, known: Any, episode: Tensor) -> Any:
        """Return the memory after each step: the last M observations, those of other episodes zeroed."""
        now = episode[:, self.depth :]  # (B, L)
        same = episode.unfold(1, self.depth, 1)[:, 1:] == now[:, :, None]  # (B, L, M)

        def windows(x: Tensor) -> Tensor:  # (B, M + L, ...) -> (L, B, M, ...)
            x = x.unfold(1, self.depth, 1)[:, 1:].movedim(-1, 2)
            return x.masked_fill(~same.view(*same.shape, *[1] * (x.dim() - 3)), 0).transpose(0, 1)

        return {"obs": tmap(windows, known), "seen": same.sum(2).t()}
