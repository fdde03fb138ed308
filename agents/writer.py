"""What agents that answer a prompt with a completion share: a network that reads both, greedy writing, generation."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents import generation
from agents.configs.text import WriterConfig
from agents.generation import Writer
from agents.networks import build_network
from agents.networks.predictor import Predictor
from agents.networks.text_model import TextModel
from rlcore import losses, registry
from rlcore.agent import Agent
from rlcore.config import NetworkConfig
from rlcore.errors import UserError
from rlcore.spaces import Tokens
from rlcore.types import Spec


class WritingAgent(Agent):
    """A network over prompts and completions of one vocabulary.

    Padding, and what begins a text, are never written: their logits are the lowest finite number.

    Args:
        config: the agent's options.
        spec: of the environment.
        completion: what is written; the action space, or a part of it.
    """

    config: WriterConfig
    allowed: Tensor

    def __init__(self, config: WriterConfig, spec: Spec, completion: Any) -> None:
        super().__init__(config, spec)
        prompt = spec.obs_space
        if not (isinstance(prompt, Tokens) and isinstance(completion, Tokens)):
            raise UserError(
                f"agent '{config.name}' cannot serve observations {prompt} with actions {spec.action_space}; "
                "expected Tokens of one vocabulary for both"
            )
        if prompt.vocabulary != completion.vocabulary:
            raise UserError(
                f"agent '{config.name}' cannot answer {prompt} with {spec.action_space}; expected one vocabulary"
            )
        self.prompt, self.completion = prompt, completion
        trunk = build_network(with_context(config.network, prompt.length + completion.length), prompt, True)
        if not isinstance(trunk, TextModel):
            raise UserError(
                f"agent '{config.name}' cannot write with network '{config.network.name}'; "
                "expected decoder, encoder_decoder or text_gru"
            )
        self.network = Predictor(trunk, completion.vocabulary, config.tie)
        self.stops = generation.stops(completion)
        self.register_buffer("allowed", generation.allowed(completion), persistent=False)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (..., V) of features (..., F)."""
        return losses.masked(self.network.head(features), self.allowed)

    @property
    def trunk(self) -> TextModel:
        """The network below the head."""
        return self.network.trunk  # type: ignore[return-value]

    @property
    def writer(self) -> Writer:
        """What writes completions."""
        return Writer(self.trunk, self.logits, self.stops, self.completion.pad)

    def write(self, prompt: Tensor) -> Tensor:
        """Return completions (N, L) of prompts (N, P): the best of a beam of ``config.beam``, or greedy ones."""
        if self.config.beam:
            return generation.beam_search(self.writer, prompt, self.completion.length, self.config.beam)[0][:, 0]
        return generation.complete(self.writer, prompt, self.completion.length)

    def generate(
        self, prompt: Tensor, rng: torch.Generator, length: int | None = None, stops: Sequence[int] = (), **how: Any
    ) -> Tensor:
        """Return completions (B, n, L) of prompts (B, P).

        Args:
            prompt: as the environment shows them.
            rng: draws the tokens.
            length: most tokens of a completion; None: those of the action space.
            stops: tokens that end a completion, beside the space's own.
            how: the rest of `agents.generation.Decoding`.

        Raises:
            UserError: the completion is longer than those of the action space.
        """
        most = self.completion.length
        if length is not None and length > most:
            raise UserError(f"length: got {length}, expected at most {most}, that of the completions learnt")
        writer = self.writer._replace(stops=[*self.stops, *stops])
        return generation.generate(writer, prompt, generation.Decoding(length or most, **how), rng)


def with_context(config: NetworkConfig, length: int) -> NetworkConfig:
    """Return the settings of a network that reads ``length`` tokens at once, where it has to know and is not told."""
    if (
        "context" in config.kwargs
        or "context" not in inspect.signature(registry.find("networks", config.name)).parameters
    ):
        return config
    return config.model_copy(update={"kwargs": {**config.kwargs, "context": length}})
