"""Options of the agents that learn from recorded data."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlcore.config import AgentConfig


class BCConfig(AgentConfig):
    """Behaviour cloning."""

    learns_from: ClassVar[tuple[str, ...]] = ("dataset",)

    name: Literal["bc"] = Field(default="bc", description="behaviour cloning")


class CQLConfig(AgentConfig):
    """Conservative Q-learning."""

    learns_from: ClassVar[tuple[str, ...]] = ("dataset",)

    name: Literal["cql"] = Field(default="cql", description="conservative Q-learning")


class IQLConfig(AgentConfig):
    """Implicit Q-learning."""

    learns_from: ClassVar[tuple[str, ...]] = ("dataset",)

    name: Literal["iql"] = Field(default="iql", description="implicit Q-learning")
