"""Options of the value-based agents."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from rlcore.config import AgentConfig, NetworkConfig
from rlcore.schedules import Schedule


class Epsilon(Schedule):
    """A probability that falls, or a number: one that never changes."""

    kind: Literal["constant", "linear", "cosine", "exponential"] = Field(
        default="linear", description="shape of the change; exponential needs start and end above 0"
    )
    end: float = Field(default=0.05, description="value at the end; unused by constant")
    fraction: float = Field(default=0.2, gt=0, le=1, description="fraction of the run by which end is reached")

    @model_validator(mode="before")
    @classmethod
    def _number(cls, raw: Any) -> Any:
        """Let a number, on the command line a text, stand for itself at all times."""
        return {"kind": "constant", "start": raw} if isinstance(raw, int | float | str) else raw

    @model_validator(mode="after")
    def _probability(self) -> Epsilon:
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise ValueError("start and end from 0 to 1")
        return self


class ValueConfig(AgentConfig):
    """Options common to the agents that learn action values from transitions."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay", "rollout")

    network: NetworkConfig = NetworkConfig()
    normalize_obs: bool = Field(default=False, description="scale observations by their running mean and deviation")
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount per step")
    n_step: int = Field(default=1, ge=1, description="steps of reward before the bootstrap")
    double: bool = Field(default=False, description="the online network chooses the next action, the target rates it")
    dueling: bool = Field(default=False, description="separate heads for the state's value and the actions' advantages")
    noisy: bool = Field(default=False, description="learnt noise in the heads' weights, which explores")
    head_hidden: int = Field(default=0, ge=0, description="width of a hidden layer in each head; 0: heads are linear")
    epsilon: Epsilon | None = Field(
        default=None,
        description="probability of a random action, per environment; unset: linear 1 to 0.05, or 0 with noisy",
    )
    target: Literal["hard", "polyak", "none"] = Field(default="hard", description="how the target network follows")
    target_every: int = Field(default=500, ge=1, description="frames between copies of the hard target")
    tau: float = Field(default=0.005, gt=0, le=1, description="fraction the polyak target moves per update")


class DQNConfig(ValueConfig):
    """DQN with Double, Dueling, noisy layers and Munchausen as options."""

    name: Literal["dqn"] = Field(default="dqn", description="deep Q-network")
    loss: Literal["huber", "mse"] = Field(default="huber", description="penalty on the TD error")
    munchausen: bool = Field(default=False, description="soft values, and the action's log-probability as a reward")
    munchausen_alpha: float = Field(default=0.9, ge=0, le=1, description="factor on that log-probability")
    munchausen_temperature: float = Field(default=0.03, gt=0, description="temperature of its softmax policy")
    munchausen_clip: float = Field(default=-1.0, le=0, description="lowest temperature * log-probability")

    @model_validator(mode="after")
    def _soft_values_have_no_maximum(self) -> DQNConfig:
        if self.munchausen and self.n_step != 1:
            raise ValueError("n_step 1 with munchausen: the log-probabilities of later steps are not known")
        if self.munchausen and self.double:
            raise ValueError("double false with munchausen: a soft value has no maximum to choose")
        return self


class CategoricalConfig(ValueConfig):
    """Options of agents that learn the probabilities of fixed returns."""

    v_min: float = Field(default=-10.0, description="lowest return represented")
    v_max: float = Field(default=10.0, description="highest return represented")
    atoms: int = Field(default=51, ge=2, description="evenly spaced returns that probabilities are learnt of")

    @model_validator(mode="after")
    def _ordered(self) -> CategoricalConfig:
        if self.v_min >= self.v_max:
            raise ValueError(f"v_min below v_max, {self.v_min} is not below {self.v_max}")
        return self


class C51Config(CategoricalConfig):
    """Categorical DQN."""

    name: Literal["c51"] = Field(default="c51", description="categorical DQN")


class QRDQNConfig(ValueConfig):
    """Quantile-regression DQN."""

    name: Literal["qr_dqn"] = Field(default="qr_dqn", description="quantile-regression DQN")
    quantiles: int = Field(default=50, ge=1, description="quantiles learnt of each return")
    kappa: float = Field(default=1.0, gt=0, description="error at which the loss turns from quadratic to linear")


class IQNConfig(ValueConfig):
    """Implicit quantile networks."""

    name: Literal["iqn"] = Field(default="iqn", description="implicit quantile networks")
    samples: int = Field(default=16, ge=1, description="quantile fractions drawn per item for the predictions")
    target_samples: int = Field(default=16, ge=1, description="quantile fractions drawn per item for the targets")
    policy_samples: int = Field(default=32, ge=1, description="evenly spaced fractions that action values average")
    cosines: int = Field(default=64, ge=1, description="cosine features of a quantile fraction")
    kappa: float = Field(default=1.0, gt=0, description="error at which the loss turns from quadratic to linear")


class RainbowConfig(CategoricalConfig):
    """Six improvements of DQN together; prioritised replay is the source's (source.prioritized)."""

    name: Literal["rainbow"] = Field(default="rainbow", description="six improvements of DQN together")
    n_step: int = Field(default=3, ge=1, description="steps of reward before the bootstrap")
    double: bool = Field(default=True, description="the online network chooses the next action, the target rates it")
    dueling: bool = Field(default=True, description="separate heads for the state's value and the actions' advantages")
    noisy: bool = Field(default=True, description="learnt noise in the heads' weights, which explores")


class PQNConfig(AgentConfig):
    """Parallelised Q-network."""

    learns_from: ClassVar[tuple[str, ...]] = ("rollout",)

    name: Literal["pqn"] = Field(default="pqn", description="parallelised Q-network")
    network: NetworkConfig = NetworkConfig(kwargs={"layer_norm": True})
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount per step")
    lam: float = Field(default=0.65, ge=0, le=1, description="lambda of Q(lambda); 0: one step, 1: whole rollouts")
    epsilon: Epsilon = Field(
        default=Epsilon(fraction=0.5), description="probability of a random action, per environment"
    )
    normalize_obs: bool = Field(default=False, description="scale observations by their running mean and deviation")


class R2D2Config(AgentConfig):
    """Recurrent DQN."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)

    name: Literal["r2d2"] = Field(default="r2d2", description="recurrent DQN")
    network: NetworkConfig = NetworkConfig(name="gru")
    normalize_obs: bool = Field(default=False, description="scale observations by their running mean and deviation")
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount per step")
    last_action: bool = Field(
        default=False, description="networks read {obs, action before}: as one vector, or by network dict"
    )
    n_step: int = Field(default=5, ge=1, description="steps of reward before the bootstrap, within the sequence")
    burn_in: int = Field(default=8, ge=0, description="first steps of a sequence, which only refresh the memory")
    length: int = Field(default=32, ge=1, description="steps of a sequence that are learnt from")
    dueling: bool = Field(default=False, description="separate heads for the state's value and the actions' advantages")
    rescale: bool = Field(default=False, description="learn sign(x) (sqrt(|x| + 1) - 1) + 0.001 x of returns x")
    eta: float = Field(default=0.9, ge=0, le=1, description="share of the largest error in a priority; rest: the mean")
    epsilon: Epsilon = Field(default=Epsilon(), description="probability of a random action, per environment")
    target: Literal["hard", "polyak"] = Field(default="hard", description="how the target network follows")
    target_every: int = Field(default=500, ge=1, description="frames between copies of the hard target")
    tau: float = Field(default=0.005, gt=0, le=1, description="fraction the polyak target moves per update")
