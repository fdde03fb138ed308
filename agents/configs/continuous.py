"""Options of the agents for continuous control."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlcore.config import AgentConfig


class SACConfig(AgentConfig):
    """Soft actor-critic."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)

    name: Literal["sac"] = Field(default="sac", description="soft actor-critic")


class TD3Config(AgentConfig):
    """Twin delayed deep deterministic policy gradient."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)

    name: Literal["td3"] = Field(default="td3", description="twin delayed deep deterministic policy gradient")


class DDPGConfig(AgentConfig):
    """Deep deterministic policy gradient."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)

    name: Literal["ddpg"] = Field(default="ddpg", description="deep deterministic policy gradient")
