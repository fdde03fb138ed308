"""Conservative Q-learning (Kumar et al. 2020): Q-learning that distrusts actions absent from the data.

conservative(s, a) = log sum_a' exp Q(s, a') - Q(s, a)                           equation 4, R = H: CQL(H)
Discrete:  sum over items of (y - Q(s, a))^2 / 2 + alpha * conservative(s, a)    y: double Q-learning
Box:       the losses of `agents.sac`, the critics' with alpha * sum_k conservative_k(s, a) added

The integral over a Box, of actions scaled to [-1, 1], is estimated by N uniform ones and N of the policy (appendix F),
over their densities::

    log 1/(2N) (sum_uniform exp Q(s, a_i) / u(a_i) + sum_policy exp Q(s, a_i) / pi(a_i|s))
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.offline import CQLConfig
from agents.offline import Heads
from agents.sac import SAC
from rlcore import losses
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.errors import UserError
from rlcore.normalize import Normalizer
from rlcore.targets import polyak_update
from rlcore.tree import tmap
from rlcore.types import Act, Batch, Loss, Spec, Transition


def conservative(sampled: Tensor, q: Tensor) -> Tensor:
    """Return ``logsumexp(sampled) - q`` (...) for (weighted) values (..., A) of all actions and those of the data's."""
    return sampled.logsumexp(-1) - q


def CQL(config: CQLConfig, spec: Spec) -> DiscreteCQL | ContinuousCQL:
    """Return the agent for the action space.

    Raises:
        UserError: it is neither Discrete nor a bounded Box.
    """
    return (ContinuousCQL if isinstance(spec.action_space, spaces.Box) else DiscreteCQL)(config, spec)


class DiscreteCQL(Agent):
    """Double Q-learning and the conservative term."""

    Config = CQLConfig
    config: CQLConfig

    def __init__(self, config: CQLConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        space = spec.action_space
        if not isinstance(space, spaces.Discrete):
            raise UserError(f"agent 'cql' cannot serve action space {space}; expected Discrete or a bounded Box")
        self.gamma, self.n_step = config.gamma, config.n_step
        self.obs = Normalizer(spec.obs_space) if config.normalize_obs else nn.Identity()
        self.online = Heads(config, spec, int(space.n))
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        q = losses.masked(self.online(self.obs(obs)).squeeze(0), mask)  # (N, A)
        return Act(q.argmax(-1), state, {"q": q})

    def loss(self, batch: Batch) -> Loss:
        t: Transition = batch.data
        q = self.online(self.obs(t.obs)).squeeze(0)  # (B, A)
        with torch.no_grad():
            next_obs = self.obs(t.next_obs)
            q_next, chooses = self.target(next_obs).squeeze(0), self.online(next_obs).squeeze(0)  # (B, A)
            mask = t.extras.get("next_action_mask")
            target = losses.double_q_target(t.reward, t.discount, q_next, chooses, mask)  # (B,)
        error = losses.td_error(q, t.action, target)  # (B,)
        gap = conservative(losses.masked(q, t.extras.get("action_mask")), target - error)  # (B,)
        metrics = {"q_value": (target - error.detach()).mean(), "target_q": target.mean()}
        metrics["conservative_gap"] = gap.detach().mean()
        return Loss((0.5 * error.square() + self.config.alpha * gap).sum(), len(q), metrics)

    def after_update(self, clock: Clock) -> None:
        polyak_update(self.target, self.online, self.config.tau)


class ContinuousCQL(SAC):
    """Soft actor-critic and the conservative term."""

    Config = CQLConfig
    config: CQLConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        noise = super().noise(what, n, generator)
        if what == "loss":
            shape = (n, self.config.samples, self.actions)
            noise["uniform"] = 2 * torch.rand(shape, generator=generator, device=generator.device) - 1
            noise["normal"] = torch.randn(shape, generator=generator, device=generator.device)
        return noise

    def loss(self, batch: Batch) -> Loss:
        """The critics' loss."""
        t: Transition = batch.data
        q, obs = self.q(t), self.obs(t.obs)  # (2, B)
        out = self.critic_loss(t, q, self.target(batch))
        gap = conservative(self._sampled(obs, batch.noise["uniform"], batch.noise["normal"]), q).sum(0)  # (B,)
        metrics = {**out.metrics, "conservative_gap": gap.detach().mean()}
        return Loss(out.total + self.config.alpha * gap.sum(), out.count, metrics)

    def _sampled(self, obs: Any, uniform: Tensor, normal: Tensor) -> Tensor:
        """Return Q(s, a_i) - log density(a_i) - log 2N (2, B, 2N) of both kinds of actions, (B, N, A) each."""
        n = uniform.shape[1]
        with torch.no_grad():
            many = _repeat(obs, n)
            policy, log_prob = self._policy(many, normal.flatten(0, 1))
            actions = torch.cat((uniform, policy.view_as(uniform)), 1)  # (B, 2N, A)
            flat = torch.full_like(uniform[..., 0], -self.actions * math.log(2.0))  # (B, N)
            density = torch.cat((flat, log_prob.view(-1, n)), 1)  # (B, 2N)
        q = self.critic(_repeat(obs, 2 * n), actions.flatten(0, 1)).unflatten(1, (-1, 2 * n))  # (2, B, 2N)
        return q - density - math.log(2 * n)


def _repeat(obs: Any, n: int) -> Any:
    """Return every row of a tree (B, ...) n times, (B*n, ...)."""
    return tmap(lambda x: x.unsqueeze(1).expand(-1, n, *x.shape[1:]).flatten(0, 1), obs)
