"""Options of the value-based agents."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from rlcore.config import AgentConfig, NetworkConfig
from rlcore.schedules import Annealed, Schedule


class DQNConfig(AgentConfig):
    """DQN with Double and Dueling as options."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay", "rollout")

    name: Literal["dqn"] = Field(default="dqn", description="deep Q-network")
    network: NetworkConfig = NetworkConfig()
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount per step")
    n_step: int = Field(default=1, ge=1, description="steps of reward before the bootstrap")
    double: bool = Field(default=False, description="the online network chooses the next action, the target rates it")
    dueling: bool = Field(default=False, description="separate heads for the state's value and the actions' advantages")
    epsilon: Annealed = Field(
        default=Schedule(kind="linear", start=1.0, end=0.05, fraction=0.2),
        description="probability of a random action, per environment",
    )
    target: Literal["hard", "polyak", "none"] = Field(default="hard", description="how the target network follows")
    target_every: int = Field(default=500, ge=1, description="frames between copies of the hard target")
    tau: float = Field(default=0.005, gt=0, le=1, description="fraction the polyak target moves per update")
    loss: Literal["huber", "mse"] = Field(default="huber", description="penalty on the TD error")

    @field_validator("epsilon")
    @classmethod
    def _probability(cls, value: Schedule) -> Schedule:
        if not (0 <= value.start <= 1 and 0 <= value.end <= 1):
            raise ValueError("start and end from 0 to 1")
        return value


class C51Config(AgentConfig):
    """Categorical DQN."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)

    name: Literal["c51"] = Field(default="c51", description="categorical DQN")


class QRDQNConfig(AgentConfig):
    """Quantile-regression DQN."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)

    name: Literal["qr_dqn"] = Field(default="qr_dqn", description="quantile-regression DQN")


class IQNConfig(AgentConfig):
    """Implicit quantile networks."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)

    name: Literal["iqn"] = Field(default="iqn", description="implicit quantile networks")


class RainbowConfig(AgentConfig):
    """Six improvements of DQN together."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)

    name: Literal["rainbow"] = Field(default="rainbow", description="six improvements of DQN together")


class PQNConfig(AgentConfig):
    """Parallelised Q-network."""

    learns_from: ClassVar[tuple[str, ...]] = ("rollout",)

    name: Literal["pqn"] = Field(default="pqn", description="parallelised Q-network")


class R2D2Config(AgentConfig):
    """Recurrent DQN."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)

    name: Literal["r2d2"] = Field(default="r2d2", description="recurrent DQN")
