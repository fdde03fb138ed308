"""Options of the agents that write tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlcore.config import AgentConfig, NetworkConfig


class WriterConfig(AgentConfig):
    """Options common to agents that answer a prompt with a completion."""

    network: NetworkConfig = NetworkConfig(name="decoder")
    tie: bool = Field(default=False, description="the head's weights are those of the embedding of tokens")


class Seq2SeqConfig(WriterConfig):
    """Completions learnt from examples."""

    learns_from: ClassVar[tuple[str, ...]] = ("dataset",)

    name: Literal["seq2seq"] = Field(default="seq2seq", description="completions of prompts, learnt from examples")


class GRPOConfig(WriterConfig):
    """Completions improved by their rewards."""

    learns_from: ClassVar[tuple[str, ...]] = ("rollout",)

    name: Literal["grpo"] = Field(default="grpo", description="group-relative policy optimisation of completions")
