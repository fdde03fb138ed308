"""The layers of Transformers.

    norm_first   y = x + attention(norm(x));  x' = y + feed(norm(y));  a last norm after all layers   Xiong et al. 2020
    else         y = norm(x + attention(x));  x' = norm(y + feed(y))                                Vaswani et al. 2017
    feed(x) = W act(V x);   swiglu: W (silu(U x) * V x)                                              Shazeer 2020

Weights start at N(0, 0.02^2), those that end in a residual sum divided by the root of the number of such sums
(Radford et al. 2019); biases at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from agents.networks.attention import CrossAttention, KeysValues, SelfAttention
from agents.networks.positions import Rotation
from agents.networks.transformer_options import ACTIVATIONS, Options


class FeedForward(nn.Module):
    """Each token by itself: (B, T, width) -> (B, T, width)."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.gated = options.activation == "swiglu"
        self.activation = F.silu if self.gated else ACTIVATIONS[options.activation]
        self.up = nn.Linear(options.width, options.hidden * (2 if self.gated else 1), options.bias)
        self.down = nn.Linear(options.hidden, options.width, options.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, width)."""
        if not self.gated:
            return self.down(self.activation(self.up(x)))
        gate, value = self.up(x).chunk(2, -1)
        return self.down(self.activation(gate) * value)


class Sight(NamedTuple):
    """What the tokens of a text see, the same in every layer; see `SelfAttention.forward`."""

    mask: Tensor | None = None
    causal: bool = False
    rotation: Rotation | None = None
    slots: Tensor | None = None
    memory: Tensor | None = None  # mask of the memory, broadcast to (B, H, T, S)


class Block(nn.Module):
    """One layer: (B, T, width) -> (B, T, width).

    Args:
        options: of the Transformer.
        cross: whether the tokens attend to a memory too.
    """

    def __init__(self, options: Options, cross: bool = False) -> None:
        super().__init__()
        sizes = (options.width, options.heads, options.keys, options.dropout, options.bias)
        self.norm_first = options.norm_first
        self.attention, self.attention_norm = SelfAttention(*sizes), options.normalizer()
        self.cross = CrossAttention(*sizes) if cross else None
        self.cross_norm = options.normalizer() if cross else None
        self.feed, self.feed_norm = FeedForward(options), options.normalizer()
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor, sight: Sight, cache: KeysValues | None, memory: KeysValues | None) -> Tensor:
        """Return (B, T, width); ``cache`` holds this layer's keys and values, ``memory`` those of the text read."""
        see = sight[:3]

        def attention(y: Tensor) -> Tensor:
            return self.attention(y, *see, cache, sight.slots)

        x = self._add(x, self.attention_norm, attention)
        if self.cross is not None:
            assert memory is not None
            assert self.cross_norm is not None
            cross = self.cross
            x = self._add(x, self.cross_norm, lambda y: cross(y, memory, sight.memory))
        return self._add(x, self.feed_norm, self.feed)

    def _add(self, x: Tensor, norm: nn.Module, layer: Callable[[Tensor], Tensor]) -> Tensor:
        return x + self.dropout(layer(norm(x))) if self.norm_first else norm(x + self.dropout(layer(x)))


class Stack(nn.Module):
    """Blocks, and with norms in front a last one: (B, T, width) -> (B, T, width); arguments as for `Block`."""

    def __init__(self, options: Options, cross: bool = False) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(Block(options, cross) for _ in range(options.layers))
        self.norm = options.normalizer() if options.norm_first else nn.Identity()
        for name, part in self.named_modules():
            if isinstance(part, nn.Linear):
                residual = name.endswith(("out", "down"))
                sums = (3 if cross else 2) * options.layers
                nn.init.normal_(part.weight, std=0.02 / sums**0.5 if residual else 0.02)
                if options.bias:
                    nn.init.zeros_(part.bias)

    def forward(
        self,
        x: Tensor,
        sight: Sight,
        caches: tuple[KeysValues, ...] | None = None,
        memories: tuple[KeysValues, ...] | None = None,
    ) -> Tensor:
        """Return (B, T, width); ``caches`` and ``memories`` hold one entry for each block."""
        for i, block in enumerate(self.layers):
            x = block(x, sight, caches and caches[i], memories and memories[i])
        return self.norm(x)

    def project(self, memory: Tensor) -> tuple[KeysValues, ...]:
        """Return every block's keys and values of a memory (B, S, width)."""
        return tuple(block.cross.project(memory) for block in self.layers)
