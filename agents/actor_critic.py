"""What the policy gradients share: a policy and a value over any network, with or without memory, and advantages.

A_t = delta_t + gamma lam A_{t+1},  delta_t = r_{t+1} + gamma (1 - terminated) V(s_{t+1}) - V(s_t)     `returns.gae`
loss = sum_t  -A_t log pi(a_t | s_t) + value_coef (V(s_t) - G_t)^2 / 2 - entropy_coef H(pi(. | s_t))
with G_t = A_t + V_old(s_t), and neither V nor its term for an agent without a value (Williams 1992; Mnih et al. 2016).

Items are sequences of L steps, the same for all agents here: L = ``sequence_length`` for networks with a memory, else
1. A memory starts each sequence as it was when the rollout was acted and is carried through the sequence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.policy import ActorCriticConfig
from agents.distributions import Categorical, Gaussian, action_head, orthogonal
from agents.networks import build_network
from rlcore import returns
from rlcore.agent import Agent
from rlcore.errors import UserError
from rlcore.normalize import Normalizer
from rlcore.tree import tmap
from rlcore.types import Act, Batch, Loss, Rollout, Spec


class Item(NamedTuple):
    """Sequences of L steps to learn from."""

    obs: Any  # tree (B, L, ...), normalised with the statistics that acted
    action: Tensor  # (B, L, ...)
    log_prob: Tensor  # (B, L) of the policy that acted
    value: Tensor  # (B, L) of the network that acted
    advantage: Tensor  # (B, L)
    target: Tensor  # (B, L): what the value is fitted to
    valid: Tensor  # (B, L) bool: False for steps to leave out
    first: Tensor  # (B, L) bool: the step begins an episode
    mask: Tensor | None = None  # (B, L, actions) bool
    state: Any = ()  # tree (B, ...): the memory before the first step


class ActorCritic(Agent):
    """The policy gradient with generalised advantages.

    Args:
        config: the agent's options.
        spec: of the environment.
        lam: of the advantages; 1: all rewards to the end of the episode or of the rollout.
        critic: learn a value too; without one it is 0.
    """

    config: ActorCriticConfig

    def __init__(self, config: ActorCriticConfig, spec: Spec, lam: float, critic: bool = True) -> None:
        super().__init__(config, spec)
        if "action_mask" in spec.extras and not isinstance(spec.action_space, spaces.Discrete):
            raise UserError(
                f"agent '{config.name}' cannot mask the actions of {spec.action_space}; expected Discrete with a mask"
            )
        self.gamma, self.lam = config.gamma, lam
        self.obs = Normalizer(spec.obs_space) if config.normalize_obs else nn.Identity()
        # The policy's network, and the value's: the same, or one more.
        self.trunks = nn.ModuleList(
            orthogonal(build_network(config.network, spec.obs_space), 2**0.5)
            for _ in range(2 if critic and not config.shared else 1)
        )
        self.recurrent: bool = self.trunks[0].recurrent  # type: ignore[assignment]
        width: int = self.trunks[0].out_features  # type: ignore[assignment]
        self.head = action_head(spec.action_space, width, config.name, config.log_std)
        self.critic = orthogonal(nn.Linear(width, 1), 1.0) if critic else None

    def initial_state(self, n: int) -> Any:
        return tuple(trunk.initial_state(n) for trunk in self.trunks) if self.recurrent else ()  # type: ignore[operator]

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"action": self.head.noise(n, generator)} if what == "act" else {}

    def step(self, obs: Any, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Return the policy's and the value's features (B, F) of normalised observations, and the memory after."""
        states = state if self.recurrent else ((),) * len(self.trunks)
        outs = [trunk.step(obs, s) for trunk, s in zip(self.trunks, states, strict=True)]  # type: ignore[operator]
        return outs[0][0], outs[-1][0], tuple(out[1] for out in outs) if self.recurrent else ()

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        policy_features, value_features, state = self.step(self.obs(obs), state)
        policy = self.head(policy_features, mask)
        if not explore:
            return Act(policy.mode(), state)
        action = policy.sample(noise["action"])
        return Act(action, state, {"log_prob": policy.log_prob(action), "value": self.value(value_features)})

    def insight(self, obs: Any, state: Any, mask: Tensor | None = None) -> dict[str, Tensor]:
        policy_features, value_features, _ = self.step(self.obs(obs), state)
        value = {} if self.critic is None else {"value": self.value(value_features)}
        return self.head(policy_features, mask).insight() | value

    def value(self, features: Tensor) -> Tensor:
        """Return the values (B,) of features (B, F)."""
        return features.new_zeros(len(features)) if self.critic is None else self.critic(features).squeeze(-1)

    def next_value(self, rollout: Rollout) -> Tensor:
        """Return the values (T, N) of the true successors: a step on from the memory that the step left."""
        flat = tmap(lambda x: x.flatten(0, 1), (rollout.obs, rollout.next_obs, rollout.state))
        obs, next_obs, state = flat
        if self.recurrent:
            state = self.step(self.obs(obs), state)[2]
        return self.value(self.step(self.obs(next_obs), state)[1]).view(rollout.reward.shape)

    def prepare(self, rollout: Rollout) -> Item:
        value = rollout.act["value"]
        ended = rollout.terminated | rollout.truncated
        advantage = returns.gae(
            rollout.reward, value, self.next_value(rollout), rollout.terminated, rollout.truncated,
            self.gamma, self.lam, rollout.valid,
        )  # fmt: skip
        item = Item(
            obs=self.obs(rollout.obs),
            action=rollout.action,
            log_prob=rollout.act["log_prob"],
            value=value,
            advantage=advantage,
            target=advantage + value,
            valid=rollout.valid,
            first=torch.cat([torch.zeros_like(ended[:1]), (ended | ~rollout.valid)[:-1]]),
            mask=rollout.extras.get("action_mask"),
        )
        return self.sequences(item, rollout.state)

    def sequences(self, item: Item, state: Any) -> Item:
        """Cut fields (T, N, ...) and memories before each step into sequences (T / L * N, L, ...), by time."""
        steps = len(item.valid)
        length = self.config.sequence_length if self.recurrent else 1
        if steps % length:
            raise UserError(
                f"source.horizon: got {steps}, expected a multiple of agent.sequence_length, which is {length}"
            )

        def cut(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, length)).transpose(1, 2).flatten(0, 1)

        return tmap(cut, item)._replace(state=tmap(lambda x: x[::length].flatten(0, 1), state))

    def minibatch(self, items: Item) -> Item:
        if not self.config.normalize_advantage:
            return items
        weight = items.valid.float()
        count = weight.sum().clamp(min=1)
        centred = items.advantage - (items.advantage * weight).sum() / count
        deviation = ((centred.square() * weight).sum() / count).sqrt()
        return items._replace(advantage=centred / (deviation + 1e-8))

    def evaluate(self, item: Item) -> tuple[Categorical | Gaussian, Tensor, Item]:
        """Return the policy and the values (B,) of all steps of sequences, and the items as steps (B, ...).

        B counts the steps of all sequences, those to leave out too.
        """
        by_time = tmap(lambda x: x.transpose(0, 1), item._replace(state=()))
        states = item.state if self.recurrent else ((),) * len(self.trunks)
        features = [
            trunk.unroll(by_time.obs, s, by_time.first)[0].flatten(0, 1)  # type: ignore[operator]
            for trunk, s in zip(self.trunks, states, strict=True)
        ]
        steps = tmap(lambda x: x.flatten(0, 1), by_time)
        return self.head(features[0], steps.mask), self.value(features[-1]), steps

    def loss(self, batch: Batch) -> Loss:
        policy, value, item = self.evaluate(batch.data)
        policy_loss = -item.advantage * policy.log_prob(item.action)  # (B,)
        return self.summed(item, policy_loss, 0.5 * (value - item.target).square(), policy.entropy())

    def summed(
        self,
        item: Item,
        policy_loss: Tensor,
        value_loss: Tensor,
        entropy: Tensor,
        diagnostics: dict[str, Tensor] = {},
    ) -> Loss:
        """Return the loss of steps, its parts (B,), and as metrics their means and those of ``diagnostics`` (B,)."""
        weight = item.valid.float()
        count = weight.sum()
        total = policy_loss - self.config.entropy_coef * entropy
        means = {"policy_loss": policy_loss, "entropy": entropy, **diagnostics}
        metrics = {}
        if self.critic is not None:
            total = total + self.config.value_coef * value_loss
            means["value_loss"] = value_loss
            metrics["explained_variance"] = explained_variance(item.value, item.target, weight)
        metrics |= {name: (x.detach() * weight).sum() / count for name, x in means.items()}
        return Loss((total * weight).sum(), count, metrics)


def explained_variance(value: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return 1 - var(target - value) / var(target), (), over items weighted 0 or 1; at most 1."""

    def variance(x: Tensor) -> Tensor:
        mean = (x * weight).sum() / weight.sum()
        return ((x - mean).square() * weight).sum()

    return 1 - variance(target - value) / variance(target).clamp(min=1e-8)
