"""R2D2: its loss against a slow reference a sequence at a time, its gradient, its memory, and the contract."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dqn import OneEachStep
from torch import Tensor

from agents.configs.value import R2D2Config
from agents.r2d2 import R2D2, begins, rescale, unscale
from envs.cartpole import CartPole
from rlcore import build, registry
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import NetworkConfig, ReplayConfig
from rlcore.errors import UserError
from rlcore.sources import Replay
from rlcore.testing import check_agent
from rlcore.tree import tmap
from rlcore.types import Batch, Rollout, Spec

SMALL = {"name": "mlp", "kwargs": {"hidden": [8], "activation": "tanh"}}
NETWORKS: dict[str, dict[str, Any]] = {
    "gru": {"name": "gru", "kwargs": {"features": 6, "encoder": SMALL}},
    "lstm": {"name": "lstm", "kwargs": {"features": 6, "encoder": SMALL}},
    "history": {"name": "history", "kwargs": {"context": 3, "features": 8, "heads": 2, "encoder": SMALL}},
    "mlp": SMALL,
}
SPEC = Spec(spaces.Box(-1, 1, (2,)), spaces.Discrete(3))


def make(network: str = "gru", **options: Any) -> R2D2:
    torch.manual_seed(0)
    agent = R2D2(R2D2Config(network=NetworkConfig(**NETWORKS[network]), **options), SPEC)
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(0.3 * torch.randn(p.shape))  # the target network is another than the online one
    return agent


def sequences(agent: R2D2, items: int, seed: int, masks: bool = False) -> Rollout:
    """Random sequences: ends of episodes anywhere, some sequences short, memory that is not empty."""
    rng = torch.Generator().manual_seed(seed)
    length = agent.sequence

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    def coin(p: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng) < p

    state = agent.initial_state(items)
    for _ in range(4):
        with torch.no_grad():
            state = agent.act(normal(items, 2), state, {}, {}, explore=False).state
    left = torch.randint(1, length + length // 2 + 1, (items,), generator=rng)  # steps there are
    mask = coin(0.6, length, items, 3)
    mask[..., 1] |= ~mask.any(-1)
    return Rollout(
        obs=normal(length, items, 2),
        action=torch.randint(3, (length, items), generator=rng),
        reward=2 * normal(length, items),
        terminated=coin(0.15, length, items),
        truncated=coin(0.15, length, items),
        next_obs=normal(length, items, 2),
        valid=torch.arange(length)[:, None] < left,
        act={},
        extras={"next_action_mask": mask} if masks else {},
        state=state,
        weight=torch.rand(items, generator=rng),
    )


def slow(agent: R2D2, s: Rollout) -> tuple[float, list[float]]:
    """The loss and the priorities, a sequence and a step at a time."""
    c, total, priorities = agent.config, 0.0, []

    def value(network: Any, obs: Tensor, state: Any, before: int) -> tuple[list[float], Any]:
        seen = {"obs": obs[None], "action": torch.tensor([before])} if c.last_action else obs[None]
        features, state = network.features.step(seen, state)
        return network.head(features)[0].tolist(), state

    def squash(x: float) -> float:
        return math.copysign(math.sqrt(abs(x) + 1) - 1, x) + 1e-3 * x if c.rescale else x

    def expand(x: float) -> float:
        root = (math.sqrt(1 + 4e-3 * (abs(x) + 1 + 1e-3)) - 1) / 2e-3
        return math.copysign(root**2 - 1, x) if c.rescale else x

    for b in range(len(s.reward[0])):
        memory = target_memory = tmap(lambda x, b=b: x[b : b + 1], s.state["memory"])
        before = int(s.state["action"][b])
        q, bootstrap = [], []
        steps = int(s.valid[:, b].sum())
        for t in range(steps):
            if t > 0 and (s.terminated[t - 1, b] or s.truncated[t - 1, b]):
                memory, before = agent.initial_state(1)["memory"], 0
                target_memory = memory
            values, memory = value(agent.online, s.obs[t, b], memory, before)
            _, target_memory = value(agent.target, s.obs[t, b], target_memory, before)
            before = int(s.action[t, b]) + 1
            online, _ = value(agent.online, s.next_obs[t, b], memory, before)
            target, _ = value(agent.target, s.next_obs[t, b], target_memory, before)
            allowed = [a for a in range(3) if not s.extras or s.extras["next_action_mask"][t, b, a]]
            q.append(values[int(s.action[t, b])])
            bootstrap.append(expand(target[max(allowed, key=lambda a: online[a])]))
        errors = []
        for t in range(c.burn_in, steps):
            y, discount, k = 0.0, 1.0, t
            while True:
                y, discount = y + discount * s.reward[k, b].item(), discount * c.gamma
                if s.terminated[k, b] or s.truncated[k, b] or k - t + 1 == c.n_step or k + 1 == steps:
                    break
                k += 1
            if not s.terminated[k, b]:
                y += discount * bootstrap[k]
            errors.append(abs(squash(y) - q[t]))
        huber = sum(0.5 * e * e if e < 1 else e - 0.5 for e in errors)
        total += float(s.weight[b]) * huber / c.length  # type: ignore[index]
        mean = sum(errors) / max(1, len(errors))
        priorities.append(c.eta * max(errors, default=0.0) + (1 - c.eta) * mean)
    return total, priorities


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize(("masks", "last_action"), [(False, False), (True, True)])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6), burn_in=st.integers(0, 3), length=st.integers(1, 7), n_step=st.integers(1, 4),
    items=st.integers(1, 4), rescaled=st.booleans(), dueling=st.booleans(),
)  # fmt: skip
def test_the_loss_is_that_of_a_slow_reference(
    network: str, masks: bool, last_action: bool, seed: int, burn_in: int, length: int, n_step: int, items: int,
    rescaled: bool, dueling: bool,
) -> None:  # fmt: skip
    options = {"n_step": n_step, "rescale": rescaled, "dueling": dueling, "last_action": last_action}
    agent = make(network, burn_in=burn_in, length=length, gamma=0.9, eta=0.7, **options)
    s = sequences(agent, items, seed, masks)
    out = agent.loss(Batch(s))
    with torch.no_grad():
        total, priorities = slow(agent, s)
    assert out.count == items
    assert out.total.item() == pytest.approx(total, rel=1e-4, abs=1e-5)
    assert out.priority is not None
    assert out.priority.tolist() == pytest.approx(priorities, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("network", ["gru", "lstm"])
def test_the_burn_in_refreshes_the_memory_without_gradient_and_without_loss(network: str) -> None:
    agent = make(network, burn_in=3, length=4, n_step=2)
    s = sequences(agent, 5, 1)
    s = s._replace(terminated=torch.zeros_like(s.terminated), truncated=torch.zeros_like(s.truncated))
    s = s._replace(valid=torch.ones_like(s.valid), obs=s.obs.requires_grad_())
    out = agent.loss(Batch(s))
    (grad,) = torch.autograd.grad(out.total, s.obs)
    assert not grad[:3].any()
    assert grad[3:].any(-1).all()
    other = s._replace(obs=s.obs.detach().clone(), reward=s.reward.clone(), next_obs=s.next_obs.clone())
    other.reward[:3] += 5  # burnt in, and read by no target of a later step
    other.next_obs[:3] += 5
    assert torch.equal(agent.loss(Batch(other)).total, out.total)
    other.obs[0] += 5
    assert not torch.isclose(agent.loss(Batch(other)).total, out.total), "what was seen is remembered"


def test_the_target_carries_no_gradient_and_no_gradient_reaches_the_target_network() -> None:
    agent = make(burn_in=1, length=5)
    s = sequences(agent, 4, 2)
    s = s._replace(next_obs=s.next_obs.requires_grad_())
    out = agent.loss(Batch(s))
    assert torch.autograd.grad(out.total, s.next_obs, retain_graph=True, allow_unused=True) == (None,)
    out.total.backward()
    assert all(p.grad is None for p in agent.target.parameters())
    assert all(p.grad is not None and p.grad.any() for p in agent.online.parameters())


def test_the_loss_adds_up_over_sequences() -> None:
    agent = make(burn_in=2, length=5)
    s = sequences(agent, 6, 3)
    parts = []
    for at in (slice(2), slice(2, None)):
        timed = tmap(lambda x, at=at: x[:, at], s._replace(state=(), weight=None))
        rest = tmap(lambda x, at=at: x[at], {"state": s.state, "weight": s.weight})
        parts.append(agent.loss(Batch(timed._replace(**rest))))
    whole = agent.loss(Batch(s))
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert whole.priority is not None
    torch.testing.assert_close(torch.cat([part.priority for part in parts]), whole.priority)


def test_an_episode_begins_after_an_end_a_cut_or_a_gap() -> None:
    flags = torch.zeros(6, 1, dtype=torch.bool)
    terminated, truncated, valid = flags.clone(), flags.clone(), ~flags
    terminated[0], truncated[2], valid[4] = True, True, False
    s = sequences(make(burn_in=0, length=6), 1, 0)._replace(terminated=terminated, truncated=truncated, valid=valid)
    assert begins(s).flatten().tolist() == [False, True, False, True, False, True]


def test_rescaling_by_hand_and_its_inverse() -> None:
    x = torch.tensor([0.0, 3.0, -3.0, 8.0, 99.0])
    torch.testing.assert_close(rescale(x), torch.tensor([0.0, 1.003, -1.003, 2.008, 9.099]))
    x = torch.linspace(-500, 500, 1001)
    torch.testing.assert_close(unscale(rescale(x)), x, rtol=1e-4, atol=1e-4)
    assert unscale(rescale(x.double())).sub(x).abs().max() < 1e-9


def test_acting_carries_the_memory_and_flips_a_coin_for_each_environment() -> None:
    agent, n = make(last_action=True), 3000
    rng = torch.Generator().manual_seed(0)
    obs, mask = torch.randn(n, 2, generator=rng), torch.tensor([True, True, False]).expand(n, 3)
    state = agent.initial_state(n)
    first = agent.act(obs, state, {}, {}, explore=False)
    second = agent.act(obs, first.state, {}, {}, mask, explore=False)
    seen = {"obs": torch.stack([obs, obs]), "action": torch.stack([torch.zeros_like(first.action), first.action + 1])}
    features, after = agent.online.features.unroll(seen, state["memory"], torch.zeros(2, n, dtype=torch.bool))
    q = agent.online.head(features)
    torch.testing.assert_close(first.extras["q"], q[0])
    torch.testing.assert_close(second.state["memory"][0], after[0][1])
    assert torch.equal(second.state["action"], second.action + 1)
    assert torch.equal(second.action, q[1, :, :2].argmax(-1)), "the mask is honoured"
    noise = agent.noise("act", n, rng)
    explored = agent.act(obs, first.state, {"epsilon": torch.tensor(0.5)}, noise, mask)
    assert not explored.action.eq(2).any()
    assert (
        abs((explored.action != second.action).float().mean().item() - 0.25) < 0.03
    )  # half of the random are the best
    torch.testing.assert_close(explored.state["memory"], second.state["memory"])
    assert torch.equal(explored.state["action"], explored.action + 1), "the action taken, not the best one"


AGENTS: dict[str, dict[str, Any]] = {
    "gru": {"network": NETWORKS["gru"], "last_action": True, "normalize_obs": True},
    "lstm": {"network": NETWORKS["lstm"], "dueling": True, "rescale": True, "target": "polyak"},
    "history": {"network": NETWORKS["history"]},
    "mlp": {"network": NETWORKS["mlp"], "burn_in": 0, "length": 1, "n_step": 1},
}
LEARNT = {"optim.lr": 5e-3, "source.updates_per_frame": 0.1}


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_it_keeps_the_contract_with_any_network(name: str) -> None:
    source = {"batch_size": 8, "learning_starts": 64, "updates_per_frame": 0.1, "prioritized": name == "lstm"}
    agent = {"name": "r2d2", "burn_in": 2, "length": 6, "n_step": 2, **AGENTS[name]}
    env = {"id": "CartPolePositions-v1", "num_envs": 4}
    check_agent({"env": env, "agent": agent, "source": source}, learns=LEARNT)


def test_the_value_of_reward_one_under_a_time_limit_is_that_without_it() -> None:
    if "OneEachStep" not in registry.names("envs"):
        registry.register("envs", "OneEachStep", OneEachStep)
    raw: dict[str, Any] = {
        "env": {"id": "OneEachStep", "num_envs": 4},
        "agent": {"name": "r2d2", "gamma": 0.9, "burn_in": 1, "length": 4, "n_step": 3, "rescale": True},
        "source": {"learning_starts": 100, "batch_size": 8, "updates_per_frame": 0.2, "frames_per_iteration": 20},
        "optim": {"lr": 0.03, "schedule": {"kind": "linear", "start": 1.0, "end": 0.0}},
        "budget": {"frames": 2000},
    }
    raw["agent"] |= {"target": "polyak", "tau": 0.2, "network": {"name": "gru", "kwargs": {"features": 4}}}
    trainer = build.trainer(configs.validate(raw))
    trainer.fit()
    agent, obs = trainer.agent, torch.ones(1, 1)
    state = agent.initial_state(1)
    for _ in range(10):
        act = agent.act(obs, state, {}, {}, explore=False)
        state, value = act.state, unscale(act.extras["q"].max())
        assert value.item() == pytest.approx(10, abs=0.3), "5.3 or 6.5 would show truncation treated as termination"


@pytest.mark.parametrize("target", ["hard", "polyak"])
def test_the_target_network_follows_by_frames_or_by_updates(target: str) -> None:
    agent = make(target=target, target_every=100, tau=0.25)
    before, online = agent.target.advantage.bias.clone(), agent.online.advantage.bias.clone()
    clock = Clock(1000, 1000)
    clock.frames = 99
    agent.after_update(clock)
    expected = before if target == "hard" else before + 0.25 * (online - before)
    torch.testing.assert_close(agent.target.advantage.bias.detach(), expected.detach())
    clock.updated, clock.frames = 99, 101
    agent.after_update(clock)
    if target == "hard":
        assert torch.equal(agent.target.advantage.bias, online)


def test_a_space_it_cannot_serve_gets_one_sentence_naming_both() -> None:
    with pytest.raises(UserError, match=r"agent 'r2d2' cannot serve action space Box.*; expected Discrete"):
        R2D2(R2D2Config(), SPEC._replace(action_space=spaces.Box(-1, 1, (2,))))


@pytest.mark.parametrize("learning_starts", [0, 1000])
def test_the_stored_action_before_is_the_one_taken_at_random_too(learning_starts: int) -> None:
    env = CartPole(4)
    torch.manual_seed(0)
    config = R2D2Config(network=NetworkConfig(**NETWORKS["gru"]), last_action=True, burn_in=0, length=60)
    agent, clock = R2D2(config, env.spec), Clock(10**6, 10**6)
    # With the ratio of 1e-6 nothing is learnt.
    replay = ReplayConfig(learning_starts=learning_starts, updates_per_frame=1e-6)
    source = Replay(env, replay, seed=0, agent=agent)
    for _ in range(60):
        assert not list(source.collect(agent, clock))
    s = source.buffer.sequences(torch.arange(4), 60)  # from the first step of every environment on
    before = source.buffer.select("state", torch.arange(240))["action"].view(60, 4)
    ended = s.terminated | s.truncated
    assert s.valid.all() and ended.any() and len(s.action.unique()) == 2
    assert torch.equal(before[0], torch.zeros(4, dtype=torch.int64))
    assert torch.equal(before[1:], torch.where(ended[:-1], 0, s.action[:-1] + 1))
