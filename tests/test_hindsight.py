"""Hindsight: whose goals are taken, what is computed anew, what stays; BitFlip; gymnasium's goal environments."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from test_replay import Environments, NoSync, draw, fields, generator
from torch import Tensor

import rlcore
from agents.configs.value import DQNConfig
from agents.dqn import DQN
from envs.bit_flip import BitFlip
from envs.cartpole import CartPole
from rlcore import build
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import NetworkConfig, ReplayConfig
from rlcore.errors import UserError
from rlcore.evaluation import evaluate
from rlcore.gym_vector import GymVector
from rlcore.hindsight import Hindsight
from rlcore.make import make_env
from rlcore.replay import ReplayBuffer
from rlcore.sources import Replay
from rlcore.testing import check_agent, check_env
from rlcore.testing.agents import check_resume


class Distances:
    """Stands in for an environment: the reward is minus the distance of two tags' steps, 0 of which terminates."""

    has_goals = True
    terminating = True

    def compute_reward(self, achieved: Tensor, desired: Tensor) -> Tensor:
        return -(achieved - desired).abs().sum(-1).float()

    def compute_terminated(self, achieved: Tensor, desired: Tensor) -> Tensor | None:
        return (achieved == desired).all(-1) if self.terminating else None


NOWHERE = -100


def goals(step: dict[str, Any]) -> dict[str, Any]:
    """Make tags the goals achieved; what is desired is nowhere."""
    keep = {name: step[name] for name in ("action", "reward", "terminated", "truncated")}
    for name in ("obs", "next_obs"):
        tag = step[name]["tag"]
        keep[name] = {"observation": tag, "achieved_goal": tag, "desired_goal": torch.full_like(tag, NOWHERE)}
    return keep


