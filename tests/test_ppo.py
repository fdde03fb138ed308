"""PPO: its loss by hand, the details that it stands or falls with, every kind of action, and resume."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents.a2c import A2C
from agents.actor_critic import Item
from agents.configs.policy import A2CConfig, PPOConfig
from agents.ppo import PPO
from rlcore import build, registry
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import NetworkConfig, RolloutConfig
from rlcore.evaluation import evaluate
from rlcore.gym_vector import GymVector
from rlcore.make import make_env
from rlcore.native import BatchedEnv
from rlcore.sources import Rollout as Source
from rlcore.testing import check_agent
from rlcore.types import Batch, Spec

SPEC = Spec(spaces.Box(-np.inf, np.inf, (2,)), spaces.Discrete(2))
LINEAR = NetworkConfig(name="mlp", kwargs={"hidden": []})


def make(spec: Spec = SPEC, **options: Any) -> PPO:
    torch.manual_seed(0)
    return PPO(PPOConfig(**{"network": LINEAR, **options}), spec)


def items(old: list[float], advantage: list[float], value: list[float], target: list[float], **changes: Any) -> Item:
    """Four steps in states whose policy is uniform: log p = log 1/2 whatever the action."""

    def column(x: list[float]) -> Tensor:
        return torch.tensor(x)[:, None]

    n = len(old)
    flags = torch.zeros(n, 1, dtype=torch.bool)
    item = Item(torch.ones(n, 1, 2), flags.long(), column(old), column(value), column(advantage), column(target),
                ~flags, flags)  # fmt: skip
    return item._replace(**changes)


# Ratios 1/2, 3/2, 3/2 and 1/2 against advantages of both signs; V(s) = 3.
OLD = (-np.log([1.0, 3.0, 3.0, 1.0])).tolist()
HAND = {"old": OLD, "advantage": [1.0, 1.0, -2.0, -2.0], "value": [3.0, 2.0, 2.0, 3.0], "target": [3.0, 5.0, 2.0, 1.0]}


def at_hand(**options: Any) -> tuple[PPO, Any]:
    agent = make(**options)
    with torch.no_grad():
        agent.head.logits.weight.zero_()
        assert agent.critic is not None
        agent.critic.weight.fill_(1.5)
    return agent, agent.loss(Batch(items(**HAND)))


def test_loss_by_hand() -> None:
    agent, out = at_hand(clip=0.2, value_coef=0.1, entropy_coef=0.01)
    # min(0.5 * 1, 0.8 * 1), min(1.5, 1.2), min(1.5 * -2, 1.2 * -2), min(0.5 * -2, 0.8 * -2)
    policy = -(0.5 + 1.2 - 3.0 - 1.6)
    value = 0.5 * (0 + 4 + 1 + 4)
    assert out.total.item() == pytest.approx(policy + 0.1 * value - 0.01 * 4 * np.log(2), rel=1e-5)
    assert float(out.count) == 4 and out.stop is False
    kl = np.mean([r - 1 - np.log(r) for r in (0.5, 1.5, 1.5, 0.5)])
    expected = {
        "policy_loss": policy / 4, "value_loss": value / 4, "entropy": np.log(2), "approx_kl": kl, "clip_fraction": 1.0,
        "explained_variance": 1 - np.var([0, 3, 0, -2]) / np.var([3, 5, 2, 1]),
    }  # fmt: skip
    assert {name: float(x) for name, x in out.metrics.items()} == pytest.approx(expected, rel=1e-5)
    out.total.backward()
    assert agent.head.logits.bias.grad is not None
    # Only the first (ratio 0.5 < 0.8, A > 0) and the third (ratio 1.5 > 1.2, A < 0) are followed: -A ratio (1 - p).
    assert agent.head.logits.bias.grad[0].item() == pytest.approx((-0.5 * 1 + 1.5 * 2) * 0.5, rel=1e-5)


def test_value_clipping_is_off_by_default_and_by_hand_where_on() -> None:
    assert PPOConfig().value_clip == 0
    _, out = at_hand(value_clip=0.5)
    # V = 3, old 3 2 2 3, target 3 5 2 1: held to 3, 2.5, 2.5, 3; the larger of both errors counts
    assert out.metrics["value_loss"].item() == pytest.approx(0.5 * (0 + 2.5**2 + 1 + 4) / 4)


def test_target_kl_ends_the_updates_of_the_rollout() -> None:
    kl = np.mean([r - 1 - np.log(r) for r in (0.5, 1.5, 1.5, 0.5)])
    for target, stops in ((kl / 1.5 * 0.99, True), (kl / 1.5 * 1.01, False)):
        assert bool(at_hand(target_kl=target)[1].stop) == stops
    raw: dict[str, Any] = {
        "env": {"num_envs": 4},
        "agent": {"name": "ppo", "target_kl": 0.01},
        "source": {"horizon": 16, "epochs": 50},
        "optim": {"lr": 0.01},
    }
    trainer = build.trainer(configs.validate(raw))
    for stop_after in (3, 50, 1):
        yielded = 0
        for batch in trainer.source.collect(trainer.agent, trainer.clock):
            yielded += 1
            stop = torch.tensor(yielded >= stop_after)
            trainer.source.feedback(batch, trainer.agent.loss(batch)._replace(stop=stop))
        assert yielded == stop_after
    for _ in range(5):
        trainer.iterate()
    assert trainer.clock.updates < 5 * 50, "some rollout was left early"


def test_the_policy_starts_nearly_uniform_and_the_layers_orthogonal() -> None:
    agent = make(network=NetworkConfig(kwargs={"hidden": [32, 32]}))
    assert agent.critic is not None
    head = agent.head.logits.weight.detach()
    torch.testing.assert_close(head @ head.T, 1e-4 * torch.eye(2), rtol=0, atol=1e-8)
    mean = make(Spec(SPEC.obs_space, BOX)).head.mean.weight.detach()
    torch.testing.assert_close(mean @ mean.T, 1e-4 * torch.eye(len(mean)), rtol=0, atol=1e-8)
    assert agent.critic.weight.norm().item() == pytest.approx(1.0)
    layers = [m for m in agent.trunks.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 4
    for layer in layers:
        w = layer.weight.detach()
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        torch.testing.assert_close(gram, 2 * torch.eye(len(gram)), rtol=0, atol=1e-5)
        assert not layer.bias.any()
    assert len(make(shared=True, network=NetworkConfig()).trunks) == 1


def test_advantages_are_scaled_once_per_minibatch_over_real_steps() -> None:
    valid = torch.tensor([[True, True, False, True], [True, True, True, True]])
    advantage = torch.tensor([[1.0, 2.0, 1000.0, 6.0], [-4.0, 0.5, 3.0, 2.0]])
    state = ()
    item = items(**HAND)._replace(advantage=advantage, valid=valid, state=state)
    scaled = make().minibatch(item).advantage[valid]
    real = advantage[valid]
    torch.testing.assert_close(scaled, (real - real.mean()) / real.std(unbiased=False))
    assert make(normalize_advantage=False).minibatch(item) is item

    raw = {"env": {"num_envs": 4}, "agent": {"name": "ppo"}, "source": {"horizon": 8, "epochs": 2, "minibatches": 3}}
    trainer = build.trainer(configs.validate(raw))
    batches = list(trainer.source.collect(trainer.agent, trainer.clock))
    assert len(batches) == 6
    for batch in batches:
        a = batch.data.advantage
        assert a.mean().item() == pytest.approx(0, abs=1e-5)
        assert a.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)


def test_before_any_update_the_gradient_is_the_policy_gradient() -> None:
    raw = {
        "env": {"num_envs": 4},
        "agent": {"name": "ppo", "normalize_advantage": False, "lam": 0.9, "entropy_coef": 0.1},
    }
    trainer = build.trainer(configs.validate(raw))
    agent: Any = trainer.agent
    (batch,) = trainer.source.collect(agent, trainer.clock)
    plain = A2C(
        A2CConfig(**{**agent.config.model_dump(include=set(A2CConfig.model_fields)), "name": "a2c"}), agent.spec
    )
    plain.load_state_dict(agent.state_dict())
    for one in (agent, plain):
        one.zero_grad()
        one.loss(batch).total.backward()
    for p, q in zip(agent.parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


RECIPES = ["cartpole_ppo", "acrobot_ppo", "lunarlander_ppo", "pendulum_ppo", "cartpole_memory_ppo"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_clip_gradients_anneal_the_rate_and_use_a_large_epsilon(recipe: str) -> None:
    optim = configs.validate(configs.read(recipe)).optim
    assert optim.name == "adam" and optim.eps == 1e-5
    assert 0 < optim.clip <= 1
    assert optim.schedule(0.0) == 1 and optim.schedule(1.0) == 0


BOX = spaces.Box(-0.1, 0.1, (2,))


class Bounded(gym.Env[np.ndarray, np.ndarray]):
    """Refuses actions outside of its Box; observations drift far away."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = BOX

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.at = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.at += 1
        return np.full(1, 100.0 * self.at, np.float32), 50.0 * self.at, self.at == 5, False, {}


