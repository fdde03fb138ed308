"""Recurrent state, with an agent that counts: carried, zeroed, stored, resumed, and owned by each user."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from agents.configs.supervised import SupervisedConfig
from agents.supervised import Supervised
from rlcore import registry
from rlcore.actor import Actor
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import AgentConfig, RolloutConfig
from rlcore.evaluation import play
from rlcore.gym_vector import GymVector
from rlcore.make import make_env
from rlcore.sources import Rollout
from rlcore.testing.agents import check_resume, first_difference
from rlcore.types import Act, Batch, Loss, Transition
from rlcore.types import Rollout as RolloutData

MODES = list(gym.vector.AutoresetMode)[:2]


class Parity(gym.Env[np.ndarray, int]):
    """Blind: rewards action = (steps so far) modulo 2. Episodes last 3 or 4 steps. Its masks tell where it is."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.length = 0, int(self.np_random.integers(3, 5))
        return self._obs(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.at % 2)
        self.at += 1
        return self._obs(), reward, self.at == self.length, False, self._info()

    def _obs(self) -> np.ndarray:
        return np.array([self.at], np.float32)

    def _info(self) -> dict[str, Any]:
        return {"action_mask": np.array([self.at < 2, True])}


class CountingConfig(AgentConfig):
    name: Any = "counting"


class Counting(Agent):
    """Counts the steps of its episode in its recurrent state, and acts on the count alone."""

    Config = CountingConfig

    def __init__(self, config: Any, spec: Any) -> None:
        super().__init__(config, spec)
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[RolloutData] = []

    def initial_state(self, n: int) -> Any:
        return {"count": torch.zeros(n), "pair": (torch.zeros(n, 2), torch.zeros(n, dtype=torch.int64))}

    def act(self, obs: Any, state: Any, knobs: Any, noise: Any, mask: Any = None, explore: bool = True) -> Act:
        count = state["count"]
        new = {"count": count + 1, "pair": (state["pair"][0] + 1, state["pair"][1] + 1)}
        return Act((count % 2).long(), new, {"count": count})

    def prepare(self, rollout: RolloutData) -> Transition:
        self.seen.append(rollout)
        flat = rollout.obs.flatten(0, 1)
        return Transition(flat, rollout.action.flatten(), rollout.reward.flatten(), rollout.reward.flatten(), flat)

    def loss(self, batch: Batch) -> Loss:
        return Loss((self.weight * batch.data.reward).sum(), len(batch.data.reward))


def env(mode: Any, n: int = 3) -> GymVector:
    return GymVector(gym.vector.SyncVectorEnv([Parity] * n, autoreset_mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_acting_zeroes_the_state_where_an_episode_began_and_nowhere_else(mode: Any) -> None:
    vector = env(mode)
    actor, agent = Actor(vector, seed=0), Counting(CountingConfig(), vector.spec)
    for _ in range(30):
        acted = actor.step(agent, {}, {})
        real = acted.step.valid
        for leaf in (acted.state["count"], acted.state["pair"][0][:, 1], acted.state["pair"][1]):
            assert torch.equal(leaf[real].float(), acted.obs[real, 0]), "state before the act = steps so far"
        assert (acted.step.reward[real] == 1).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_envs", [1, 4])
def test_evaluation_carries_a_state_of_its_own(mode: Any, num_envs: int) -> None:
    vector = env(mode, num_envs)
    played = play(Counting(CountingConfig(), vector.spec), vector, 10, 0)
    assert torch.equal(played.returns, played.lengths.double()), "every blind step was right"


def test_a_rollout_holds_the_state_the_masks_and_what_the_agent_said_of_each_step() -> None:
    vector = env(MODES[1])
    source = Rollout(vector, RolloutConfig(horizon=9), seed=0)
    agent = Counting(CountingConfig(), vector.spec)
    for _ in range(3):
        list(source.collect(agent, Clock(100, 100)))
    for rollout in agent.seen:
        at = rollout.obs[..., 0]
        assert torch.equal(rollout.state["count"], at)
        assert torch.equal(rollout.act["count"], at)
        assert torch.equal(rollout.extras["action_mask"][..., 0], at < 2), "the mask of the observation acted on"
        assert torch.equal(rollout.extras["next_action_mask"][..., 0], rollout.next_obs[..., 0] < 2)


def test_the_state_survives_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Rollout:
        return Rollout(make_env("Parity-v0", 3, backend="sync"), RolloutConfig(horizon=5), seed=0)

    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    gym.register("Parity-v0", Parity)
    one = make()
    agent = Counting(CountingConfig(), one.env.spec)
    clock = Clock(1000, 1000)
    list(one.collect(agent, clock))
    saved = copy.deepcopy(one.state_dict())
    other = make()
    other.load_state_dict(saved)
    agent.seen.clear()
    list(one.collect(agent, clock))
    list(other.collect(agent, clock))
    first, second = agent.seen
    assert first_difference(first, second) is None


class DropoutConfig(SupervisedConfig):
    name: Any = "dropout"


class Dropout(Supervised):
    """Draws from torch's global stream in its loss."""

    Config = DropoutConfig

    def __init__(self, config: Any, spec: Any) -> None:
        super().__init__(config, spec)
        self.network.head = nn.Sequential(nn.Dropout(0.5), self.network.head)


def test_torchs_global_stream_belongs_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_own", dict(registry._own))
    registry.register("agents", "dropout", Dropout)
    recipe = {"env": {"id": "line"}, "agent": {"name": "dropout"}, "optim": {"lr": 0.01}}
    from rlcore import config as configs

    torch.manual_seed(77)
    before = torch.get_rng_state()
    check_resume(configs.validate(recipe))
    assert torch.equal(before, torch.get_rng_state()), "training leaves the stream outside as it was"
