"""Frames kept once, against a plain buffer that holds whole stacks: every sampled item equal, bit for bit."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from test_replay import draw
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from agents.configs.value import DQNConfig
from agents.dqn import DQN
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import NetworkConfig, ReplayConfig
from rlcore.errors import UserError
from rlcore.frames import FrameBuffer
from rlcore.gym_vector import GymVector
from rlcore.make import make_env
from rlcore.replay import ReplayBuffer
from rlcore.sources import Replay
from rlcore.testing import check_agent
from rlcore.testing.agents import check_resume, first_difference
from rlcore.tree import leaves, tmap

SHAPE = (2, 3)


def frame(env: int, episode: int, step: int) -> Tensor:
    """Pixels that name the frame; steps below 0 are what the environment shows before its first frame."""
    return torch.tensor([[env, episode % 256, episode // 256], [step % 256, step // 256, 7]], dtype=torch.uint8)


class Stacks:
    """N environments of stacks of k tagged frames, with random ends; the start is filled as ``fill`` says."""

    def __init__(self, n: int, k: int, seed: int, end: float, fake: float = 0.0, fill: str = "first") -> None:
        self.n, self.end, self.fake = n, end, fake
        self.rng = np.random.default_rng(seed)
        self.start = [{"first": self.first, "zero": self.zero, "other": self.other}[fill](e, k) for e in range(n)]
        self.episode, self.t, self.frames = [0] * n, [0] * n, [list(x) for x in self.start]

    def first(self, e: int, k: int) -> list[Tensor]:
        return [frame(e, 0, 0)] * k

    def zero(self, e: int, k: int) -> list[Tensor]:
        return [torch.zeros(SHAPE, dtype=torch.uint8)] * (k - 1) + [frame(e, 0, 0)]

    def other(self, e: int, k: int) -> list[Tensor]:
        return [frame(e, 0, 200 + i) for i in range(k - 1)] + [frame(e, 0, 0)]

    def step(self) -> tuple[dict[str, Any], Tensor]:
        """Return the fields of N rows, and which are valid: a fake row does not advance an episode."""
        rows = []
        for e in range(self.n):
            obs = torch.stack(self.frames[e])
            terminated, truncated = (bool(x) for x in self.rng.random(2) < self.end / 2)
            valid = bool(self.rng.random() >= self.fake)
            after = [*self.frames[e][1:], frame(e, self.episode[e], self.t[e] + 1)]
            row = (obs, self.t[e], float(self.rng.normal()), terminated, truncated, torch.stack(after))
            if not valid:
                row = (*(torch.full_like(x, 99) if isinstance(x, Tensor) else x for x in row),)
            elif terminated or truncated:
                self.reset(e)
            else:
                self.t[e], self.frames[e] = self.t[e] + 1, after
            rows.append((*row, valid))
        columns = list(zip(*rows, strict=True))
        obs, next_obs = torch.stack(columns[0]), torch.stack(columns[5])
        names = ("action", "reward", "terminated", "truncated")
        flat = dict(zip(names, map(torch.tensor, columns[1:5]), strict=True))
        return flat | {"obs": obs, "next_obs": next_obs}, torch.tensor(columns[6])

    def reset(self, e: int) -> None:
        self.episode[e], self.t[e] = self.episode[e] + 1, 0
        episode = torch.tensor([[0, self.episode[e] % 256, self.episode[e] // 256], [0] * 3], dtype=torch.uint8)
        self.frames[e] = [x + episode if x.any() else x for x in self.start[e]]


def buffers(envs: Stacks, k: int, capacity: int) -> tuple[ReplayBuffer, FrameBuffer]:
    example, _ = Stacks(envs.n, k, 0, 0.0).step()
    return ReplayBuffer(capacity, envs.n, example), FrameBuffer(capacity, envs.n, example, stack=k)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def add(envs: Stacks, steps: int, *stores: ReplayBuffer) -> None:
    for _ in range(steps):
        step, valid = envs.step()
        for store in stores:
            store.add(tmap(torch.clone, step), valid.clone() if envs.fake else None)


def same(plain: ReplayBuffer, once: FrameBuffer, n_step: int = 1) -> None:
    """Both draw the same slots, and give the same transitions and sequences for all stored."""
    assert len(plain) == len(once)
    index = draw(plain, 20 * len(plain) + 20, generator())  # misses one of them with probability below 1e-8
    assert torch.equal(index, draw(once, len(index), generator()))
    index = index.unique()
    assert len(index) == len(plain)
    one, other = plain.gather(index, 0.9, n_step), once.gather(index, 0.9, n_step)
    assert first_difference(one, other) is None
    assert first_difference(plain.sequences(index, 5), once.sequences(index, 5)) is None


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 4),
    k=st.integers(1, 5),
    spare=st.integers(0, 60),
    steps=st.integers(1, 90),
    n_step=st.integers(1, 5),
    end=st.sampled_from([0.0, 0.05, 0.3, 2.0]),  # 2: every episode is of one step
    fake=st.sampled_from([0.0, 0.3]),
    fill=st.sampled_from(["first", "zero", "other"]),
    cut=st.integers(0, 90),
    seed=st.integers(0, 2**20),
)
def test_gives_what_a_buffer_of_whole_stacks_gives(
    n: int, k: int, spare: int, steps: int, n_step: int, end: float, fake: float, fill: str, cut: int, seed: int
) -> None:
    envs = Stacks(n, k, seed, end, fake, fill)
    plain, once = buffers(envs, k, n + spare)
    for t in range(steps):
        add(envs, 1, plain, once)
        if t == cut:  # the environments begin new episodes unasked
            for store in (plain, once):
                store.cut()
            for e in range(n):
                envs.reset(e)
    if len(plain):
        same(plain, once, n_step)


@pytest.mark.parametrize("end", [0.0, 0.02, 0.5, 2.0])
def test_over_many_turns_of_the_rings(end: float) -> None:
    envs = Stacks(3, 4, 5, end, fake=0.1)
    plain, once = buffers(envs, 4, 70)
    for _ in range(20):
        add(envs, 23, plain, once)
        same(plain, once, n_step=3)


def test_worked_by_hand() -> None:
    """Episodes of 2 steps and 1 step of one environment: frames 0 1 2 | 5 6, stacks of 3."""
    flag = torch.zeros(1, dtype=torch.bool)
    example = {"obs": torch.zeros(1, 3), "action": flag, "reward": torch.zeros(1), "terminated": flag}
    buffer = FrameBuffer(3, 1, example | {"truncated": flag, "next_obs": torch.zeros(1, 3)}, stack=3)
    steps = [([0, 0, 0], [0, 0, 1], False), ([0, 0, 1], [0, 1, 2], True), ([9, 9, 5], [9, 5, 6], True)]
    for obs, next_obs, end in steps:
        stacks = {"obs": torch.tensor([obs]).float(), "next_obs": torch.tensor([next_obs]).float()}
        buffer.add(example | stacks | {"truncated": torch.tensor([end])})
    data = buffer.gather(torch.arange(3), 1.0)
    assert data.obs.tolist() == [obs for obs, _, _ in steps]
    assert data.next_obs.tolist() == [next_obs for _, next_obs, _ in steps]
    assert buffer.gather(torch.tensor([0]), 1.0, n_step=3).next_obs.tolist() == [[0, 1, 2]]


def test_memory_is_an_eighth_and_a_little() -> None:
    example: dict[str, Any] = {name: torch.zeros(8) for name in ("action", "reward")}
    example |= {name: torch.zeros(8, dtype=torch.bool) for name in ("terminated", "truncated")}
    example |= {name: torch.zeros(8, 4, 84, 84, dtype=torch.uint8) for name in ("obs", "next_obs")}
    plain, once = ReplayBuffer(8000, 8, example), FrameBuffer(8000, 8, example)  # pages never written cost nothing
    assert plain.nbytes > 8000 * 8 * 84 * 84
    assert once.nbytes < 0.145 * plain.nbytes
    assert once.nbytes > sum(x.nbytes for x in leaves(once._frames)) > 8000 * 84 * 84


def test_the_rings_grow_for_short_episodes_only() -> None:
    long, short = Stacks(2, 4, 0, 0.005), Stacks(2, 4, 0, 0.4)
    rows = []
    for envs in (long, short):
        plain, once = buffers(envs, 4, 400)
        rows.append(once.frame_rows)
        add(envs, 350, plain, once)
        rows.append(once.frame_rows)
        same(plain, once)
    assert rows[0] == rows[1] == rows[2] == 200 + 4 + 25
    assert 200 + 4 + 0.36 * 200 * 4 < rows[3] <= 200 + 4 + 200 * 4


def test_buffers_are_freed_as_soon_as_nobody_holds_them() -> None:
    """Gigabytes must not wait for the collector of cycles, which counts objects."""
    gc.disable()
    try:
        held = [weakref.ref(buffer) for buffer in buffers(Stacks(2, 4, 0, 0.1), 4, 400)]
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()


class Waits(TorchDispatchMode):
    """Counts operations whose result the host has to wait for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "equal")
        return func(*args, **(kwargs or {}))


