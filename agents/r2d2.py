"""Recurrent DQN: "Recurrent experience replay in distributed reinforcement learning", Kapturowski et al. 2019.

Sequences of burn_in + length steps come from replay with the memory m_0 that acting had before their first step.
Both networks unroll from it, zeroing their memory where an episode begins; the first burn_in steps only refresh it::

    q_t, m_{t+1} = Q(o_t, m_t)                                    memory before and after step t
    V(o_{t+1}) = Q'(o', m'_{t+1})[argmax_a Q(o', m_{t+1})[a]]     o' the true successor, Q' and m' the target network's
    y_t = h(r_{t+1} + ... + gamma^(n-1) r_{t+n} + gamma^n (1 - terminated) h^-1(V(o_{t+n})))
    loss = sum over sequences of weight / length * sum_t huber(y_t - q_t[a_t])
    priority = eta max_t |y_t - q_t[a_t]| + (1 - eta) mean_t |y_t - q_t[a_t]|

with n steps, or fewer where the episode or the sequence ends, and h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x, or x
without rescaling (Pohlen et al. 2018). The bootstrap is one more step of the network on the true successor from the
memory after the step, so that truncation needs no special case. With last_action o_t is the observation and the
action before it, as in the paper.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.value import R2D2Config
from agents.networks import build_network
from agents.networks.heads import Heads
from rlcore import losses, returns
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.errors import UserError
from rlcore.exploration import coins, epsilon_greedy
from rlcore.normalize import Normalizer
from rlcore.targets import follow
from rlcore.tree import tmap
from rlcore.types import Act, Batch, Loss, Rollout, Spec

EPSILON = 1e-3  # the linear part of h, which makes its inverse Lipschitz continuous


def rescale(x: Tensor) -> Tensor:
    """Return h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x, elementwise."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + EPSILON * x


def unscale(x: Tensor) -> Tensor:
    """Return the inverse of `rescale` (Pohlen et al. 2018, proposition A.2), elementwise."""
    root = (1 + 4 * EPSILON * (x.abs() + 1 + EPSILON)).sqrt()
    # (root - 1) / (2 EPSILON) without the cancellation, which costs float32 most of its digits
    return x.sign() * ((2 * (x.abs() + 1 + EPSILON) / (root + 1)).square() - 1)


