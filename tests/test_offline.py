"""Agents that learn from recorded data: their losses against slow, obvious references; that they keep the contract."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_resume import FAST, _final, _killed, _train
from torch import Tensor
from torch.distributions import Categorical, Normal

from agents.bc import BC
from agents.configs.offline import BCConfig, CQLConfig, IQLConfig
from agents.cql import CQL
from agents.iql import IQL, advantage_weight, expectile_loss
from rlcore import config as configs
from rlcore import recorded, registry
from rlcore.clock import Clock
from rlcore.errors import UserError
from rlcore.make import make_env
from rlcore.recorded import Steps
from rlcore.testing import check_agent
from rlcore.testing.agents import first_difference
from rlcore.types import Batch, Spec, Transition

OBS = spaces.Box(-1, 1, (3,))
DISCRETE = Spec(OBS, spaces.Discrete(4))
BOX = Spec(OBS, spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 3.0], np.float32)))
MULTI = Spec(OBS, spaces.MultiDiscrete([2, 3]))
TINY: dict[str, Any] = {"hidden": (8,), "normalize_obs": False}


def batch(spec: Spec, n: int = 16, agent: Any = None, masks: bool = False) -> Batch:
    rng = np.random.default_rng(0)
    spec.action_space.seed(0)
    obs, next_obs = (torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32)) for _ in range(2))
    action = torch.from_numpy(np.stack([spec.action_space.sample() for _ in range(n)]))
    reward = torch.from_numpy(rng.normal(size=n).astype(np.float32))
    discount = torch.from_numpy(rng.choice([0.0, 0.9], n).astype(np.float32))
    extras = {}
    if masks:
        allowed = torch.from_numpy(rng.random((n, 4)) < 0.5)
        allowed[torch.arange(n), action] = True
        extras = {"action_mask": allowed, "next_action_mask": allowed.roll(1, 0)}
    noise = agent.noise("loss", n, torch.Generator().manual_seed(0)) if agent else {}
    return Batch(Transition(obs, action, reward, discount, next_obs, extras), noise=noise)


def test_expectile_loss_leans_to_the_best() -> None:
    assert expectile_loss(torch.tensor([2.0, -2.0, 0.0]), 0.9).tolist() == pytest.approx([3.6, 0.4, 0.0])
    returns = torch.tensor([0.0, 1.0, 2.0, 10.0])
    value = torch.tensor(0.0, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        expectile_loss(returns - value, 0.95).mean().backward()
        optimizer.step()
    # The expectile balances the weighted distances: 0.95 * sum above = 0.05 * sum below.
    m = value.item()
    assert m > float(returns.mean())
    assert 0.95 * (10 - m) == pytest.approx(0.05 * (m + (m - 1) + (m - 2)), rel=1e-3)


def test_advantage_weights_are_clipped_from_above_and_carry_no_gradient() -> None:
    advantage = torch.tensor([-1.0, 0.0, 1.0, 5.0], requires_grad=True)
    weight = advantage_weight(advantage, 3.0, 100.0)
    assert weight.tolist() == pytest.approx([math.exp(-3), 1.0, math.exp(3), 100.0])
    assert not weight.requires_grad


def slow_log_prob(agent: Any, i: int, t: Transition) -> Tensor:
    """Return log pi of item i by torch's distributions."""
    x = agent.policy.net(t.obs[i : i + 1])[0, 0]
    space = agent.spec.action_space
    if isinstance(space, spaces.Discrete):
        if t.extras:
            x = torch.where(t.extras["action_mask"][i], x, torch.tensor(-1e9))
        return Categorical(logits=x).log_prob(t.action[i])
    if isinstance(space, spaces.MultiDiscrete):
        # x[2] is the logit of a third number that the first part lacks.
        return Categorical(logits=x[:2]).log_prob(t.action[i, 0]) + Categorical(logits=x[3:]).log_prob(t.action[i, 1])
    low, high = torch.tensor(space.low), torch.tensor(space.high)
    scaled = 2 * (t.action[i] - low) / (high - low) - 1
    return Normal(x.tanh(), agent.policy.log_std.exp()).log_prob(scaled).sum()