def test_adding_hardly_ever_waits_for_the_device() -> None:
    envs = Stacks(2, 4, 0, 0.0)
    _, once = buffers(envs, 4, 8000)
    rows = [envs.step()[0] for _ in range(600)]
    with Waits() as waits:
        for step in rows:
            once.add(step)
        looks = waits.count / 2  # two numbers a look: after 1, 2, 4, ..., 64 steps, then as often as room demands
        once.gather(once.newest, 0.9, 3)
        once.cut()
    assert 8 <= looks == waits.count / 2 <= 7 + 600 // 100


@pytest.mark.parametrize(("end", "steps"), [(0.02, 30), (0.02, 230), (0.6, 30), (0.6, 230), (0.0, 0)])
def test_a_restored_buffer_goes_on_bit_identically(end: float, steps: int) -> None:
    envs = Stacks(3, 4, 1, end, fake=0.1)
    _, once = buffers(envs, 4, 150)
    add(envs, steps, once)
    state = copy.deepcopy(once.state_dict())
    assert len(state["frames"]) <= 3 * min(once.frame_rows, 5 + 5 * steps)  # written rows only
    _, restored = buffers(envs, 4, 150)
    restored.load_state_dict(state)
    assert restored.nbytes == once.nbytes
    assert first_difference(state, restored.state_dict()) is None
    for _ in range(30):
        add(envs, 7, once, restored)
        same(once, restored, n_step=2)
        assert first_difference(once.state_dict(), restored.state_dict()) is None


