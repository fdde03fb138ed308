"""Sequences from replay against lists of what was stored: starts, order, padding, memory, masks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from test_recurrent import MODES, Counting, CountingConfig, Parity, env
from test_replay import Environments, NoSync, Reference, draw, example, fields, generator, one_env

from rlcore import config as configs
from rlcore import registry
from rlcore.clock import Clock
from rlcore.config import ReplayConfig
from rlcore.errors import UserError
from rlcore.replay import ReplayBuffer
from rlcore.sources import Replay
from rlcore.testing.agents import check_resume
from rlcore.types import Batch, Loss, Rollout


def with_state(step: dict[str, Any]) -> dict[str, Any]:
    """Add a memory that tells (environment, episode, step)."""
    tag = step["obs"]["tag"]
    return step | {"state": {"tag": tag.float(), "pair": (tag[:, 0].clone(), -tag)}}


def filled(capacity: int, n: int, steps: int, fake: float = 0.0, seed: int = 0) -> tuple[ReplayBuffer, Reference]:
    envs, reference = Environments(n, seed, 0.2, fake), Reference(capacity, n)
    buffer = ReplayBuffer(capacity, n, with_state(example(n)))
    for _ in range(steps):
        rows = envs.step()
        reference.add(rows)
        step, valid = fields(rows)
        buffer.add(with_state(step), valid if fake else None)
    return buffer, reference


def rows_of(data: Rollout, b: int) -> list[Any]:
    """Return the valid steps of sequence b as `Environments` writes them."""
    tag, after = data.obs["tag"][:, b].tolist(), data.next_obs["tag"][:, b].tolist()
    flags = zip(data.terminated[:, b].tolist(), data.truncated[:, b].tolist(), strict=True)
    columns = zip(tag, data.reward[:, b].tolist(), flags, after, data.valid[:, b].tolist(), strict=True)
    return [(tuple(t), pytest.approx(r), *f, tuple(a), v) for t, r, f, a, v in columns if v]


@settings(max_examples=120, deadline=None)
@given(
    n=st.integers(1, 4),
    length=st.integers(1, 6),
    spare=st.integers(0, 15),
    steps=st.integers(1, 30),
    fake=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_a_sequence_is_a_stretch_of_its_environments_history(
    n: int, length: int, spare: int, steps: int, fake: float, seed: int
) -> None:
    buffer, reference = filled(n * length + spare, n, steps, fake, seed)
    expected = {}
    for ring in reference.rings:
        for start in range(max(1, len(ring) - length + 1)) if ring else ():
            expected[ring[start][0]] = ring[start : start + length]
    if not expected:
        return
    index = draw(buffer, 60 * len(expected), generator(seed), length)
    data = buffer.sequences(index, length)
    seen = set()
    for b, tag in enumerate(map(tuple, data.obs["tag"][0].tolist())):
        assert tag in expected, f"{tag} is no start"
        seen.add(tag)
        assert rows_of(data, b) == expected[tag]
        assert tuple(data.state["tag"][b].tolist()) == tag, "the memory before the first step"
        assert data.state["pair"][0][b] == tag[0]
        assert tuple((-data.state["pair"][1][b]).tolist()) == tag
    assert seen == set(expected), "every start is drawn"
    assert data.valid.shape == data.reward.shape == (length, len(index))
    assert torch.equal(data.valid.sum(0), data.valid.int().cumprod(0).sum(0)), "padding comes last"
    assert torch.equal(data.action, data.obs["tag"].sum(-1)), "also in padding: a copy of the latest step"
    assert torch.equal(data.extras["action_mask"], data.obs["tag"][..., 1:].float())
    assert torch.equal(data.extras["next_action_mask"], data.next_obs["tag"][..., 1:].float())
    assert "state" not in data.extras
    assert data.act == {}


@pytest.mark.parametrize(
    ("capacity", "steps", "fake"), [(40, 40, 0.0), (39, 40, 0.0), (40, 7, 0.0), (39, 30, 0.5), (40, 3, 0.0)]
)
def test_starts_are_uniform(capacity: int, steps: int, fake: float) -> None:
    buffer, reference = filled(capacity, 4, steps, fake)
    starts = sum(max(1, len(ring) - 4) for ring in reference.rings if ring)
    index = draw(buffer, 2000 * starts, generator(1), 5)
    counts = torch.unique(index, return_counts=True)[1]
    assert len(counts) == starts
    assert chisquare(counts.numpy()).pvalue > 1e-3 if starts > 1 else True


def test_later_writes_do_not_change_a_batch_and_nothing_waits() -> None:
    buffer, _ = filled(23, 4, 9, 0.3)
    envs = Environments(4, 7, 0.2, 0.0)
    draw(buffer, 1, generator())
    with NoSync():
        data = buffer.sequences(draw(buffer, 8, generator(), 3), 3)
    before = torch.stack([data.reward, data.obs["tag"][..., 2].float()]).clone(), data.state["tag"].clone()
    for _ in range(8):
        buffer.add(with_state(fields(envs.step())[0]))
    after = torch.stack([data.reward, data.obs["tag"][..., 2].float()]), data.state["tag"]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


class RememberingConfig(CountingConfig):
    learns_from = ("replay",)
    name: Any = "remembering"


class Remembering(Counting):
    """Counts its episode's steps; learns from sequences of four, of which it keeps what it was shown."""

    Config = RememberingConfig
    sequence = 4

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"noise": torch.rand(n, generator=generator)}

    def loss(self, batch: Batch) -> Loss:
        self.seen.append(batch.data)
        weight = 1.0 if batch.data.weight is None else batch.data.weight
        error = (self.weight * batch.data.reward * batch.data.valid).sum(0) + batch.noise["noise"]
        return Loss((weight * error).sum(), len(error), priority=error.abs())


