"""Options of the agents that learn from recorded data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from agents.configs.continuous import ContinuousConfig, SACConfig
from rlcore.config import AgentConfig, NetworkConfig


class BCConfig(AgentConfig):
    """Behaviour cloning."""

    learns_from: ClassVar[tuple[str, ...]] = ("dataset",)
    recorded: ClassVar[bool] = True

    name: Literal["bc"] = Field(default="bc", description="behaviour cloning")
    network: NetworkConfig = Field(
        default=NetworkConfig(kwargs={"hidden": []}),
        description="encoder of observations below the hidden layers; the default only flattens them",
    )
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(256, 256), description="widths of the policy's own layers"
    )
    normalize_obs: bool = Field(default=True, description="scale observations by the data's mean and deviation")


class CQLConfig(SACConfig):
    """Conservative Q-learning."""

    learns_from: ClassVar[tuple[str, ...]] = ("dataset",)
    recorded: ClassVar[bool] = True

    name: Literal["cql"] = Field(default="cql", description="conservative Q-learning")  # pyright: ignore[reportIncompatibleVariableOverride]
    normalize_obs: bool = Field(default=True, description="scale observations by the data's mean and deviation")
    temperature: float = Field(
        default=1.0, gt=0, description="weight of the entropy at the start; it is learnt; for a Box"
    )
    target_entropy: float | None = Field(
        default=None,
        description="nats that the temperature aims at, of actions scaled to [-1, 1] [-number of actions]; for a Box",
    )
    alpha: float = Field(default=1.0, ge=0, description="weight of the conservative term; 0: plain Q-learning")
    samples: int = Field(
        default=10, ge=1, description="random actions, and as many of the policy, in that term; for a Box"
    )


class IQLConfig(ContinuousConfig):
    """Implicit Q-learning."""

    learns_from: ClassVar[tuple[str, ...]] = ("dataset",)
    recorded: ClassVar[bool] = True

    name: Literal["iql"] = Field(default="iql", description="implicit Q-learning")
    normalize_obs: bool = Field(default=True, description="scale observations by the data's mean and deviation")
    expectile: float = Field(
        default=0.7, gt=0, lt=1, description="of the values of the data's actions; towards 1: best"
    )
    beta: float = Field(default=3.0, ge=0, description="how strongly the policy prefers advantage; 0: clones behaviour")
    max_weight: float = Field(default=100.0, gt=0, description="largest weight of an action, exp(beta * advantage)")