def filled(
    capacity: int, n: int, steps: int, fake: float, end: float = 0.2, fraction: float = 1.0, cut: int = -1
) -> Any:
    """Return a buffer, its hindsight and {tag of a stored step: tags of the successors in its episode from it on}."""
    envs = Environments(n, 0, end, fake)
    buffer = ReplayBuffer(capacity, n, goals(fields(Environments(n, 0, 0, 0).step())[0]))
    hindsight, rings = Hindsight(buffer, Distances(), fraction), [[] for _ in range(n)]  # type: ignore[arg-type]
    for t in range(steps):
        if t == cut:
            buffer.cut()
            hindsight.cut()
            rings = [[*ring[:-1], (*ring[-1][:2], True)] if ring else [] for ring in rings]
        rows = envs.step()
        step, valid = fields(rows)
        hindsight.add(buffer.add(goals(step), valid if fake else None), step["terminated"] | step["truncated"])
        for e, row in enumerate(rows):
            if row[5]:
                rings[e].append((row[0], row[4], row[2] or row[3]))
                rings[e] = rings[e][-(capacity // n + (e < capacity % n)) :]
    future = {}
    for ring in rings:
        for i, (tag, _, _) in enumerate(ring):
            ends = [j for j in range(i, len(ring)) if ring[j][2]]
            future[tag] = [row[1] for row in ring[i : (ends[0] if ends else len(ring) - 1) + 1]]
    return buffer, hindsight, future


def relabelled(buffer: ReplayBuffer, hindsight: Hindsight, count: int, gamma: float = 0.5) -> Any:
    index = draw(buffer, count, generator(3))
    before = buffer.gather(index, gamma)
    return before, hindsight.relabel(before, index, gamma, generator(4))


@settings(max_examples=120, deadline=None)
@given(
    n=st.integers(1, 4),
    spare=st.integers(0, 17),
    steps=st.integers(1, 30),
    end=st.sampled_from([0.02, 0.2, 0.7]),
    fake=st.sampled_from([0.0, 0.3]),
    cut=st.integers(-1, 20),
)
def test_goals_are_reached_later_in_the_same_episode_and_all_of_them_are_taken(
    n: int, spare: int, steps: int, end: float, fake: float, cut: int
) -> None:
    buffer, hindsight, future = filled(n + spare, n, steps, fake, end, cut=cut)
    if not future:
        return
    count = 60 * sum(map(len, future.values()))
    before, after = relabelled(buffer, hindsight, count)
    taken: dict[Any, set[Any]] = {tag: set() for tag in future}
    tags = after.obs["observation"].tolist()
    for tag, goal in zip(map(tuple, tags), map(tuple, after.obs["desired_goal"].tolist()), strict=True):
        assert goal in future[tag], f"{goal} is not reached from {tag} on"
        taken[tag].add(goal)
    assert sum(map(len, taken.values())) >= 0.95 * sum(map(len, future.values()))
    goal = after.obs["desired_goal"]
    assert torch.equal(after.next_obs["desired_goal"], goal)
    achieved = before.next_obs["achieved_goal"]
    assert torch.equal(after.reward, -(achieved - goal).abs().sum(-1).float())
    assert torch.equal(after.discount, 0.5 * (after.reward < 0).float()), "its own goal would have ended the episode"
    for name in ("observation", "achieved_goal"):
        assert torch.equal(after.obs[name], before.obs[name])
        assert torch.equal(after.next_obs[name], before.next_obs[name])
    assert torch.equal(after.action, before.action)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_goals_are_uniform_over_the_rest_of_the_episode(fraction: float) -> None:
    buffer, hindsight, _ = filled(30, 1, 12, 0.0, end=0.0, fraction=fraction)
    index = torch.full((60_000,), 4)
    goal = hindsight.relabel(buffer.gather(index, 1.0), index, 1.0, generator()).obs["desired_goal"][:, 2]
    steps, counts = torch.unique(goal[goal != NOWHERE], return_counts=True)
    assert steps.tolist() == list(range(5, 13)), "from its own successor to the latest"
    assert chisquare(counts.numpy()).pvalue > 1e-3, "whether and which are independent"


def test_a_fraction_is_relabelled_and_the_rest_left_alone() -> None:
    buffer, hindsight, _ = filled(40, 2, 20, 0.0, fraction=0.8)
    before, after = relabelled(buffer, hindsight, 20_000)
    kept = after.obs["desired_goal"][:, 0] == NOWHERE
    assert 0.19 < kept.double().mean() < 0.21
    for x, y in ((before.reward, after.reward), (before.discount, after.discount)):
        assert torch.equal(x[kept], y[kept])
    assert torch.equal(kept, after.next_obs["desired_goal"][:, 0] == NOWHERE), "the same ones in the successor"
    hindsight.env.terminating = False  # type: ignore[attr-defined]
    before, after = relabelled(buffer, hindsight, 2_000)
    assert torch.equal(before.discount, after.discount), "the stored one where goals have no say"


@pytest.mark.parametrize("kept", [True, False])
def test_no_goal_is_taken_from_beyond_a_resume_that_starts_new_episodes(kept: bool) -> None:
    config = ReplayConfig(capacity=60, learning_starts=1000, hindsight=1.0)

    def make() -> Replay:
        return Replay(BitFlip(3, bits=8), config, seed=0)

    source, clock = make(), Clock(1000, 1000)
    agent = DQN(DQNConfig(network=NetworkConfig(kwargs={"hidden": [8]})), source.env.spec)
    for _ in range(3):
        assert not list(source.collect(agent, clock))
    saved = copy.deepcopy(source.state_dict())
    if not kept:
        saved["actor"]["env"] = None
    source = make()
    source.load_state_dict(saved)
    for _ in range(3):
        assert not list(source.collect(agent, clock))
    assert source.hindsight is not None
    index = torch.arange(6, 9).repeat(40)  # the last steps before the checkpoint
    t = source.hindsight.relabel(source.buffer.gather(index, 0.9), index, 0.9, generator())
    own = (t.obs["desired_goal"] == t.next_obs["achieved_goal"]).all(1)
    assert own.all() == (not kept)


def test_nothing_waits_for_the_device() -> None:
    buffer, hindsight, _ = filled(23, 4, 9, 0.3)
    step, valid = fields(Environments(4, 1, 0.2, 0.3).step())
    index = draw(buffer, 8, generator())
    with NoSync():
        hindsight.add(buffer.add(goals(step), valid), step["terminated"])
        hindsight.relabel(buffer.gather(index, 0.9), index, 0.9, generator())
        hindsight.cut()


HER: dict[str, Any] = {
    "env": {"id": "BitFlip", "num_envs": 3, "kwargs": {"bits": 4}},
    "agent": {"name": "dqn"},
    "source": {"hindsight": 0.8, "batch_size": 16, "learning_starts": 32, "updates_per_frame": 0.5, "capacity": 100},
}


def test_the_agent_contract_holds_with_hindsight() -> None:
    check_agent(HER, learns={"source.hindsight": 0})
    together = HER | {"source": HER["source"] | {"prioritized": True}}
    check_resume(configs.validate(together), iterations=30)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"env.id": "CartPole-v1"}, "source.hindsight: got 0.8, expected 0: the environment is no goal environment"),
        ({"env.id": "FrozenLake-v1"}, "the environment is no goal environment"),
        ({"source.reward": "sign"}, "source.hindsight: got 0.8, expected 0 with source.reward: sign"),
        ({"agent.n_step": 3}, r"agent.n_step: got 3, expected 1 with source.hindsight"),
    ],
)
def test_what_does_not_go_with_hindsight_is_told(overrides: dict[str, Any], message: str) -> None:
    config = configs.validate(configs.override(HER, overrides))
    with pytest.raises(UserError, match=message):  # noqa: PT012 - some is known at once, the rest before the first act
        trainer = build.trainer(config)
        trainer.iterate()


