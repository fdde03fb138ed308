"""Options of the agents for continuous control."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from rlcore.config import AgentConfig, NetworkConfig
from rlcore.schedules import Annealed, Schedule


class ContinuousConfig(AgentConfig):
    """What the agents for continuous control have in common."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)

    network: NetworkConfig = Field(
        default=NetworkConfig(kwargs={"hidden": []}),
        description="encoder of observations below the hidden layers; the default only flattens them",
    )
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(256, 256), description="widths of the actor's and of each critic's own layers"
    )
    normalize_obs: bool = Field(default=False, description="scale observations by their running mean and deviation")
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount per step")
    n_step: int = Field(default=1, ge=1, description="steps of reward before the bootstrap")
    tau: float = Field(default=0.005, gt=0, le=1, description="fraction the target networks move each time")


class SACConfig(ContinuousConfig):
    """Soft actor-critic."""

    name: Literal["sac"] = Field(default="sac", description="soft actor-critic")
    temperature: float = Field(default=1.0, gt=0, description="weight of the entropy at the start; it is learnt")
    target_entropy: float | None = Field(
        default=None, description="nats that the temperature aims at, of actions scaled to [-1, 1] [-number of actions]"
    )


class DDPGConfig(ContinuousConfig):
    """Deep deterministic policy gradient."""

    name: Literal["ddpg"] = Field(default="ddpg", description="deep deterministic policy gradient")
    noise: Annealed = Field(
        default=Schedule(start=0.1), description="deviation of exploration, of actions scaled to [-1, 1]"
    )

    @field_validator("noise")
    @classmethod
    def _deviation(cls, value: Schedule) -> Schedule:
        if not (value.start >= 0 and value.end >= 0):
            raise ValueError("start and end at least 0")
        return value


class TD3Config(DDPGConfig):
    """Twin delayed deep deterministic policy gradient."""

    name: Literal["td3"] = Field(default="td3", description="twin delayed deep deterministic policy gradient")  # pyright: ignore[reportIncompatibleVariableOverride]
    policy_delay: int = Field(default=2, ge=1, description="updates of the critics to one of actor and targets")
    smoothing: float = Field(default=0.2, ge=0, description="deviation of the noise on the target's action")
    smoothing_clip: float = Field(default=0.5, ge=0, description="largest noise on the target's action")