def test_states_of_other_buffers_are_refused() -> None:
    envs = Stacks(2, 4, 0, 0.1)
    plain, once = buffers(envs, 4, 20)
    other = FrameBuffer(20, 2, Stacks(2, 3, 0, 0.1).step()[0], stack=3)
    with pytest.raises(UserError, match="the saved buffer has fields"):
        once.load_state_dict(plain.state_dict())
    with pytest.raises(UserError, match=r"has stacks of 3 frames .*; expected \(4, "):
        once.load_state_dict(other.state_dict())


@pytest.mark.parametrize("wrong", ["obs", "next_obs", "an end unsaid"])
def test_observations_that_are_no_stacks_are_refused(wrong: str) -> None:
    envs = Stacks(2, 4, 0, 0.0)
    _, once = buffers(envs, 4, 500)
    add(envs, 20, once)
    if wrong == "an end unsaid":
        envs.reset(1)
    step, _ = envs.step()
    if wrong in step:
        step[wrong][1, 1, 0, 0] += 1  # one pixel of a frame that is stored already
    once.add(step)
    with pytest.raises(UserError, match="frame_stack: got 4, expected 0: the observations are not stacks of succ"):
        add(envs, 256, once)
    with pytest.raises(UserError, match=r"observations of shape \(4, 2, 3\) are no stacks of 3 frames"):
        FrameBuffer(500, 2, step, stack=3)


class Counter(gym.Env[np.ndarray, Any]):
    """Frames that name (episode, step); episodes of 1 to 6 steps, ended and cut in turn."""

    observation_space = spaces.Box(0, 255, (3, 3), np.uint8)
    action_space = spaces.Discrete(2)
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.at = self.episode + 1, 0
        self.length = int(self.np_random.integers(1, 7))
        return self._obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at += 1
        end, cut = self.at == self.length, self.episode % 2 == 1
        return self._obs(), float(action), end and not cut, end and cut, {}

    def _obs(self) -> np.ndarray:
        return np.full((3, 3), [self.episode % 256, self.at, 7], np.uint8)


def stacked(mode: gym.vector.AutoresetMode, padding: str) -> GymVector:
    def one() -> gym.Env[Any, Any]:
        return gym.wrappers.FrameStackObservation(Counter(), 4, padding_type=padding)

    return GymVector(gym.vector.SyncVectorEnv([one] * 3, autoreset_mode=mode))


