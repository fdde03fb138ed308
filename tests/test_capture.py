"""A captured environment, restored in a fresh one, goes on bit for bit; or says why it cannot be captured."""

import random
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlcore import registry
from rlcore.capture import Capture
from rlcore.encoding import decode, encode
from rlcore.errors import UserError
from rlcore.freeze import NotCapturable, freeze, thaw
from rlcore.gym_vector import GymVector
from rlcore.make import make_env
from rlcore.tree import leaves


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log to the working directory


def saved(states):
    """Pass through what a checkpoint writes."""
    tensors = {}
    return decode(encode(states, tensors), tensors)


def actions(env, seed, count):
    space = gym.vector.utils.batch_space(env.spec.action_space, env.num_envs)
    space.seed(seed)
    return [torch.as_tensor(space.sample()) for _ in range(count)]


def run(env, moves):
    seen = []
    for move in moves:
        step = env.step(move)
        seen += [x.clone() for x in leaves(tuple(step[:6]))]
        ended = step.terminated | step.truncated
        if env.autoreset == "disabled" and ended.any():
            seen += leaves(env.reset(mask=ended)[0])
    return seen


def goes_on(build, lead, further=200, seed=3):
    """Whether a fresh environment goes on as the captured one does, after ``lead`` steps."""
    env, fresh = build(), build()
    env.reset(seed=seed)
    run(env, actions(env, 0, lead))
    states = env.capture()
    assert states is not None, env.why_not_capturable
    fresh.reset(seed=99)
    fresh.restore(saved(states))
    moves = actions(env, 1, further)
    same = all(torch.equal(a, b) for a, b in zip(run(env, moves), run(fresh, moves), strict=True))
    env.close()
    fresh.close()
    return same


CLASSIC = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
TOY = ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1", "Blackjack-v1"]
BOX2D = ["LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3"]
MUJOCO = ["Hopper-v5", "HalfCheetah-v5", "Ant-v5"]
REST = ["Humanoid-v5", "Walker2d-v5", "Reacher-v5", "Pusher-v5", "Swimmer-v5", "InvertedPendulum-v5"]
REST += ["InvertedDoublePendulum-v5", "HumanoidStandup-v5", "Ant-v4", "Reacher-v4", "CarRacing-v3", "ALE/MsPacman-v5"]
SLOW = [pytest.param(env_id, marks=pytest.mark.slow) for env_id in REST]


@pytest.mark.parametrize("env_id", [*CLASSIC, *TOY, *BOX2D, *MUJOCO, *SLOW])
def test_a_fresh_environment_goes_on(env_id):
    assert all(goes_on(lambda: make_env(env_id, 2, backend="sync"), lead) for lead in (0, 70))


@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "ALE/Pong-v5"])
def test_a_fresh_emulator_goes_on(env_id):
    assert goes_on(lambda: make_env(env_id, 1, backend="sync", kwargs={"obs_type": "grayscale"}), 70)


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
@pytest.mark.parametrize("backend", ["native", "sync", "async"])
def test_in_every_mode_also_where_a_reset_is_due(backend, mode):
    def build():
        return make_env("CartPole-v1", 3, backend=backend, autoreset=mode, kwargs={"max_episode_steps": 7})

    env = build()
    env.reset(seed=3)
    assert [x.all() for x in run(env, actions(env, 0, 7))[3::6]][:7] == [False] * 6 + [True]
    env.close()
    assert all(goes_on(build, lead, 40) for lead in (6, 7, 8))
    # Here episodes end one by one, so that a masked reset leaves rows as they were.
    assert goes_on(lambda: make_env("CartPole-v1", 3, backend=backend, autoreset=mode), 15, 40)


@pytest.mark.parametrize("backend", ["native", "sync", "async"])
def test_a_used_environment_forgets_its_own_due_resets(backend):
    kwargs = {"max_episode_steps": 7}
    env, used = (make_env("CartPole-v1", 2, backend=backend, autoreset="next_step", kwargs=kwargs) for _ in range(2))
    env.reset(seed=0)
    used.reset(seed=1)
    moves = actions(env, 0, 30)
    run(env, moves[:3])
    run(used, moves[:7])
    used.restore(saved(env.capture()))
    assert all(map(torch.equal, run(env, moves[3:]), run(used, moves[3:])))
    env.close()
    used.close()


