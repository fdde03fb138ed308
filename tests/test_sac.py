"""SAC: its three losses against slow references, the temperature's direction, and its targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_continuous import make, one_network, random_batch
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from agents.sac import SAC
from rlcore.clock import Clock
from rlcore.config import OptimConfig
from rlcore.optim import Optim
from rlcore.types import Batch


def sac(**options: Any) -> SAC:
    agent = make("sac", **options)
    assert isinstance(agent, SAC)
    with torch.no_grad():
        for p in agent.target_critic.parameters():
            p.add_(torch.randn_like(p) * 0.1)  # so that it matters which critic is asked
    return agent


def draw(agent: SAC, obs: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """One item's action in [-1, 1] and its log-density, by torch's distributions."""
    mean, log_std = one_network(agent.actor.layers, 0, obs).chunk(2)
    squash = TanhTransform(cache_size=1)
    a: Any = squash(mean + log_std.exp() * normal)
    return a, TransformedDistribution(Normal(mean, log_std.exp()), [squash]).log_prob(a).sum()


def value(critic: Any, k: int, obs: Tensor, a: Tensor) -> Tensor:
    return one_network(critic.layers, k, torch.cat((obs, a)))[0]


@pytest.mark.parametrize("seed", range(5))
def test_the_three_losses_item_by_item(seed: int) -> None:
    agent = sac(temperature=0.3, target_entropy=-1.7)
    batch = random_batch(agent, seed=seed)
    t, alpha = batch.data, 0.3
    critic = actor = temperature = entropy = 0.0
    with torch.no_grad():
        for i in range(6):
            a, log_prob = draw(agent, t.next_obs[i], batch.noise["next"][i])
            q_next = min(value(agent.target_critic, k, t.next_obs[i], a) for k in range(2))
            y = t.reward[i] + t.discount[i] * (q_next - alpha * log_prob)
            taken = (t.action[i] - agent.scale.middle) / agent.scale.radius
            critic += sum(0.5 * (y - value(agent.critic, k, t.obs[i], taken)) ** 2 for k in range(2))
            a, log_prob = draw(agent, t.obs[i], batch.noise["policy"][i])
            actor += alpha * log_prob - min(value(agent.critic, k, t.obs[i], a) for k in range(2))
            temperature += -np.log(alpha) * (log_prob + -1.7)
            entropy -= log_prob / 6
    assert agent.loss(batch).total.item() == pytest.approx(float(critic), rel=1e-4)
    out = agent.actor_loss(batch)
    assert out.total.item() == pytest.approx(float(actor), rel=1e-4, abs=1e-4)
    assert out.metrics["entropy"].item() == pytest.approx(float(entropy), rel=1e-4, abs=1e-4)
    assert agent.temperature_loss(batch).total.item() == pytest.approx(float(temperature), rel=1e-4, abs=1e-4)
    assert agent.temperature_loss(batch).metrics["temperature"].item() == pytest.approx(0.3)


def test_a_terminal_step_has_no_successor_and_no_entropy() -> None:
    agent = sac(temperature=100.0)
    batch = random_batch(agent)
    ended = batch._replace(data=batch.data._replace(discount=torch.zeros(6)))
    assert agent.loss(ended).metrics["target_q"].item() == pytest.approx(batch.data.reward.mean().item(), rel=1e-5)


def test_gradients_of_the_actor_flow_through_the_actions_values() -> None:
    agent = sac(temperature=1e-9)
    batch = random_batch(agent)
    total = agent.actor_loss(batch).total
    got = torch.autograd.grad(total, agent.actor.layers.weights[-1])[0]
    step = 1e-2 * got / got.norm()
    with torch.no_grad():
        losses = []
        for sign in (1, -1):
            agent.actor.layers.weights[-1].add_(sign * step)
            losses.append(agent.actor_loss(batch).total)
            agent.actor.layers.weights[-1].sub_(sign * step)
    assert (losses[0] - losses[1]).item() / 2e-2 == pytest.approx(got.norm().item(), rel=0.02)


@pytest.mark.parametrize(("target_entropy", "rises"), [(50.0, True), (-50.0, False)])
def test_the_temperature_rises_where_the_entropy_is_too_low(target_entropy: float, rises: bool) -> None:
    agent = sac(target_entropy=target_entropy)
    optim, clock = Optim(agent, OptimConfig(lr=0.01)), Clock(10, 10)
    for _ in range(5):
        optim.update(agent, random_batch(agent), clock)
    assert (agent.log_temperature.item() > 0) == rises


def test_the_target_entropy_is_minus_the_number_of_actions_whatever_the_boxs_width() -> None:
    assert sac(action_space=spaces.Box(-1, 1, (3,))).target_entropy == -3
    assert sac(action_space=spaces.Box(-4, 4, (3,))).target_entropy == -3
    assert sac(action_space=spaces.Box(-4, 4, (3,)), target_entropy=1.5).target_entropy == 1.5


@pytest.mark.parametrize("name", ["sac", "cql"])
@pytest.mark.parametrize("radius", [0.01, 10.0])
def test_what_is_learnt_does_not_depend_on_the_width_of_the_box(name: str, radius: float) -> None:
    unit, other = (make(name, action_space=spaces.Box(-r, r, (2,))) for r in (1, radius))
    batch = random_batch(unit)
    scaled = batch._replace(data=batch.data._replace(action=radius * batch.data.action))
    for (group, function), (_, again) in zip(unit.phases(0), other.phases(0), strict=True):
        one, two = function(batch), again(scaled)
        torch.testing.assert_close(one.total, two.total, rtol=1e-4, atol=1e-4)
        gradients = (torch.autograd.grad(x.total, a.groups()[group]) for x, a in ((one, unit), (two, other)))
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_target_critics_follow_by_polyak_every_update() -> None:
    agent = sac(tau=0.25)
    was = [p.clone() for p in agent.target_critic.parameters()]
    agent.after_update(Clock(10, 10))
    for target, old, online in zip(agent.target_critic.parameters(), was, agent.critic.parameters(), strict=True):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * online)


def test_no_gradient_reaches_what_a_loss_takes_as_given() -> None:
    agent = sac()
    batch: Batch = random_batch(agent)
    agent.loss(batch).total.backward()
    given = [*agent.actor.parameters(), *agent.target_critic.parameters(), agent.log_temperature]
    assert all(p.grad is None for p in given)
    agent.temperature_loss(batch).total.backward()
    assert all(p.grad is None for p in agent.actor.parameters())
    agent.log_temperature.grad = None
    agent.actor_loss(batch).total.backward()
    assert agent.log_temperature.grad is None
