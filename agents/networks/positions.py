"""Where a token stands: learned vectors, sinusoids, or rotations of queries and keys.

    learned     x_t + P_t                                                          a table of parameters
    sinusoidal  x_t + S_t,  S[t, 2i] = sin(t w_i),  S[t, 2i+1] = cos(t w_i)        Vaswani et al. 2017
    rotary      (a_i, b_i) -> (a_i cos(t w_i) - b_i sin(t w_i),  b_i cos(t w_i) + a_i sin(t w_i))
                of each query and key, a and b its halves: their product depends on t - s alone     Su et al. 2021

with w_i = 10000^(-2i / d), d the width of what is turned or added to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (B or 1, 1, T, d / 2)


def angles(context: int, width: int) -> Tensor:
    """Return t w_i, (context, width / 2) float64."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.arange(context, dtype=torch.float64)[:, None] * frequencies


def sinusoids(context: int, width: int) -> Tensor:
    """Return S, (context, width): sines in the even columns, cosines in the odd ones."""
    t = angles(context, width)
    return torch.stack([t.sin(), t.cos()], -1).flatten(1).to(torch.get_default_dtype())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys (B, heads, T, d) by their places' angles."""
    a, b = x.chunk(2, -1)
    cos, sin = rotation
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Positions(nn.Module):
    """Marks vectors (B, T, width) with their places 0 .. context - 1, or gives the rotation that does it later.

    Args:
        kind: learned, sinusoidal or rotary.
        context: number of places.
        width: of the vectors.
        head: width of a query.
    """

    weight: Tensor  # learned
    table: Tensor  # sinusoidal
    cos: Tensor  # rotary
    sin: Tensor

    def __init__(self, kind: str, context: int, width: int, head: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "learned":
            self.weight = nn.Parameter(torch.empty(context, width))
            nn.init.normal_(self.weight, std=0.02)
        elif kind == "sinusoidal":
            self.register_buffer("table", sinusoids(context, width), persistent=False)
        else:
            t = angles(context, head)
            self.register_buffer("cos", t.cos().to(torch.get_default_dtype()), persistent=False)
            self.register_buffer("sin", t.sin().to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor, at: Tensor | None) -> tuple[Tensor, Rotation | None]:
        """Return the marked vectors (B, T, width) and the rotation, if any; ``at`` (B, T) int64, None: 0 .. T - 1."""
        if self.kind == "rotary":
            return x, (self._rows(self.cos, x, at).unsqueeze(-3), self._rows(self.sin, x, at).unsqueeze(-3))
        return x + self._rows(self.weight if self.kind == "learned" else self.table, x, at), None

    def _rows(self, table: Tensor, x: Tensor, at: Tensor | None) -> Tensor:
        return table[: x.shape[1]] if at is None else F.embedding(at, table)
