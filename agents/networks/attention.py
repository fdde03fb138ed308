"""Multi-head attention, Vaswani et al. 2017; fewer heads of keys and values, Ainslie et al. 2023 (grouped queries).

    attention(q, k, v)[t] = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s        over the places s that t sees

With K < H heads of keys, the queries' heads h K/H .. (h + 1) K/H - 1 share one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.networks.positions import Rotation, rotate

KeysValues = tuple[Tensor, Tensor]  # (B, K, S, d) each


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """Return (B, T, H d) of queries (B, H, T, d), keys and values (B, K, S, d).

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: broadcast to (B, H, T, S), bool: True where t sees s, or what is added to the scores; every t must see
            something.
        causal: t sees 0 .. t; only without a mask.
        dropout: probability that a weight is zeroed.
    """
    grouped = bool(q.shape[1] != k.shape[1])  # sizes are tensors while torch.jit traces
    y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=grouped)
    return y.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Tokens attend to one another: (B, T, width) -> (B, T, width); queries, keys and values are one projection.

    Args:
        width: of the tokens.
        heads: H, of queries; divides the width.
        kv_heads: K, of keys and values; divides ``heads``.
        dropout: of the weights, in training.
        bias: of the projections.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.sizes, self.head, self.dropout = [heads, kv_heads, kv_heads], width // heads, dropout
        self.qkv = nn.Linear(width, sum(self.sizes) * self.head, bias)
        self.out = nn.Linear(width, width, bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache: KeysValues | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Return (B, T, width).

        Args:
            x: tokens (B, T, width).
            mask: bool, broadcast to (B, H, T, S): True where token t sees token s.
            causal: t sees 0 .. t; only without a mask.
            rotation: turns queries and keys by their places.
            cache: keys and values (B, K, S, d) of S places, written in place at ``slots``; the tokens attend to all S
                as the mask says. None: to one another.
            slots: (T,) int64.
        """
        heads, keys, values = self.sizes
        qk, v = self.qkv(x).unflatten(2, (-1, self.head)).transpose(1, 2).split([heads + keys, values], 1)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split([heads, keys], 1)
        if cache is not None:
            assert slots is not None
            k, v = (old.index_copy_(2, slots, new.to(old.dtype)) for old, new in zip(cache, (k, v), strict=True))
        return self.out(attend(q, k, v, mask, causal, self.dropout if self.training else 0.0))


class CrossAttention(nn.Module):
    """Tokens attend to another text, the memory; arguments as for `SelfAttention`."""

    def __init__(self, width: int, heads: int, kv_heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.head, self.dropout = width // heads, dropout
        self.query = nn.Linear(width, width, bias)
        self.kv = nn.Linear(width, 2 * kv_heads * self.head, bias)
        self.out = nn.Linear(width, width, bias)

    def project(self, memory: Tensor) -> KeysValues:
        """Return the keys and values of a memory (B, S, width), once for all tokens that will attend to it."""
        k, v = self.kv(memory).unflatten(2, (-1, self.head)).transpose(1, 2).chunk(2, 1)
        return k, v

    def forward(self, x: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        """Return (B, T, width) of tokens (B, T, width); the mask broadcasts to (B, H, T, S)."""
        q = self.query(x).unflatten(2, (-1, self.head)).transpose(1, 2)
        return self.out(attend(q, *memory, mask, False, self.dropout if self.training else 0.0))


def seen_by_all(seen: Tensor) -> Tensor:
    """Return the mask (B, 1, 1, S) of texts with real tokens at ``seen`` (B, S); of an empty text everything is seen.

    Its places then hold equal vectors, so that their number makes no difference, and no softmax is over nothing.
    """
    return (seen | ~seen.any(1, keepdim=True))[:, None, None]


def seen_by_later(seen: Tensor) -> Tensor:
    """Return the causal mask (B, 1, T, T) of texts with real tokens at ``seen`` (B, T); padding sees itself too."""
    at = torch.arange(seen.shape[1], device=seen.device)
    return ((seen[:, None] & (at <= at[:, None])) | (at == at[:, None])).unsqueeze(1)
