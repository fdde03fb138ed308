"""Pretrained Transformers of Hugging Face's layout, to be read out, adapted or trained on.

What ``freeze`` and ``lora`` leave alone takes no gradient; patterns in ``optim.freeze`` and a factor for each layer in
``optim.layer_decay`` work as for any network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from agents.networks.encode import Network
from agents.networks.hf_tensors import Tensors
from agents.networks.hf_weights import Family, read_family
from agents.networks.lora import adapt
from agents.networks.text_model import last, require_tokens
from agents.networks.transformer import Decoder, Encoder
from rlcore.errors import UserError
from rlcore.folders import model_folder
from rlcore.spaces import Tokens


class LastToken(Decoder):
    """Reads a text: tokens (B, T) to the features (B, width) at its last token, which alone has seen all of it."""

    per_token = False

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features (B, width) of tokens (B, T), padded on either side."""
        return last(super().forward(tokens), tokens != self.pad)


def pretrained(
    space: gym.Space[Any],
    path: str,
    pool: str | None = None,
    layers: int | None = None,
    freeze: str | int = "none",
    lora: Mapping[str, Any] | None = None,
    dropout: float | None = None,
) -> Network:
    """Return a network with a folder's weights: an `Encoder` of the BERT and RoBERTa families, a `Decoder` of GPT-2's.

    Args:
        space: `Tokens` of the folder's own vocabulary.
        path: a folder with config.json and model.safetensors, or ``package:NAME`` for one in an installed package.
        pool: of encoders: mean over the tokens (the default), first of them, or max; of decoders: last, the features
            of the last token, to classify by; None: those of each, to write by.
        layers: use the first so many; None: all.
        freeze: all, none, or a number: the embeddings and the first so many layers.
        lora: adapt the layers and freeze the rest, as {rank: 8, alpha: 16, dropout: 0.0, targets: [query, value]}.
        dropout: None: that of config.json.

    Raises:
        UserError: the folder is not readable, holds another kind of model or does not fit the space; or a value is
            out of its range.
    """
    folder = model_folder(path, "network.kwargs.path", ("config.json",))
    family = read_family(folder)
    _require_fit(require_tokens(space, "pretrained"), family, folder)
    options = {**family.options(), "context": family.context}
    most = options["layers"]
    options["layers"] = most if layers is None else _count("layers", layers, 1, most)
    if dropout is not None:
        options["dropout"] = dropout
    network = _empty(space, family, pool, options)
    weights = dict(family.weights(Tensors(folder, family.prefix), options["layers"]))
    weights["embedding.weight"] = resized(weights["embedding.weight"], network.embedding.num_embeddings)
    network.load_state_dict(weights, assign=True)
    network.pretrained = True
    _freeze(network, freeze)
    if lora is not None:
        if freeze != "none":
            raise UserError(f"network.kwargs.freeze: got {freeze!r}, expected none: with lora the rest is frozen")
        adapt(network, lora)
    return network


def _empty(space: gym.Space[Any], family: Family, pool: str | None, options: dict[str, Any]) -> Encoder | Decoder:
    """Return the network without storage for its weights."""
    if family.network == "decoder" and pool not in (None, "last"):
        raise UserError(
            f"network.kwargs.pool: got '{pool}', expected last, or nothing: each token sees those before it"
        )
    with torch.device("meta"):
        if family.network == "encoder":
            return Encoder(space, pool or "mean", **options)
        return Decoder(space, **options) if pool is None else LastToken(space, **options)


def _require_fit(space: Tokens, family: Family, folder: Path) -> None:
    """Check that the space's tokens are the model's; one token more is padding, where the model knows none."""
    size = _vocabulary_size(folder) or family.vocab_size
    if space.vocabulary not in (size, size + 1):
        raise UserError(
            f"network 'pretrained' cannot read {space}: {folder} has {size} tokens; expected its own vocabulary, as in "
            "env.kwargs.tokens"
        )
    if space.length > family.context:
        raise UserError(
            f"network 'pretrained' cannot read {space}: {folder} has {family.context} places; expected shorter texts"
        )


def _vocabulary_size(folder: Path) -> int | None:
    """Return how many tokens a folder's tokenizer knows, often fewer than its embedding has; None: it has none."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    return Tokenizer.from_file(str(file)).get_vocab_size() if file.is_file() else None


def resized(embedding: Tensor, tokens: int) -> Tensor:
    """Return an embedding (tokens, width): rows behind the last token go, new tokens get the mean of all."""
    new = embedding.mean(0).expand(max(0, tokens - len(embedding)), -1)
    return torch.cat([embedding[:tokens], new])


def _freeze(network: Encoder | Decoder, freeze: str | int) -> None:
    if freeze == "none":
        return
    if freeze == "all":
        network.requires_grad_(False)
        return
    layers = network.stack.layers
    count = _count("freeze", freeze, 0, len(layers))
    segments = getattr(network, "segments", None)
    below = (network.embedding, network.positions, network.embedding_norm, *([segments] if segments else []))
    for part in (*below, *layers[:count]):
        part.requires_grad_(False)


def _count(option: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        words = "all, none or " if option == "freeze" else ""
        raise UserError(f"network.kwargs.{option}: got {value!r}, expected {words}a whole number from {low} to {high}")
    return value