@pytest.mark.parametrize("backend", ["native", "sync", "async"])
def test_a_masked_reset_after_restoring_shows_the_captured_rows(backend):
    env, fresh = (make_env("CartPole-v1", 3, backend=backend, autoreset="disabled") for _ in range(2))
    env.reset(seed=0)
    step = env.step(torch.tensor([0, 1, 0]))
    fresh.restore(saved(env.capture()))
    mask = torch.tensor([False, True, False])
    obs, _ = fresh.reset(mask=mask)
    assert torch.equal(obs, env.reset(mask=mask)[0])
    assert torch.equal(obs[~mask], step.next_obs[~mask])
    env.close()
    fresh.close()


def test_gymnasiums_own_vector_of_cartpoles():
    assert all(goes_on(lambda: make_env("CartPole-v1", 3, backend="vector"), lead) for lead in (0, 17, 100))


WRAPPERS = [
    {"name": "TimeLimit", "max_episode_steps": 9},
    {"name": "FrameStackObservation", "stack_size": 3},
    {"name": "DelayObservation", "delay": 2},
    {"name": "ObservationStatistics"},
    {"name": "RewardStatistics"},
    {"name": "StickyAction", "repeat_action_probability": 0.5},
    {"name": "RecordEpisodeStatistics"},
    {"name": "TimeAwareObservation"},
]


