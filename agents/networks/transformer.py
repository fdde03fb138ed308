"""Transformers over tokens, Vaswani et al. 2017: they read, write, or read one text and write another.

    x_0 = E[token] + position;   x_{l+1} = block_l(x_l);   features = norm(x_layers)

Padding is seen by no token, and positions count real tokens, so that texts may be padded on either side. To write
one token at a time, keys and values of those before are kept in storage for the whole text (the cache).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from agents.networks.attention import KeysValues, seen_by_all, seen_by_later
from agents.networks.encode import Network
from agents.networks.positions import Positions, Rotation
from agents.networks.text_model import TextModel, last, places, require_tokens
from agents.networks.transformer_blocks import Sight, Stack
from agents.networks.transformer_options import Options, require_known, require_whole, takes_options
from rlcore.errors import UserError

POOLS = ("mean", "first", "max")


class Transformer(Network):
    """What all Transformers over tokens have: embeddings (vocabulary, width) and positions.

    Args:
        space: `Tokens`.
        options: see `Options`.
        more: places beside those of the context.
    """

    name: str  # as registered

    def __init__(self, space: gym.Space[Any], options: Options, more: int = 0) -> None:
        super().__init__()
        tokens = require_tokens(space, self.name)
        self.pad, self.padding, self.out_features = tokens.pad, options.padding, options.width
        self.embedding = nn.Embedding(tokens.vocabulary, options.width)
        sinusoidal = options.positions == "sinusoidal"  # of amplitude 1, which must not drown the embeddings
        self.scale = options.width**0.5 if sinusoidal else 1.0
        nn.init.normal_(self.embedding.weight, std=options.width**-0.5 if sinusoidal else 0.02)
        self.context = options.context or tokens.length
        self.positions = Positions(options.positions, self.context + more, options.width, options.head)
        self.embedding_norm = options.normalizer() if options.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(options.dropout)

    def embed(self, tokens: Tensor, at: Tensor | None) -> tuple[Tensor, Rotation | None]:
        """Return x_0 (B, T, width) of tokens (B, T) at places ``at`` (B, T), None: 0 .. T - 1; and the rotation."""
        x, rotation = self.positions(self.looked_up(tokens), at)
        return self.dropout(self.embedding_norm(x)), rotation

    def looked_up(self, tokens: Tensor) -> Tensor:
        """Return E[token] (B, T, width) of tokens (B, T)."""
        x = self.embedding(tokens)
        return x * self.scale if self.scale != 1.0 else x

    def require_context(self, length: int) -> None:
        """Check that a text of so many places fits.

        Raises:
            UserError: it is longer than the context.
        """
        if length > self.context:
            raise UserError(
                f"network '{self.name}' got a text of {length} tokens, longer than its context of "
                f"{self.context}; expected a shorter text or a larger network.kwargs.context"
            )

    def read(self, stack: Stack, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features (B, T, width) of texts whose tokens all see one another, and what all saw, (B, 1, 1, T)."""
        self.require_context(tokens.shape[1])
        mask = seen_by_all(tokens != self.pad) if self.padding else None
        x, rotation = self.embed(tokens, places(tokens != self.pad) if self.padding else None)
        return stack(x, Sight(mask, rotation=rotation)), mask


def pooled(features: Tensor, mask: Tensor | None, pool: str) -> Tensor:
    """Return the mean, first or maximum (B, width) of features (B, T, width) where ``mask`` (B, 1, 1, T) is True."""
    seen = torch.ones_like(features[..., :1], dtype=torch.bool) if mask is None else mask[:, 0, 0, :, None]
    if pool == "mean":
        return (features * seen).sum(1) / seen.sum(1)
    if pool == "max":
        return features.masked_fill(~seen, -torch.inf).amax(1)
    first = seen.long().argmax(1, keepdim=True)  # (B, 1, 1)
    return features.gather(1, first.expand(-1, 1, features.shape[2])).squeeze(1)


