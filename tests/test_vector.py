"""The adapter of gymnasium's vector environments, on an environment whose every number can be told by hand."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rlcore import registry
from rlcore.capture import Captured
from rlcore.errors import UserError
from rlcore.gym_vector import GymVector, tensor_space
from rlcore.make import make_env
from rlcore.tree import leaves

MODES = {"same_step": "SameStep", "next_step": "NextStep", "disabled": "Disabled"}


class Tagged(gym.Env):
    """Observation (episode, step); reward 10 * episode + step; episodes of ``length`` steps end both ways by turns."""

    def __init__(self, length=2, reuse=False, success=True):
        self.observation_space = spaces.Box(0, 100, (2,), np.float64)
        self.action_space = spaces.Discrete(3)
        self.length, self.reuse, self.success, self.episode = length, reuse, success, -1
        self.buffer = np.zeros(2)

    def _obs(self):
        self.buffer[:] = self.episode, self.t
        return self.buffer if self.reuse else self.buffer.copy()

    def _mask(self):  # bit 0: parity of the step, bit 1: parity of the episode
        return np.array([self.t % 2, self.episode % 2, 1], dtype=np.int8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = 0 if seed is not None else self.episode + 1, 0
        return self._obs(), {"action_mask": self._mask()}

    def step(self, action):
        self.t += 1
        end = self.t == self.length
        info = {"action_mask": self._mask()}
        if end and self.success:
            info["is_success"] = self.episode % 2 == 0
        odd = self.episode % 2 == 1
        return self._obs(), 10.0 * self.episode + self.t, end and not odd, end and odd, info


def tagged(mode, kind=SyncVectorEnv, lengths=(2, 3), **kwargs):
    vector = kind([lambda n=n: Tagged(n, **kwargs) for n in lengths], autoreset_mode=AutoresetMode(MODES[mode]))
    return GymVector(vector, extras=["is_success"])


def play(env, steps):
    env.reset(seed=0)
    return [env.step(torch.tensor([0, 2])) for _ in range(steps)]


def column(steps, name, i):
    values = [getattr(step, name) for step in steps] if hasattr(steps[0], name) else [s.extras[name] for s in steps]
    return [value[i].tolist() for value in values]


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_same_step_by_hand(kind):
    env = tagged("same_step", kind)
    steps = play(env, 4)
    env.close()
    assert column(steps, "obs", 0) == [[0, 1], [1, 0], [1, 1], [2, 0]]
    assert column(steps, "next_obs", 0) == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert column(steps, "obs", 1) == [[0, 1], [0, 2], [1, 0], [1, 1]]
    assert column(steps, "next_obs", 1) == [[0, 1], [0, 2], [0, 3], [1, 1]]
    assert column(steps, "reward", 0) == [1, 2, 11, 12]
    assert column(steps, "terminated", 0) == [False, True, False, False]
    assert column(steps, "truncated", 0) == [False, False, False, True]
    assert column(steps, "valid", 0) == [True] * 4
    assert env.always_valid
    assert column(steps, "is_success", 0) == [False, True, False, False]
    assert column(steps, "is_success", 1) == [False, False, True, False]
    assert column(steps, "action_mask", 0) == [[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]]  # of obs
    assert column(steps, "next_action_mask", 0) == [[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1]]  # of next_obs


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_next_step_by_hand(kind):
    env = tagged("next_step", kind)
    steps = play(env, 5)
    env.close()
    assert column(steps, "obs", 0) == [[0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert column(steps, "next_obs", 0) == column(steps, "obs", 0)
    assert column(steps, "valid", 0) == [True, True, False, True, True]
    assert column(steps, "valid", 1) == [True, True, True, False, True]
    assert not env.always_valid
    assert column(steps, "reward", 0) == [1, 2, 0, 11, 12]
    assert column(steps, "terminated", 0) == [False, True, False, False, False]
    assert column(steps, "truncated", 0) == [False, False, False, False, True]
    assert column(steps, "is_success", 0) == [False, True, False, False, False]
    assert column(steps, "action_mask", 0) == [[1, 0, 1], [0, 0, 1], [0, 1, 1], [1, 1, 1], [0, 1, 1]]


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_disabled_by_hand(kind):
    env = tagged("disabled", kind)
    steps = play(env, 2)
    assert column(steps, "next_obs", 0) == [[0, 1], [0, 2]]
    obs, extras = env.reset(mask=torch.tensor([True, False]))
    assert obs.tolist() == [[1, 0], [0, 2]]  # the other environment is where it was
    assert extras["action_mask"].tolist() == [[0, 1, 1], [0, 0, 1]]
    step = env.step(torch.tensor([0, 0]))
    assert step.next_obs.tolist() == [[1, 1], [0, 3]]
    assert step.valid.tolist() == [True, True]
    obs, _ = env.reset(seed=[5, 6], mask=torch.tensor([False, True]))
    assert obs.tolist() == [[1, 1], [0, 0]]
    env.close()


def test_masks_and_successes_are_declared_and_dtypes_fixed():
    env = tagged("same_step")
    assert env.spec.extras == {"action_mask", "next_action_mask", "is_success"}
    assert env.spec.obs_space == spaces.Box(0, 100, (2,), np.float32)
    step = play(env, 1)[0]
    dtypes = {name: x.dtype for name, x in step._asdict().items() if name != "extras"}
    assert dtypes.pop("obs") == dtypes.pop("next_obs") == dtypes.pop("reward") == torch.float32
    assert {*dtypes.values(), *(x.dtype for x in step.extras.values())} == {torch.bool}
    silent = tagged("same_step", success=False)
    assert column(play(silent, 4), "is_success", 0) == [False] * 4


def test_buffers_that_an_environment_uses_again_do_not_leak():
    vector = SyncVectorEnv([Captured(lambda: Tagged(2, reuse=True))], copy=False, autoreset_mode="SameStep")
    env = GymVector(vector)
    env.reset(seed=0)
    steps = [env.step(torch.tensor([0])) for _ in range(4)]
    assert column(steps, "obs", 0) == [[0, 1], [1, 0], [1, 1], [2, 0]]
    assert column(steps, "next_obs", 0) == [[0, 1], [0, 2], [1, 1], [1, 2]]


class Shows(gym.Env):
    """Shows what it is told to and remembers the action."""

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or spaces.Discrete(2)
        self.action_space = action_space or spaces.Discrete(2)
        self.observation_space.seed(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown = self.observation_space.sample()
        return self.shown, {}

    def step(self, action):
        self.action, self.shown = action, self.observation_space.sample()
        return self.shown, 0.0, False, False, {}


def showing(n=2, **kwargs):
    return GymVector(SyncVectorEnv([lambda: Shows(**kwargs) for _ in range(n)], autoreset_mode="SameStep"))


OBSERVATIONS = [
    (spaces.Box(-1, 1, (3,), np.float64), torch.float32, (2, 3)),
    (spaces.Box(-1, 1, (2, 2), np.float16), torch.float32, (2, 2, 2)),
    (spaces.Box(0, 255, (4, 4, 3), np.uint8), torch.uint8, (2, 4, 4, 3)),
    (spaces.Box(-5, 5, (2,), np.int32), torch.float32, (2, 2)),
    (spaces.Discrete(5, start=3), torch.int64, (2,)),
    (spaces.MultiDiscrete([3, 4]), torch.int64, (2, 2)),
    (spaces.MultiBinary(4), torch.int64, (2, 4)),
]


@pytest.mark.parametrize(("space", "dtype", "shape"), OBSERVATIONS)
def test_observations_are_converted(space, dtype, shape):
    env = showing(observation_space=space)
    obs, _ = env.reset(seed=0)
    assert (obs.dtype, tuple(obs.shape)) == (dtype, shape)
    assert np.array_equal(obs.numpy(), np.array([sub.shown for sub in env.env.envs]).astype(obs.numpy().dtype))
    assert env.spec.obs_space.shape == space.shape
    assert env.step(torch.tensor([0, 1])).next_obs.dtype == dtype


def test_observations_outlive_the_vectors_own_buffer():
    space = spaces.Box(-1, 1, (3,), np.float32)
    env = GymVector(SyncVectorEnv([lambda: Shows(space)], copy=False, autoreset_mode="SameStep"))
    step = env.step(torch.tensor([0]))
    kept, copied = step.obs, step.obs.clone()
    assert not torch.equal(env.step(torch.tensor([0])).obs, copied)
    assert torch.equal(kept, copied)


def test_trees_keep_their_structure_also_at_episode_ends():
    space = spaces.Dict(
        a=spaces.Box(-1, 1, (2,), np.float64), b=spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)])
    )

    class Ends(Shows):
        def step(self, action):
            obs, reward, _, _, info = super().step(action)
            return obs, reward, bool(action), False, info

    env = GymVector(SyncVectorEnv([lambda: Ends(space) for _ in range(3)], autoreset_mode="SameStep"))
    step = env.step(torch.tensor([0, 1, 1]))
    assert [tuple(x.shape) for x in leaves(step.next_obs)] == [(3, 2), (3,), (3, 2)]
    assert [x.dtype for x in leaves(step.obs)] == [torch.float32, torch.int64, torch.int64]
    assert isinstance(step.obs["b"], tuple)
    assert torch.equal(step.next_obs["a"][0], step.obs["a"][0])
    assert not torch.equal(step.next_obs["a"][1:], step.obs["a"][1:])


@pytest.mark.parametrize(
    "space", [spaces.Text(5), spaces.Sequence(spaces.Discrete(2)), spaces.Graph(spaces.Box(0, 1), None)]
)
def test_spaces_that_cannot_be_served_are_named(space):
    with pytest.raises(UserError, match=f"observation space: {type(space).__name__} spaces cannot be served"):
        tensor_space(spaces.Dict(x=space), "observation space")


def test_action_spaces_that_cannot_be_served_are_named():
    with pytest.raises(UserError, match="action space: Dict cannot be served"):
        showing(action_space=spaces.Dict(a=spaces.Discrete(2)))


ACTIONS = [
    (spaces.Discrete(3, start=-1), [0, 2], [-1, 1]),
    (spaces.MultiDiscrete([3, 2], start=[5, 0]), [[0, 1], [2, 0]], [[5, 1], [7, 0]]),
    (spaces.MultiBinary(2), [[0, 1], [1, 1]], [[0, 1], [1, 1]]),
    (spaces.Box(np.float32([-1, 0]), np.float32([1, 5])), [[-3.0, 2.0], [0.5, 9.0]], [[-1, 2], [0.5, 5]]),
]


@pytest.mark.parametrize(("space", "agents", "environments"), ACTIONS)
def test_actions_are_converted_and_clipped(space, agents, environments):
    env = showing(action_space=space)
    env.step(torch.tensor(agents))
    found = [sub.action for sub in env.env.envs]
    assert np.array_equal(found, environments)
    assert all(space.contains(action) for action in found)


def test_agents_count_actions_from_zero():
    assert showing(action_space=spaces.Discrete(3, start=4)).spec.action_space == spaces.Discrete(3)
    multi = showing(action_space=spaces.MultiDiscrete([2, 3], start=[1, 1])).spec.action_space
    assert multi == spaces.MultiDiscrete([2, 3])


def test_an_environment_must_say_how_it_resets():
    vector = SyncVectorEnv([Tagged])
    del vector.metadata["autoreset_mode"]
    with pytest.raises(UserError, match=r"metadata\['autoreset_mode'\] is None"):
        GymVector(vector)


def test_natively_vectorised_environments_take_consecutive_seeds():
    env = make_env("CartPole-v1", 2, backend="vector")
    assert env.autoreset == "next_step"
    assert torch.equal(env.reset(seed=[3, 4])[0], env.reset(seed=3)[0])
    with pytest.raises(UserError, match="takes consecutive seeds"):
        env.reset(seed=[3, 5])
    with pytest.raises(UserError, match="always resets by itself"):
        make_env("CartPole-v1", 2, backend="vector", autoreset="disabled")


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Blackjack-v1", "LunarLanderContinuous-v3"])
def test_sync_equals_async_bit_for_bit(env_id):
    pair = [make_env(env_id, 2, backend=backend) for backend in ("sync", "async")]
    starts = [env.reset(seed=11)[0] for env in pair]
    space = gym.vector.utils.batch_space(pair[0].spec.action_space, 2)
    space.seed(0)
    ends = 0
    for _ in range(150):
        action = torch.as_tensor(space.sample())
        one, other = [env.step(action) for env in pair]
        assert all(torch.equal(a, b) for a, b in zip(leaves(tuple(one[:6])), leaves(tuple(other[:6])), strict=True))
        ends += int((one.terminated | one.truncated).sum())
    assert ends > 0
    assert all(torch.equal(a, b) for a, b in zip(*map(leaves, starts), strict=True))
    for env in pair:
        env.close()


def test_backends_and_wrappers():
    assert type(make_env("CartPole-v1", 1)).__name__ == "CartPole"
    wrapped = make_env("CartPole-v1", 2, wrappers=[{"name": "TimeLimit", "max_episode_steps": 3}])
    assert isinstance(wrapped, GymVector)
    wrapped.reset(seed=0)
    assert [wrapped.step(torch.tensor([0, 1])).truncated.tolist() for _ in range(3)][-1] == [True, True]
    assert not wrapped.batched


def test_wrappers_registered_by_name():
    registry.register("wrappers", "Doubled", Doubled)
    env = make_env("CartPole-v1", 1, wrappers=[{"name": "Doubled", "factor": 4}])
    assert float(env.step(torch.tensor([0])).reward) == 4.0


class Doubled(gym.RewardWrapper):
    def __init__(self, env, factor=2):
        super().__init__(env)
        self.factor = factor

    def reward(self, reward):
        return self.factor * reward


ERRORS = [
    ({"env_id": "CartPol-v1"}, "environment 'CartPol-v1' is unknown; did you mean 'CartPole-v1'?"),
    ({"env_id": "CartPole-v9"}, "did you mean 'CartPole-v1'"),
    ({"env_id": "os:CartPole-v1"}, "names a module; import it with --plugin"),
    ({"backend": "asynk"}, "backend: 'asynk' is unknown; did you mean 'async'"),
    ({"env_id": "Blackjack-v1", "backend": "native"}, "env 'Blackjack-v1' is unknown"),
    ({"num_envs": 0}, "num_envs: 0 is not a number of environments"),
    ({"num_envs": True}, "num_envs: True"),
    ({"autoreset": "never"}, "autoreset: 'never' is not a mode"),
    ({"kwargs": {"gravty": 1}}, "unknown keyword 'gravty'; did you mean 'gravity'"),
    (
        {"backend": "sync", "kwargs": {"sutton_barto": 1}},
        "unknown keyword 'sutton_barto'; did you mean 'sutton_barto_reward'",
    ),
    (
        {"env_id": "LunarLander-v3", "kwargs": {"gravity": 3.0}},
        "cannot be built with {'gravity': 3.0}: AssertionError: gravity",
    ),
    ({"env_id": "FrozenLake-v1", "kwargs": {"map_name": "x"}}, "cannot be built with {'map_name': 'x'}: KeyError"),
    ({"wrappers": [{"name": "TimeLimt"}]}, "wrapper 'TimeLimt' is unknown; did you mean 'TimeLimit'"),
    ({"wrappers": [{"name": "TimeLimit"}]}, "wrapper 'TimeLimit': keyword 'max_episode_steps' is missing"),
    (
        {"wrappers": [{"name": "TimeLimit", "max_step": 1}]},
        "unknown keyword 'max_step'; did you mean 'max_episode_steps'",
    ),
    ({"wrappers": [{}]}, "wrapper 'None' is unknown"),
    ({"wrappers": [{"name": "NormalizeObservation"}]}, "wrapper 'NormalizeObservation' keeps statistics across epis"),
    ({"wrappers": [{"name": "NormalizeReward"}]}, "wrapper 'NormalizeReward' keeps statistics across episodes, so"),
    ({"backend": "native", "wrappers": [{"name": "TimeLimit"}]}, "is native and takes no wrappers"),
    ({"backend": "vector", "wrappers": [{"name": "TimeLimit"}]}, "backend 'vector' takes no wrappers"),
    ({"env_id": "Acrobot-v1", "backend": "vector"}, "has no batched version"),
    ({"env_id": "Hopper-v2"}, "cannot be built with {}: ImportError"),
    ({"extras": ["sucess"], "backend": "sync"}, "extras: 'sucess' cannot be passed on; did you mean 'is_success'"),
]


@pytest.mark.parametrize(("arguments", "sentence"), ERRORS)
def test_bad_input_gets_one_sentence(arguments, sentence):
    with pytest.raises(UserError) as error:
        make_env(**{"env_id": "CartPole-v1", "num_envs": 1} | arguments)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_outdated_versions_do_not_warn():
    assert make_env("CartPole-v0", 1).spec.action_space == spaces.Discrete(2)


def test_observations_lie_row_by_row_in_memory() -> None:
    """As they do once a checkpoint has been loaded; gymnasium's batched CartPole returns them column by column."""
    env = make_env("CartPole-v1", 4, backend="vector")
    obs, _ = env.reset(seed=0)
    step = env.step(torch.zeros(4, dtype=torch.int64))
    for x in (obs, step.obs, step.next_obs):
        assert x.is_contiguous()
    env.close()
