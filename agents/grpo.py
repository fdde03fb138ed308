"""Group-relative policy optimisation of completions (Shao et al. 2024), and REINFORCE leave-one-out.

A prompt x is answered by a group of G completions y_1 ... y_G, each with a reward r_i:
A_i = (r_i - mean r) / deviation r,   or with ``advantage: leave_one_out``   A_i = r_i - mean of the others' r
                                       (Ahmadian et al. 2024)
ratio_t = pi(y_t | x, y_<t) / pi_old(y_t | x, y_<t)
loss = sum over tokens up to and with the end of   -min(ratio_t A, clip(ratio_t, 1 - eps, 1 + eps) A)
                                                 + kl_coef k3(pi, pi_start) - entropy_coef H(pi(. | x, y_<t))
Its count is that of the tokens. pi is the distribution that tokens are really drawn from: at the temperature, and
restricted to the support that ``top_k`` and ``top_p`` left when the token was drawn, which travels with the rollout,
so that the ratio of unchanged weights is 1. pi_start is compared on the same support.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents import generation
from agents.configs.text import GRPOConfig
from agents.networks.predictor import Predictor
from agents.writer import WritingAgent
from rlcore import losses, returns
from rlcore.errors import UserError
from rlcore.types import Act, Batch, Loss, Rollout, Spec


class Item(NamedTuple):
    """Completions to learn from."""

    prompt: Tensor  # (B, P)
    completion: Tensor  # (B, L)
    log_prob: Tensor  # (B, L) of the policy that acted
    advantage: Tensor  # (B,)
    reward: Tensor  # (B,)
    deviation: Tensor  # (B,) of the group's rewards
    support: Tensor | None = None  # (B, L, V) bool: tokens that could be drawn; None: all


class GRPO(WritingAgent):
    """Learns from groups of completions of the same prompts."""

    Config = GRPOConfig
    config: GRPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: GRPOConfig, spec: Spec) -> None:
        super().__init__(config, spec, spec.action_space)
        if "group" not in spec.extras:
            raise UserError(
                "agent 'grpo' compares completions of one prompt, but this environment asks for single ones; "
                "expected env.kwargs.group of 2 or more"
            )
        self.reference: Predictor | None = deepcopy(self.network).requires_grad_(False) if config.kl_coef else None

    def train(self, mode: bool = True) -> GRPO:
        """Change the mode of all but the networks: dropout would make acting and learning differ."""
        super().train(mode)
        for network in self.children():
            network.eval()
        return self

    def start_from(self, weights: dict[str, Tensor], origin: str) -> None:
        own = {name: value for name, value in weights.items() if not name.startswith("reference.")}
        if self.reference is not None:
            start = {k.removeprefix("network."): v for k, v in own.items() if k.startswith("network.")}
            own |= {f"reference.{name}": value for name, value in start.items()}
        super().start_from(own, origin)

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = (n, self.completion.length)
        return {"uniform": torch.rand(shape, generator=generator, device=generator.device)} if what == "act" else {}

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        if not explore:
            return Act(self.write(obs), state)
        c = self.config
        log_probs: list[Tensor] = []
        supports: list[Tensor] = []

        def choose(logits: Tensor, place: int) -> Tensor:
            if generation.truncates(c.top_k, c.top_p):
                supports.append(generation.support(logits, c.temperature, c.top_k, c.top_p))
            logp = generation.log_probs(logits, c.temperature, supports[-1] if supports else None)
            token = generation.draw(logp, noise["uniform"][:, place])
            log_probs.append(losses.chosen(logp, token))
            return token

        action = generation.complete(self.writer, obs, self.completion.length, choose)  # (N, L)
        extras = {"log_prob": torch.stack(log_probs, 1)}
        return Act(action, state, extras | ({"support": torch.stack(supports, 1)} if supports else {}))

    def prepare(self, rollout: Rollout) -> Item:
        compared = (rollout.reward, rollout.extras["group"], rollout.valid)
        if self.config.advantage == "group":
            advantage = returns.group_relative_advantage(*compared, scale=self.config.scale)
        else:
            advantage = returns.leave_one_out_advantage(*compared)
        support = rollout.act.get("support")
        parts = (rollout.obs, rollout.action, rollout.act["log_prob"], advantage, rollout.reward)
        prompt, completion, log_prob, advantage, reward = (x.flatten(0, 1) for x in parts)
        deviation = returns.group_deviation(*compared).flatten(0, 1)
        support = None if support is None else support.flatten(0, 1)
        return Item(prompt, completion, log_prob, advantage, reward, deviation, support)

    def log_probs(self, network: Predictor, item: Item) -> Tensor:
        """Return the log-probabilities (B, L, V) that a network gives all tokens at all places of completions."""
        features = network.trunk.given(item.prompt, item.completion)  # type: ignore[operator]
        logits = losses.masked(network.head(features), self.allowed)
        return generation.log_probs(logits, self.config.temperature, item.support)

    def loss(self, batch: Batch) -> Loss:
        c = self.config
        item: Item = batch.data
        counts = generation.written(item.completion, self.stops)  # (B, L)
        weight, count = counts.float(), counts.sum()
        every = self.log_probs(self.network, item)  # (B, L, V)
        new, old = (
            x.masked_fill(~counts, 0.0) for x in (losses.chosen(every, item.completion), item.log_prob)
        )  # (B, L), and 0 after the end
        parts = {
            "policy_loss": losses.clipped_surrogate(new, old, item.advantage[:, None], c.clip),
            "entropy": losses.entropy(every),
        }
        total = parts["policy_loss"] - c.entropy_coef * parts["entropy"]
        if self.reference is not None:
            with torch.no_grad():
                start = losses.chosen(self.log_probs(self.reference, item), item.completion)
            parts["kl"] = losses.k3_divergence(new, start.masked_fill(~counts, 0.0))
            total = total + c.kl_coef * parts["kl"]
        parts["approx_kl"] = losses.k3_divergence(old, new)
        parts["clip_fraction"] = (((new - old).exp() - 1).abs() > c.clip).float()
        metrics = {name: (x.detach() * weight).sum() / count for name, x in parts.items()}
        metrics["reward_mean"], metrics["reward_deviation"] = item.reward.mean(), item.deviation.mean()
        metrics["completion_length"] = count / len(counts)
        return Loss((total * weight).sum(), count, metrics)
