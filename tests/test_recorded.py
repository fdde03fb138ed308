"""Recorded data: what is written is what was played, what is read back is what was written, bad data say so."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.configs.policy import PPOConfig
from agents.ppo import PPO
from rlcore import api, build, recorded
from rlcore import config as configs
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import AgentConfig, DatasetConfig, EnvConfig, NetworkConfig
from rlcore.errors import UserError
from rlcore.evaluation import play
from rlcore.make import make_env
from rlcore.recorded import Recorded, Steps
from rlcore.sources import Dataset
from rlcore.testing.agents import first_difference
from rlcore.tree import tmap
from rlcore.types import Act, Batch, Loss, Spec
from rlcore.vector import VectorEnv

warnings.filterwarnings("ignore", module="minari")


@pytest.fixture(autouse=True)
def minari_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)


class Leaning(Agent):
    """Steps to where the pole leans; elsewhere, to the first allowed action."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(AgentConfig(), spec)

    def act(self, obs: Any, state: Any, knobs: Any, noise: Any, mask: Any = None, explore: bool = True) -> Act:
        if mask is not None:
            return Act(mask.int().argmax(-1))
        return Act((obs[:, 2] > 0).long())

    def loss(self, batch: Batch) -> Loss:
        raise NotImplementedError


def played(env: VectorEnv, episodes: int, seed: int = 5, max_steps: int = 200) -> Steps:
    """Return what the greedy agent did."""
    steps = play(Leaning(env.spec), env, episodes, seed, max_steps, record=True).steps
    return tmap(lambda *x: torch.cat(x), *steps)


def by_hand(episodes: int, seed: int = 5, limit: int = 42) -> list[dict[str, Any]]:
    """Play gymnasium's CartPole an episode after the other and note every step."""
    rows = []
    env = gym.make("CartPole-v1", max_episode_steps=limit)
    for i in range(episodes):
        obs, _ = env.reset(seed=seed + i)
        ended = False
        while not ended:
            action = int(obs[2] > 0)
            new, reward, terminated, truncated, _ = env.step(action)
            rows.append({"obs": obs, "action": action, "reward": reward, "next_obs": new})
            rows[-1] |= {"terminated": terminated, "truncated": truncated}
            obs, ended = new, terminated or truncated
    return rows


def short_cartpole(num_envs: int, mode: Any) -> VectorEnv:
    # With 42 steps some episodes end by falling and some by the limit.
    return make_env("CartPole-v1", num_envs, backend="sync", kwargs={"max_episode_steps": 42}, autoreset=mode)


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_what_is_recorded_is_what_was_played_step_by_step(num_envs: int, mode: Any) -> None:
    steps = played(short_cartpole(num_envs, mode), 7)
    rows = by_hand(7)
    assert {(bool(a), bool(b)) for a, b in zip(steps.terminated, steps.truncated, strict=True)} == {
        (True, False),
        (False, True),
        (False, False),
    }
    assert len(rows) == len(steps.reward)
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated"):
        expected = torch.as_tensor(np.stack([row[name] for row in rows]))
        assert torch.equal(getattr(steps, name), expected.to(getattr(steps, name).dtype)), name


def test_an_episode_cut_by_max_steps_is_recorded_as_truncated() -> None:
    steps = played(short_cartpole(2, "same_step"), 2, max_steps=4)
    assert len(steps.reward) == 8
    assert steps.truncated.tolist() == [False, False, False, True] * 2
    assert not steps.terminated.any()


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_actions_outside_the_box_are_recorded_as_the_environment_clipped_them(backend: Any) -> None:
    env = make_env("Pendulum-v1", 2, backend=backend)
    agent = PPO(PPOConfig(network=NetworkConfig(kwargs={"hidden": [8]})), env.spec)
    wide = {name: torch.full_like(x, 2.0) for name, x in agent.state_dict().items() if name.endswith("log_std")}
    assert wide and not agent.load_state_dict(wide, strict=False).unexpected_keys
    (steps, *_) = play(agent, env, 1, 5, max_steps=50, explore=True, record=True).steps
    assert {-2.0, 2.0} <= set(steps.action.flatten().tolist()), "some are clipped on either side"
    recorded.write("wide.npz", steps, env.spec)
    assert recorded.read("wide.npz", env.spec).action.abs().max() == 2
    cos, sin, speed = steps.obs.unbind(-1)
    cost = torch.atan2(sin, cos).square() + 0.1 * speed.square() + 0.001 * steps.action[:, 0].square()
    torch.testing.assert_close(steps.reward, -cost, msg="the recorded actions earn what was earned")


