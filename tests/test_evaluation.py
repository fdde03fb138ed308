"""Evaluation: every episode from its own seed, each counted once, whatever the number of environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from agents.configs.supervised import SupervisedConfig
from agents.configs.value import DQNConfig
from agents.dqn import DQN
from agents.supervised import Supervised
from envs.cartpole import CartPole
from envs.language_model import LanguageModel
from envs.tabular import Line
from rlcore import build
from rlcore import config as configs
from rlcore.agent import Agent
from rlcore.config import AgentConfig, NetworkConfig
from rlcore.evaluation import evaluate, play
from rlcore.gym_vector import GymVector
from rlcore.run import Run
from rlcore.types import Act, Batch, Loss

TINY = NetworkConfig(name="mlp", kwargs={"hidden": [8]})


class Seeded(gym.Env[np.ndarray, int]):
    """Lives as many steps as its seed modulo 7 plus 1; the reward of each step is the seed."""

    observation_space = spaces.Box(0, 1e9, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.value = seed if seed is not None else 999_999  # an episode that nobody seeded must not count
        self.left = self.value % 7 + 1
        return np.array([self.value], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.array([self.value], np.float32), float(self.value), self.left == 0, False, {}


class Still(Agent):
    """Does nothing, and remembers in which mode it acted."""

    def __init__(self, spec: Any) -> None:
        super().__init__(AgentConfig(), spec)
        self.dropout = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def act(self, obs: Any, state: Any, knobs: Any, noise: Any, mask: Any = None, explore: bool = True) -> Act:
        self.modes.append(self.training or explore)
        return Act(torch.zeros(len(obs), dtype=torch.int64))

    def loss(self, batch: Batch) -> Loss:
        raise NotImplementedError


@pytest.mark.parametrize("mode", list(gym.vector.AutoresetMode))
@pytest.mark.parametrize("num_envs", [1, 3, 8, 40])
def test_each_seed_is_played_exactly_once(num_envs: int, mode: Any) -> None:
    env = GymVector(gym.vector.SyncVectorEnv([Seeded] * num_envs, autoreset_mode=mode))
    played = play(Still(env.spec), env, 20, 100)
    expected = [(s % 7 + 1) * s for s in range(100, 120)]
    assert played.returns.tolist() == expected
    assert played.lengths.tolist() == [s % 7 + 1 for s in range(100, 120)]


def test_mode_and_global_random_state_are_left_as_they_were() -> None:
    env = GymVector(gym.vector.SyncVectorEnv([Seeded] * 2, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP))
    agent = Still(env.spec).train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    evaluate(agent, env, 3, 0)
    assert agent.training
    assert not any(agent.modes), "evaluation acts greedily, in eval mode"
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_envs", [1, 7, 16])
def test_a_network_is_judged_alike_with_any_number_of_environments(num_envs: int) -> None:
    torch.manual_seed(1)
    env = CartPole(16)
    agent = DQN(DQNConfig(network=TINY), env.spec)
    expected = play(agent, env, 16, 10_000).returns.tolist()
    assert play(agent, CartPole(num_envs), 16, 10_000).returns.tolist() == expected
    assert len(set(expected)) > 1, "episodes differ by their seeds"


def test_a_task_is_scored_on_every_held_out_row() -> None:
    env = Line(5, split="test", n=200, test_fraction=0.3)
    agent = Supervised(SupervisedConfig(network=NetworkConfig(name="mlp", kwargs={"hidden": []})), env.spec)
    assert env.episodes == 60
    result = evaluate(agent, env, env.episodes, 10_000)
    x, y = env.task.draw(torch.arange(60))
    with torch.no_grad():
        error = (agent.network(x) - y).flatten()
    assert result["mse"] == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert result["mae"] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert result["r2"] == pytest.approx(1 - (error.square().sum() / (y - y.mean()).square().sum()).item(), rel=1e-4)
    assert result["mean"] == pytest.approx(-result["mse"], rel=1e-5)


def test_an_endless_episode_counts_as_it_stands() -> None:
    env = CartPole(2)
    torch.manual_seed(1)
    played = play(DQN(DQNConfig(network=TINY), env.spec), env, 2, 0, max_steps=5)
    assert played.lengths.tolist() == [5, 5]


class Successful(Seeded):
    """Says of each episode whether its seed is even."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"is_success": terminated and self.value % 2 == 0}