MODES = list(gym.vector.AutoresetMode)[:2]


@pytest.mark.parametrize(("mode", "padding"), list(itertools.product(MODES, ["reset", "zero"])))
@pytest.mark.parametrize("prioritized", [False, True])
def test_a_source_yields_the_same_batches(mode: gym.vector.AutoresetMode, padding: str, prioritized: bool) -> None:
    assert set(MODES) == {gym.vector.AutoresetMode.NEXT_STEP, gym.vector.AutoresetMode.SAME_STEP}
    seen: list[list[Any]] = []
    for frame_stack in (0, 4):
        config = ReplayConfig(
            capacity=60, batch_size=16, learning_starts=20, frame_stack=frame_stack, prioritized=prioritized
        )
        source = Replay(stacked(mode, padding), config, seed=0)
        torch.manual_seed(0)
        network = NetworkConfig(name="mlp", kwargs={"hidden": [8]})
        agent = DQN(DQNConfig(network=network, n_step=3), source.env.spec)
        clock = Clock(10**6, 10**6)
        seen.append([])
        while clock.frames < 400:
            for batch in source.collect(agent, clock):
                clock.updates += 1
                source.feedback(batch, agent.loss(batch))
                seen[-1].append((batch.data, batch.index))
    assert len(seen[0]) > 80
    assert first_difference(seen[0], seen[1]) is None


PIXELS: dict[str, Any] = {
    "env": {
        "id": "CartPole-v1",
        "num_envs": 2,
        "backend": "sync",
        "wrappers": [{"name": "FrameStackObservation", "stack_size": 4}],
    },
    "agent": {"name": "dqn", "network": {"name": "mlp", "kwargs": {"hidden": [16]}}, "n_step": 2},
    "source": {"capacity": 90, "batch_size": 8, "learning_starts": 40, "updates_per_frame": 0.5, "frame_stack": 4},
}


def test_an_agent_conforms() -> None:
    check_agent(PIXELS)


def test_a_run_resumes_exactly_without_its_buffer_too() -> None:
    """A new buffer's first transitions come from the middle of episodes: their stacks are kept as they are."""
    check_resume(configs.validate(PIXELS), 40)
    source = Replay(stacked(MODES[1], "reset"), ReplayConfig(capacity=60, learning_starts=9, frame_stack=4), 0, False)
    agent = DQN(DQNConfig(network=NetworkConfig(name="mlp", kwargs={"hidden": [8]})), source.env.spec)
    clock = Clock(10**6, 10**6)
    for _ in range(3):
        list(source.collect(agent, clock))
    again = Replay(source.env, source.config, 0, False)
    again.load_state_dict(copy.deepcopy(source.state_dict()))
    before = again.actor.obs.clone()
    for _ in range(3):
        list(again.collect(agent, clock))
    assert torch.equal(again.buffer.select("obs", torch.arange(3)), before)


@pytest.mark.parametrize("backend", ["sync", "vector"])
def test_atari_games_are_stacks(backend: str) -> None:
    options: dict[str, Any] = {"backend": backend}
    if backend == "sync":
        options |= {"kwargs": {"frameskip": 1, "max_num_frames_per_episode": 100}}
        options["wrappers"] = [{"name": "AtariPreprocessing"}, {"name": "FrameStackObservation", "stack_size": 4}]
    else:
        options["kwargs"] = {"max_num_frames_per_episode": 100}
    seen: list[Any] = []
    for frame_stack in (0, 4):
        env = make_env("ALE/Pong-v5", 2, **options)
        config = ReplayConfig(capacity=100, batch_size=4, learning_starts=10_000, frame_stack=frame_stack)
        source = Replay(env, config, seed=0)
        agent = DQN(DQNConfig(network=NetworkConfig(name="nature_cnn")), env.spec)
        clock = Clock(10**6, 10**6)
        while clock.frames < 170:
            list(source.collect(agent, clock))
        seen.append(source.buffer.gather(torch.arange(100), 0.9, 3))
        assert float((seen[-1].obs != 0).sum()) > 0
        assert source.buffer.select("truncated", torch.arange(100)).any(), "ends of episodes are among them"
        env.close()
    assert first_difference(seen[0], seen[1]) is None
