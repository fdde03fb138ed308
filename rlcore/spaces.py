"""Spaces that gymnasium does not have."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces


class Tokens(spaces.MultiDiscrete):
    """Sequences of tokens of one vocabulary; shorter ones are filled up with ``pad``.

    Observations are tensors (N, length) int64. A text that is read, such as a prompt, may be padded on either side:
    what reads it leaves the padding out and counts positions without it. A completion ends with ``eos``; what follows
    is padding.

    Args:
        vocabulary: number of tokens, special ones included.
        length: number of places.
        pad: the token of empty places.
        bos: the token that begins a text, where there is one.
        eos: the token that ends a text, where there is one.
    """

    def __init__(
        self, vocabulary: int, length: int, pad: int = 0, bos: int | None = None, eos: int | None = None
    ) -> None:
        super().__init__(np.full(length, vocabulary))
        self.vocabulary, self.length, self.pad, self.bos, self.eos = vocabulary, length, pad, bos, eos

    def __repr__(self) -> str:
        return f"Tokens({self.vocabulary}, length={self.length})"