def test_sequences_do_not_go_with_hindsight() -> None:
    env = BitFlip(2, bits=3)
    agent = DQN(DQNConfig(network=NetworkConfig(name="mlp", kwargs={"hidden": [8]})), env.spec)
    agent.sequence = 2
    with pytest.raises(UserError, match="expected 0 with sequences"):
        Replay(env, ReplayConfig(hindsight=0.5), seed=0, agent=agent)


def test_bit_flip_conforms() -> None:
    check_env("BitFlip", steps=40, kwargs={"bits": 3})
    with pytest.raises(UserError, match="bits: 1 is not a whole number above 1"):
        BitFlip(1, bits=1)


def test_bit_flip_worked_by_hand() -> None:
    env = BitFlip(2, bits=3)
    env._state.copy_(torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]]))
    step = env.step(torch.tensor([0, 1]))
    assert step.next_obs["observation"].tolist() == step.next_obs["achieved_goal"].tolist() == [[1, 1, 1], [0, 1, 0]]
    assert step.next_obs["desired_goal"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert step.reward.tolist() == [0, -1]
    assert step.terminated.tolist() == step.extras["is_success"].tolist() == [True, False]
    env.step(torch.tensor([0, 1]))
    step = env.step(torch.tensor([0, 1]))
    assert step.truncated.tolist() == [False, True], "three steps and no success"
    starts = BitFlip(4000, bits=8).reset(0)[0]
    for name in ("observation", "desired_goal"):
        assert ((starts[name].mean(0) - 0.5).abs() < 0.04).all()
    assert torch.equal(env.compute_terminated(starts["observation"], starts["observation"]), torch.ones(4000).bool())


class Always(DQN):
    """Flips the first bit that is wrong."""

    def act(self, obs: Any, state: Any, *rest: Any, **more: Any) -> Any:
        wrong = (obs["achieved_goal"] != obs["desired_goal"]).int()
        return super().act(obs, state, *rest, **more)._replace(action=wrong.argmax(-1))


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_successes_reach_evaluation_and_the_training_log(mode: Any) -> None:
    env = BitFlip(8, bits=6, autoreset=mode)
    agent = Always(DQNConfig(network=NetworkConfig(name="mlp", kwargs={"hidden": [8]})), env.spec)
    made = Replay(env, ReplayConfig(learning_starts=0), seed=0)
    clock = Clock(10_000, 10_000)
    for _ in range(100):
        list(made.collect(agent, clock))
    assert made.statistics()["success_rate"] == 1.0
    assert evaluate(agent, env, 50, 0)["success_rate"] == 1.0
    made = Replay(env, ReplayConfig(learning_starts=10_000), seed=0)
    for _ in range(300):
        list(made.collect(agent, clock := Clock(10_000, 10_000)))  # random play
    assert 0.01 < made.statistics()["success_rate"] < 0.3
    assert "success_rate" not in Replay(CartPole(1), ReplayConfig(), seed=0).statistics()


def test_hindsight_solves_what_plain_replay_does_not(tmp_path: Path) -> None:
    scores = {}
    for recipe in ("bit_flip_her", "bit_flip"):
        overrides = {
            "env.kwargs.bits": 10,
            "budget.frames": 6000,
            "source.learning_starts": 500,
            "source.batch_size": 64,
            "agent.network.kwargs.hidden": [128],
            "eval.every": 0,
            "eval.final_seed": 2_000_000,
            "seed": 1000,
        }
        run = rlcore.train(recipe, out=tmp_path / recipe, **overrides)
        scores[recipe] = run.result["evaluation"]["success_rate"]
    assert scores["bit_flip_her"] >= 0.95
    assert scores["bit_flip"] <= 0.2


class Point(gym.Env[Any, int]):
    """Walk on the integers to a goal; its methods take one goal at a time, and its infos say success."""

    observation_space = spaces.Dict(
        {k: spaces.Box(-9, 9, (1,)) for k in ("observation", "achieved_goal", "desired_goal")}
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.t = np.zeros(1, np.float32), 0
        self.goal = self.np_random.integers(1, 3, 1).astype(np.float32)
        return self._obs(), {"success": False}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at, self.t = self.at + 2 * action - 1, self.t + 1
        ended = self.compute_terminated(self.at, self.goal, {})
        return self._obs(), self.compute_reward(self.at, self.goal, {}), ended, self.t == 4, {"success": ended}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> float:
        return 0.0 if achieved == desired else -1.0  # of many goals: the truth of an array is ambiguous

    def compute_terminated(self, achieved: Any, desired: Any, info: Any) -> bool:
        return bool(np.linalg.norm(achieved - desired) == 0)  # of many goals: one answer

    def _obs(self) -> dict[str, Any]:
        return {"observation": self.at, "achieved_goal": self.at, "desired_goal": self.goal}


@pytest.mark.parametrize("kind", [gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv])
def test_gymnasiums_goal_environments_are_asked_for_their_own_reward(kind: Any) -> None:
    env = GymVector(kind([Point] * 2, autoreset_mode="SameStep"))
    assert env.has_goals
    assert env.spec.extras == {"is_success"}
    achieved, desired = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [1.0], [3.0]])
    for many in (1, 3):
        assert env.compute_reward(achieved[:many], desired[:many]).tolist() == [0, -1, 0][:many]
        terminated = env.compute_terminated(achieved[:many], desired[:many])
        assert terminated is not None
        assert terminated.tolist() == [True, False, True][:many]
    made = Replay(env, ReplayConfig(hindsight=1.0, learning_starts=40, updates_per_frame=1.0), seed=0)
    agent = DQN(DQNConfig(network=NetworkConfig(name="mlp", kwargs={"hidden": [8]})), env.spec)
    clock, batches = Clock(1000, 1000), []
    for _ in range(40):
        batches += list(made.collect(agent, clock))
    for batch in batches:
        same = (batch.data.next_obs["achieved_goal"] == batch.data.next_obs["desired_goal"])[:, 0]
        assert torch.equal(batch.data.reward, same.float() - 1)
        assert torch.equal(batch.data.discount == 0, same)
        assert same.any()
    assert 0 < made.statistics()["success_rate"] < 1
    env.close()


def test_a_vectorised_reward_is_called_once() -> None:
    robotics = pytest.importorskip("gymnasium_robotics")
    import logging

    logging.disable(logging.CRITICAL)
    gym.register_envs(robotics)
    env = make_env("PointMaze_UMaze-v3", 2)
    goal = torch.rand(5, 2)
    near = goal + torch.tensor([[0.4, 0.0], [0.5, 0.0], [0.0, 0.0], [0.0, 0.44], [2.0, 2.0]])
    assert env.compute_reward(near, goal).tolist() == [1, 0, 1, 1, 0]
    env.close()
    logging.disable(logging.NOTSET)