def test_continuous_actions_are_clipped_at_the_environment_only() -> None:
    env = GymVector(gym.vector.SyncVectorEnv([Bounded] * 2))
    agent = make(env.spec, log_std=0.5)
    (batch,) = Source(env, RolloutConfig(horizon=50), seed=0).collect(agent, Clock(100, 100))
    assert (batch.data.action.abs() > 0.1).any(), "what is learnt from is what was drawn"
    out = agent.loss(batch)
    assert out.metrics["approx_kl"].item() == pytest.approx(0, abs=1e-6)


def test_the_deviation_does_not_depend_on_the_state() -> None:
    agent = make(Spec(SPEC.obs_space, BOX), log_std=-0.5)
    policy = agent.head(torch.randn(5, 2))
    assert policy.log_std.shape == (2,)
    assert isinstance(agent.head.log_std, torch.nn.Parameter)
    torch.testing.assert_close(policy.log_std.exp(), torch.full((2,), 0.1 * np.exp(-0.5)).float())


def test_statistics_are_learnt_in_training_and_frozen_in_evaluation() -> None:
    env = GymVector(gym.vector.SyncVectorEnv([Bounded] * 2))
    agent = make(env.spec, normalize_obs=True)
    source = Source(env, RolloutConfig(horizon=9, reward="normalize"), seed=0)
    (batch,) = source.collect(agent, Clock(100, 100))
    assert batch.data.obs.max() == 10, "items hold what the policy saw: the first rollout is only clipped"
    assert agent.loss(batch).metrics["approx_kl"].item() == pytest.approx(0, abs=1e-6)
    before, scale = copy.deepcopy(agent.state_dict()), copy.deepcopy(source.scale.state_dict())
    result = evaluate(agent, GymVector(gym.vector.SyncVectorEnv([Bounded] * 2)), 3, 0)
    assert result["mean"] == 50 * (1 + 2 + 3 + 4 + 5), "evaluation counts raw rewards"
    assert all(torch.equal(x, before[k]) for k, x in agent.state_dict().items())
    assert all(torch.equal(x, scale[k]) for k, x in source.scale.state_dict().items())
    (batch,) = source.collect(agent, Clock(100, 100))
    seen = agent.state_dict()["obs.moments.count"]
    assert float(seen) == 30, "18 steps of 2 environments, 6 of them fake"
    assert batch.data.obs.abs().max() < 5


