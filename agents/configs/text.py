"""Options of the agents that write tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlcore.config import AgentConfig, NetworkConfig


class WriterConfig(AgentConfig):
    """Options common to agents that answer a prompt with a completion."""

    network: NetworkConfig = NetworkConfig(name="decoder")
    tie: bool = Field(default=False, description="the head's weights are those of the embedding of tokens")
    beam: int = Field(default=0, ge=0, description="width of the search that evaluations write by; 0: greedily")


class Seq2SeqConfig(WriterConfig):
    """Completions learnt from examples."""

    learns_from: ClassVar[tuple[str, ...]] = ("dataset",)

    name: Literal["seq2seq"] = Field(default="seq2seq", description="completions of prompts, learnt from examples")


class GRPOConfig(WriterConfig):
    """Completions improved by their rewards. Dropout is off: a ratio compares the very networks that acted."""

    learns_from: ClassVar[tuple[str, ...]] = ("rollout",)

    name: Literal["grpo"] = Field(default="grpo", description="group-relative policy optimisation of completions")
    advantage: Literal["group", "leave_one_out"] = Field(
        default="group", description="a reward less its group's mean, or less the mean of the others (RLOO)"
    )
    scale: bool = Field(default=True, description="of advantage group: divide by the group's deviation")
    clip: float = Field(default=0.2, gt=0, description="how far a token's ratio to what acted is followed from 1")
    kl_coef: float = Field(
        default=0.0, ge=0, description="weight of the divergence from the network that training started from"
    )
    entropy_coef: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    temperature: float = Field(default=1.0, gt=0, description="of the logits, where tokens are drawn and learnt from")
    top_k: int = Field(default=0, ge=0, description="draw from so many likeliest tokens only; 0: from all")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="draw from the likeliest tokens that reach this probability together"
    )
