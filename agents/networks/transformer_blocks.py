"""The layers of Transformers, and the options that all of them share.

    norm_first   y = x + attention(norm(x));  x' = y + feed(norm(y));  a last norm after all layers   Xiong et al. 2020
    else         y = norm(x + attention(x));  x' = norm(y + feed(y))                                Vaswani et al. 2017
    feed(x) = W act(V x);   swiglu: W (silu(U x) * V x)                                              Shazeer 2020

Weights start at N(0, 0.02^2), those that end in a residual sum divided by the root of the number of such sums
(Radford et al. 2019); biases at 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from agents.networks.attention import CrossAttention, KeysValues, SelfAttention
from agents.networks.positions import Rotation
from rlcore.errors import UserError, nearest


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GELU by its approximation with tanh, which GPT-2 was trained with."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "relu": F.relu}
CHOICES = {
    "positions": ("learned", "sinusoidal", "rotary"),
    "norm": ("layer_norm", "rms_norm"),
    "activation": (*ACTIVATIONS, "swiglu"),
}


@dataclass(frozen=True)
class Options:
    """Keywords that all Transformers take.

    Args:
        layers: number of blocks; an encoder-decoder has as many on either side.
        heads: of attention.
        width: of the tokens' vectors, a multiple of ``heads``.
        feedforward: hidden units of a block; None: four times the width.
        dropout: of embeddings, attention weights and what is added to the residual stream.
        positions: learned, sinusoidal or rotary.
        norm: layer_norm or rms_norm.
        norm_first: normalise what a sublayer reads, rather than the sum after it.
        activation: gelu, gelu_tanh (its approximation), relu or swiglu.
        kv_heads: heads of keys and values, a divisor of ``heads``; None: as many.
        context: places of the longest text; None: those of the space.
        bias: whether projections and norms have one.
        eps: added to variances.
        embedding_norm: normalise the embeddings.
        padding: whether texts may hold padding; false saves the masks where they never do.

    Raises:
        UserError: a value is out of its range.
    """

    layers: int = 4
    heads: int = 4
    width: int = 128
    feedforward: int | None = None
    dropout: float = 0.0
    positions: str = "learned"
    norm: str = "layer_norm"
    norm_first: bool = True
    activation: str = "gelu"
    kv_heads: int | None = None
    context: int | None = None
    bias: bool = True
    eps: float = 1e-5
    embedding_norm: bool = False
    padding: bool = True

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "feedforward", "kv_heads", "context"):
            value = getattr(self, name)
            if (value is not None or name in ("layers", "heads", "width")) and not _whole(value):
                raise _wrong(name, value, "a positive integer")
        for name, known in CHOICES.items():
            require_known(name, getattr(self, name), known)
        for name in ("norm_first", "bias", "embedding_norm", "padding"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "true or false")
        if not (isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1):
            raise _wrong("dropout", self.dropout, "a probability below 1")
        if not (isinstance(self.eps, (int, float)) and self.eps > 0):
            raise _wrong("eps", self.eps, "a positive number")
        if self.width % self.heads:
            raise _wrong("width", self.width, f"a multiple of heads = {self.heads}")
        if self.heads % self.keys:
            raise _wrong("kv_heads", self.kv_heads, f"a divisor of heads = {self.heads}")
        if (self.positions == "rotary" and self.head % 2) or (self.positions == "sinusoidal" and self.width % 2):
            what = f"a multiple of 2 heads = {2 * self.heads}" if self.positions == "rotary" else "an even number"
            raise _wrong("width", self.width, f"{what}, with {self.positions} positions")

    @property
    def head(self) -> int:
        """Width of a query."""
        return self.width // self.heads

    @property
    def keys(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden(self) -> int:
        """Hidden units of a block."""
        return 4 * self.width if self.feedforward is None else self.feedforward

    def normalizer(self) -> nn.Module:
        """Return a new normalisation of vectors."""
        if self.norm == "rms_norm":
            return nn.RMSNorm(self.width, self.eps)
        return nn.LayerNorm(self.width, self.eps, bias=self.bias)


def require_known(name: str, value: Any, known: Sequence[str]) -> None:
    """Check that the value of keyword ``name`` is one of the known ones."""
    if value not in known:
        raise UserError(f"network.kwargs.{name} '{value}' is unknown{nearest(str(value), known)}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _wrong(name: str, value: Any, expected: str) -> UserError:
    return UserError(f"network.kwargs.{name}: got {value!r}, expected {expected}")


Class = TypeVar("Class", bound=type)


def takes_options(cls: Class) -> Class:
    """Name the `Options` in the signature of a class whose last parameter is ``**options``."""
    own = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
    kind = inspect.Parameter.KEYWORD_ONLY
    shared = [inspect.Parameter(f.name, kind, default=f.default, annotation=f.type) for f in fields(Options)]
    cls.__signature__ = inspect.Signature([*own, *shared])
    return cls


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
        self.blocks: Any = nn.ModuleList(Block(options, cross) for _ in range(options.layers))
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
        for i, block in enumerate(self.blocks):
            x = block(x, sight, caches and caches[i], memories and memories[i])
        return self.norm(x)

    def project(self, memory: Tensor) -> tuple[KeysValues, ...]:
        """Return every block's keys and values of a memory (B, S, width)."""
        return tuple(block.cross.project(memory) for block in self.blocks)
