"""PQN: its targets against a slow reference, exploration, masks, tabular values, conformance."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents.configs.value import PQNConfig
from agents.pqn import PQN
from rlcore import build, registry
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import NetworkConfig, RolloutConfig
from rlcore.errors import UserError
from rlcore.native import BatchedEnv
from rlcore.sources import Rollout as RolloutSource
from rlcore.testing import check_agent
from rlcore.types import Batch, Rollout, Spec

SPEC = Spec(spaces.Discrete(5), spaces.Discrete(3))
LINEAR = NetworkConfig(name="mlp", kwargs={"hidden": []})
T, N = 7, 4


def make(**options: Any) -> PQN:
    torch.manual_seed(0)
    return PQN(PQNConfig(network=LINEAR, **options), SPEC)


def rollout(masked: bool, fake: bool) -> Rollout:
    rng = torch.Generator().manual_seed(1)

    def coin(p: float) -> Tensor:
        return torch.rand(T, N, generator=rng) < p

    mask = torch.rand(T, N, 3, generator=rng) < 0.5
    return Rollout(
        obs=torch.randint(5, (T, N), generator=rng),
        action=torch.randint(3, (T, N), generator=rng),
        reward=torch.randn(T, N, generator=rng),
        terminated=coin(0.2),
        truncated=coin(0.2),
        next_obs=torch.randint(5, (T, N), generator=rng),
        valid=~coin(0.3) if fake else torch.ones(T, N, dtype=torch.bool),
        act={},
        extras={"next_action_mask": mask | (torch.arange(3) == 1)} if masked else {},
    )


def slow_targets(agent: PQN, data: Rollout, gamma: float, lam: float) -> np.ndarray:
    """G_t, one environment and one step after the other, from the last backwards."""
    out = np.zeros((T, N))
    for n in range(N):
        later = None  # the return of the next real step of the episode
        for t in reversed(range(T)):
            if not data.valid[t, n]:
                continue
            q = agent.q(data.next_obs[t, n][None])[0].tolist()
            allowed = data.extras["next_action_mask"][t, n].tolist() if data.extras else [True] * 3
            best = max(v for v, ok in zip(q, allowed, strict=True) if ok)
            if data.terminated[t, n]:
                onward = 0.0
            elif data.truncated[t, n] or later is None:
                onward = best
            else:
                onward = (1 - lam) * best + lam * later
            later = out[t, n] = float(data.reward[t, n]) + gamma * onward
    return out


@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fake", [False, True])
def test_targets_are_lambda_returns_of_the_best_allowed_action(lam: float, masked: bool, fake: bool) -> None:
    agent = make(gamma=0.9, lam=lam)
    data = rollout(masked, fake)
    with torch.no_grad():
        items = agent.prepare(data)
        expected = slow_targets(agent, data, 0.9, lam)
    valid = data.valid.flatten()
    np.testing.assert_allclose(items.target[valid], expected.ravel()[valid], rtol=1e-5, atol=1e-5)
    assert torch.equal(items.obs, data.obs.flatten())
    assert torch.equal(items.action, data.action.flatten())


def test_the_loss_is_half_the_squared_error_of_the_action_taken_and_spares_the_target() -> None:
    agent = make()
    with torch.no_grad():
        items = agent.prepare(rollout(False, False))
    items = items._replace(target=items.target.requires_grad_())
    out = agent.loss(Batch(items))
    q = agent.q(items.obs)[torch.arange(T * N), items.action]
    assert out.total.item() == pytest.approx(0.5 * (items.target - q).square().sum().item(), rel=1e-5)
    assert out.count == T * N
    assert out.metrics["q_value"].item() == pytest.approx(q.mean().item(), rel=1e-5)
    assert out.metrics["target_q"].item() == pytest.approx(items.target.mean().item(), rel=1e-5)
    out.total.backward()
    assert items.target.grad is None


def test_every_environment_flips_its_own_coin_and_a_mask_is_honoured() -> None:
    agent, n = make(), 6000
    obs = torch.zeros(n, dtype=torch.int64)
    best = int(agent.q(obs[:1]).argmax())
    noise = agent.noise("act", n, torch.Generator().manual_seed(0))
    action = agent.act(obs, (), {"epsilon": torch.tensor(0.3)}, noise).action
    assert abs((action != best).float().mean().item() - 0.2) < 0.02  # a third of the random ones are the best
    assert (agent.act(obs, (), {}, {}, explore=False).action == best).all()
    mask = (torch.arange(3) != best).expand(n, 3)
    for explore in (True, False):
        chosen = agent.act(obs, (), {"epsilon": torch.tensor(0.3)}, noise, mask, explore).action
        assert (chosen != best).all()


def test_observations_are_normalised_in_acting_targets_and_loss_and_learnt_only_when_told() -> None:
    spec = Spec(spaces.Box(-1e6, 1e6, (2,)), spaces.Discrete(3))
    torch.manual_seed(0)
    agent = PQN(PQNConfig(network=LINEAR, normalize_obs=True), spec)
    raw = 1000 * torch.randn(T, N, 2) + 5000
    agent.observe(raw.flatten(0, 1))
    mean, deviation = raw.flatten(0, 1).mean(0), raw.flatten(0, 1).std(0, correction=0)
    scaled = (raw - mean) / deviation
    q = agent.q(scaled.flatten(0, 1)).view(T, N, 3)
    torch.testing.assert_close(agent.act(raw[0], (), {}, {}, explore=False).extras["q"], q[0], rtol=1e-3, atol=1e-3)
    data = rollout(False, False)._replace(obs=raw, next_obs=raw, terminated=torch.zeros(T, N, dtype=torch.bool))
    data = data._replace(truncated=torch.ones(T, N, dtype=torch.bool))
    items = agent.prepare(data)
    torch.testing.assert_close(items.target.view(T, N), data.reward + 0.99 * q.amax(-1), rtol=1e-3, atol=1e-3)
    error = items.target - q.flatten(0, 1)[torch.arange(T * N), items.action]
    assert agent.loss(Batch(items)).total.item() == pytest.approx(0.5 * error.square().sum().item(), rel=1e-2)
    before = agent.obs(raw)
    agent.loss(Batch(items))
    assert torch.equal(before, agent.obs(raw))


def test_what_it_cannot_serve_gets_one_sentence() -> None:
    with pytest.raises(UserError, match=r"agent 'pqn' cannot serve action space Box.*; expected Discrete"):
        PQN(PQNConfig(), SPEC._replace(action_space=spaces.Box(-1, 1, (2,))))
    with pytest.raises(UserError, match="agent 'pqn' cannot use network 'gru', which has a memory"):
        PQN(PQNConfig(network=NetworkConfig(name="gru")), SPEC)
    with pytest.raises(UserError, match=r"agent\.epsilon.*start and end from 0 to 1"):
        configs.validate({"agent": {"name": "pqn", "epsilon": 1.5}})


class OneEachStep(BatchedEnv):
    """One state, reward 1 at every step, a time limit of 10 steps and no terminal state."""

    num_uniforms = 1

    def __init__(self, num_envs: int, device: str = "cpu", split: Any = "train", autoreset: Any = "same_step") -> None:
        box = spaces.Box(0, 1, (1,))
        super().__init__(
            num_envs, device, split, autoreset, obs_space=box, action_space=spaces.Discrete(2), max_episode_steps=10
        )

    def initial(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = len(state)
        return state, torch.ones(n), torch.zeros(n, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        return state.float()


def test_the_value_of_reward_one_under_a_time_limit_is_that_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_own", dict(registry._own))
    registry.register("envs", "OneEachStepPQN", OneEachStep)
    raw: dict[str, Any] = {
        "env": {"id": "OneEachStepPQN", "num_envs": 4},
        "agent": {"name": "pqn", "gamma": 0.9, "network": {"name": "mlp", "kwargs": {"hidden": []}}},
        "source": {"horizon": 8},
        "optim": {"name": "sgd", "lr": 0.3},
        "budget": {"frames": 8000},
    }
    trainer = build.trainer(configs.validate(raw))
    trainer.fit()
    q = trainer.agent.act(torch.ones(1, 1), (), {}, {}, explore=False).extras["q"]
    assert q.max().item() == pytest.approx(10, abs=0.1), "5.3 or 6.5 would show truncation treated as termination"


def optimal_value(env: Any, gamma: float) -> float:
    """Value iteration's value of the start state of a tabular gymnasium environment."""
    table = env.unwrapped.P
    values = np.zeros(len(table))
    for _ in range(2000):
        values = np.array(
            [max(sum(p * (r + gamma * (not d) * values[s]) for p, s, r, d in table[state][a]) for a in table[state])
             for state in range(len(table))]
        )  # fmt: skip
    return float(values[env.reset(seed=0)[0]])


