"""Every environment meets the contract; and the suite that says so catches each mistake planted here."""

from functools import partial

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces

import envs  # noqa: F401  registers with gymnasium
from rlcore.native import BatchedEnv
from rlcore.testing import check_env

MODES = {"same_step": "SameStep", "next_step": "NextStep", "disabled": "Disabled"}


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log to the working directory


SLOW = [
    ("CartPole-v1", {"backend": "async"}),
    ("BipedalWalker-v3", {}),
    ("Ant-v5", {}),
    ("HalfCheetah-v5", {}),
    ("ALE/Breakout-v5", {}),
    ("ALE/Pong-v5", {"kwargs": {"frameskip": 1}, "wrappers": [{"name": "AtariPreprocessing"}]}),
]


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("CartPole-v1", {"steps": 100}),
        ("CartPole-v1", {"kwargs": {"max_episode_steps": 7}}),
        ("CartPole-v1", {"backend": "sync"}),
        ("CartPole-v1", {"backend": "async", "num_envs": 2, "steps": 30}),
        ("line", {}),
        ("rlcore/CartPole-v1", {}),
        ("rlcore/CartPole-v1", {"backend": "async", "num_envs": 2, "steps": 30}),
        ("rlcore/Line-v0", {"num_envs": 2}),
        ("rlcore/CartPole-v1", {"wrappers": [{"name": "FrameStackObservation", "stack_size": 2}]}),
        ("Taxi-v4", {}),
        ("FrozenLake-v1", {}),
        ("Blackjack-v1", {}),
        ("Pendulum-v1", {"kwargs": {"max_episode_steps": 20}}),
        ("MountainCarContinuous-v0", {"kwargs": {"max_episode_steps": 20}}),
        ("LunarLander-v3", {"wrappers": [{"name": "FrameStackObservation", "stack_size": 2}]}),
        ("Hopper-v5", {"num_envs": 2}),
        *[pytest.param(*case, marks=pytest.mark.slow) for case in SLOW],
    ],
)
def test_environments_conform(env_id, options):
    check_env(env_id, **{"steps": 40} | options)


def test_gymnasiums_view_of_ours_conforms():
    def make(num_envs, autoreset):
        return gym.make_vec("rlcore/CartPole-v1", num_envs, autoreset_mode=MODES[autoreset])

    check_env(make, steps=60, capturable=False)


