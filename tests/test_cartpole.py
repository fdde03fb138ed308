"""Native CartPole against gymnasium's, its start states against a slow generator, and gymnasium's view of it."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gym_check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import envs  # noqa: F401  registers with gymnasium
from envs.cartpole import CartPole
from rlcore.arrays import GOLDEN, mix, on_tensors, uniforms
from rlcore.errors import UserError
from rlcore.make import make_env

PHYSICS = {"gravity": 5.0, "masscart": 2.0, "masspole": 0.3, "length": 0.7, "force_mag": 7.0, "tau": 0.03}


def reference(**constants):
    env = gym.make("CartPole-v1").unwrapped
    for name, value in constants.items():
        setattr(env, name, value)
    env.total_mass = env.masspole + env.masscart
    env.polemass_length = env.masspole * env.length
    return env


@pytest.mark.parametrize("constants", [{}, PHYSICS])
def test_every_step_is_bit_identical_to_gymnasium(constants):
    n, rng = 4, np.random.default_rng(0)
    ours = CartPole(n, autoreset="disabled", max_episode_steps=10**9, **constants)
    theirs = [reference(**constants) for _ in range(n)]
    for i, env in enumerate(theirs):
        env.reset(seed=i)
        ours._state[i] = torch.from_numpy(env.state)
    ends = 0
    for _ in range(1500):
        actions = rng.integers(0, 2, n)
        step = ours.step(torch.from_numpy(actions))
        for i, env in enumerate(theirs):
            obs, reward, terminated, _, _ = env.step(int(actions[i]))
            assert np.array_equal(step.next_obs[i].numpy(), obs)
            assert step.next_obs.dtype == torch.float32
            assert np.array_equal(ours._state[i].numpy(), env.state)
            assert (float(step.reward[i]), bool(step.terminated[i])) == (reward, terminated)
            if terminated:
                ends += 1
                env.reset()
                ours._state[i] = torch.from_numpy(env.state)
    assert ends > 50


def test_elsewhere_than_on_a_cpu_nothing_is_looked_at_and_a_step_is_off_by_rounding():
    away = CartPole(8, device="meta")  # tensors without values: whatever waits for one raises
    away.reset(seed=0, mask=torch.ones(8, dtype=torch.bool, device="meta"))
    step = away.step(torch.zeros(8, dtype=torch.int64, device="meta"))
    assert (step.next_obs.shape, step.reward.dtype) == ((8, 4), torch.float32)
    one = CartPole(4096)
    start = torch.randn(4096, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one._state.copy_(start)
    one.step(torch.zeros(4096, dtype=torch.int64))
    with on_tensors():  # the arithmetic of other devices
        other = CartPole(4096)
        other._state.copy_(start)
        other.step(torch.zeros(4096, dtype=torch.int64))
    inside = one._state[:, 0].abs() > 0.1  # not restarted
    assert torch.allclose(one._state[inside], other._state[inside], rtol=1e-14, atol=1e-14)


def test_truncation_is_gymnasiums_and_may_coincide_with_termination():
    upright, falling = [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.209, 1.0]  # the second falls in its next step
    env = CartPole(2, max_episode_steps=1)
    env._state.copy_(torch.tensor([upright, falling], dtype=torch.float64))
    step = env.step(torch.tensor([1, 1]))
    assert step.terminated.tolist() == [False, True]
    assert step.truncated.tolist() == [True, True]
    limited, alone = gym.make("CartPole-v1", max_episode_steps=9), CartPole(1, max_episode_steps=9)
    limited.reset(seed=0)
    alone._state[0] = torch.from_numpy(limited.unwrapped.state)
    for t in range(9):
        _, _, terminated, truncated, _ = limited.step(t % 2)
        step = alone.step(torch.tensor([t % 2]))
        assert (terminated, truncated) == (bool(step.terminated), bool(step.truncated)) == (False, t == 8)


def test_episode_lengths_are_limited_in_every_mode():
    for mode in ("same_step", "next_step", "disabled"):
        env = CartPole(1, autoreset=mode, max_episode_steps=5)
        length, lengths = 0, []
        for t in range(40):
            step = env.step(torch.tensor([t % 2]))
            length += int(step.valid)
            if step.truncated:
                lengths.append(length)
                length = 0
                if mode == "disabled":
                    env.reset(mask=step.truncated)
        assert lengths == [5] * len(lengths)
        assert len(lengths) >= 6


def slow_splitmix64(seed: int, count: int) -> list[int]:
    state, out = seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


def test_the_hash_gives_splitmix64s_published_numbers():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert slow_splitmix64(1234567, 4) == published
    z = 1234567 + torch.arange(1, 5) * GOLDEN
    assert [int(x) % 2**64 for x in mix(z)] == published


@given(key=st.integers(-(2**63), 2**63 - 1), episode=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_uniforms_are_the_slow_generators(key, episode):
    found = uniforms(torch.tensor([key]), torch.tensor([episode]), 4)[0].tolist()
    state = (key + episode * 4 * 0x9E3779B97F4A7C15) % 2**64
    assert found == [(z >> 11) / 2**53 for z in slow_splitmix64(state, 4)]


def test_uniforms_on_tensors_are_those_on_arrays():
    key, episode = torch.arange(100) * 10**15, torch.arange(100)
    on_cpu = uniforms(key, episode, 3)
    with on_tensors():  # what other devices do
        assert torch.equal(uniforms(key, episode, 3), on_cpu)


def test_start_states_are_uniform_and_unrelated():
    env = CartPole(2000)
    first, second = (env.reset(seed)[0].double().numpy() for seed in (0, 1))
    later = env.reset()[0].double().numpy()
    for states in (first, later):
        assert stats.kstest(states.ravel(), "uniform", args=(-0.05, 0.1)).pvalue > 1e-3
    assert np.array_equal(first[1:], second[:-1])  # environment i is seeded seed + i
    pairs = [(first[:, 0], first[:, 1]), (first[:, 0], later[:, 0]), (first[1:, 0], first[:-1, 0])]
    assert all(stats.pearsonr(a, b).pvalue > 1e-3 for a, b in pairs)


def test_starts_depend_on_their_own_seed_and_episode_only():
    wide, alone = CartPole(5), CartPole(1)
    wide.reset(seed=7)
    obs, _ = alone.reset(seed=9)
    starts, own = [], [obs[0].tolist()]
    for t in range(300):
        step = wide.step(torch.randint(0, 2, (5,), generator=torch.Generator().manual_seed(t)))
        if step.terminated[2]:
            starts.append(step.obs[2].tolist())
        step = alone.step(torch.tensor([t % 2]))
        if step.terminated | step.truncated:
            own.append(step.obs[0].tolist())
    assert len(starts) > 5
    alone.reset(seed=9)
    assert [alone.reset()[0][0].tolist() for _ in starts] == starts
    assert own[1:] == starts[: len(own) - 1]


@pytest.mark.parametrize("name", ["gravity", "masscart", "masspole", "length", "force_mag", "tau", "max_episode_steps"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "heavy", True])
def test_bad_constants_are_named(name, value):
    with pytest.raises(UserError, match=f"{name}: {value!r} is not a positive finite number"):
        CartPole(1, **{name: value})


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match=r"max_episode_steps: 2\.5 is not a whole number"):
        CartPole(1, max_episode_steps=2.5)
    with pytest.raises(UserError, match="num_envs: 0"):
        CartPole(0)
    with pytest.raises(UserError, match="did you mean 'same_step'"):
        CartPole(1, autoreset="samestep")
    with pytest.raises(UserError, match="seed: -1"):
        CartPole(1).reset(seed=-1)
    with pytest.raises(UserError, match="cannot seed 2 environments"):
        CartPole(2).reset(seed=[1])
    with pytest.raises(UserError, match="keep num_envs"):
        CartPole(2).restore(CartPole(3).capture())


def test_it_renders():
    env = make_env("CartPole-v1", 2, render_mode="rgb_array")
    assert isinstance(env, CartPole)
    left, right = env.render()
    assert left.shape == (400, 600, 3)
    assert (left != right).any()
    env.close()
    with pytest.raises(UserError, match="without a render_mode"):
        CartPole(1).render()


def test_importing_envs_imports_no_torch():
    code = "import envs, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore:.*A Box observation space m")  # gymnasium dislikes CartPole's unbounded velocities
def test_gymnasium_accepts_it():
    env = gym.make("rlcore/CartPole-v1", gravity=8.0)
    assert env.unwrapped.env.gravity == 8.0
    gym_check_env(env.unwrapped)


def test_gymnasium_plays_the_same_episodes_one_by_one_and_batched():
    batched = gym.make_vec("rlcore/CartPole-v1", num_envs=3)
    single = gym.make_vec("rlcore/CartPole-v1", 3, "sync", {"autoreset_mode": "SameStep"})
    assert batched.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP
    assert np.array_equal(batched.reset(seed=3)[0], single.reset(seed=3)[0])
    rng, ends = np.random.default_rng(0), 0
    for _ in range(200):
        actions = rng.integers(0, 2, 3)
        ours, theirs = batched.step(actions), single.step(actions)
        assert all(np.array_equal(a, b) for a, b in zip(ours[:4], theirs[:4], strict=True))
        assert ("final_obs" in ours[4]) == ("final_obs" in theirs[4])
        if "final_obs" in ours[4]:
            ends += 1
            assert np.array_equal(ours[4]["_final_obs"], theirs[4]["_final_obs"])
            for a, b in zip(ours[4]["final_obs"], theirs[4]["final_obs"], strict=True):
                assert (a is None and b is None) or np.array_equal(a, b)
    assert ends > 5


def test_unseeded_gymnasium_environments_start_at_random():
    starts = {tuple(gym.make("rlcore/CartPole-v1").reset()[0]) for _ in range(3)}
    starts |= {tuple(gym.make_vec("rlcore/CartPole-v1", num_envs=1).reset()[0][0]) for _ in range(3)}
    assert len(starts) == 6
