"""Sources: the ratio of updates to frames, what is stored, epochs, and what survives a checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents.configs.supervised import SupervisedConfig
from agents.configs.value import DQNConfig
from agents.dqn import DQN
from agents.supervised import Supervised
from envs.cartpole import CartPole
from envs.tabular import Line
from rlcore import build
from rlcore import config as configs
from rlcore.actor import EpisodeMeter, random_actions
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import DatasetConfig, NetworkConfig, ReplayConfig, RolloutConfig
from rlcore.errors import UserError
from rlcore.gym_vector import GymVector
from rlcore.make import make_env
from rlcore.sources import Dataset, Replay, Rollout, Source
from rlcore.testing.agents import first_difference
from rlcore.tree import tmap
from rlcore.types import Batch, Step

TINY = NetworkConfig(name="mlp", kwargs={"hidden": [8]})


class Counting(gym.Env[np.ndarray, int]):
    """Observation (episode, step); reward 10 * episode + step; ends after 3 steps, every second time truncated."""

    observation_space = spaces.Box(0, 1e6, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.at = 0
        return self._obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at += 1
        end = self.at == 3
        cut = self.episode % 2 == 1
        return self._obs(), 10.0 * self.episode + self.at, end and not cut, end and cut, {}

    def _obs(self) -> np.ndarray:
        return np.array([self.episode, self.at], np.float32)


MODES = list(gym.vector.AutoresetMode)[:2]


def counting(n: int, mode: Any) -> GymVector:
    return GymVector(gym.vector.SyncVectorEnv([Counting] * n, autoreset_mode=mode))


def dqn(source: Source) -> DQN:
    torch.manual_seed(0)
    return DQN(DQNConfig(network=TINY, gamma=0.5), source.env.spec)


def run(source: Source, agent: Agent, iterations: int, clock: Clock | None = None) -> list[Batch]:
    clock = clock or Clock(10**6, 10**6)
    batches = []
    for _ in range(iterations):
        for batch in source.collect(agent, clock):
            clock.updates += 1
            batches.append(batch)
    return batches


@pytest.mark.parametrize("num_envs", [1, 3, 16])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 2.0])
def test_updates_per_frame_is_the_configured_ratio_for_any_number_of_environments(num_envs: int, ratio: float) -> None:
    config = ReplayConfig(capacity=1000, batch_size=4, learning_starts=48, updates_per_frame=ratio)
    source = Replay(CartPole(num_envs), config, seed=0)
    clock = Clock(10**6, 10**6)
    agent = dqn(source)
    while clock.frames < 480:
        run(source, agent, 1, clock)
        assert clock.updates == int(ratio * max(0, clock.frames - 48))


def test_before_learning_starts_actions_are_random_and_nothing_is_learnt() -> None:
    config = ReplayConfig(capacity=4000, learning_starts=2000, updates_per_frame=1.0)
    source = Replay(CartPole(8), config, seed=0)
    agent = dqn(source)
    clock = Clock(10**6, 10**6)
    agent.act = lambda obs, state, *rest: _always_left(obs, state)  # type: ignore[method-assign]
    assert run(source, agent, 250, clock) == []
    actions = source.buffer.gather(torch.arange(2000), 1.0).action
    assert 0.45 < actions.float().mean() < 0.55
    run(source, agent, 1, clock)
    assert (source.buffer.gather(torch.arange(2000, 2008), 1.0).action == 0).all()


def test_nothing_can_be_drawn_before_something_is_stored() -> None:
    source = Replay(CartPole(2), ReplayConfig(capacity=100, batch_size=4), seed=0)
    with pytest.raises(UserError, match="sampling from an empty buffer"):
        source._sample(dqn(source), 1)


def test_batches_of_one_gather_are_cut_from_one_stream_of_numbers() -> None:
    config = ReplayConfig(
        capacity=1000, batch_size=4, learning_starts=48, updates_per_frame=1.0, frames_per_iteration=48
    )
    source = Replay(CartPole(16), config, seed=0)
    agent, clock = dqn(source), Clock(10**6, 10**6)
    run(source, agent, 1, clock)
    state, rng = source.numbers.state_dict().clone(), source.rng.get_state()
    batches = run(source, agent, 1, clock)
    assert len(batches) == 48
    source.rng.set_state(rng)
    source.numbers.load_state_dict(state)
    expected = source.buffer.choose(source.numbers.take(4 * 48))
    assert torch.equal(torch.cat([batch.index for batch in batches]), expected)


def _always_left(obs: Tensor, state: Any) -> Any:
    from rlcore.types import Act

    return Act(torch.zeros(len(obs), dtype=torch.int64), state)


@pytest.mark.parametrize("mode", MODES)
def test_replay_stores_every_real_step_once_with_its_true_successor(mode: Any) -> None:
    source = Replay(counting(2, mode), ReplayConfig(capacity=100, learning_starts=1000), seed=0)
    clock = Clock(10**6, 10**6)
    while clock.frames < 36:
        run(source, dqn(source), 1, clock)
    assert len(source.buffer) == clock.frames == 36
    data = source.buffer.gather(torch.arange(36), gamma=0.5)
    first = int(data.obs[:, 0].min())  # the adapter's own reset at construction opened earlier episodes
    for obs, reward, discount, successor in zip(data.obs, data.reward, data.discount, data.next_obs, strict=True):
        episode, at = obs.tolist()
        assert at in (0, 1, 2)
        assert successor.tolist() == [episode, at + 1]
        assert reward == 10 * episode + at + 1
        terminated = at == 2 and episode % 2 == 0
        assert discount == (0.0 if terminated else 0.5), "only termination cuts the bootstrap"
        assert episode >= first


@pytest.mark.parametrize("mode", MODES)
def test_rollout_yields_every_real_step_once_an_epoch(mode: Any) -> None:
    source = Rollout(counting(2, mode), RolloutConfig(horizon=8, epochs=2, minibatches=3), seed=0)
    clock = Clock(10**6, 10**6)
    batches = run(source, dqn(source), 1, clock)
    assert len(batches) == 6
    for epoch in (batches[:3], batches[3:]):
        rows = torch.cat([torch.cat([b.data.obs, b.data.next_obs, b.data.discount[:, None]], 1) for b in epoch])
        assert len(rows) == clock.frames == (16 if mode == gym.vector.AutoresetMode.SAME_STEP else 12)
        for episode, at, e2, at2, discount in rows.tolist():
            assert (e2, at2) == (episode, at + 1)
            assert discount == (0.0 if at == 2 and episode % 2 == 0 else 0.5)
    first, second = (torch.cat([b.data.obs for b in epoch]) for epoch in (batches[:3], batches[3:]))
    assert not torch.equal(first, second), "every epoch has its own order"
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_rollout_stops_an_iteration_when_a_loss_asks_for_it() -> None:
    source = Rollout(CartPole(2), RolloutConfig(horizon=4, epochs=3, minibatches=2), seed=0)
    agent, clock, seen = dqn(source), Clock(100, 100), 0
    for batch in source.collect(agent, clock):
        seen += 1
        source.feedback(batch, agent.loss(batch)._replace(stop=torch.tensor(seen == 2)))
    assert seen == 2


@pytest.mark.parametrize("mode", MODES)
def test_episode_statistics_count_real_episodes(mode: Any) -> None:
    source = Replay(counting(2, mode), ReplayConfig(capacity=1000, learning_starts=1000), seed=0)
    clock = Clock(10**6, 10**6)
    start = None
    while clock.frames < 2 * 3 * 4:
        run(source, dqn(source), 1, clock)
        start = source.buffer.gather(torch.arange(2), 1.0).obs[0, 0] if start is None else start
    assert start is not None
    expected = np.mean([sum(10 * (float(start) + e) + at for at in (1, 2, 3)) for e in range(4)])
    stats = source.statistics()
    assert stats["episode_return"] == pytest.approx(expected)
    assert stats["episode_length"] == 3
    assert source.statistics() == {}, "nothing finished since"


def test_hundreds_of_episodes_between_two_log_lines_all_count() -> None:
    meter = EpisodeMeter(64, torch.device("cpu"))
    true = torch.ones(64, dtype=torch.bool)
    for i in range(10):
        zero = torch.zeros(64)
        step = Step(zero, torch.full((64,), float(i)), true, ~true, zero, true, {})
        meter.add(tmap(lambda x: x.unsqueeze(0), step))
    stats = meter.flush()
    assert stats == {"episode_return": 4.5, "episode_length": 1.0}


@pytest.mark.parametrize(("rows", "size"), [(70, 32), (64, 32), (5, 0), (5, 100)])
def test_dataset_epochs_use_every_example_once_short_last_batch_included(rows: int, size: int) -> None:
    env = Line(1, n=max(rows, 10) * 2, val_fraction=0.25, test_fraction=0.25)
    total = env.task.size
    source = Dataset(env, DatasetConfig(batch_size=size), seed=0)
    agent = Supervised(SupervisedConfig(network=TINY), env.spec)
    clock = Clock(10**6, 10**6)
    step = min(size or total, total)
    per_epoch = -(-total // step)
    epochs = [torch.cat([b.data.target for b in run(source, agent, per_epoch, clock)]) for _ in range(3)]
    assert clock.frames == 3 * total
    everything = sorted(env.task.draw(torch.arange(total)).target.flatten().tolist())
    for epoch in epochs:
        assert sorted(epoch.flatten().tolist()) == everything
    assert not torch.equal(epochs[0], epochs[1]) or total == 1


def _sources() -> dict[str, Any]:
    replay = ReplayConfig(capacity=60, batch_size=4, learning_starts=8, updates_per_frame=0.5)
    return {
        "replay": lambda: Replay(CartPole(3), replay, seed=0),
        "replay-sync": lambda: Replay(make_env("CartPole-v1", 3, backend="sync"), replay, seed=0),
        "replay-next-step": lambda: Replay(
            make_env("CartPole-v1", 3, backend="sync", autoreset="next_step"), replay, seed=0
        ),
        "rollout": lambda: Rollout(CartPole(3), RolloutConfig(horizon=5, epochs=2, minibatches=2), seed=0),
        "dataset": lambda: Dataset(Line(1, n=200), DatasetConfig(batch_size=32), seed=0),
    }


@pytest.mark.parametrize("name", sorted(_sources()))
def test_a_source_restored_in_a_fresh_one_yields_the_same_batches(name: str) -> None:
    make = _sources()[name]
    one = make()
    agent: Agent = dqn(one) if name != "dataset" else Supervised(SupervisedConfig(network=TINY), one.env.spec)
    clock = Clock(10**4, 10**4)
    run(one, agent, 31, clock)
    saved, ticks = one.state_dict(), clock.state_dict()
    saved = copy.deepcopy(saved)
    expected = run(one, agent, 31, clock)
    other, late = make(), Clock(10**4, 10**4)
    other.load_state_dict(saved)
    late.load_state_dict(ticks)
    got = run(other, agent, 31, late)
    assert len(expected) == len(got) > 0
    assert first_difference([list(b.data) for b in expected], [list(b.data) for b in got]) is None


def test_without_its_buffer_a_source_starts_new_ones_and_says_nothing_wrong() -> None:
    config = ReplayConfig(capacity=60, batch_size=4, learning_starts=0)
    source = Replay(CartPole(3), config, seed=0, save_buffer=False)
    run(source, dqn(source), 5)
    assert source.state_dict()["buffer"] is None
    assert source.nbytes() == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["replay", "rollout"])
def test_normalisers_learn_from_every_real_step_and_no_other(kind: str, mode: Any) -> None:
    env, clock = counting(3, mode), Clock(10**6, 10**6)
    config = DQNConfig(network=NetworkConfig(name="mlp", kwargs={"hidden": []}), normalize_obs=True)
    agent = DQN(config, env.spec)
    source = (
        Replay(env, ReplayConfig(learning_starts=10**6), 0) if kind == "replay" else Rollout(env, RolloutConfig(), 0)
    )
    seen: list[Tensor] = []
    source.counted = lambda *a, counted=source.counted: seen.append(counted(*a)) or seen[-1]  # type: ignore
    for _ in range(20):
        list(source.collect(agent, clock))
    assert agent.normalizer is not None and agent.normalizer.moments is not None
    moments = agent.normalizer.moments
    real = torch.cat([acted.obs[acted.step.valid] for acted in seen]).double()  # type: ignore[attr-defined]
    assert moments.count.item() == clock.frames == len(real)
    torch.testing.assert_close(moments.mean, real.mean(0))
    torch.testing.assert_close(moments.variance(), real.var(0, unbiased=False))


@pytest.mark.parametrize("num_envs", [1, 4, 7])
def test_capacity_counts_transitions_whatever_the_number_of_environments(num_envs: int) -> None:
    source = Replay(CartPole(num_envs), ReplayConfig(capacity=61, learning_starts=1000), seed=0)
    run(source, dqn(source), 100)
    assert len(source.buffer) == 61


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_stored_ends_where_a_resume_starts_new_episodes(kept: bool) -> None:
    def make() -> Replay:
        return Replay(CartPole(3), ReplayConfig(capacity=60, learning_starts=100), seed=0)

    source, clock = make(), Clock(10**6, 10**6)
    agent = dqn(source)
    run(source, agent, 6, clock)
    saved = copy.deepcopy(source.state_dict())
    if not kept:
        saved["actor"]["env"] = None
    other = make()
    other.load_state_dict(saved)
    run(other, agent, 2, clock)
    latest = torch.arange(15, 18)  # the step before the checkpoint: CartPole does not fall in 6
    t = other.buffer.gather(latest, 0.9, 3)
    summed = 3 if kept else 1
    assert t.discount.tolist() == [pytest.approx(0.9**summed)] * 3
    assert other.buffer.select("truncated", latest).tolist() == [not kept] * 3


def test_a_resume_without_the_buffer_fills_a_new_one_before_it_learns_at_the_configured_ratio() -> None:
    config = ReplayConfig(capacity=600, batch_size=4, learning_starts=48, updates_per_frame=0.5)

    def make() -> Replay:
        return Replay(CartPole(4), config, seed=0, save_buffer=False)

    one, clock = make(), Clock(10**6, 10**6)
    agent = dqn(one)
    assert len(run(one, agent, 50, clock)) == (200 - 48) / 2
    other, late = make(), Clock(10**6, 10**6)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    late.load_state_dict(clock.state_dict())
    assert run(other, agent, 12, late) == [], "the next 48 frames fill the buffer"
    assert late.frames == 248
    for iteration in range(1, 20):
        batches = run(other, agent, 1, late)
        assert len(batches) == 2, f"iteration {iteration} of 4 frames at half an update a frame"


class Forbidding(Counting):
    """Allows at step t but one of five actions, (episode + t) % 5."""

    action_space = spaces.Discrete(5)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        return obs, info | {"action_mask": self._mask()}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        *outcome, info = super().step(action)
        return *outcome, info | {"action_mask": self._mask()}  # type: ignore[return-value]

    def _mask(self) -> np.ndarray:
        return (np.arange(5) == (self.episode + self.at) % 5).astype(np.int8)


@pytest.mark.parametrize("mode", MODES)
def test_random_actions_before_learning_starts_respect_the_action_mask(mode: Any) -> None:
    vector = GymVector(gym.vector.SyncVectorEnv([Forbidding] * 3, autoreset_mode=mode))
    source = Replay(vector, ReplayConfig(capacity=300, learning_starts=10_000), seed=0)
    run(source, dqn(source), 40)
    count = len(source.buffer)
    data = source.buffer.gather(torch.arange(count), 1.0)
    assert count > 80 and len(data.action.unique()) == 5
    assert torch.equal(data.action, data.obs.sum(1).long() % 5)
    assert data.extras["action_mask"].gather(1, data.action[:, None]).all()


def test_random_actions_are_uniform_in_every_space_and_respect_masks() -> None:
    rng = torch.Generator().manual_seed(0)
    counts = torch.bincount(random_actions(spaces.Discrete(3), 6000, rng), minlength=3)
    assert (counts > 1850).all()
    mask = torch.tensor([[True, False, True]]).expand(6000, 3)
    masked = torch.bincount(random_actions(spaces.Discrete(3), 6000, rng, mask), minlength=3)
    assert masked[1] == 0
    assert (masked[[0, 2]] > 2800).all()
    box = random_actions(spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)), 6000, rng)
    assert box.shape == (6000, 2)
    assert -2 <= box[:, 0].min() < -1.9 < 1.9 < box[:, 0].max() <= 2
    assert box[:, 1].min() >= 0 and box[:, 1].max() <= 1
    many = random_actions(spaces.MultiDiscrete([2, 5]), 6000, rng)
    assert set(many[:, 0].tolist()) == {0, 1}
    assert set(many[:, 1].tolist()) == set(range(5))
    assert random_actions(spaces.MultiBinary(3), 10, rng).shape == (10, 3)
    with pytest.raises(UserError, match="random actions cannot be drawn"):
        random_actions(spaces.Box(-np.inf, np.inf, (1,), np.float32), 1, rng)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"source.name": "rollout"}, "agent.n_step: got 3, expected 1 with source.name=rollout"),
        ({"env.id": "BitFlip", "source.hindsight": 0.5}, "agent.n_step: got 3, expected 1 with source.hindsight"),
    ],
)
def test_more_steps_than_a_source_can_assemble_are_refused_before_the_first(
    overrides: dict[str, Any], message: str
) -> None:
    config = configs.validate(configs.override({"agent": {"name": "dqn", "n_step": 3}}, overrides))
    with pytest.raises(UserError, match=message):
        build.trainer(config)


def test_dataset_needs_a_task() -> None:
    with pytest.raises(UserError, match="needs a task with labelled examples"):
        Dataset(CartPole(1), DatasetConfig(), seed=0)