class Many(gym.Env[Any, Any]):
    """A Dict of all kinds of observations, actions that count from 3, and a mask."""

    observation_space = spaces.Dict(
        {
            "a": spaces.Box(-1, 1, (2, 3), np.float64),
            "b": spaces.Tuple([spaces.Discrete(4, start=-1), spaces.MultiBinary(2)]),
            "image": spaces.Box(0, 255, (40, 40, 3), np.uint8),
        }
    )
    action_space = spaces.Discrete(3, start=3)

    def _info(self) -> dict[str, Any]:
        mask = np.zeros(3, np.int8)
        mask[self.np_random.integers(3) :] = 1
        return {"action_mask": mask}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.left = 4
        return self.observation_space.sample(), self._info()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in self.action_space
        self.left -= 1
        return self.observation_space.sample(), 1.5 * action, self.left == 0, False, self._info()


gym.register("Many-v0", f"{__name__}:Many", disable_env_checker=True)
gym.register("Nameless-v0", Many, disable_env_checker=True)


def envs() -> dict[str, Callable[[], VectorEnv]]:
    return {
        "native": lambda: make_env("CartPole-v1", 4),
        "gymnasium": lambda: short_cartpole(2, "same_step"),
        "dict-masks-start": lambda: make_env("Many-v0", 2, backend="sync"),
    }


@pytest.mark.parametrize("to", ["steps.npz", "minari:some/steps-v0"])
@pytest.mark.parametrize("name", sorted(envs()))
def test_reading_returns_what_was_written(name: str, to: str) -> None:
    env = envs()[name]()
    steps = played(env, 5)
    recorded.write(to, steps, env.spec, algorithm="leaning")
    again = recorded.read(to, env.spec)
    assert first_difference(steps._asdict(), again._asdict()) is None
    assert (name == "dict-masks-start") == bool(again.extras)
    with pytest.raises(UserError, match="exists already"):
        recorded.write(to, steps, env.spec)


def test_a_minari_data_set_names_spaces_environment_and_algorithm() -> None:
    minari = pytest.importorskip("minari")
    env = make_env("Many-v0", 2, backend="sync")
    recorded.write("minari:many-v0", played(env, 3), env.spec, EnvConfig(id="Many-v0"), "leaning")
    data = minari.load_dataset("many-v0")
    assert (data.total_episodes, data.total_steps) == (3, 12)
    assert data.action_space == Many.action_space
    assert data.env_spec.id == "Many-v0"
    assert data.storage.metadata["algorithm_name"] == "leaning"
    assert set(data[0].actions.tolist()) <= {3, 4, 5}
    assert len(data[0].observations["image"]) == 5
    recorded.write("minari:nameless-v0", played(env, 3), env.spec, EnvConfig(id="Nameless-v0"))
    assert minari.load_dataset("nameless-v0").env_spec is None, "gymnasium can write no class as text"


@st.composite
def sequences(draw: st.DrawFn) -> tuple[Steps, float, int]:
    size = draw(st.integers(1, 25))
    flags = st.lists(st.sampled_from(["", "", "", "terminated", "truncated", "both"]), min_size=size, max_size=size)
    ends = draw(flags)
    reward = torch.tensor(draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size)), dtype=torch.float32)
    rows = torch.arange(size)
    masks = {"action_mask": torch.stack([rows, rows], 1), "next_action_mask": torch.stack([rows + 1, rows], 1)}
    terminated, truncated = (
        torch.tensor([end in (name, "both") for end in ends]) for name in ("terminated", "truncated")
    )
    steps = Steps(rows, rows, reward, terminated, truncated, {"x": rows + 1000}, masks)
    return steps, draw(st.sampled_from([0.0, 0.5, 0.99, 1.0])), draw(st.integers(1, 6))


@given(sequences())
def test_transitions_are_those_of_a_loop_over_each_episode(case: tuple[Steps, float, int]) -> None:
    steps, gamma, n_step = case
    size = len(steps.reward)
    t = recorded.transitions(steps, gamma, n_step)
    for i in range(size):
        total, at, n = 0.0, i, 0
        while True:
            total += gamma**n * float(steps.reward[at])
            n += 1
            if n == n_step or steps.terminated[at] or steps.truncated[at] or at == size - 1:
                break
            at += 1
        assert float(t.reward[i]) == pytest.approx(total, abs=1e-5)
        assert float(t.discount[i]) == pytest.approx(0.0 if steps.terminated[at] else gamma**n)
        assert int(t.next_obs["x"][i]) == at + 1000
        assert int(t.obs[i]) == i and t.extras["action_mask"][i].tolist() == [i, i]
        assert t.extras["next_action_mask"][i].tolist() == [at + 1, at]


