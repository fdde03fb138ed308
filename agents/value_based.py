"""What the agents that learn action values from transitions have in common: acting, targets, noise.

A subclass says what its networks are (`build`), what they are worth (`q_values`) and how wrong they are (`errors`).

act: epsilon-greedy over q_values(s); greedy without noise in evaluation
a* = argmax_a' q_values(target network, s')          or, with double, of the online network, noise of its own
loss = sum over items of weight * error
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.value import Epsilon, ValueConfig
from agents.networks import build_network
from agents.networks.encode import Network
from agents.networks.heads import Heads
from agents.networks.noisy import factorised
from rlcore import losses
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.errors import UserError
from rlcore.exploration import coins, epsilon_greedy
from rlcore.normalize import Normalizer
from rlcore.schedules import Schedule
from rlcore.targets import follow
from rlcore.tree import tmap
from rlcore.types import Act, Batch, Loss, Rollout, Spec, Transition


class Errors(NamedTuple):
    """How wrong the values of a batch's items are, each (B,)."""

    penalty: Tensor  # to minimise
    priority: Tensor  # for prioritised replay, at least 0
    q: Tensor  # value of the action taken
    target: Tensor  # value it is moved towards


class ValueAgent(Agent):
    """Learns action values with a target network; acts epsilon-greedily, by noisy layers, or both."""

    def __init__(self, config: ValueConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        if not isinstance(spec.action_space, spaces.Discrete):
            raise UserError(f"agent '{config.name}' cannot serve action space {spec.action_space}; expected Discrete")
        self.actions = int(spec.action_space.n)
        self.gamma, self.n_step = config.gamma, config.n_step
        self.normalizer = Normalizer(spec.obs_space) if config.normalize_obs else None
        features = build_network(config.network, spec.obs_space)
        if features.recurrent:
            raise UserError(
                f"agent '{config.name}' cannot use network '{config.network.name}', which has a memory; "
                "expected a feed-forward network, or agent.name: r2d2"
            )
        heads = {"dueling": config.dueling, "hidden": config.head_hidden, "noisy": config.noisy}
        self.online = self.build(features, heads)
        self.target = None if config.target == "none" else copy.deepcopy(self.online).requires_grad_(False)

    @abstractmethod
    def build(self, features: Network, heads: dict[str, Any]) -> Heads:
        """Return the network of values; ``heads`` are the options of `Heads` that the settings give."""

    @abstractmethod
    def q_values(self, network: nn.Module, obs: Any, noise: Tensor | None = None) -> Tensor:
        """Return the action values (B, A) of normalised observations (B, ...) under layers' noise; None: silent."""

    @abstractmethod
    def errors(self, t: Transition, noise: dict[str, Tensor]) -> Errors:
        """Compare the values of the actions taken with their targets; observations are normalised already."""

    def schedules(self) -> dict[str, Any]:
        if self.config.epsilon is not None:
            return {"epsilon": self.config.epsilon}
        # Resolved here, not in the settings: those that a run keeps may be taken up again without noise, or with it.
        return {"epsilon": Schedule(start=0.0) if self.config.noisy else Epsilon()}

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw coins to act; for noisy layers each row its own, and in a loss each network its own."""
        size = self.online.noise_size
        if what == "loss":
            names = ("online", "target", "selector") if self.config.double else ("online", "target")
            return {name: factorised(n, size, generator) for name in names if size}
        drawn = coins(n, self.actions, generator)
        return drawn | {"online": factorised(n, size, generator)} if size else drawn

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        if self.normalizer is not None:
            obs = self.normalizer(obs)
        if not explore:
            q = losses.masked(self.q_values(self.online, obs), mask)  # (N, A)
            return Act(q.argmax(-1), state, {"q": q})
        q = self.q_values(self.online, obs, noise.get("online"))
        return Act(epsilon_greedy(q, knobs["epsilon"], noise["coin"], noise["scores"], mask), state)

    def loss(self, batch: Batch) -> Loss:
        t: Transition = batch.data
        if self.normalizer is not None:
            t = t._replace(obs=self.normalizer(t.obs), next_obs=self.normalizer(t.next_obs))
        penalty, priority, q, target = self.errors(t, batch.noise)
        if t.weight is not None:
            penalty = t.weight * penalty
        metrics = {"q_value": q.detach().mean(), "target_q": target.mean()}
        return Loss(penalty.sum(), len(penalty), metrics, priority=priority.detach())

    def next_action(self, q_t: Tensor, t: Transition, noise: dict[str, Tensor]) -> Tensor:
        """Return the best allowed next actions (B,) by the target's values ``q_t`` (B, A), or by the online network's.

        The latter is Double Q-learning (van Hasselt et al. 2016).
        """
        if self.config.double:
            q_t = self.selector(t, noise)
        return losses.masked(q_t, t.extras.get("next_action_mask")).argmax(-1)

    def selector(self, t: Transition, noise: dict[str, Tensor]) -> Tensor:
        """Return the online network's values (B, A) of the next states, under noise of their own."""
        return self.q_values(self.online, t.next_obs, noise.get("selector"))

    @property
    def bootstrap(self) -> nn.Module:
        """The network that values next states: the target network, or the online one where there is none."""
        return self.online if self.target is None else self.target

    def after_update(self, clock: Clock) -> None:
        if self.target is not None:
            c = self.config
            follow(self.target, self.online, clock, c.target, c.target_every, c.tau)

    def prepare(self, rollout: Rollout) -> Transition:
        """One-step transitions of the rollout, for online Q-learning."""
        if self.n_step != 1:
            raise UserError(f"agent.n_step: got {self.n_step}, expected 1 with source.name=rollout")
        fields = {
            "obs": rollout.obs,
            "action": rollout.action,
            "reward": rollout.reward,
            "discount": self.gamma * (~rollout.terminated).float(),
            "next_obs": rollout.next_obs,
            "extras": {k: v for k, v in rollout.extras.items() if k in ("action_mask", "next_action_mask")},
        }
        return Transition(**tmap(lambda x: x.flatten(0, 1), fields))


def taken(outputs: Tensor, action: Tensor) -> Tensor:
    """Return the outputs (B, Z) of the actions (B,) among those of all (B, A, Z)."""
    index = action.view(-1, 1, 1).expand(-1, 1, outputs.shape[-1])
    return outputs.gather(1, index).squeeze(1)