def segments(tokens: Tensor, eos: int | None, most: int) -> Tensor:
    """Return how many texts ``eos`` (None: nothing) has ended before each token (B, T) int64, at most ``most`` - 1."""
    ends = (tokens == (-1 if eos is None else eos)).long()
    return (ends.cumsum(1) - ends).clamp(max=most - 1)


@takes_options()
class Encoder(Transformer):
    """Reads a text, or several with an end each: tokens (B, T), all of which see one another, to features (B, width).

    Args:
        space: `Tokens`.
        pool: mean over the tokens, first of them, or max.
        segments: texts told apart: S_s is added to E[token] in the s-th one, and the last S in all that follow; 1:
            nothing is added.
        options: see `Options`.
    """

    name = "encoder"

    def __init__(self, space: gym.Space[Any], pool: str = "mean", segments: int = 1, **options: Any) -> None:
        chosen = Options(**options)
        super().__init__(space, chosen)
        self.pool, self.eos = pool, require_tokens(space, self.name).eos
        require_known("pool", pool, POOLS)
        require_whole("segments", segments)
        self.segments = nn.Embedding(segments, chosen.width) if segments > 1 else None
        if self.segments is not None:
            nn.init.normal_(self.segments.weight, std=0.02)
        self.stack = Stack(chosen)

    def looked_up(self, tokens: Tensor) -> Tensor:
        x = super().looked_up(tokens)
        if self.segments is None:
            return x
        return x + self.segments(segments(tokens, self.eos, self.segments.num_embeddings))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features (B, width) of tokens (B, T)."""
        return pooled(*self.read(self.stack, tokens), self.pool)


def storage(like: Tensor, options: Options, items: int, places: int) -> tuple[KeysValues, ...]:
    """Return zeros for every layer's keys and values, (B, K, places, d) each."""
    shape = (items, options.keys, places, options.head)
    return tuple((like.new_zeros(shape), like.new_zeros(shape)) for _ in range(options.layers))