class Table(PQN):
    """One weight for each state and action, all 0 at first."""

    def __init__(self, config: PQNConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        self.q[1].bias = None
        torch.nn.init.zeros_(self.q[1].weight)


class Batched(BatchedEnv):
    """A tabular gymnasium environment with outcomes of equal chance, from its table; each state has its own draws."""

    num_uniforms = 1

    def __init__(
        self, num_envs: int, device: str = "cpu", split: Any = "train", autoreset: Any = "same_step", of: str = ""
    ) -> None:
        env: Any = gym.make(of)
        self.start = int(env.reset(seed=0)[0])
        rows = [[(outcomes * 3)[:3] for outcomes in by_action.values()] for by_action in env.unwrapped.P.values()]
        table = torch.tensor(rows, dtype=torch.float64)  # (S, A, 3, (probability, successor, reward, done))
        self.successor, self.reward, self.done = table[..., 1].long(), table[..., 2].float(), table[..., 3].bool()
        space, actions = env.observation_space, env.action_space
        super().__init__(
            num_envs, device, split, autoreset, obs_space=space, action_space=actions, max_episode_steps=100
        )

    def initial(self, u: Tensor) -> Tensor:
        return torch.cat([torch.full_like(u, self.start), (u * 2147483646).floor() + 1], 1)

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        draw = state[:, 1] * 16807 % 2147483647  # Park and Miller's generator
        at = state[:, 0].long(), action, (draw / 2147483647 * 3).long()
        return torch.stack([self.successor[at].double(), draw], 1), self.reward[at], self.done[at]

    def observe(self, state: Tensor) -> Tensor:
        return state[:, 0].long()


@pytest.mark.parametrize(
    ("env_id", "gamma", "frames"),
    [
        ("FrozenLake-v1", 0.95, 1_000_000),
        ("CliffWalking-v1", 0.9, 1_000_000),
        pytest.param("Taxi-v4", 0.99, 2_000_000, marks=pytest.mark.slow),
    ],
)
def test_the_start_states_value_is_value_iterations(
    env_id: str, gamma: float, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._own, ("agents", "pqn"), Table)
    monkeypatch.setitem(registry._own, ("envs", "Batched"), Batched)
    raw: dict[str, Any] = {
        "env": {"id": "Batched", "num_envs": 512, "kwargs": {"of": env_id}},
        "agent": {"name": "pqn", "gamma": gamma, "lam": 0.0, "epsilon": 0.5, "network": LINEAR.model_dump()},
        "source": {"horizon": 4, "epochs": 2, "minibatches": 2},
        "optim": {"name": "adam", "lr": 0.1, "schedule": {"kind": "exponential", "start": 1.0, "end": 0.003}},
        "budget": {"frames": frames},
    }
    trainer = build.trainer(configs.validate(raw))
    trainer.fit()
    env = gym.make(env_id)
    start = torch.tensor([int(env.reset(seed=0)[0])])
    value = trainer.agent.act(start, (), {}, {}, explore=False).extras["q"].max().item()
    assert value == pytest.approx(optimal_value(env, gamma), rel=0.05)


RECIPES = [path.stem for path in sorted(configs.recipes().glob("*.yaml")) if "name: pqn" in path.read_text()]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_normalises_before_each_activation(recipe: str) -> None:
    config = configs.validate(configs.read(recipe))
    assert config.agent.name == "pqn"
    env = build.env(config.env, num_envs=1)
    network: Any = build.agent(config, env.spec)
    layers = [m for m in network.q.modules() if not list(m.children())]
    before = [type(one).__name__ for one, two in pairwise(layers) if isinstance(two, torch.nn.ReLU)]
    assert len(before) >= 2
    assert set(before) <= {"LayerNorm", "GroupNorm"}
    env.close()


TINY: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 8},
    "agent": {"name": "pqn", "network": {"name": "mlp", "kwargs": {"hidden": [16], "layer_norm": True}}},
    "source": {"name": "rollout", "horizon": 8, "epochs": 4, "minibatches": 2},
    "optim": {"name": "radam", "lr": 5e-3, "clip": 10.0},
    "budget": {"frames": 4000},
}


@pytest.mark.parametrize(
    "overrides",
    [{}, {"agent.normalize_obs": True}, {"env.num_envs": 1, "source.horizon": 16}, {"env.backend": "sync"}],
)
def test_it_conforms(overrides: dict[str, Any]) -> None:
    check_agent(configs.override(TINY, overrides))


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_fake_steps_are_neither_counted_nor_learnt_from(autoreset: Any) -> None:
    config = configs.validate(TINY)
    env = build.env(config.env, autoreset=autoreset)
    agent, clock = build.agent(config, env.spec), Clock(10**6, 10**6)
    assert isinstance(config.source, RolloutConfig)
    source = RolloutSource(env, config.source, seed=0)
    seen = sum(len(b.data.action) for _ in range(20) for b in source.collect(agent, clock))
    assert seen == clock.frames * config.source.epochs
    assert (clock.frames < 20 * 64) == (autoreset == "next_step")
