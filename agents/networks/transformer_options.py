"""The options that all Transformers share, and checks of a network's keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

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


def wrong(name: str, value: Any, expected: str) -> UserError:
    """Return what to raise when keyword ``name`` has a value that it may not have."""
    return UserError(f"network.kwargs.{name}: got {value!r}, expected {expected}")


def require_whole(name: str, value: Any) -> None:
    """Check that the value of keyword ``name`` is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise wrong(name, value, "a positive integer")


def require_share(name: str, value: Any) -> None:
    """Check that the value of keyword ``name`` is a probability below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise wrong(name, value, "a probability below 1")


def require_known(name: str, value: Any, known: Sequence[str]) -> None:
    """Check that the value of keyword ``name`` is one of the known ones."""
    if value not in known:
        raise UserError(f"network.kwargs.{name} '{value}' is unknown{nearest(str(value), known)}")


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
        for name in ("layers", "heads", "width"):
            require_whole(name, getattr(self, name))
        for name in ("feedforward", "kv_heads", "context"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name))
        for name, known in CHOICES.items():
            require_known(name, getattr(self, name), known)
        for name in ("norm_first", "bias", "embedding_norm", "padding"):
            if not isinstance(getattr(self, name), bool):
                raise wrong(name, getattr(self, name), "true or false")
        require_share("dropout", self.dropout)
        if isinstance(self.eps, bool) or not isinstance(self.eps, (int, float)) or self.eps <= 0:
            raise wrong("eps", self.eps, "a positive number")
        if self.width % self.heads:
            raise wrong("width", self.width, f"a multiple of heads = {self.heads}")
        if self.heads % self.keys:
            raise wrong("kv_heads", self.kv_heads, f"a divisor of heads = {self.heads}")
        if self.positions == "rotary" and self.head % 2:
            raise wrong("width", self.width, f"a multiple of 2 heads = {2 * self.heads}, with rotary positions")
        if self.positions == "sinusoidal" and self.width % 2:
            raise wrong("width", self.width, "an even number, with sinusoidal positions")

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


Class = TypeVar("Class", bound=type)


def takes_options(*without: str) -> Callable[[Class], Class]:
    """Name the `Options`, but for some, in the signature of a class whose last parameter is ``**options``."""

    def named(cls: Class) -> Class:
        own = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
        shared = [p for p in inspect.signature(Options).parameters.values() if p.name not in without]
        cls.__signature__ = inspect.Signature([*own, *shared])
        return cls

    return named
