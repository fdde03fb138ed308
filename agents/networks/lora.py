"""Low-rank adaptation (Hu et al. 2022): a trained layer stays, and a product of two thin matrices is learnt beside it.

y = W x + b + (alpha / r) B A dropout(x)        A (r, in), B (out, r); W and b are frozen

A begins as torch draws linear layers and B as zeros, so that the adapted network begins as the one it adapts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from agents.networks.transformer import Decoder, Encoder
from agents.networks.transformer_blocks import Block
from rlcore.errors import UserError
from rlcore.fields import Model, explain

Target = Literal["query", "key", "value", "out", "up", "down"]


class LoRAConfig(Model):
    """Which layers are adapted, and how."""

    rank: int = Field(default=8, ge=1, description="r")
    alpha: float = Field(default=16.0, gt=0, description="scale; it is divided by the rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="probability of dropping an input of A")
    targets: list[Target] = Field(
        default=["query", "value"],
        min_length=1,
        description="projections of attention (query, key, value, out) and of the feed-forward layers (up, down)",
    )


class LoRA(nn.Module):
    """A linear layer (..., in) -> (..., out) some of whose outputs are adapted.

    A layer that projects to several things at once, such as queries, keys and values, is adapted in parts.

    Args:
        base: the layer, frozen here.
        sizes: how many outputs each part has, by name, in order.
        parts: the parts that are adapted.
        rank: r.
        alpha: scale of what is learnt; it is divided by the rank.
        dropout: probability of dropping an input of A.
    """

    def __init__(
        self, base: nn.Linear, sizes: Mapping[str, int], parts: list[str], rank: int, alpha: float, dropout: float
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.sizes, self.scale = dict(sizes), alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.a = nn.ModuleDict({name: nn.Linear(base.in_features, rank, bias=False) for name in parts})
        self.b = nn.ModuleDict({name: nn.Linear(rank, sizes[name], bias=False) for name in parts})
        for layer in self.b.values():
            nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (..., out)."""
        outputs = dict(zip(self.sizes, self.base(x).split(list(self.sizes.values()), -1), strict=True))
        for name in self.a:
            outputs[name] = outputs[name] + self.scale * self.b[name](self.a[name](self.dropout(x)))
        return torch.cat(list(outputs.values()), -1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one linear layer that computes the same without dropout."""
        weight = self.base.weight.clone()
        for name, rows in zip(self.sizes, weight.split(list(self.sizes.values())), strict=True):
            if name in self.a:
                rows += self.scale * self.b[name].weight @ self.a[name].weight  # pyright: ignore[reportOperatorIssue]
        layer = nn.Linear(*weight.T.shape, bias=self.base.bias is not None, device="meta")
        layer.weight, layer.bias = nn.Parameter(weight), self.base.bias
        return layer


def adapt(network: Encoder | Decoder, options: Mapping[str, Any]) -> None:
    """Freeze a network and put `LoRA` around its layers' targets, in place.

    Args:
        network: whose blocks are adapted.
        options: as `LoRAConfig`.

    Raises:
        UserError: an option is unknown or out of its range.
    """
    where = "network.kwargs.lora"
    if not isinstance(options, Mapping):
        raise UserError(f"{where}: got {options!r}, expected a mapping such as {{rank: 8, targets: [query, value]}}")
    try:
        config = LoRAConfig.model_validate(options)
    except ValidationError as error:
        raise UserError(explain(error, LoRAConfig, f"{where}.")) from None
    network.requires_grad_(False)
    for block in network.stack.layers:
        assert isinstance(block, Block)
        for holder, name, sizes in _layers(block):
            if parts := [part for part in sizes if part in config.targets]:
                layer = LoRA(getattr(holder, name), sizes, parts, config.rank, config.alpha, config.dropout)
                setattr(holder, name, layer)


def _layers(block: Block) -> list[tuple[nn.Module, str, dict[str, int]]]:
    """Return the linear layers of a block as (holder, attribute, outputs by target)."""
    attention, feed = block.attention, block.feed
    query, key, value = (heads * attention.head for heads in attention.sizes)
    return [
        (attention, "qkv", {"query": query, "key": key, "value": value}),
        (attention, "out", {"out": attention.out.out_features}),
        (feed, "up", {"up": feed.up.out_features}),
        (feed, "down", {"down": feed.down.out_features}),
    ]


def merge(module: nn.Module) -> nn.Module:
    """Put what was learnt into the layers that it adapts, everywhere in ``module``, which is returned.

    The outputs stay, the cost of the adaptation goes, and the weights are named as without it.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, LoRA):
            setattr(module, name, child.merged())
        else:
            merge(child)
    return module
