"""Running moments against NumPy on all that was seen; normalised observations of every space; frozen in evaluation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import ReplayConfig, Reward, RolloutConfig
from rlcore.native import BatchedEnv
from rlcore.normalize import Moments, Normalizer, RewardScale
from rlcore.sources import Replay, Rollout
from rlcore.targets import hard_update, polyak_update
from rlcore.types import Act, Batch, Loss
from rlcore.vector import Autoreset


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 2**31), st.sampled_from([0.0, 1e6]))
def test_moments_are_those_of_all_items_together(sizes: list[int], seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    batches = [rng.normal(offset, 2, (n, 3)) for n in sizes]
    moments = Moments((3,))
    for batch in batches:
        moments.update(torch.tensor(batch))
    seen = np.concatenate(batches)
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.variance(), seen.var(0), rtol=1e-6, atol=1e-9)
    assert float(moments.count) == len(seen)


def test_moments_leave_out_invalid_items() -> None:
    moments = Moments()
    x = torch.tensor([1.0, 100.0, 3.0])
    moments.update(x, torch.tensor([False, False, False]))
    assert float(moments.variance()) == 1 and float(moments.count) == 0
    moments.update(x, torch.tensor([True, False, True]))
    moments.update(x, torch.tensor([False, False, False]))
    assert (float(moments.count), float(moments.mean), float(moments.variance())) == (2, 2, 1)


def test_moments_stay_right_after_very_many_items() -> None:
    moments = Moments()
    moments.update(torch.tensor([0.0, 2.0]))
    moments.count.fill_(2.0**40)
    moments.squares.fill_(2.0**40)
    moments.update(torch.full((1024,), 1025.0))  # delta 1024: the mean moves by 2**-20, which float32 would lose
    assert float(moments.mean - 1) == pytest.approx(2.0**-20, rel=1e-6)


def test_observations_by_hand() -> None:
    normalizer = Normalizer(spaces.Box(-np.inf, np.inf, (2,)))
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert torch.equal(normalizer(x), x)
    normalizer.observe(x)  # mean 2 5, variance 1 0
    torch.testing.assert_close(
        normalizer(torch.tensor([[4.0, 5.0], [-50.0, 6.0]])), torch.tensor([[2.0, 0], [-10, 10]])
    )


def test_every_space() -> None:
    space = spaces.Dict(
        {
            "a.b": spaces.Box(-1, 1, (2, 2)),
            "type": spaces.Discrete(3),
            "image": spaces.Box(0, 255, (3,), np.uint8),
            "pair": spaces.Tuple([spaces.Box(-1, 1, (), np.float64), spaces.MultiBinary(2)]),
        }
    )
    obs = {
        "a.b": torch.randn(5, 2, 2) * 3 + 1,
        "type": torch.arange(5) % 3,
        "image": torch.zeros(5, 3, dtype=torch.uint8),
        "pair": (torch.randn(5, dtype=torch.float64), torch.ones(5, 2, dtype=torch.int8)),
    }
    normalizer = Normalizer(space)
    normalizer.observe(obs)
    out = normalizer(obs)
    assert out["type"] is obs["type"] and out["image"] is obs["image"] and out["pair"][1] is obs["pair"][1]
    for x, raw in ((out["a.b"], obs["a.b"]), (out["pair"][0], obs["pair"][0])):
        assert x.dtype == torch.float32 and x.shape == raw.shape
        torch.testing.assert_close(x.mean(0), torch.zeros_like(x[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std(0, unbiased=False), torch.ones_like(x[0]), atol=1e-5, rtol=0)


def test_it_is_state_and_only_observe_changes_it() -> None:
    one, other = Normalizer(spaces.Box(-1, 1, (2,))), Normalizer(spaces.Box(-1, 1, (2,)))
    one.observe(torch.randn(9, 2))
    saved = copy.deepcopy(one.state_dict())
    one.train()
    one(torch.randn(9, 2) + 100)
    assert all(torch.equal(x, saved[k]) for k, x in one.state_dict().items())
    other.load_state_dict(saved)
    more = torch.randn(4, 2)
    one.observe(more)
    other.observe(more)
    assert torch.equal(one(more), other(more)) and not torch.equal(one.shift, saved["shift"])


@pytest.mark.parametrize("update", [hard_update, lambda t, o: polyak_update(t, o, 0.01)])
def test_a_target_copy_has_the_online_statistics(update: object) -> None:
    online = nn.Sequential(Normalizer(spaces.Box(-1, 1, (2,))), nn.Linear(2, 2))
    target = copy.deepcopy(online)
    online[0].observe(torch.randn(9, 2))  # type: ignore[operator]
    update(target, online)  # type: ignore[operator]
    assert all(torch.equal(x, y) for x, y in zip(target.buffers(), online.buffers(), strict=True))


def test_rewards_are_divided_by_the_deviation_of_the_discounted_returns() -> None:
    rng = np.random.default_rng(0)
    n, steps, gamma = 3, 200, 0.9
    scale, running, seen = RewardScale(n), np.zeros(n), []
    for _ in range(steps):
        reward, ended, valid = rng.normal(5, 2, n), rng.random(n) < 0.2, rng.random(n) < 0.8
        raw = torch.tensor(reward.astype(np.float32))
        scale.observe(raw, torch.tensor(ended), torch.tensor(valid), gamma)
        out = scale(raw)
        for i in range(n):  # the slow way
            if valid[i]:
                running[i] = gamma * running[i] + np.float32(reward[i])
                seen.append(running[i])
                running[i] *= not ended[i]
        expected = np.clip(reward / np.sqrt(np.var(seen) + 1e-8) if seen else reward, -10, 10)
        np.testing.assert_allclose(out, expected, rtol=1e-4)


class Payday(BatchedEnv):
    """Rewards 3, then -3, ...; episodes of 4 steps."""

    num_uniforms = 1

    def __init__(self, num_envs: int, autoreset: Autoreset) -> None:
        super().__init__(
            num_envs,
            "cpu",
            "train",
            autoreset,
            obs_space=spaces.Box(-1, 1, (1,)),
            action_space=spaces.Discrete(2),
            max_episode_steps=4,
        )

    def initial(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reward = torch.where(state[:, 0] % 2 == 0, 3.0, -3.0).float()
        return state + 1, reward, torch.zeros_like(reward, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        return state.float()


class Still(Agent):
    """Learns nothing."""

    def act(self, obs: Any, state: Any, knobs: Any, noise: Any, mask: Any = None, explore: bool = True) -> Act:
        return Act(torch.zeros(len(obs), dtype=torch.int64))

    def loss(self, batch: Batch) -> Loss:
        raise NotImplementedError

    def prepare(self, rollout: Any) -> Any:
        self.rollout = rollout
        return rollout.reward.flatten()


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
@pytest.mark.parametrize("kind", ["raw", "sign", "normalize"])
def test_sources_transform_what_is_learnt_from_and_nothing_else(kind: Reward, mode: Autoreset) -> None:
    def make() -> Rollout:
        return Rollout(Payday(2, mode), RolloutConfig(horizon=7, reward=kind), seed=0)

    source, agent, clock = make(), Still(None, None), Clock(100, 100)  # type: ignore[arg-type]
    agent.gamma = 0.5
    list(source.collect(agent, clock))
    reward, valid = agent.rollout.reward[:, 0], agent.rollout.valid[:, 0]
    raw = torch.tensor([3.0, -3, 3, -3] * 2)[: int(valid.sum())]
    real = reward[valid]
    if kind == "raw":
        assert torch.equal(real, raw)
    elif kind == "sign":
        assert torch.equal(real, raw.sign())
    else:
        returns = torch.tensor([3, -1.5, 2.25, -1.875] * 2)[: len(raw)]  # gamma 0.5, begun anew with the episode
        assert float(real[-1].abs()) == pytest.approx(3 / float(returns.std(unbiased=False)), rel=1e-5)
        assert float(real[0]) == 10  # no deviation yet: clipped
    assert source.statistics() == {"episode_return": 0.0, "episode_length": 4.0}, "the log is raw"
    saved = copy.deepcopy(source.state_dict())
    other = make()
    other.load_state_dict(saved)
    list(source.collect(agent, clock))
    continued = agent.rollout
    list(other.collect(agent, clock))
    assert torch.equal(continued.reward, agent.rollout.reward)


class Steady(Payday):
    """Reward 1 at every step."""

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state, reward, terminated = super().dynamics(state, action)
        return state, torch.ones_like(reward), terminated


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("n_step", [1, 2])
def test_replay_scales_by_the_present_deviation_what_was_stored_long_ago(n_step: int, prioritized: bool) -> None:
    config = ReplayConfig(learning_starts=1996, updates_per_frame=0.25, reward="normalize", prioritized=prioritized)
    source, agent, clock = Replay(Steady(4, "same_step"), config, seed=0), Still(None, None), Clock(2000, 2000)  # type: ignore[arg-type]
    agent.gamma, agent.n_step = 0.5, n_step
    batches = [batch for _ in range(500) for batch in source.collect(agent, clock)]
    assert len(batches) == 1
    returns = torch.tensor([1, 1.5, 1.75, 1.875])
    scale = 1 / returns.std(unbiased=False)
    sums = batches[0].data.reward / scale
    allowed = torch.tensor([1.0] if n_step == 1 else [1.0, 1.5])  # 1 at the end of an episode
    assert (sums[:, None] - allowed).abs().amin(1).max() < 1e-5
    assert len(sums.round(decimals=3).unique()) == len(allowed)


def test_sequences_from_replay_are_scaled_too() -> None:
    config = ReplayConfig(learning_starts=1996, updates_per_frame=0.25, reward="normalize")
    agent, env = Still(None, None), Steady(4, "same_step")  # type: ignore[arg-type]
    agent.gamma, agent.sequence = 0.5, 3
    source, clock = Replay(env, config, seed=0, agent=agent), Clock(2000, 2000)
    batches = [batch for _ in range(500) for batch in source.collect(agent, clock)]
    scale = 1 / torch.tensor([1, 1.5, 1.75, 1.875]).std(unbiased=False)
    torch.testing.assert_close(batches[0].data.reward, scale.expand(3, 128))


def test_without_the_environments_state_the_running_returns_begin_anew() -> None:
    def make() -> Replay:
        return Replay(Steady(4, "same_step"), ReplayConfig(learning_starts=100, reward="normalize"), seed=0)

    source, agent, clock = make(), Still(None, None), Clock(2000, 2000)  # type: ignore[arg-type]
    for _ in range(6):
        assert not list(source.collect(agent, clock))
    saved = copy.deepcopy(source.state_dict())
    assert saved["scale"]["running"].gt(1).all()
    kept, fresh = make(), make()
    kept.load_state_dict(copy.deepcopy(saved))
    assert torch.equal(kept.scale.running, saved["scale"]["running"])
    saved["actor"]["env"] = None
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.scale.running, torch.zeros(4, dtype=torch.float64))
    assert fresh.scale.returns.count == 24, "what was learnt of returns is kept"