def test_an_observation_normalised_twice_would_show() -> None:
    env = GymVector(gym.vector.SyncVectorEnv([Bounded] * 2))
    agent = make(env.spec, normalize_obs=True)
    source = Source(env, RolloutConfig(horizon=9), seed=0)
    for _ in range(3):
        (batch,) = source.collect(agent, Clock(100, 100))
        assert agent.loss(batch).metrics["approx_kl"].item() == pytest.approx(0, abs=1e-6)


class Guess(BatchedEnv):
    """One step an episode: rewards each part of the action that equals (1), parity of (2) the observed number."""

    num_uniforms = 1

    def __init__(
        self,
        num_envs: int,
        device: str = "cpu",
        split: Any = "train",
        autoreset: Any = "same_step",
        binary: bool = False,
    ) -> None:
        self.binary = binary
        space = spaces.MultiBinary(3) if binary else spaces.MultiDiscrete([3, 2])
        super().__init__(
            num_envs,
            device,
            split,
            autoreset,
            obs_space=spaces.Box(0, 1, (3,)),
            action_space=space,
            max_episode_steps=2,
        )

    def initial(self, u: Tensor) -> Tensor:
        return (u * 3).floor()

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        named = state[:, 0].long()
        wanted = torch.nn.functional.one_hot(named, 3) if self.binary else torch.stack([named, named % 2], 1)
        reward = (action == wanted).float().mean(1)
        return state, reward, torch.ones_like(reward, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(state[:, 0].long(), 3).float()


FAST = {"source.horizon": 16, "source.epochs": 4, "source.minibatches": 2, "optim.lr": 0.01, "agent.gamma": 0.5}
PPOS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "discrete": ({}, {}),
    "discrete-next-step": ({"env": {"backend": "vector", "num_envs": 4}}, {}),
    "shared-normalised": (
        {"agent": {"shared": True, "normalize_obs": True, "target_kl": 0.1, "value_clip": 0.2, "entropy_coef": 0.01},
         "source": {"reward": "normalize"}},
        {"agent.target_kl": 0.0, "source.reward": "raw", "agent.value_clip": 0.0},
    ),
    "continuous": (
        {"env": {"id": "Pendulum-v1"}, "agent": {"normalize_obs": True}, "source": {"reward": "normalize"}},
        {"source.horizon": 32, "source.epochs": 10, "optim.lr": 3e-3, "optim.clip": 0.5},
    ),
    "multi-discrete": ({"env": {"id": "Guess", "num_envs": 8}}, {"env": {"id": "Guess", "num_envs": 8}}),
    "multi-binary": (
        {"env": {"id": "Guess", "num_envs": 8, "kwargs": {"binary": True}}},
        {"env": {"id": "Guess", "num_envs": 8, "kwargs": {"binary": True}}},
    ),
    "masks": ({"env": {"id": "Taxi-v4", "num_envs": 3}}, {}),
    "recurrent": ({"agent": {"network": {"name": "gru", "kwargs": {"features": 8}}, "sequence_length": 4}}, {}),
    "recurrent-next-step": (
        {"env": {"backend": "vector", "num_envs": 4},
         "agent": {"network": {"name": "lstm", "kwargs": {"features": 8}}, "sequence_length": 8, "shared": True}},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PPOS))
def test_it_keeps_the_contract(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_own", dict(registry._own))
    registry.register("envs", "Guess", Guess)
    recipe, learns = PPOS[name]
    source = {"horizon": 8, "epochs": 2, "minibatches": 2, **recipe.get("source", {})}
    check_agent(
        {"env": recipe.get("env", {}), "agent": {"name": "ppo", **recipe.get("agent", {})}, "source": source},
        {**FAST, **learns},
    )


@pytest.mark.parametrize("env", ["Pendulum-v1"])
def test_native_environments_clip_actions_too(env: str) -> None:
    one, other = (make_env(env, 2) for _ in range(2))
    for e in (one, other):
        e.reset(3)
    far, edge = one.step(torch.full((2, 1), 50.0)), other.step(torch.full((2, 1), 2.0))
    assert torch.equal(far.next_obs, edge.next_obs) and torch.equal(far.reward, edge.reward)
