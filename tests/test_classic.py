"""The native Acrobot, MountainCar and Pendulum against gymnasium's."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats

import envs  # noqa: F401  registers with gymnasium
from envs.acrobot import Acrobot
from envs.mountain_car import MountainCar
from envs.pendulum import Pendulum
from rlcore.errors import UserError
from rlcore.make import make_env
from rlcore.testing import check_env

PAIRS = [
    ("Acrobot-v1", Acrobot, {}),
    ("MountainCar-v0", MountainCar, {}),
    ("MountainCar-v0", MountainCar, {"goal_velocity": 0.02}),
    ("Pendulum-v1", Pendulum, {}),
    ("Pendulum-v1", Pendulum, {"g": 5.0}),
]


def random_actions(space: Any, rng: np.random.Generator, n: int) -> np.ndarray:
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, n)
    return rng.uniform(-3, 3, (n, 1)).astype(np.float32)  # beyond the bounds too


def random_state(env_id: str, rng: np.random.Generator) -> np.ndarray:
    if env_id == "Acrobot-v1":
        return rng.uniform([-np.pi, -np.pi, -4 * np.pi, -9 * np.pi], [np.pi, np.pi, 4 * np.pi, 9 * np.pi])
    if env_id == "MountainCar-v0":
        return rng.uniform([-1.2, -0.07], [0.6, 0.07])
    return rng.uniform([-20, -8], [20, 8])


@pytest.mark.parametrize(("env_id", "cls", "kwargs"), PAIRS)
def test_every_step_is_gymnasiums_to_float_precision(env_id: str, cls: Any, kwargs: dict[str, Any]) -> None:
    n, rng = 8, np.random.default_rng(0)
    ours = cls(n, autoreset="disabled", max_episode_steps=10**9, **kwargs)
    theirs: list[Any] = [gym.make(env_id, **kwargs).unwrapped for _ in range(n)]
    ends = 0
    for i, env in enumerate(theirs):
        env.reset(seed=i)
    for t in range(500):
        for i, env in enumerate(theirs):
            if t % 2:  # along trajectories, and from anywhere
                env.state = random_state(env_id, rng)
            ours._state[i] = torch.as_tensor(np.asarray(env.state, dtype=np.float64))
        actions = random_actions(ours.spec.action_space, rng, n)
        step = ours.step(torch.from_numpy(actions))
        for i, env in enumerate(theirs):
            obs, reward, terminated, _, _ = env.step(actions[i])
            np.testing.assert_allclose(ours._state[i], np.asarray(env.state), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(step.next_obs[i], obs, rtol=2e-7, atol=2e-7)
            assert step.next_obs.dtype == step.reward.dtype == torch.float32
            assert float(step.reward[i]) == pytest.approx(reward, rel=1e-6)
            assert bool(step.terminated[i]) == terminated
            ends += terminated
            if terminated:
                env.reset()
    assert ends > 20 or env_id == "Pendulum-v1"


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "MountainCar-v0", "Pendulum-v1"])
def test_an_episode_is_gymnasiums_spaces_and_time_limit_included(env_id: str) -> None:
    theirs: Any = gym.make(env_id)
    ours: Any = make_env(env_id, 1)
    assert type(ours) in (Acrobot, MountainCar, Pendulum)
    assert ours.spec.obs_space == theirs.observation_space
    assert ours.spec.action_space == theirs.action_space
    theirs.reset(seed=0)
    ours._state[0] = torch.as_tensor(np.asarray(theirs.unwrapped.state, dtype=np.float64))
    for t in range(theirs.spec.max_episode_steps):
        action: Any = 1  # no torque: Acrobot hangs, the car lies in its valley
        if env_id == "Pendulum-v1":
            action = np.array([0.1 * (t % 3)], dtype=np.float32)
        obs, _, terminated, truncated, _ = theirs.step(action)
        step = ours.step(torch.as_tensor(np.asarray([action])))
        np.testing.assert_allclose(step.next_obs[0], obs, rtol=1e-5, atol=1e-5)
        assert (terminated, truncated) == (bool(step.terminated), bool(step.truncated))
    assert truncated


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "MountainCar-v0", "Pendulum-v1"])
def test_start_states_are_drawn_as_gymnasium_draws_them(env_id: str) -> None:
    theirs: Any = gym.make(env_id).unwrapped
    sample = []
    for seed in range(1000):
        theirs.reset(seed=seed)
        sample.append(np.array(theirs.state))
    ours: Any = make_env(env_id, 1000)
    ours.reset(0)
    for mine, other in zip(ours._state.numpy().T, np.array(sample).T, strict=True):
        assert stats.ks_2samp(mine, other).pvalue > 1e-3


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("Acrobot-v1", {"max_episode_steps": 15}),
        ("MountainCar-v0", {"max_episode_steps": 15}),
        ("Pendulum-v1", {"max_episode_steps": 15}),
        ("rlcore/Pendulum-v1", {"max_episode_steps": 15}),
    ],
)
def test_they_conform(env_id: str, kwargs: dict[str, Any]) -> None:
    check_env(env_id, steps=40, kwargs=kwargs)


@pytest.mark.parametrize("cls", [Acrobot, MountainCar, Pendulum])
def test_elsewhere_than_on_a_cpu_nothing_is_looked_at(cls: Any) -> None:
    away = cls(8, device="meta")  # tensors without values: whatever waits for one raises
    away.reset(seed=0, mask=torch.ones(8, dtype=torch.bool, device="meta"))
    box = isinstance(away.spec.action_space, spaces.Box)
    step = away.step(torch.zeros((8, 1) if box else (8,), dtype=torch.float32 if box else torch.int64, device="meta"))
    assert (step.next_obs.shape, step.reward.dtype) == ((8, *away.spec.obs_space.shape), torch.float32)


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "MountainCar-v0", "Pendulum-v1"])
def test_they_render(env_id: str) -> None:
    env = make_env(env_id, 2, render_mode="rgb_array")
    env.reset(3)
    left, right = env.render()  # type: ignore[attr-defined]
    assert left.ndim == 3
    assert (left != right).any()
    env.close()
    with pytest.raises(UserError, match="without a render_mode"):
        make_env(env_id, 1).render()  # type: ignore[attr-defined]


def test_a_bad_time_limit_is_named() -> None:
    for value in (0, 2.5, True):
        with pytest.raises(UserError, match=f"Acrobot's max_episode_steps: {value} is not a whole number above 0"):
            make_env("Acrobot-v1", 1, kwargs={"max_episode_steps": value})