GOOD: dict[str, Any] = {
    "observations": np.zeros((5, 4), np.float32),
    "next_observations": np.zeros((5, 4), np.float32),
    "actions": np.array([0, 1, 0, 1, 1]),
    "rewards": np.ones(5),
    "terminations": np.zeros(5, bool),
    "truncations": np.zeros(5, bool),
}
NAN = np.zeros((5, 4))
NAN[3, 1] = np.nan
MASK = np.ones((5, 2), bool)
WRONG = MASK.copy()
WRONG[1, 1] = False
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"terminations": None}, "lacks 'terminations'; it has actions, next_observations"),
    "no-rewards": ({"rewards": None}, "lacks 'rewards'"),
    "ragged": ({"actions": np.zeros(4, int)}, r"'actions' has shape \(4,\), expected \(5,\)"),
    "other-spaces": (
        {"observations": np.zeros((5, 3))},
        r"'observations' has shape \(5, 3\), expected \(5, 4\): the env",
    ),
    "nan": ({"observations": NAN}, r"'observations' is \[.*nan.*\] in row 3, expected finite"),
    "infinite-reward": ({"rewards": np.array([1, 1, np.inf, 1, 1])}, "'rewards' is inf in row 2"),
    "action-outside": ({"actions": np.array([0, 1, 2, 0, 0])}, r"'actions' is 2 in row 2, expected .*Discrete\(2\)"),
    "fractional-action": ({"actions": np.full(5, 0.5)}, "'actions' has numbers of type float64, expected whole ones"),
    "text": ({"rewards": np.array(list("abcde"))}, "'rewards' has numbers of type <U1, expected real ones"),
    "no-flag": ({"truncations": np.full(5, 3)}, "'truncations' is 3 in row 0"),
    "empty": ({k: v[:0] for k, v in GOOD.items()}, "holds no transitions"),
    "scalar": ({"rewards": np.array(1.0)}, "holds no transitions"),
    "one-mask": ({"action_masks": MASK}, "has 'action_masks'; expected both masks"),
    "mask-rules-out": ({"action_masks": WRONG, "next_action_masks": MASK}, "row 1 has an action that its own"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_arrays_are_told_in_one_sentence(name: str) -> None:
    change, sentence = BAD[name]
    np.savez("bad.npz", **{k: v for k, v in {**GOOD, **change}.items() if v is not None})
    with pytest.raises(UserError, match=sentence) as told:
        recorded.read("bad.npz", make_env("CartPole-v1", 1).spec)
    assert "\n" not in str(told.value) and "'bad.npz'" in str(told.value)


def test_good_arrays_are_read_and_an_unfinished_episode_is_cut() -> None:
    np.savez("good.npz", **GOOD)
    data = recorded.load("good.npz", make_env("CartPole-v1", 1).spec, 0.5, 3)
    assert data.size == 5
    assert data.transitions.reward.tolist() == [1.75, 1.75, 1.75, 1.5, 1.0]
    assert data.transitions.discount.tolist() == [0.125, 0.125, 0.125, 0.25, 0.5]


def test_continuous_actions_outside_the_box_are_told() -> None:
    spec = make_env("Pendulum-v1", 1).spec
    arrays = {**GOOD, "observations": np.zeros((5, 3)), "next_observations": np.zeros((5, 3))}
    np.savez("far.npz", **{**arrays, "actions": np.full((5, 1), 2.5)})
    with pytest.raises(UserError, match=r"'actions' is \[2.5\] in row 0, expected finite elements of Box"):
        recorded.read("far.npz", spec)


def test_unreadable_files_are_told_in_one_sentence() -> None:
    spec = make_env("CartPole-v1", 1).spec
    np.savez("good.npz", **GOOD)
    Path("noise.npz").write_bytes(b"no archive")
    Path("cut.npz").write_bytes(Path("good.npz").read_bytes()[:200])
    np.savez("objects.npz", **{**GOOD, "rewards": np.array([None] * 5)})
    np.save("array.npy", np.zeros(3))
    Path("array.npy").rename("array.npz")
    Path("empty.npz").touch()
    Path("folder.npz").mkdir()
    for name in ("noise", "cut", "objects", "array", "empty", "folder"):
        with pytest.raises(UserError, match=f"recorded data '{name}.npz' cannot be read: ."):
            recorded.read(f"{name}.npz", spec)
    with pytest.raises(UserError, match=r"no recorded data 'goood.npz'; did you mean 'good.npz'\?"):
        recorded.read("goood.npz", spec)
    with pytest.raises(UserError, match=r"expected FILE\.npz or minari:ID"):
        recorded.read("good.csv", spec)
    with pytest.raises(UserError, match="there is no folder 'nowhere'"):
        recorded.check_new("nowhere/x.npz")


def test_unknown_and_damaged_minari_data_sets_are_told_in_one_sentence(tmp_path: Path) -> None:
    env = make_env("CartPole-v1", 2)
    recorded.write("minari:cartpole/expert-v0", played(env, 2, max_steps=5), env.spec)
    with pytest.raises(
        UserError, match=r"no local Minari data set 'cartpole/exprt-v0'; did you mean 'cartpole/expert-v0'"
    ):
        recorded.read("minari:cartpole/exprt-v0", env.spec)
    with pytest.raises(UserError, match="expected a name with a version"):
        recorded.read("minari:cartpole/expert", env.spec)
    with pytest.raises(
        UserError, match=r"'minari:cartpole/expert-v0': 'observations' has shape \(10, 4\), expected \(10, 3\)"
    ):
        recorded.read("minari:cartpole/expert-v0", make_env("Pendulum-v1", 1).spec)
    file = tmp_path / "minari" / "cartpole" / "expert-v0" / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"'cartpole/expert-v0' cannot be read: ."):
        recorded.read("minari:cartpole/expert-v0", env.spec)


