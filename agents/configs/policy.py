"""Options of the policy-gradient agents."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlcore.config import AgentConfig, NetworkConfig


class ActorCriticConfig(AgentConfig):
    """What all policy gradients share."""

    learns_from: ClassVar[tuple[str, ...]] = ("rollout",)

    network: NetworkConfig = NetworkConfig(kwargs={"hidden": [64, 64], "activation": "tanh"})
    shared: bool = Field(default=False, description="policy and value share one network; else each has its own")
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount per step")
    value_coef: float = Field(default=0.5, ge=0, description="weight of the value's loss")
    entropy_coef: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    normalize_advantage: bool = Field(
        default=False, description="scale advantages to mean 0, deviation 1 per minibatch"
    )
    normalize_obs: bool = Field(default=False, description="scale observations by their running mean and deviation")
    log_std: float = Field(
        default=0.0, description="initial log standard deviation of continuous actions, of half the Box's width"
    )
    sequence_length: int = Field(
        default=16, ge=1, description="steps that the gradient flows back through a network with a memory"
    )


class PPOConfig(ActorCriticConfig):
    """Proximal policy optimisation."""

    name: Literal["ppo"] = Field(default="ppo", description="proximal policy optimisation")
    lam: float = Field(default=0.95, ge=0, le=1, description="lambda of the generalised advantages")
    clip: float = Field(default=0.2, gt=0, description="how far the ratio to the policy that acted is followed from 1")
    value_clip: float = Field(default=0.0, ge=0, description="how far the value is followed from the old one; 0: any")
    target_kl: float = Field(default=0.0, ge=0, description="divergence that ends a rollout's updates; 0: none does")
    normalize_advantage: bool = Field(default=True, description="scale advantages to mean 0, deviation 1 per minibatch")


class A2CConfig(ActorCriticConfig):
    """Advantage actor-critic."""

    name: Literal["a2c"] = Field(default="a2c", description="advantage actor-critic")
    lam: float = Field(default=1.0, ge=0, le=1, description="lambda of the generalised advantages")


class ReinforceConfig(ActorCriticConfig):
    """Monte-Carlo policy gradient."""

    name: Literal["reinforce"] = Field(default="reinforce", description="Monte-Carlo policy gradient")
    baseline: bool = Field(default=True, description="subtract a learnt value from the returns")
