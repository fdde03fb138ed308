"""Tasks as environments: episodes of one step in every autoreset mode, streams, capture."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from envs.one_step import OneStep, OneStepTask
from rlcore.errors import UserError
from rlcore.types import Example, Spec


class Numbers(OneStepTask):
    """Example i shows {"x": (i, -i), "image": i} and wants 10 i; the reward is minus the distance."""

    spec = Spec(
        spaces.Dict({"x": spaces.Box(-99, 99, (2,)), "image": spaces.Box(0, 255, (1, 1), dtype="uint8")}),
        spaces.Box(-999, 999, (1,)),
    )

    def __init__(self, size: int) -> None:
        self.size = size

    def draw(self, index):
        i = index.float()
        obs = {"x": torch.stack([i, -i], 1), "image": index.to(torch.uint8).view(-1, 1, 1)}
        return Example(obs, 10 * i[:, None])

    def reward(self, action, target):
        return -(action - target).abs().sum(1)

    def metrics(self, outcomes):
        return {"mae": float((outcomes["prediction"] - outcomes["target"]).abs().mean())}


def env(num_envs=3, split="train", autoreset="same_step", size=7) -> OneStep:
    return OneStep(Numbers(size), num_envs, split=split, autoreset=autoreset)


def rows(obs) -> list[int]:
    assert torch.equal(obs["x"][:, 0], -obs["x"][:, 1])
    assert torch.equal(obs["image"].flatten().float(), obs["x"][:, 0])
    return obs["x"][:, 0].int().tolist()


def predict(value: float, n: int = 3) -> torch.Tensor:
    return torch.full((n, 1), value)


def test_same_step():
    e = env(split="test")
    obs, extras = e.reset(seed=5)
    assert (rows(obs), extras) == ([5, 6, 0], {})
    step = e.step(predict(50.0))
    assert rows(step.obs) == [6, 0, 1]  # the next episodes already
    assert rows(step.next_obs) == [5, 6, 0]  # the terminal successor is x itself
    assert step.reward.tolist() == [0, -10, -50]
    assert step.reward.dtype == torch.float32
    assert step.terminated.all()
    assert not step.truncated.any()
    assert step.valid.all()
    assert e.always_valid
    assert step.extras.keys() == e.spec.extras == {"prediction", "target"}
    assert step.extras["target"].flatten().tolist() == [50, 60, 0]
    assert step.extras["prediction"].flatten().tolist() == [50, 50, 50]
    assert e.step(predict(50.0)).reward.tolist() == [-10, -50, -40]
    assert e.metrics(step.extras) == {"mae": 20}


def test_next_step():
    e = env(split="test", autoreset="next_step")
    e.reset(seed=5)
    end = e.step(predict(50.0))
    assert rows(end.obs) == rows(end.next_obs) == [5, 6, 0]  # nothing is reset yet
    assert end.terminated.all()
    assert end.valid.all()
    fake = e.step(predict(float("nan")))  # the action is ignored
    assert rows(fake.obs) == rows(fake.next_obs) == [6, 0, 1]
    assert fake.reward.tolist() == [0, 0, 0]
    assert not (fake.terminated | fake.truncated | fake.valid).any()
    assert not e.always_valid
    assert e.step(predict(50.0)).reward.tolist() == [-10, -50, -40]
    obs, _ = e.reset(mask=torch.tensor([True, False, False]))  # environment 0 begins anew, 1 and 2 are to be reset
    assert rows(obs) == [0, 0, 1]
    mixed = e.step(predict(0.0))
    assert mixed.valid.tolist() == mixed.terminated.tolist() == [True, False, False]
    assert rows(mixed.obs) == [0, 1, 2]


def test_disabled():
    e = env(split="test", autoreset="disabled")
    e.reset(seed=5)
    step = e.step(predict(50.0))
    assert rows(step.obs) == rows(step.next_obs) == [5, 6, 0]
    assert step.terminated.all()
    obs, _ = e.reset(mask=torch.tensor([True, False, True]))
    assert rows(obs) == [6, 6, 1]
    obs, _ = e.reset(seed=2, mask=torch.tensor([False, True, True]))
    assert rows(obs) == [6, 3, 4]
    assert rows(e.reset(seed=[6, 6, 1])[0]) == [6, 6, 1]
    assert rows(e.reset()[0]) == [0, 0, 2]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**62))
def test_a_full_evaluation_plays_each_held_out_row_once(num_envs, size, base):
    e = env(num_envs, "validation", size=size)
    assert e.episodes == size
    seen: list[int] = []
    for start in range(0, size, num_envs):
        seen += rows(e.reset(list(range(base + start, base + start + num_envs)))[0])
        e.step(predict(0.0, num_envs))
    assert sorted(seen[:size]) == list(range(size))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**62), st.sampled_from(["train", "test"]), st.integers(0, 20))
def test_a_stream_depends_on_its_seed_and_episode_only(num_envs, seed, split, steps):
    together = env(num_envs, split, size=250)
    reset, _ = together.reset(seed)
    shown = [rows(reset)] + [rows(together.step(predict(0.0, num_envs)).obs) for _ in range(steps)]
    for i in range(num_envs):
        alone = env(1, split, "next_step", size=250)
        stream = rows(alone.reset(seed + i)[0])
        for _ in range(2 * steps):
            step = alone.step(predict(0.0, 1))
            stream += rows(step.obs) if not step.valid.all() else []
        assert stream == [row[i] for row in shown]


def test_training_rows_are_uniform_over_seeds_and_over_episodes():
    size, draws = 10, 20_000
    over_seeds = rows(env(draws, size=size).reset(seed=0)[0])
    e = env(1, size=size)
    e.reset(seed=0)
    over_episodes = [rows(e.step(predict(0.0, 1)).obs)[0] for _ in range(draws // 10)]
    pairs = [size * a + b for a, b in itertools.pairwise(over_seeds)]
    for sample, cells in ((over_seeds, size), (over_episodes, size), (pairs, size**2)):
        counts = torch.tensor(sample).bincount(minlength=cells)
        assert chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("autoreset", ["same_step", "next_step", "disabled"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_fresh_environment_continues_from_a_capture(autoreset, split):
    e = env(5, split, autoreset, size=50)
    e.reset(seed=2**62)
    for _ in range(3):
        e.step(predict(0.0, 5))
    e.reset(mask=torch.tensor([True, False, True, False, False]))
    fresh = env(5, split, autoreset, size=50)
    fresh.restore(json.loads(json.dumps(e.capture())))
    for k in range(200):
        a, b = e.step(predict(k, 5)), fresh.step(predict(k, 5))
        assert rows(a.obs) == rows(b.obs)
        assert torch.equal(a.reward, b.reward)
        assert torch.equal(a.valid, b.valid)
        assert torch.equal(a.terminated, b.terminated)
    with pytest.raises(UserError, match="num_envs: 4 environments cannot continue the captured 5"):
        env(4).restore(e.capture())


def test_what_was_handed_out_stays_as_it_was():
    e = env(autoreset="next_step")
    obs, _ = e.reset(seed=0)
    shown = rows(obs)
    step = e.step(predict(0.0))
    flags = step.terminated.tolist()
    for _ in range(3):
        e.step(predict(1.0))
    e.reset()
    assert rows(obs) == shown
    assert step.terminated.tolist() == flags


def test_only_held_out_splits_count_episodes():
    assert env().episodes is None
    assert env(split="validation").episodes == env(split="test").episodes == 7


def test_bad_arguments_get_one_sentence():
    with pytest.raises(UserError, match="num_envs: 0 is not a number of environments"):
        env(0)
    with pytest.raises(UserError, match="autoreset: 'same_stp' is not a mode; did you mean 'same_step'"):
        env(autoreset="same_stp")
    with pytest.raises(UserError, match=r"seed: .* cannot seed 3 environments"):
        env().reset(seed=[1, 2])