def replay(vector: Any, **options: Any) -> tuple[Replay, Remembering]:
    agent = Remembering(RememberingConfig(), vector.spec)
    config = ReplayConfig(**({"capacity": 30, "batch_size": 6, "learning_starts": 6} | options))
    return Replay(vector, config, seed=0, agent=agent), agent


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prioritized", [False, True])
def test_the_source_stores_memory_masks_and_real_steps_only(mode: Any, prioritized: bool) -> None:
    made, agent = replay(env(mode), prioritized=prioritized, updates_per_frame=1.0)
    clock, seen = Clock(1000, 1000), 0
    for _ in range(40):
        for batch in made.collect(agent, clock):
            out = agent.loss(batch)
            made.feedback(batch, out)
            seen += 1
            data: Rollout = batch.data
            assert data.reward.shape == (4, 6)
            assert batch.noise["noise"].shape == batch.index.shape == (6,)
            at = data.obs[..., 0]
            assert torch.equal(data.state["count"], at[0]), "the steps of the episode before the first of the sequence"
            assert torch.equal(data.extras["action_mask"][..., 0], at < 2)
            assert torch.equal(data.extras["next_action_mask"][..., 0], data.next_obs[..., 0] < 2)
            assert torch.equal(data.next_obs[..., 0], at + 1), "no fake step"
            both = data.valid[1:]
            done = data.terminated | data.truncated
            expected = torch.where(done[:-1], torch.zeros_like(at[1:]), at[:-1] + 1)
            assert torch.equal(at[1:][both], expected[both]), "an episode's end is followed by the next one's start"
            assert (data.weight is not None) == prioritized
            if data.weight is not None:
                assert data.weight.shape == (6,)
                assert data.weight.max() == 1
    assert seen > 50
    assert ("priority" in made.statistics()) == prioritized


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match=r"source.capacity: got 11, expected at least 12: 3 environments with 4 steps"):
        replay(env(MODES[1]), capacity=11)
    made, agent = replay(env(MODES[1]))
    agent.sequence = 5
    with pytest.raises(ValueError, match="wants sequences of 5 steps"):
        next(made.collect(agent, Clock(100, 100)))


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_own", dict(registry._own))
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    registry.register("agents", "remembering", Remembering)
    gym.register("Parity-v0", Parity)


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("prioritized", [False, True])
def test_a_resume_continues_with_the_same_sequences(prioritized: bool) -> None:
    source = {"capacity": 40, "batch_size": 4, "learning_starts": 8, "prioritized": prioritized, "updates_per_frame": 1}
    recipe = {"env": {"id": "Parity-v0", "num_envs": 3}, "agent": {"name": "remembering"}, "source": source}
    for iterations in (2, 20):
        check_resume(configs.validate(recipe), iterations)


class Forgetful(Remembering):
    """The same without a memory."""

    def initial_state(self, n: int) -> Any:
        return ()


def test_an_agent_without_memory_gets_sequences_too() -> None:
    vector = env(MODES[1])
    made = Replay(vector, ReplayConfig(capacity=30), seed=0, agent=Forgetful(RememberingConfig(), vector.spec))
    assert "state" not in made.buffer.state_dict()["fields"]
    assert made.buffer.sequences(torch.zeros(2, dtype=torch.int64), 4).state == ()


def test_beyond_the_latest_step_that_step_is_repeated_and_not_valid() -> None:
    buffer = one_env([1, 2, 4, 8, 16, 32, 64], "..t....", capacity=5)  # stored are steps 2 to 6
    drawn = buffer.sequences(torch.tensor([4, 1]), 4)
    assert drawn.obs.T.tolist() == [[4, 5, 6, 6], [6, 6, 6, 6]]
    assert drawn.valid.T.tolist() == [[True, True, True, False], [True, False, False, False]]