@pytest.mark.parametrize("spec", [DISCRETE, MULTI, BOX], ids=["discrete", "multi", "box"])
@pytest.mark.parametrize("masks", [False, True])
def test_cloning_maximises_the_likelihood_of_the_actions(spec: Spec, masks: bool) -> None:
    if masks and spec is not DISCRETE:
        return
    agent = BC(BCConfig(**TINY), spec)
    torch.nn.init.constant_(agent.policy.log_std, -0.7) if spec is BOX else None
    b = batch(spec, masks=masks)
    expected = -sum(slow_log_prob(agent, i, b.data) for i in range(16))
    assert torch.allclose(agent.loss(b).total, torch.as_tensor(expected), rtol=1e-5)


@pytest.mark.parametrize("spec", [DISCRETE, MULTI, BOX], ids=["discrete", "multi", "box"])
def test_exploring_policies_draw_from_their_distribution(spec: Spec) -> None:
    agent = BC(BCConfig(**TINY), spec)
    n = 40_000
    obs = torch.full((n, 3), 0.3)
    noise = agent.noise("act", n, torch.Generator().manual_seed(1))
    with torch.no_grad():
        action = agent.act(obs, (), {}, noise).action
    x = agent.policy.net(obs[:1])[0, 0].detach()
    assert all(spec.action_space.contains(a) for a in action[:100].numpy())
    if spec is BOX:
        middle = (torch.tensor(spec.action_space.low) + torch.tensor(spec.action_space.high)) / 2  # pyright: ignore
        inside = agent.act(obs, (), {}, {}, explore=False).action[0].detach()
        assert torch.allclose(inside, middle + torch.tensor([2.0, 1.5]) * x.tanh())
        assert torch.allclose(action.median(0).values, inside, atol=0.05)
        return
    parts = [x] if spec is DISCRETE else [x[:2], x[3:]]
    for part, taken in zip(parts, action.view(n, -1).unbind(1), strict=True):
        assert torch.allclose(taken.bincount() / n, part.softmax(-1), atol=0.01)


def test_masked_actions_are_never_chosen() -> None:
    mask = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) < 0.4
    mask[:, 2] = True
    for agent in (BC(BCConfig(**TINY), DISCRETE), IQL(IQLConfig(**TINY), DISCRETE), CQL(CQLConfig(**TINY), DISCRETE)):
        noise = agent.noise("act", 200, torch.Generator().manual_seed(1))
        for explore in (True, False):
            action = agent.act(torch.randn(200, 3), (), {}, noise, mask, explore).action
            assert mask.gather(1, action[:, None]).all()


@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["discrete", "box"])
def test_implicit_q_loss_is_that_of_a_loop_and_each_term_reaches_its_own_network(spec: Spec) -> None:
    agent = IQL(IQLConfig(**TINY, expectile=0.8, beta=2.0, max_weight=1.5), spec)
    torch.manual_seed(0)
    for p in agent.target_critic.parameters():
        torch.nn.init.normal_(p, std=0.6)
    b = batch(spec, masks=spec is DISCRETE)
    t = b.data

    def q(critic: Any, i: int) -> Tensor:
        obs = t.obs[i : i + 1]
        if spec is DISCRETE:
            return critic(obs)[:, 0, t.action[i]]
        low, high = torch.tensor(BOX.action_space.low), torch.tensor(BOX.action_space.high)  # pyright: ignore
        return critic(obs, (2 * (t.action[i] - low) / (high - low) - 1)[None])[:, 0]

    values, critics, policies, clipped = ([] for _ in range(4))
    for i in range(16):
        u = q(agent.target_critic, i).min().detach() - agent.value(t.obs[i : i + 1]).squeeze()
        values.append((0.8 if u > 0 else 0.2) * u**2)
        y = t.reward[i] + t.discount[i] * agent.value(t.next_obs[i : i + 1]).squeeze().detach()
        critics.append(0.5 * ((y - q(agent.critic, i)) ** 2).sum())
        weight = min(math.exp(2.0 * u.item()), 1.5)
        clipped.append(weight == 1.5)
        policies.append(-weight * slow_log_prob(agent, i, t))
    assert any(clipped) and not all(clipped)
    out = agent.loss(b)
    assert torch.allclose(out.total, sum(values + critics + policies), rtol=1e-4)  # pyright: ignore
    out.total.backward()
    for part, terms in ((agent.value, values), (agent.critic, critics), (agent.policy, policies)):
        own = torch.autograd.grad(sum(terms), list(part.parameters()), retain_graph=True)  # pyright: ignore
        for p, g in zip(part.parameters(), own, strict=True):
            assert p.grad is not None and torch.allclose(p.grad, g, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["discrete", "box"])