class R2D2(Agent):
    """Double Q-learning on sequences with any network; one without a memory makes it DQN on sequences."""

    Config = R2D2Config
    config: R2D2Config

    def __init__(self, config: R2D2Config, spec: Spec) -> None:
        super().__init__(config, spec)
        if not isinstance(spec.action_space, spaces.Discrete):
            raise UserError(f"agent 'r2d2' cannot serve action space {spec.action_space}; expected Discrete")
        self.actions = int(spec.action_space.n)
        self.gamma, self.sequence = config.gamma, config.burn_in + config.length
        self.obs = Normalizer(spec.obs_space) if config.normalize_obs else nn.Identity()
        space = spec.obs_space
        if config.last_action:
            space = spaces.Dict({"obs": space, "action": spaces.Discrete(self.actions + 1)})
        self.online = Heads(build_network(config.network, space), self.actions, dueling=config.dueling)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def initial_state(self, n: int) -> dict[str, Any]:
        """Return the network's empty memory, and 0 for no action before; action a is a + 1 there."""
        device = next(self.parameters()).device
        action = torch.zeros(n, dtype=torch.int64, device=device)
        return {"memory": self.online.features.initial_state(n), "action": action}

    def schedules(self) -> dict[str, Any]:
        return {"epsilon": self.config.epsilon}

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return coins(n, self.actions, generator) if what == "act" else {}

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        features, memory = self.online.features.step(self._see(self.obs(obs), state["action"]), state["memory"])
        q = losses.masked(self.online.head(features), mask)  # (N, A)
        action, extras = q.argmax(-1), {"q": q}
        if explore:
            action, extras = epsilon_greedy(q, knobs["epsilon"], noise["coin"], noise["scores"], mask), {}
        return Act(action, self.took({"memory": memory}, action), extras)

    def took(self, state: Any, action: Tensor) -> dict[str, Any]:
        """Return the memory after an act, the action among it."""
        return {"memory": state["memory"], "action": action + 1}

    def loss(self, batch: Batch) -> Loss:
        c, first = self.config, begins(batch.data)
        s = self._seen(batch.data, first)
        with torch.no_grad():
            state, target_state = (refresh(network, s, first, c.burn_in) for network in (self.online, self.target))
        s, first = steps(s, c.burn_in), first[c.burn_in :]  # (length, B, ...) from here
        features, after = self.online.features.unroll(s.obs, state, first)
        q = self.online.head(features).gather(-1, s.action.unsqueeze(-1)).squeeze(-1)  # (L, B)
        with torch.no_grad():
            target_after = self.target.features.unroll(s.obs, target_state, first)[1]
            best = losses.masked(successors(self.online, s, after), s.extras.get("next_action_mask")).argmax(-1)
            value = successors(self.target, s, target_after).gather(-1, best.unsqueeze(-1)).squeeze(-1)
            target = self._targets(s, value)  # (L, B)
        error = (target - q).masked_fill(~s.valid, 0.0)
        penalty = losses.huber(error).sum(0) / c.length  # (B,)
        if s.weight is not None:
            penalty = s.weight * penalty
        count = s.valid.sum().clamp(min=1)
        metrics = {"q_value": (q.detach() * s.valid).sum() / count, "target_q": (target * s.valid).sum() / count}
        return Loss(penalty.sum(), len(penalty), metrics, self._priority(error.detach().abs(), s.valid))

    def _targets(self, s: Rollout, value: Tensor) -> Tensor:
        """Return y (L, B) from the values (L, B) of the true successors; 0 where there is no step."""
        value = unscale(value) if self.config.rescale else value
        y = returns.n_step(s.reward, value, s.terminated, s.truncated, self.gamma, self.config.n_step, s.valid)
        return rescale(y) if self.config.rescale else y

    def _priority(self, error: Tensor, valid: Tensor) -> Tensor:
        """Return the priorities (B,) of sequences with absolute errors (L, B), 0 where there is no step."""
        mean = error.sum(0) / valid.sum(0).clamp(min=1)
        return self.config.eta * error.amax(0) + (1 - self.config.eta) * mean

    def _see(self, obs: Any, before: Tensor) -> Any:
        """Return what the network reads: observations, and the action before each where it is told."""
        return {"obs": obs, "action": before} if self.config.last_action else obs

    def _seen(self, s: Rollout, first: Tensor) -> Rollout:
        """Return the sequences with observations as the network reads them, and with its memory as their state."""

        def normal(obs: Any) -> Any:
            flat = self.obs(tmap(lambda x: x.flatten(0, 1), obs))
            return tmap(lambda x: x.unflatten(0, s.reward.shape), flat)

        after = s.action + 1  # (L, B)
        before = torch.cat([s.state["action"].unsqueeze(0), after[:-1]]).masked_fill(first, 0)
        obs, next_obs = self._see(normal(s.obs), before), self._see(normal(s.next_obs), after)
        return s._replace(obs=obs, next_obs=next_obs, state=s.state["memory"])

    def after_update(self, clock: Clock) -> None:
        c = self.config
        follow(self.target, self.online, clock, c.target, c.target_every, c.tau)


def begins(s: Rollout) -> Tensor:
    """Return (L, B) bool, True where a step is the first of an episode that begins inside the sequence."""
    ended = s.terminated | s.truncated | ~s.valid
    return torch.cat([torch.zeros_like(ended[:1]), ended[:-1]])


def steps(s: Rollout, start: int) -> Rollout:
    """Return the sequence from step ``start`` on; its state and weight, which have no time, are left as they are."""
    timed = tmap(lambda x: x[start:], s._replace(state=(), weight=None))
    return timed._replace(state=s.state, weight=s.weight)


def refresh(network: Heads, s: Rollout, first: Tensor, burn_in: int) -> Any:
    """Return the memory, tree (B, ...), after the first ``burn_in`` steps."""
    if burn_in == 0:
        return s.state
    _, after = network.features.unroll(tmap(lambda x: x[:burn_in], s.obs), s.state, first[:burn_in])
    return tmap(lambda x: x[-1], after)


def successors(network: Heads, s: Rollout, after: Any) -> Tensor:
    """Return the values (L, B, A) of the true successors, by one more step from the memory after each step."""
    flat = tmap(lambda x: x.flatten(0, 1), (s.next_obs, after))
    features, _ = network.features.step(*flat)
    return network.head(features).unflatten(0, s.reward.shape)
