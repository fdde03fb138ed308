"""What networks offer that read and write tokens."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from agents.networks.encode import Network


class TextModel(Network):
    """A network over tokens whose features at each place predict the token that comes next.

    Prompts (B, P) are padded on the left, completions (B, L) on the right, with ``space.pad``; padding is seen by no
    other place, and positions are counted without it.
    """

    per_token = True
    embedding: nn.Embedding  # (vocabulary, width)

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Return features (B, T, F) of tokens (B, T); those at t have seen tokens 0..t and no others."""

    @abstractmethod
    def given(self, prompt: Tensor, completion: Tensor) -> Tensor:
        """Return features (B, L, F) that predict completions (B, L): those at i saw the prompt and tokens before i."""

    @abstractmethod
    def begin(self, prompt: Tensor, length: int) -> tuple[Tensor, Any]:
        """Read prompts (B, P), to be continued by at most ``length`` tokens.

        Returns:
            Features (B, F) that predict the first token, and the memory: a tree of (B, ...) tensors.
        """

    @abstractmethod
    def extend(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Write one more token (B,); return features (B, F) that predict the next one, and the memory after it."""