@pytest.mark.parametrize("name", ["bc", "cql", "iql"])
def test_a_deep_copy_acts_and_learns_alike(name: str, spec: Spec) -> None:
    agent = registry.find("agents", name)(configs.agent_config(name)(**TINY), spec)
    b = batch(spec, agent=agent)
    copied = copy.deepcopy(agent)
    assert type(copied) is type(agent)
    assert torch.equal(copied.loss(b).total, agent.loss(b).total)
    acted = (a.act(b.data.obs, (), {}, {}, explore=False).action for a in (agent, copied))
    assert torch.equal(*acted)


EVERY = [(name, spec) for name in ("cql", "iql") for spec in (DISCRETE, BOX)]
IDS = [f"{name}-{'box' if spec is BOX else 'discrete'}" for name, spec in EVERY]


@pytest.mark.parametrize(("name", "spec"), EVERY, ids=IDS)
def test_targets_follow_by_polyak_at_every_update(name: str, spec: Spec) -> None:
    agent = registry.find("agents", name)(configs.agent_config(name)(**TINY, tau=0.25), spec)
    pair = (agent.target, agent.online) if hasattr(agent, "online") else (agent.target_critic, agent.critic)
    for p in pair[1].parameters():
        torch.nn.init.normal_(p)
    old, online = ([p.clone() for p in network.parameters()] for network in pair)
    agent.after_update(Clock(10, 10))
    for p, was, q in zip(pair[0].parameters(), old, online, strict=True):
        assert not torch.equal(was, q)
        torch.testing.assert_close(p.data, torch.lerp(was, q, 0.25))
    assert all(torch.equal(p, q) for p, q in zip(pair[1].parameters(), online, strict=True))


