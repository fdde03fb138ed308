"""Options of the supervised agent."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlcore.config import AgentConfig, NetworkConfig


class SupervisedConfig(AgentConfig):
    """A network trained on the exact gradient of a task's reward."""

    learns_from: ClassVar[tuple[str, ...]] = ("dataset",)

    name: Literal["supervised"] = Field(default="supervised", description="prediction by gradient of the reward")
    network: NetworkConfig = NetworkConfig()
    tie: bool = Field(default=False, description="texts: the head's weights are those of the embedding of tokens")