def test_success_rate_comes_from_the_last_step_of_each_episode() -> None:
    vector = gym.vector.SyncVectorEnv([Successful] * 4, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    env = GymVector(vector, extras=("is_success",))
    assert evaluate(Still(env.spec), env, 11, 0)["success_rate"] == pytest.approx(6 / 11)


class Settled(Successful):
    """Lives on for ever, a success from its third step on."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, _, truncated, _ = super().step(action)
        return obs, reward, False, truncated, {"is_success": self.value % 7 + 1 - self.left >= 3}


@pytest.mark.parametrize(("max_steps", "rate"), [(2, 0.0), (5, 1.0)])
def test_success_of_an_episode_cut_short_is_that_of_its_last_step(max_steps: int, rate: float) -> None:
    vector = gym.vector.SyncVectorEnv([Settled] * 2, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    env = GymVector(vector, extras=("is_success",))
    assert evaluate(Still(env.spec), env, 3, 0, max_steps)["success_rate"] == rate


class Counting(Supervised):
    """Remembers how many items it was shown at once."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[int] = []

    def act(self, obs: Any, *args: Any, **kwargs: Any) -> Act:
        self.seen.append(len(obs))
        return super().act(obs, *args, **kwargs)


def _settings(tmp_path: Path, recipe: str, batch_size: int) -> Any:
    """Return a recipe whose held-out split has over 300 items of 64 numbers each."""
    changes: dict[str, Any] = {"source.batch_size": batch_size}
    if recipe == "shakespeare":
        (tmp_path / "text.txt").write_text("".join(chr(97 + i * i % 26) for i in range(240_000)))
        changes |= {"env.kwargs.data": str(tmp_path / "text.txt"), "agent.network.kwargs": {"layers": 1, "width": 16}}
    return configs.validate(configs.override(configs.read(recipe), changes))


@pytest.mark.parametrize("recipe", ["digits_cnn", "shakespeare"])
@pytest.mark.parametrize(("batch_size", "most"), [(16, 2**13 // 64), (200, 200)])
def test_a_held_out_split_is_looked_at_in_equal_parts_whose_size_is_bounded(
    tmp_path: Path, recipe: str, batch_size: int, most: int
) -> None:
    config = _settings(tmp_path, recipe, batch_size)
    parts = build.evaluation_env(config, "test", 100)
    size = parts.task.size
    torch.manual_seed(3)
    agent = Counting(config.agent, parts.spec)
    found = evaluate(agent, parts, size, 2_000_000)
    assert max(agent.seen) <= most < size
    assert len(agent.seen) == -(-size // most) and sum(agent.seen) - size < len(agent.seen), "hardly any is seen twice"
    whole = evaluate(agent, build.env(config.env, split="test", num_envs=size), size, 2_000_000)
    assert agent.seen[-1] == size
    assert found.pop("returns") == pytest.approx(whole.pop("returns"), rel=1e-5, abs=1e-6), "in the same order"
    assert found == pytest.approx(whole, rel=1e-5, abs=1e-6)


def test_episodes_of_many_steps_are_played_side_by_side() -> None:
    config = configs.validate(configs.read("pixel_breakout_pqn"))
    assert build.evaluation_env(config, "test", 100).num_envs == 100


def test_predictions_of_many_inputs_are_made_in_parts(tmp_path: Path) -> None:
    config = _settings(tmp_path, "shakespeare", 16)
    env = build.env(config.env, num_envs=1)
    agent = Counting(config.agent, env.spec)
    predictor = LanguageModel.predictor({**config.env.kwargs, **env.fitted()})
    run = Run(tmp_path, config, agent, env.spec, predictor)
    text = (tmp_path / "text.txt").read_text()
    inputs = [text[i : i + 64] for i in range(300)]
    found, _ = run.predict(inputs)
    assert agent.seen == [128, 128, 44]
    assert found == [run.predict([one])[0][0] for one in inputs]
