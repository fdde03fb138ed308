"""A bag of n-grams, Joulin et al. 2017 (fastText): what words and short phrases a text has, whatever their order.

    features = 1 / sqrt(M) * sum over the M n-grams g of the text of E[row(g)]

A token's row is its own; those of longer n-grams are hashed into ``buckets`` shared rows (Weinberger et al. 2009). The
root, where fastText divides by M, keeps the features' size the same for short and long texts and lets one telling
phrase count in a long one.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from agents.networks.encode import Network
from agents.networks.text_model import require_tokens
from agents.networks.transformer_options import require_share, require_whole

_FACTOR, _PRIME = 1_000_003, 2**31 - 1  # products stay below 2^63


def rows(tokens: Tensor, n: int, pad: int, vocabulary: int, buckets: int) -> Tensor:
    """Return the rows (B, M) int64 of all n-grams of 1 to ``n`` tokens of texts (B, T); padding's where there is none.

    An n-gram t_1 ... t_k of k > 1 tokens has the row vocabulary + (h_k mod buckets), h_1 = t_1 and
    h_k = (1,000,003 h_{k-1} + t_k + 1) mod (2^31 - 1). One with padding in it is none.
    """
    found, code, real = [tokens], tokens, tokens != pad
    for k in range(1, min(n, tokens.shape[1])):
        code = (code[:, :-1] * _FACTOR + tokens[:, k:] + 1) % _PRIME
        real = real[:, :-1] & (tokens[:, k:] != pad)
        found.append((vocabulary + code % buckets).masked_fill(~real, pad))
    return torch.cat(found, 1)


class NGrams(Network):
    """Reads a text: tokens (B, T) -> features (B, width).

    Args:
        space: `Tokens`.
        n: tokens of the longest n-grams; 1: single tokens only.
        buckets: rows that n-grams of two tokens and more share.
        width: number of features.
        dropout: probability that a feature is left out while training.

    Raises:
        UserError: the space holds no tokens, or an option is out of its range.
    """

    def __init__(
        self, space: gym.Space[Any], n: int = 2, buckets: int = 2**18, width: int = 16, dropout: float = 0.0
    ) -> None:
        super().__init__()
        for name, value in (("n", n), ("buckets", buckets), ("width", width)):
            require_whole(name, value)
        require_share("dropout", dropout)
        tokens = require_tokens(space, "ngrams")
        self.n, self.pad, self.vocabulary, self.buckets = n, tokens.pad, tokens.vocabulary, buckets
        self.embedding = nn.Embedding(tokens.vocabulary + (buckets if n > 1 else 0), width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)
        self.out_features = width

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features (B, width) of tokens (B, T); those of a text of padding alone are 0."""
        grams = rows(tokens.long(), self.n, self.pad, self.vocabulary, self.buckets)  # (B, M)
        real = (grams != self.pad).to(self.embedding.weight.dtype)
        summed = torch.einsum("bmf,bm->bf", self.embedding(grams), real)
        return self.dropout(summed / real.sum(1, keepdim=True).clamp(min=1).sqrt())
