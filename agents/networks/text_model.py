"""What networks offer that read and write tokens."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from agents.networks.encode import Network
from rlcore.errors import UserError
from rlcore.spaces import Tokens


def require_tokens(space: gym.Space[Any], name: str) -> Tokens:
    """Return the space, which network ``name`` is to read, if it holds tokens.

    Raises:
        UserError: it holds something else.
    """
    if not isinstance(space, Tokens):
        raise UserError(f"network '{name}' cannot read observation space {space}; expected Tokens")
    return space


def places(seen: Tensor) -> Tensor:
    """Return the position (B, T) int64 of each token, counted over the real ones, which ``seen`` (B, T) marks."""
    return (seen.cumsum(1) - 1).clamp(min=0)


def last(features: Tensor, seen: Tensor) -> Tensor:
    """Return of features (B, T, F) those at the last real token, (B, F); of an empty text those at its first place."""
    at = (seen * torch.arange(seen.shape[1], device=seen.device)).amax(1)  # (B,)
    return features.gather(1, at[:, None, None].expand(-1, 1, features.shape[2])).squeeze(1)


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
        """Read prompts (B, P), to be continued by at most ``length`` tokens, without gradients.

        Returns:
            Features (B, F) that predict the first token, and the memory: a tree of (B, ...) tensors.
        """

    @abstractmethod
    def extend(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Write one more token (B,); return features (B, F) that predict the next one, and the memory after it.

        The memory given is used up: the one returned may share its storage. A copy of its rows, by ``index_select``
        on the first dimension of every leaf, is a memory of its own.
        """