def test_a_single_vector_environment_conforms():
    check_env(gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point"))


class Walk(BatchedEnv):
    """A walk from a random start to either end, within 9 steps; the step is clipped to [-1, 1]."""

    num_uniforms = 1

    def __init__(self, num_envs, device="cpu", split="train", autoreset="same_step"):
        box = spaces.Box(-9, 9, (1,))
        super().__init__(
            num_envs, device, split, autoreset,
            obs_space=box, action_space=spaces.Box(-1, 1, (1,)), max_episode_steps=9,
        )  # fmt: skip

    def initial(self, u):
        return u * 4 - 2

    def observe(self, state):
        return state.float()

    def dynamics(self, state, action):
        state = state + action.clamp(-1, 1)
        return state, -state[:, 0].abs().float(), state[:, 0].abs() > 3


class NotAnEpisodesLast(Walk):  # the successor at an episode's end is the next start
    def step(self, action):
        step = super().step(action)
        return step._replace(next_obs=step.obs)


class SharedGenerator(Walk):  # one generator for all environments
    def __init__(self, *args, **kwargs):
        self.generator = torch.Generator().manual_seed(0)
        super().__init__(*args, **kwargs)

    def reset(self, seed=None, mask=None):
        if seed is not None:
            self.generator.manual_seed(seed if isinstance(seed, int) else seed[0])
        return super().reset(seed, mask)

    def _start(self, key, episode):
        return (torch.rand((len(key), 1), generator=self.generator, dtype=torch.float64) * 4 - 2).numpy()


class SharedAndUncapturable(SharedGenerator):
    why_not_capturable = "its generator is nobody's"

    def capture(self):
        return None


class FakeRowUnmarked(Walk):
    def step(self, action):
        step = super().step(action)
        return step._replace(valid=torch.ones_like(step.valid))


class FakeRowRewarded(Walk):
    def step(self, action):
        step = super().step(action)
        return step._replace(reward=torch.where(step.valid, step.reward, 1.0))


class ForgetsTheTimeLimit(Walk):
    def capture(self):
        return [state | {"steps": 0} for state in super().capture()]


class ForgetsTheEpisodeCount(Walk):
    def capture(self):
        return [state | {"episode": 0} for state in super().capture()]


class ForgetsTheDueReset(Walk):
    def capture(self):
        return [state | {"ended": False} for state in super().capture()]


class CannotSay(Walk):
    def capture(self):
        return None


class ChangesByCapture(Walk):
    def capture(self):
        self._steps += 1
        return super().capture()


class SameForAll(Walk):  # environment i is not seeded s + i
    def reset(self, seed=None, mask=None):
        return super().reset([seed] * self.num_envs if isinstance(seed, int) else seed, mask)


class GoesOnWhenSeeded(Walk):  # a seed does not start its stream anew
    def reset(self, seed=None, mask=None):
        episode = self._episode.clone()
        result = super().reset(seed, mask)
        self._episode += episode
        return result


class ResetsAll(Walk):  # whatever the mask
    def reset(self, seed=None, mask=None):
        return super().reset(seed)


class UsesItsBufferAgain(Walk):
    def observe(self, state):
        self.buffer = getattr(self, "buffer", torch.zeros(len(state), 1)).copy_(state)
        return self.buffer


class NotClipped(Walk):
    def dynamics(self, state, action):
        state = (state + action).clamp(-9, 9)
        return state, -state[:, 0].abs().float(), state[:, 0].abs() > 3


class WrongDtype(Walk):
    def step(self, action):
        step = super().step(action)
        return step._replace(reward=step.reward.double())


class OutsideItsSpace(Walk):
    def observe(self, state):
        return state.float() * 9


class Undeclared(Walk):
    def step(self, action):
        return super().step(action)._replace(extras={"is_success": torch.ones(self.num_envs, dtype=torch.bool)})


class LateInNextStep(Walk):  # one step longer where resets come late
    def __init__(self, num_envs, device="cpu", split="train", autoreset="same_step"):
        super().__init__(num_envs, device, split, autoreset)
        self.max_episode_steps += autoreset == "next_step"


PLANTED = [
    (NotAnEpisodesLast, {"modes": ("same_step",)}, "the successor at an episode's end is always the next"),
    (NotAnEpisodesLast, {"modes": ("disabled", "same_step")}, "always the next episode's start"),
    (SharedGenerator, {}, "a fresh environment restored in mode 'same_step' does not go on"),
    (
        SharedAndUncapturable,
        {"capturable": False, "modes": ("same_step",)},
        "goes otherwise than environment 0 of seed",
    ),
    (FakeRowUnmarked, {}, r"valid is \[.*True.*\], expected \[.*False"),
    (FakeRowRewarded, {}, "a fake row has a reward"),
    (ForgetsTheTimeLimit, {}, "restored in mode 'same_step' does not go on"),
    (ForgetsTheEpisodeCount, {}, "restored in mode 'same_step' does not go on"),
    (ForgetsTheDueReset, {}, "restored in mode 'next_step' does not go on"),
    (CannotSay, {}, "it cannot be captured"),
    (CannotSay, {"capturable": False}, "does not say why"),
    (Walk, {"capturable": False}, "was said not to be capturable, but is"),
    (ChangesByCapture, {}, "goes otherwise after it was captured"),
    (SameForAll, {}, "go otherwise than the seed|goes otherwise than environment 0"),
    (GoesOnWhenSeeded, {}, "a used environment does not repeat"),
    (ResetsAll, {}, "autoreset 'disabled' goes otherwise|outside the mask"),
    (UsesItsBufferAgain, {}, "its buffer is used again"),
    (NotClipped, {}, "an action outside the Box"),
    (WrongDtype, {}, "reward is torch.float64"),
    (OutsideItsSpace, {}, "is not in Box"),
    (Undeclared, {}, r"extras \{'is_success'\}, declared set\(\)|extras \{'is_success'\}, declared frozenset\(\)"),
    (LateInNextStep, {}, "autoreset 'next_step' goes otherwise than 'same_step'"),
]


def test_the_walk_itself_conforms():
    check_env(Walk, steps=60)


@pytest.mark.parametrize(("env", "options", "sentence"), PLANTED)
def test_the_suite_catches(env, options, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_env(partial(env), **{"steps": 40} | options)