class Watching(Leaning):
    """Remembers what it was given to observe."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.seen: list[Tensor] = []

    def observe(self, obs: Any) -> None:
        self.seen.append(obs)


def source(steps: Steps, env: VectorEnv) -> Dataset:
    return Dataset(env, DatasetConfig(batch_size=8), 3, Recorded(recorded.transitions(steps, 0.9, 2)))


def drawn(source: Dataset, agent: Agent, clock: Clock, batches: int) -> list[Any]:
    return [batch.data for _ in range(batches) for batch in source.collect(agent, clock)]


def test_the_source_goes_on_in_the_middle_of_an_epoch_and_observes_the_data_once() -> None:
    env = short_cartpole(2, "same_step")
    steps = played(env, 3)
    size = len(steps.reward)
    whole, half, rest = source(steps, env), source(steps, env), source(steps, env)
    clocks = [Clock(10_000, 10_000) for _ in range(3)]
    first, second = Watching(env.spec), Watching(env.spec)
    expected = drawn(whole, first, clocks[0], 25)
    assert torch.equal(torch.cat(first.seen), steps.obs), "the data are observed whole, once, in order"
    epoch = -(-size // 8)
    rewards = torch.cat([data.reward for data in expected[:epoch]])
    assert clocks[0].frames == sum(len(data.reward) for data in expected)
    assert torch.equal(rewards.sort().values, whole.task.draw(torch.arange(size)).reward.sort().values)
    drawn(half, second, clocks[1], 4)
    rest.load_state_dict(half.state_dict())
    clocks[2].load_state_dict(clocks[1].state_dict())
    resumed = Watching(env.spec)
    for one, other in zip(expected[4:], drawn(rest, resumed, clocks[2], 21), strict=True):
        assert first_difference(one._asdict() | {"weight": 0}, other._asdict() | {"weight": 0}) is None
    assert not resumed.seen
    assert whole.why_inexact() is None


def test_agents_and_data_that_do_not_go_together_say_so() -> None:
    np.savez("good.npz", **GOOD)
    for raw, sentence in (
        ({"agent": {"name": "bc"}}, "source.data: agent 'bc' learns from recorded data; expected FILE.npz"),
        ({"env": {"id": "line"}, "agent": {"name": "supervised"}, "source": {"data": "good.npz"}}, "expected nothing"),
    ):
        with pytest.raises(UserError, match=sentence):
            build.trainer(configs.validate(raw))


def test_the_command_records_a_run_for_others_to_learn_from(command: Any, finished: Path) -> None:
    called = command("evaluate", finished, "--episodes", "3", "--record", "steps.npz")
    assert called.code == 0 and "recorded 3 episodes to steps.npz" in called.err
    spec = api.load(finished).spec
    steps = recorded.read("steps.npz", spec)
    result = api.record(finished, "minari:steps-v0", episodes=3)
    assert float(steps.reward.sum()) == sum(result["returns"])
    assert first_difference(steps._asdict(), recorded.read("minari:steps-v0", spec)._asdict()) is None
    greedy, exploring = (api.record(finished, f"{e}.npz", episodes=40, explore=e) for e in (False, True))
    assert greedy["returns"] != exploring["returns"]
    other = Path(shutil.copytree(finished, "other"))
    for options, sentence in (
        (("--record", "steps.npz"), "exists already"),
        (("--record", "steps.csv"), "expected FILE.npz or minari:ID"),
        (("--explore",), "expected --record beside it"),
        ((other, "--record", "x.npz"), "expected one run, got 2"),
    ):
        called = command("evaluate", finished, *options)
        assert called.code == 2 and sentence in called.err and called.err.count("\n") == 1
