"""Families of models in Hugging Face's layout, as keywords and weights of our Transformers.

BERT and RoBERTa add a vector T_s to each token of segment s. As T_0 stands nearly everywhere, our positions are
P_t + T_0 and our segments T_s - T_0. RoBERTa's positions begin behind the number of its padding. GPT-2 keeps its
matrices as (in, out), transposed to ours.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from torch import Tensor

from agents.networks.hf_tensors import Tensors, read_json
from rlcore.errors import UserError, nearest
from rlcore.fields import explain

Weights = Iterator[tuple[str, Tensor]]
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]
Probability = Field(default=0.1, ge=0, lt=1)


def linear(tensors: Tensors, ours: str, theirs: str, inputs: int, outputs: int, turned: bool = False) -> Weights:
    """Yield weight (outputs, inputs) and bias of a linear layer, which is kept as (inputs, outputs) if ``turned``."""
    shape = (inputs, outputs) if turned else (outputs, inputs)
    weight = tensors.take(f"{theirs}.weight", *shape)
    yield f"{ours}.weight", weight.T.contiguous() if turned else weight
    yield f"{ours}.bias", tensors.take(f"{theirs}.bias", outputs)


def norm(tensors: Tensors, ours: str, theirs: str, width: int) -> Weights:
    """Yield weight and bias (width,) of a layer normalisation."""
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", tensors.take(f"{theirs}.{kind}", width)


class Family(BaseModel):
    """What config.json says of a kind of model, and how that becomes one of ours; other keys in it mean nothing."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
    network: Literal["encoder", "decoder"]
    prefix: str
    vocab_size: PositiveInt

    @property
    @abstractmethod
    def context(self) -> int:
        """Places of the longest text."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the keywords of the network."""

    @abstractmethod
    def weights(self, tensors: Tensors, layers: int) -> Weights:
        """Yield the network's weights, of the first ``layers`` blocks, by our names."""


