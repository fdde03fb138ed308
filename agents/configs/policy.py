"""Options of the policy-gradient agents."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlcore.config import AgentConfig


class PPOConfig(AgentConfig):
    """Proximal policy optimisation."""

    learns_from: ClassVar[tuple[str, ...]] = ("rollout",)

    name: Literal["ppo"] = Field(default="ppo", description="proximal policy optimisation")


class A2CConfig(AgentConfig):
    """Advantage actor-critic."""

    learns_from: ClassVar[tuple[str, ...]] = ("rollout",)

    name: Literal["a2c"] = Field(default="a2c", description="advantage actor-critic")


class ReinforceConfig(AgentConfig):
    """Monte-Carlo policy gradient."""

    learns_from: ClassVar[tuple[str, ...]] = ("rollout",)

    name: Literal["reinforce"] = Field(default="reinforce", description="monte-Carlo policy gradient")