@takes_options()
class Decoder(Transformer, TextModel):
    """Writes: tokens (B, T), each of which sees those before it, to features (B, T, width).

    Its memory: ``cache``, every layer's keys and values; ``seen`` (B, M), which places hold real tokens; ``slot`` (B,),
    the place to be written next, the same in all rows; ``at`` (B,), its position.

    Args:
        space: `Tokens`.
        options: see `Options`.
    """

    name = "decoder"

    def __init__(self, space: gym.Space[Any], **options: Any) -> None:
        self.options = Options(**options)
        super().__init__(space, self.options)
        self.stack = Stack(self.options)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features (B, T, width) of tokens (B, T)."""
        if self.padding:
            return self._masked(tokens)
        self.require_context(tokens.shape[1])
        x, rotation = self.embed(tokens, None)
        return self.stack(x, Sight(causal=True, rotation=rotation))

    def _masked(self, tokens: Tensor) -> Tensor:
        self.require_context(tokens.shape[1])
        seen = tokens != self.pad
        x, rotation = self.embed(tokens, places(seen))
        return self.stack(x, Sight(seen_by_later(seen), rotation=rotation))

    def given(self, prompt: Tensor, completion: Tensor) -> Tensor:
        features = self._masked(torch.cat([prompt, completion], 1))
        steps = prompt.shape[1]
        first = last(features[:, :steps], prompt != self.pad)
        return torch.cat([first[:, None], features[:, steps:-1]], 1)

    @torch.no_grad()
    def begin(self, prompt: Tensor, length: int) -> tuple[Tensor, Any]:
        (items, steps), total = prompt.shape, prompt.shape[1] + length
        self.require_context(total)
        seen = prompt != self.pad
        x, rotation = self.embed(prompt, places(seen))
        cache = storage(x, self.options, items, total)
        later = torch.zeros(items, 1, steps, length, dtype=torch.bool, device=x.device)
        mask = torch.cat([seen_by_later(seen), later], 3)  # (B, 1, P, M)
        features = self.stack(x, Sight(mask, False, rotation, torch.arange(steps, device=x.device)), cache)
        state = {
            "cache": cache,
            "seen": torch.cat([seen, later[:, 0, 0]], 1),
            "slot": torch.full_like(prompt[:, 0], steps),
            "at": seen.sum(1),
        }
        return last(features, seen), state

    @torch.no_grad()
    def extend(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        here = torch.arange(state["seen"].shape[1], device=token.device) == state["slot"][:, None]  # (B, M)
        real = (token != self.pad)[:, None]
        x, rotation = self.embed(token[:, None], state["at"][:, None])
        sight = Sight((state["seen"] | here)[:, None, None], False, rotation, state["slot"][:1])
        features = self.stack(x, sight, state["cache"])[:, 0]
        seen = state["seen"] | (here & real)
        return features, {
            "cache": state["cache"],
            "seen": seen,
            "slot": state["slot"] + 1,
            "at": state["at"] + real[:, 0],
        }


@takes_options()
class EncoderDecoder(Transformer, TextModel):
    """Reads a prompt, each token of which sees all others, and writes a completion; one vocabulary serves both.

    Its memory: ``cache`` and ``memories``, every layer's keys and values of the completion and of the prompt; ``mask``
    (B, 1, 1, P), what is seen of the prompt; ``slot`` (B,), the place to be written next, the same in all rows.

    Args:
        space: `Tokens` of the prompt, with a token ``bos`` that begins completions.
        pool: how `encode` makes one vector of a prompt: mean over the tokens, first of them, or max.
        options: see `Options`.
    """

    name = "encoder_decoder"

    def __init__(self, space: gym.Space[Any], pool: str = "mean", **options: Any) -> None:
        self.options = Options(**options)
        super().__init__(space, self.options, more=1)  # bos stands before the text
        bos = require_tokens(space, self.name).bos
        if bos is None:
            raise UserError(f"network '{self.name}' cannot write {space} without a token that begins a text (bos)")
        self.bos, self.pool = bos, pool
        require_known("pool", pool, POOLS)
        self.reader, self.stack = Stack(self.options), Stack(self.options, cross=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Refuse.

        Raises:
            UserError: always; it takes a prompt and a completion.
        """
        raise UserError(f"network '{self.name}' needs a prompt and a completion; expected decoder or text_gru here")

    def encode(self, prompt: Tensor) -> Tensor:
        """Return one vector (B, width) of each prompt (B, P)."""
        return pooled(*self.read(self.reader, prompt), self.pool)

    def given(self, prompt: Tensor, completion: Tensor) -> Tensor:
        self.require_context(completion.shape[1])
        memories, mask = self._memories(prompt)
        start = torch.full_like(completion[:, :1], self.bos)
        x, rotation = self.embed(torch.cat([start, completion[:, :-1]], 1), None)
        return self.stack(x, Sight(causal=True, rotation=rotation, memory=mask), None, memories)

    @torch.no_grad()
    def begin(self, prompt: Tensor, length: int) -> tuple[Tensor, Any]:
        self.require_context(length)
        memories, mask = self._memories(prompt)
        cache = storage(memories[0][0], self.options, prompt.shape[0], length + 1)
        mask = prompt.new_ones(prompt.shape[0], 1, 1, 1, dtype=torch.bool) if mask is None else mask
        start = torch.full_like(prompt[:, 0], self.bos)
        return self.extend(start, {"cache": cache, "memories": memories, "mask": mask, "slot": torch.zeros_like(start)})

    @torch.no_grad()
    def extend(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        slot, cache = state["slot"], state["cache"]
        x, rotation = self.embed(token[:, None], slot[:, None])
        seen = torch.arange(cache[0][0].shape[2], device=token.device) <= slot[:, None]  # (B, L + 1)
        sight = Sight(seen[:, None, None], False, rotation, slot[:1], state["mask"])
        features = self.stack(x, sight, cache, state["memories"])[:, 0]
        return features, {**state, "slot": slot + 1}

    def _memories(self, prompt: Tensor) -> tuple[tuple[KeysValues, ...], Tensor | None]:
        features, mask = self.read(self.reader, prompt)
        return self.stack.project(features), mask