class Bert(Family):
    """BERT, Devlin et al. 2019."""

    network: Literal["encoder", "decoder"] = "encoder"
    prefix: str = "bert."
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    type_vocab_size: PositiveInt = 2
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: float = Probability
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False

    @property
    def start(self) -> int:
        """The first position's row."""
        return 0

    @property
    def segments(self) -> int:
        """Texts told apart."""
        return self.type_vocab_size

    @property
    def context(self) -> int:
        return self.max_position_embeddings - self.start

    def options(self) -> dict[str, Any]:
        return {
            "layers": self.num_hidden_layers,
            "heads": self.num_attention_heads,
            "width": self.hidden_size,
            "feedforward": self.intermediate_size,
            "dropout": self.hidden_dropout_prob,
            "norm_first": False,
            "activation": ACTIVATIONS[self.hidden_act],
            "eps": self.layer_norm_eps,
            "embedding_norm": True,
            "segments": self.segments,
        }

    def weights(self, tensors: Tensors, layers: int) -> Weights:
        width, hidden = self.hidden_size, self.intermediate_size
        yield "embedding.weight", tensors.take("embeddings.word_embeddings.weight", self.vocab_size, width)
        places = tensors.take("embeddings.position_embeddings.weight", self.max_position_embeddings, width)
        segments = tensors.take("embeddings.token_type_embeddings.weight", self.type_vocab_size, width)
        yield "positions.weight", places[self.start :] + segments[0]
        if self.segments > 1:
            yield "segments.weight", segments - segments[0]
        yield from norm(tensors, "embedding_norm", "embeddings.LayerNorm", width)
        for i in range(layers):
            ours, theirs = f"stack.layers.{i}", f"encoder.layer.{i}"
            parts = [
                dict(linear(tensors, kind, f"{theirs}.attention.self.{kind}", width, width))
                for kind in ("query", "key", "value")
            ]
            weights, biases = zip(*(part.values() for part in parts), strict=True)
            yield f"{ours}.attention.qkv.weight", torch.cat(weights)
            yield f"{ours}.attention.qkv.bias", torch.cat(biases)
            yield from linear(tensors, f"{ours}.attention.out", f"{theirs}.attention.output.dense", width, width)
            yield from norm(tensors, f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm", width)
            yield from linear(tensors, f"{ours}.feed.up", f"{theirs}.intermediate.dense", width, hidden)
            yield from linear(tensors, f"{ours}.feed.down", f"{theirs}.output.dense", hidden, width)
            yield from norm(tensors, f"{ours}.feed_norm", f"{theirs}.output.LayerNorm", width)


class Roberta(Bert):
    """RoBERTa, Liu et al. 2019."""

    prefix: str = "roberta."
    type_vocab_size: PositiveInt = 1
    pad_token_id: int = Field(default=1, ge=0)

    @property
    def start(self) -> int:
        return self.pad_token_id + 1

    @property
    def segments(self) -> int:
        return 1  # two ends tell texts apart, whatever type_vocab_size says


class GPT2(Family):
    """GPT-2, Radford et al. 2019."""

    network: Literal["encoder", "decoder"] = "decoder"
    prefix: str = "transformer."
    n_embd: PositiveInt
    n_layer: PositiveInt
    n_head: PositiveInt
    n_positions: PositiveInt = 1024
    n_inner: PositiveInt | None = None
    activation_function: Activation = "gelu_new"
    resid_pdrop: float = Probability
    layer_norm_epsilon: float = Field(default=1e-5, gt=0)
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False

    @property
    def context(self) -> int:
        return self.n_positions

    def options(self) -> dict[str, Any]:
        return {
            "layers": self.n_layer,
            "heads": self.n_head,
            "width": self.n_embd,
            "feedforward": self.n_inner,
            "dropout": self.resid_pdrop,
            "activation": ACTIVATIONS[self.activation_function],
            "eps": self.layer_norm_epsilon,
        }

    def weights(self, tensors: Tensors, layers: int) -> Weights:
        width, hidden = self.n_embd, self.n_inner or 4 * self.n_embd
        yield "embedding.weight", tensors.take("wte.weight", self.vocab_size, width)
        yield "positions.weight", tensors.take("wpe.weight", self.n_positions, width)
        for i in range(layers):
            ours, theirs = f"stack.layers.{i}", f"h.{i}"
            yield from norm(tensors, f"{ours}.attention_norm", f"{theirs}.ln_1", width)
            yield from linear(tensors, f"{ours}.attention.qkv", f"{theirs}.attn.c_attn", width, 3 * width, True)
            yield from linear(tensors, f"{ours}.attention.out", f"{theirs}.attn.c_proj", width, width, True)
            yield from norm(tensors, f"{ours}.feed_norm", f"{theirs}.ln_2", width)
            yield from linear(tensors, f"{ours}.feed.up", f"{theirs}.mlp.c_fc", width, hidden, True)
            yield from linear(tensors, f"{ours}.feed.down", f"{theirs}.mlp.c_proj", hidden, width, True)
        yield from norm(tensors, "stack.norm", "ln_f", width)


FAMILIES: dict[str, type[Family]] = {
    "bert": Bert,
    "roberta": Roberta,
    "xlm-roberta": Roberta,
    "camembert": Roberta,
    "gpt2": GPT2,
}


def read_family(folder: Path) -> Family:
    """Return what a folder's config.json says.

    Raises:
        UserError: its model_type is none that we know, or it asks for what our modules do not have.
    """
    raw, where = read_json(folder / "config.json"), f"{folder / 'config.json'}"
    kind = str(raw.get("model_type"))
    if kind not in FAMILIES:
        raise UserError(f"{where}: model_type '{kind}' is unknown{nearest(kind, FAMILIES)}")
    family = FAMILIES[kind]
    try:
        return family.model_validate({k: v for k, v in raw.items() if k not in ("network", "prefix")})
    except ValidationError as error:
        raise UserError(explain(error, family, f"{where}: ")) from None
