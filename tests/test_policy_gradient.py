"""What the policy gradients share: advantages with true successors, sequences, memory, masks, A2C and REINFORCE."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents.a2c import A2C
from agents.actor_critic import ActorCritic, explained_variance
from agents.configs.policy import A2CConfig, PPOConfig, ReinforceConfig
from agents.networks.encode import Network
from agents.ppo import PPO
from agents.reinforce import Reinforce
from rlcore import build, registry
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import RolloutConfig
from rlcore.errors import UserError
from rlcore.gym_vector import GymVector
from rlcore.native import BatchedEnv
from rlcore.sources import Rollout as Source
from rlcore.testing import check_agent
from rlcore.tree import tmap
from rlcore.types import Batch, Rollout, Spec

SPEC = Spec(spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(3))
MODES = list(gym.vector.AutoresetMode)[:2]


class Total(Network):
    """Remembers the sum of the observations: features (B, 2) are the observation and the sum with it."""

    recurrent = True
    out_features = 2

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()

    def initial_state(self, n: int) -> Any:
        return (torch.zeros(n, 1),)

    def step(self, obs: Any, state: Any) -> tuple[Tensor, Any]:
        total = state[0] + obs
        return torch.cat([obs, total], -1), (total,)

    def unroll(self, obs: Any, state: Any, first: Tensor) -> tuple[Tensor, Any]:
        features = []
        for x, reset in zip(obs, first, strict=True):
            out, state = self.step(x, (state[0].masked_fill(reset[:, None], 0.0),))
            features.append(out)
        return torch.stack(features), state


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_own", dict(registry._own))
    registry.register("networks", "total", Total)
    registry.register("envs", "OneEachStepPolicy", OneEachStep)


LINEAR = {"name": "mlp", "kwargs": {"hidden": []}}
KINDS: dict[str, tuple[type[ActorCritic], type[Any]]] = {
    "ppo": (PPO, PPOConfig),
    "a2c": (A2C, A2CConfig),
    "reinforce": (Reinforce, ReinforceConfig),
}


def make(kind: str = "ppo", spec: Spec = SPEC, **options: Any) -> Any:
    torch.manual_seed(0)
    agent, config = KINDS[kind]
    return agent(config(**{"network": LINEAR, **options}), spec)


def value_is(agent: ActorCritic, *weights: float) -> None:
    """Make V = weights . features."""
    assert agent.critic is not None
    with torch.no_grad():
        agent.critic.weight.copy_(torch.tensor([weights]))
        agent.critic.bias.zero_()


def column(*values: Any) -> Tensor:
    return torch.tensor(values)[:, None]


# Four steps of one environment: the second is truncated, the fourth goes on. V(s) = s.
FLAGS = {"terminated": column(False, False, False, False), "truncated": column(False, True, False, False)}


def rollout(agent: Any, obs: list[float], successors: list[float], **changes: Any) -> Rollout:
    """One environment's steps with reward 1, acted by the agent's own value."""
    x = column(*obs)[..., None]
    fields: dict[str, Any] = {
        "obs": x,
        "action": torch.zeros(len(obs), 1, dtype=torch.int64),
        "reward": torch.ones(len(obs), 1),
        **FLAGS,
        "next_obs": column(*successors)[..., None],
        "valid": torch.ones(len(obs), 1, dtype=torch.bool),
        "act": {"log_prob": torch.zeros(len(obs), 1), "value": x[..., 0].clone()},
        "extras": {},
        **changes,
    }
    return Rollout(**fields)


@torch.no_grad()
def test_a_truncation_bootstraps_from_the_true_successor_and_cuts_the_trace() -> None:
    agent = make(gamma=0.5, lam=0.5)
    value_is(agent, 1.0)
    # The successor of the truncated step is 9, the next episode starts at 2.
    items = agent.prepare(rollout(agent, [4.0, 6, 2, 8], [6.0, 9, 8, 10]))
    d = [1 + 3 - 4, 1 + 4.5 - 6, 1 + 4 - 2, 1 + 5 - 8]
    advantage = [d[0] + 0.25 * d[1], d[1], d[2] + 0.25 * d[3], d[3]]
    assert items.advantage.squeeze(1).tolist() == advantage
    assert items.target.squeeze(1).tolist() == [a + v for a, v in zip(advantage, [4, 6, 2, 8], strict=True)]


@torch.no_grad()
def test_a_termination_does_not_bootstrap_even_when_also_truncated() -> None:
    agent = make(gamma=0.5, lam=0.5)
    value_is(agent, 1.0)
    for truncated in (False, True):
        flags = {"terminated": column(False, True, False, False), "truncated": column(False, truncated, False, False)}
        items = agent.prepare(rollout(agent, [4.0, 6, 2, 8], [6.0, 9, 8, 10], **flags))
        assert items.advantage.squeeze(1).tolist()[:2] == [0 + 0.25 * -5, -5]


@torch.no_grad()
def test_a_fake_step_is_passed_over() -> None:
    agent = make(gamma=0.5, lam=0.5)
    value_is(agent, 1.0)
    valid = column(True, True, False, True)
    items = agent.prepare(rollout(agent, [4.0, 6, 9, 8], [6.0, 9, 8, 10], valid=valid))
    assert items.advantage.squeeze(1).tolist() == [-0.125, -0.5, 0.0, -2.0]
    assert torch.equal(items.valid, valid)


@torch.no_grad()
def test_the_bootstrap_of_a_memory_is_one_more_step_on_the_successor() -> None:
    agent = make(gamma=0.5, lam=0.0, network={"name": "total"}, sequence_length=2)
    value_is(agent, 0.0, 1.0)  # V = the sum of all observations of the episode
    state = tuple((column(0.0, 4, 0, 2)[..., None],) for _ in range(2))  # before each step
    acted = {"log_prob": torch.zeros(4, 1), "value": column(4.0, 10, 2, 10)}
    items = agent.prepare(rollout(agent, [4.0, 6, 2, 8], [6.0, 9, 8, 10], state=state, act=acted))
    after = [10, 19, 10, 20]
    expected = [1 + 0.5 * v - old for v, old in zip(after, [4, 10, 2, 10], strict=True)]
    assert items.advantage.flatten().tolist() == expected
    assert items.advantage.shape == (2, 2)
    assert items.first.tolist() == [[False, False], [True, False]]
    assert [s[0].flatten().tolist() for s in items.state] == [[0, 0], [0, 0]], "the memory before each sequence"


@torch.no_grad()
def test_sequences_keep_each_environments_steps_in_order() -> None:
    agent = make(network={"name": "total"}, sequence_length=3)
    steps, envs = 6, 2
    tag = torch.arange(steps)[:, None] * 10.0 + torch.arange(envs)  # (T, N): 10 t + n
    state = tuple((tag[..., None],) for _ in range(2))
    flags = torch.zeros(steps, envs, dtype=torch.bool)
    data = Rollout(tag[..., None], tag.long(), tag, flags, flags, tag[..., None], ~flags,
                   {"log_prob": tag, "value": tag}, {}, state)  # fmt: skip
    items = agent.prepare(data)
    assert items.obs.squeeze(-1).tolist() == [[0, 10, 20], [1, 11, 21], [30, 40, 50], [31, 41, 51]]
    assert items.log_prob.tolist() == items.obs.squeeze(-1).tolist()
    assert items.state[0][0].squeeze(-1).tolist() == [0, 1, 30, 31]
    _, value, by_time = agent.evaluate(items)
    assert by_time.log_prob.view(3, 4).T.tolist() == items.log_prob.tolist()
    sums = items.state[0][0] + items.obs.squeeze(-1).cumsum(1)
    features = torch.stack([items.obs.squeeze(-1), sums], -1)
    torch.testing.assert_close(value.view(3, 4).T, agent.value(features.flatten(0, 1)).view(4, 3))


def test_a_horizon_that_is_no_multiple_of_the_sequences_is_refused() -> None:
    raw = {
        "env": {"num_envs": 2},
        "agent": {"name": "ppo", "network": {"name": "gru"}, "sequence_length": 6},
        "source": {"name": "rollout", "horizon": 16},
    }
    trainer = build.trainer(configs.validate(raw))
    with pytest.raises(UserError, match=r"source.horizon: got 16, expected a multiple of .*sequence_length, .* 6"):
        next(trainer.source.collect(trainer.agent, Clock(100, 100)))


class Countdown(gym.Env[np.ndarray, int]):
    """Episodes of 2 to 5 steps, every second one truncated; the mask forbids action 0 on odd observations."""

    observation_space = spaces.Box(-9, 9, (1,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = self.length = int(self.np_random.integers(2, 6))
        return self._seen()

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        return np.array([self.at], np.float32), {"action_mask": np.array([self.at % 2 == 0, True, True])}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action or self.at % 2 == 0, "a forbidden action"
        self.at -= 1
        obs, info = self._seen()
        over = self.at == 0
        return obs, 1.0, over and self.length % 2 == 0, over and self.length % 2 == 1, info


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", ["mlp", "total", "gru", "lstm"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_loss_sees_the_policy_that_acted(mode: Any, network: str, normalize: bool) -> None:
    env = GymVector(gym.vector.SyncVectorEnv([Countdown] * 3, autoreset_mode=mode))
    kwargs = {"hidden": [8]} if network == "mlp" else {}
    agent = make(spec=env.spec, network={"name": network, "kwargs": kwargs}, sequence_length=4, normalize_obs=normalize)
    with torch.no_grad():
        agent.head.logits.weight.normal_()
    source = Source(env, RolloutConfig(horizon=8, minibatches=3), seed=0)
    fake, steps = False, 0
    for _ in range(4):
        for batch in source.collect(agent, Clock(1000, 1000)):
            with torch.no_grad():
                policy, value, item = agent.evaluate(batch.data)
                out = agent.loss(batch)
            real, ratio = item.valid, (policy.log_prob(item.action) - item.log_prob).exp()
            torch.testing.assert_close(ratio[real], torch.ones(int(real.sum())), rtol=0, atol=1e-5)
            torch.testing.assert_close(value[real], item.value[real], rtol=1e-5, atol=1e-5)
            assert item.mask is not None and item.mask.gather(1, item.action[:, None])[real].all()
            assert int(out.count) == int(real.sum()), "fake steps are not learnt from"
            assert network != "mlp" or bool(real.all())
            fake |= not real.all()
            steps += int(real.sum())
    assert fake == (mode == MODES[0] and network != "mlp")
    assert steps == 4 * 8 * 3 if mode == MODES[1] else steps < 4 * 8 * 3
    if normalize:
        assert agent.obs.moments.count > 0


def test_a_fake_step_does_not_touch_the_loss() -> None:
    agent = make(network={"name": "total"}, sequence_length=4, entropy_coef=0.1)
    state = tuple((torch.zeros(4, 1, 1),) for _ in range(2))
    results = []
    for junk in (9.0, -50.0):
        changed = rollout(agent, [4.0, 6, junk, 8], [6.0, 9, 8, 10], valid=column(True, True, False, True), state=state)
        with torch.no_grad():
            items = agent.minibatch(agent.prepare(changed))
        out = agent.loss(Batch(items))
        agent.zero_grad()
        out.total.backward()
        results.append([out.total.detach(), *out.metrics.values(), *(p.grad.clone() for p in agent.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["a2c", "reinforce"])
def test_the_gradient_is_the_policy_gradient(kind: str) -> None:
    agent = make(kind, gamma=0.5, value_coef=0.0)
    value_is(agent, 1.0)
    with torch.no_grad():
        agent.head.logits.weight.normal_()
        items = agent.prepare(rollout(agent, [4.0, 6, 2, 8], [6.0, 9, 8, 10], action=column(0, 2, 1, 2)))
    returns = [1 + 0.5 * (1 + 4.5), 1 + 4.5, 1 + 0.5 * (1 + 5), 1 + 5]  # all rewards, then the value
    assert items.target.flatten().tolist() == returns
    agent.loss(Batch(items)).total.backward()
    expected = torch.zeros(3)
    for s, a, g in zip([4.0, 6, 2, 8], [0, 2, 1, 2], returns, strict=True):
        p = agent.head.logits(torch.tensor([float(s)])).softmax(-1).detach()
        expected -= (g - s) * (torch.eye(3)[a] - p)  # grad of log softmax
    torch.testing.assert_close(agent.head.logits.bias.grad, expected)


def test_without_a_baseline_returns_are_the_rewards_seen_and_there_is_no_value() -> None:
    agent = make("reinforce", gamma=0.5, baseline=False)
    assert agent.critic is None and len(agent.trunks) == 1
    seen = {"log_prob": torch.zeros(4, 1), "value": torch.zeros(4, 1)}
    items = agent.prepare(rollout(agent, [4.0, 6, 2, 8], [6.0, 9, 8, 10], act=seen))
    assert items.advantage.flatten().tolist() == [1.5, 1, 1.5, 1]
    out = agent.loss(Batch(items))
    assert "value_loss" not in out.metrics and "explained_variance" not in out.metrics
    assert out.total.item() == pytest.approx(-5 * np.log(1 / 3), rel=0.05)  # nearly uniform at first


def test_explained_variance_by_hand() -> None:
    target, weight = torch.tensor([1.0, 2, 3, 99]), torch.tensor([1.0, 1, 1, 0])
    for value, expected in (
        ([1.0, 2, 3, 0], 1.0),
        ([5.0, 5, 5, 0], 0.0),
        ([3.0, 2, 1, 0], -3.0),
        ([0.5, 1, 1.5, 0], 0.75),
    ):
        assert explained_variance(torch.tensor(value), target, weight).item() == pytest.approx(expected)


def test_masks_of_other_than_discrete_actions_are_refused() -> None:
    spec = Spec(SPEC.obs_space, spaces.MultiDiscrete([2, 2]), frozenset({"action_mask"}))
    with pytest.raises(UserError, match=r"agent 'a2c' cannot mask the actions of MultiDiscrete"):
        make("a2c", spec)


class OneEachStep(BatchedEnv):
    """One state, reward 1 at every step, a time limit of 10 steps and no terminal state."""

    num_uniforms = 1

    def __init__(
        self, num_envs: int, device: str = "cpu", split: Any = "train", autoreset: Any = "", mode: Any = "same_step"
    ) -> None:
        box = spaces.Box(0, 1, (1,))
        super().__init__(
            num_envs, device, split, mode, obs_space=box, action_space=spaces.Discrete(2), max_episode_steps=10
        )

    def initial(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = len(state)
        return state, torch.ones(n), torch.zeros(n, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        return state.float()


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
@pytest.mark.parametrize("kind", ["ppo", "a2c", "reinforce"])
def test_the_value_of_reward_one_under_a_time_limit_is_that_without_it(kind: str, mode: str) -> None:
    raw: dict[str, Any] = {
        "env": {"id": "OneEachStepPolicy", "num_envs": 4, "kwargs": {"mode": mode}},
        "agent": {"name": kind, "gamma": 0.9, "network": LINEAR},
        "source": {"horizon": 15, "epochs": 2, "minibatches": 2},
        "optim": {"name": "sgd", "lr": 0.5},
        "budget": {"frames": 2400},
    }
    trainer = build.trainer(configs.validate(raw))
    trainer.fit()
    agent: Any = trainer.agent
    assert agent.value(torch.ones(1, 1)).item() == pytest.approx(10, abs=0.1), "5.3 or 6.5: truncation as termination"


POLICIES: dict[str, dict[str, Any]] = {
    "a2c": {"agent": {"name": "a2c", "entropy_coef": 0.01, "shared": True}, "source": {"horizon": 8}},
    "a2c-gae-next-step": {
        "env": {"num_envs": 4, "backend": "vector"},
        "agent": {"name": "a2c", "lam": 0.9, "normalize_advantage": True},
        "source": {"horizon": 8},
    },
    "reinforce": {"agent": {"name": "reinforce"}, "source": {"horizon": 32}},
    "reinforce-no-baseline": {
        "agent": {"name": "reinforce", "baseline": False, "normalize_advantage": True},
        "source": {"horizon": 32},
    },
}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_agents_keep_the_contract(name: str) -> None:
    recipe = {**POLICIES[name], "optim": {"lr": 3e-3}}
    check_agent(recipe, {"source.horizon": 8, "optim.lr": 0.01, "agent.gamma": 0.5})


@pytest.mark.parametrize("network", ["mlp", "total"])
def test_the_loss_of_sequences_adds_up_over_them(network: str) -> None:
    env = GymVector(gym.vector.SyncVectorEnv([Countdown] * 3))
    agent = make(spec=env.spec, network={"name": network, "kwargs": {}}, sequence_length=4, entropy_coef=0.1)
    (batch,) = Source(env, RolloutConfig(horizon=8), seed=0).collect(agent, Clock(1000, 1000))
    whole = agent.loss(batch)
    parts = [agent.loss(Batch(tmap(lambda x, at=at: x[at], batch.data))) for at in (slice(2), slice(2, None))]
    assert sum(float(part.count) for part in parts) == float(whole.count)
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-5)