@pytest.mark.parametrize(("name", "spec"), [("bc", DISCRETE), ("bc", BOX), *EVERY], ids=["bc-discrete", "bc-box", *IDS])
def test_observations_are_normalised_wherever_they_are_read(name: str, spec: Spec) -> None:
    make, options = registry.find("agents", name), configs.agent_config(name)
    plain, normalised = (make(options(hidden=(8,), normalize_obs=x), spec) for x in (False, True))
    assert not normalised.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    raw = 5 + 3 * torch.randn(500, 3, generator=torch.Generator().manual_seed(3))
    normalised.observe(raw)
    b = batch(spec, agent=plain)  # what reaches the networks
    mean, deviation = raw.mean(0), raw.std(0, correction=0)
    seen = b._replace(
        data=b.data._replace(obs=mean + deviation * b.data.obs, next_obs=mean + deviation * b.data.next_obs)
    )
    wanted, got = plain.loss(b), normalised.loss(seen)
    torch.testing.assert_close(got.total, wanted.total, rtol=1e-4, atol=1e-4)
    for metric, x in wanted.metrics.items():
        torch.testing.assert_close(got.metrics[metric], x, rtol=1e-4, atol=1e-4)
    noise = plain.noise("act", 16, torch.Generator().manual_seed(0))
    for explore in (False, True):
        acted = (
            a.act(o, (), {}, noise, explore=explore).action
            for a, o in ((plain, b.data.obs), (normalised, seen.data.obs))
        )
        torch.testing.assert_close(*acted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_boxes_of_any_shape_are_served(shape: tuple[int, ...]) -> None:
    spec = Spec(OBS, spaces.Box(-2, 2, shape))
    for name in ("bc", "cql", "iql"):
        agent = registry.find("agents", name)(configs.agent_config(name)(**TINY), spec)
        b = batch(spec, agent=agent)
        assert agent.loss(b).total.shape == ()
        noise = agent.noise("act", 16, torch.Generator().manual_seed(0))
        for explore in (False, True):
            action = agent.act(b.data.obs, (), {}, noise, explore=explore).action.detach().numpy()
            assert action.shape == (16, *shape) and all(spec.action_space.contains(np.asarray(a)) for a in action)


@pytest.mark.parametrize("name", ["bc", "cql", "iql"])
def test_a_box_of_whole_numbers_is_refused_in_one_sentence(name: str) -> None:
    space = spaces.Box(0, 5, (2,), np.int32)
    with pytest.raises(UserError) as told:
        registry.find("agents", name)(configs.agent_config(name)(**TINY), Spec(OBS, space))
    assert str(told.value) == f"agent '{name}' cannot serve action space {space}; expected a bounded Box of floats"


def test_spaces_and_networks_that_cannot_be_served_are_told() -> None:
    binary = Spec(OBS, spaces.MultiBinary(3))
    for agent, config, spec in ((BC, BCConfig(), binary), (IQL, IQLConfig(), MULTI), (CQL, CQLConfig(), MULTI)):
        with pytest.raises(UserError, match=rf"agent '{config.name}' cannot serve action space Multi.*; expected"):
            agent(config, spec)
    for agent, config in ((BC, BCConfig), (IQL, IQLConfig), (CQL, CQLConfig)):
        with pytest.raises(UserError, match="needs a memory of them"):
            agent(config(network={"name": "gru"}), DISCRETE)


def record(env_id: str, to: Path, actions: Any, rows: int = 300) -> str:
    """Record play of ``actions(obs) -> action (1,)``-like function in one environment, episodes of 50 steps."""
    env = make_env(env_id, 1, backend="sync", kwargs={"max_episode_steps": 50})
    obs, _ = env.reset(3)
    parts = []
    for _ in range(rows):
        action = actions(obs)
        step = env.step(action)
        parts.append(Steps(obs, action, step.reward, step.terminated, step.truncated, step.next_obs, {}))
        obs = step.obs
    steps = Steps(*(torch.cat([getattr(p, f) for p in parts]) for f in Steps._fields[:-1]), extras={})
    steps.truncated[-1] = True
    recorded.write(str(to), steps, env.spec)
    return str(to)


def lean(obs: Tensor) -> Tensor:
    """Step to where the pole is falling."""
    return (obs[:, 2] + 0.5 * obs[:, 3] > 0).long()


def swing(obs: Tensor) -> Tensor:
    """Pump energy into the pendulum until it can be held upright."""
    cos, sin, speed = obs.unbind(-1)
    angle = torch.atan2(sin, cos)
    energy = 0.5 * speed.square() / 3 + 5 * (cos - 1)  # 0 at rest upright; in units of m l^2
    hold = -12 * angle - 3 * speed
    pump = -torch.sign(energy) * torch.sign(speed + 1e-6) * 2
    return torch.where(cos > 0.9, hold, pump).clamp(-2, 2).unsqueeze(-1)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bc-discrete": ("CartPole-v1", {"name": "bc"}),
    "bc-box": ("Pendulum-v1", {"name": "bc"}),
    "cql-discrete": ("CartPole-v1", {"name": "cql", "alpha": 0.1, "gamma": 0.9, "n_step": 2}),
    "cql-box": ("Pendulum-v1", {"name": "cql", "samples": 2, "alpha": 0.1, "gamma": 0.9}),
    "iql-discrete": ("CartPole-v1", {"name": "iql", "gamma": 0.5}),
    "iql-box": ("Pendulum-v1", {"name": "iql", "gamma": 0.5, "n_step": 3}),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_agent_keeps_the_contract(name: str, tmp_path: Path) -> None:
    env_id, agent = CASES[name]
    data = record(env_id, tmp_path / "data.npz", lean if env_id == "CartPole-v1" else swing)
    source = {"name": "dataset", "data": data, "batch_size": 64}
    check_agent({"env": {"id": env_id}, "agent": {**agent, "hidden": [32]}, "source": source, "optim": {"lr": 3e-3}})


@pytest.mark.parametrize("name", ["bc-discrete", "cql-box", "iql-discrete"])
def test_killed_and_resumed_equals_never_interrupted(name: str, tmp_path: Path) -> None:
    env_id, agent = CASES[name]
    data = record(env_id, tmp_path / "data.npz", lean if env_id == "CartPole-v1" else swing)
    recipe = f"{'cartpole' if env_id == 'CartPole-v1' else 'pendulum'}_{agent['name']}"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    overrides = {**FAST, "source.data": data, "source.batch_size": 32, "agent.hidden": [16], "budget.frames": 6400}
    overrides |= {"log.every": 640, "checkpoint.every": 320}
    _train(recipe, overrides, whole, resume=False)
    _killed(recipe, overrides, killed, random.Random(name))
    assert not (killed / "result.json").exists(), "the run ended before it was killed: make it longer"
    _train(recipe, overrides, killed, resume=True)
    for one, other in zip(_final(whole), _final(killed), strict=True):
        assert first_difference(one, other) is None