registry.register("wrappers", "ObservationStatistics", gym.wrappers.NormalizeObservation)
registry.register("wrappers", "RewardStatistics", gym.wrappers.NormalizeReward)


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper["name"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3"])
def test_wrappers_go_on_too(env_id, wrapper):
    for lead in (13, 50, 61):
        assert goes_on(lambda: make_env(env_id, 2, backend="sync", wrappers=[wrapper]), lead, 60)


def test_atari_as_it_is_usually_wrapped():
    wrappers = [{"name": "AtariPreprocessing"}, {"name": "FrameStackObservation", "stack_size": 4}]
    kwargs = {"frameskip": 1, "repeat_action_probability": 0.25}
    assert goes_on(lambda: make_env("ALE/Pong-v5", 2, kwargs=kwargs, wrappers=wrappers), 40, 80)


def test_atari_remembers_the_action_that_stuck():
    wide = {"frameskip": 1, "obs_type": "ram"}
    for lead in range(1, 80, 11):  # sticky actions: wrong in a quarter of the captures if forgotten
        env, fresh = (Capture(gym.make("ALE/Pong-v5", **wide)) for _ in range(2))
        env.reset(seed=lead)
        moves = np.random.default_rng(lead).integers(0, 6, lead + 20)
        for move in moves[:lead]:
            env.step(move)
        fresh.restore(saved(env.capture()))
        assert all(np.array_equal(env.step(move)[0], fresh.step(move)[0]) for move in moves[lead:])


def test_lunar_lander_on_the_ground():
    env = Capture(gym.make("LunarLander-v3"))
    for seed in range(5):
        env.reset(seed=seed)
        touched = False
        while not (touched or env.ended):
            touched = env.step(0)[0][6:].any()
        assert touched
        fresh = Capture(gym.make("LunarLander-v3"))
        fresh.restore(saved(env.capture()))
        assert bool(fresh.ended) == bool(env.ended)
        while not env.ended:
            a, b = env.step(2), fresh.step(2)
            assert np.array_equal(a[0], b[0])
            assert a[1:4] == b[1:4]


def test_an_episode_does_not_depend_on_those_before():
    used, fresh = (Capture(gym.make("BipedalWalker-v3")) for _ in range(2))
    used.action_space.seed(0)
    for seed in range(5):
        used.reset(seed=seed)
        while not used.ended:
            used.step(used.action_space.sample())
    first, second = used.reset(seed=7)[0], fresh.reset(seed=7)[0]
    for _ in range(150):
        assert np.array_equal(first, second)
        move = used.action_space.sample()
        first, second = used.step(move)[0], fresh.step(move)[0]


class Drift(gym.Env):
    """A random walk; ``source`` says where its randomness comes from."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, source="own"):
        self.source = source

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=1)
        return self.x.copy(), {}

    def step(self, action):
        draw = self.np_random.normal if self.source == "own" else random.gauss
        self.x = self.x + draw(0, 1) + action
        return self.x.copy(), 0.0, bool(abs(self.x[0]) > 9), False, {}


gym.register("tests/Drift-v0", entry_point=Drift)
gym.register("tests/Wild-v0", entry_point=Drift, nondeterministic=True)


class HoldsALock(gym.Wrapper):
    def __init__(self, env):
        super().__init__(env)
        self.lock = threading.Lock()


registry.register("wrappers", "HoldsALock", HoldsALock)


def test_an_unknown_environment_is_replayed():
    assert all(goes_on(lambda: make_env("tests/Drift-v0", 2), lead) for lead in (0, 1, 40))


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    ("env_id", "more", "reason"),
    [
        ("tests/Drift-v0", {"kwargs": {"source": "global"}}, "depends on more than its generator and its actions"),
        ("tests/Wild-v0", {}, "environment tests/Wild-v0 declares itself nondeterministic"),
        (
            "CartPole-v1",
            {"wrappers": [{"name": "HoldsALock"}]},
            "wrapper HoldsALock holds a _thread.lock in 'lock'",
        ),
        (
            "tests/Drift-v0",
            {"wrappers": [{"name": "HoldsALock"}]},
            "wrapper HoldsALock holds a _thread.lock in 'lock'",
        ),
    ],
)
def test_what_cannot_be_captured_says_why(backend, env_id, more, reason):
    env = make_env(env_id, 2, backend=backend, **more)
    assert env.capture() is None
    assert reason in env.why_not_capturable
    assert env.capture() is None
    run(env, actions(env, 0, 5))  # and goes on
    env.close()


def test_vectors_of_others_say_why():
    cases = [
        (gym.vector.SyncVectorEnv([Drift]), "not built by make_env"),
        (gym.wrappers.vector.ClipReward(gym.make_vec("CartPole-v1", 2), 0, 1), "the vector wrapper ClipReward"),
    ]
    for vector, reason in cases:
        env = GymVector(vector)
        assert env.capture() is None
        assert reason in env.why_not_capturable


def test_a_replay_that_goes_otherwise_is_reported():
    env = make_env("tests/Drift-v0", 1)
    env.reset(seed=0)
    run(env, actions(env, 0, 5))
    states = env.capture()
    states[0]["env"]["actions"][2] = 1 - states[0]["env"]["actions"][2]
    with pytest.raises(UserError, match="captured episode of 5 steps, replayed, goes otherwise"):
        make_env("tests/Drift-v0", 1).restore(states)


def test_another_chain_of_wrappers_is_reported():
    env = make_env("CartPole-v1", 1, backend="sync")
    wrapped = make_env("CartPole-v1", 1, wrappers=[{"name": "TimeAwareObservation"}])
    with pytest.raises(UserError, match="was captured in 2 wrappers, not 3"):
        wrapped.restore(env.capture())


def test_capturing_changes_nothing():
    for env_id in ("CartPole-v1", "LunarLander-v3", "Ant-v5"):
        env, other = (make_env(env_id, 1, backend="sync") for _ in range(2))
        env.reset(seed=0)
        other.reset(seed=0)
        for move in actions(env, 0, 30):
            env.capture()
            assert all(map(torch.equal, run(env, [move]), run(other, [move])))


def test_actions_of_long_episodes_are_kept_tightly():
    env = Capture(gym.make("tests/Drift-v0"))
    env.reset(seed=0)
    for _ in range(1000):
        env.step(np.int64(1))
    assert len(env.actions) == 8 * 1000
    env.reset()
    assert len(env.actions) == 0


class Plain:
    pass


def test_freezing_and_thawing():
    from collections import deque

    generator = np.random.default_rng(5)
    plain = Plain()
    plain.mean = np.arange(3.0)
    values = [None, True, 2**70, 1.5, "a", b"b", np.float32(2), (1, [2, (3,)]), {"a": {1: 2}}, deque([1, 2], 5)]
    for value in values:
        back = thaw(saved(freeze(value)))
        assert back == value
        assert type(back) is type(value)
    assert thaw(freeze(deque([1], 5))).maxlen == 5
    frozen, into = freeze(plain, attribute=True), Plain()
    plain.mean[0] = 7
    thaw(saved(frozen), into)
    assert into.mean.tolist() == [0, 1, 2]
    draws = thaw(saved(freeze(generator))).integers(0, 2**62, 5)
    assert np.array_equal(draws, generator.integers(0, 2**62, 5))
    for value in (object(), {1.5: 2}, {1, 2}, np.array([None]), [plain]):
        with pytest.raises(NotCapturable):
            freeze(value)
