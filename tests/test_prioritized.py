"""Prioritised replay: the masses against plain NumPy, the choice against chi-square, the weights by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from test_replay import Environments, NoSync, Reference, draw, example, fields, generator, tensors_only  # noqa: F401

from agents.configs.value import DQNConfig
from agents.dqn import DQN
from envs.cartpole import CartPole
from rlcore import build
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import NetworkConfig, ReplayConfig
from rlcore.errors import UserError
from rlcore.prioritized import BELOW_ONE, BLOCK, EPSILON, Masses, Prioritized
from rlcore.replay import ReplayBuffer
from rlcore.sources import Replay
from rlcore.testing import check_agent
from rlcore.testing.agents import check_resume, iterate
from rlcore.types import Loss


def doubles(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_inverse_distribution_worked_by_hand() -> None:
    masses = Masses(200)
    masses.set(torch.tensor([3, 70, 71, 199]), doubles([1.0, 2.0, 4.0, 1.0]))
    slots, mass = masses.draw(doubles([0, 0.9, 1, 2.9, 3, 6.9, 7, 7.9, 8 * BELOW_ONE]) / 8)
    assert slots.tolist() == [3, 3, 70, 70, 71, 71, 199, 199, 199]
    assert mass.tolist() == [1, 1, 2, 2, 4, 4, 1, 1, 1]
    masses.set(
        torch.tensor([71, 71, 3]), doubles([0.5, 2.0, 0.0])
    )  # of duplicates the largest counts, either way round
    masses.set(torch.tensor([70, 70]), doubles([1.0, 0.5]))
    slots, mass = masses.draw(doubles([0, 0.24, 0.26, 0.74, 0.76]))
    assert slots.tolist() == [70, 70, 71, 71, 199]
    assert mass.tolist() == [1, 1, 2, 2, 1]


def check_sums(masses: Masses) -> None:
    """Every number is the sum of the block below it, bit for bit."""
    below, *above = masses.tensors().values()
    for sums in above:
        assert torch.equal(sums, torch.from_numpy(below.numpy().reshape(-1, BLOCK).sum(1))[: len(sums)])
        assert len(below) <= BLOCK * len(sums)
        below = sums


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 300),
    seed=st.integers(0, 10**6),
    span=st.sampled_from([0.0, 3.0, 12.0]),
    stored=st.floats(0.01, 1.0),
)
def test_slots_without_mass_are_never_drawn_and_sums_are_exact(n: int, seed: int, span: float, stored: float) -> None:
    rng = np.random.default_rng(seed)
    masses, plain = Masses(n), np.zeros(n)
    for _ in range(5):
        index = rng.permutation(n)[: int(rng.integers(1, n + 1))]
        value = np.where(rng.random(len(index)) < stored, 10 ** rng.uniform(-span, span, len(index)), 0.0)
        masses.set(torch.from_numpy(index), torch.from_numpy(value))
        plain[index] = value
    assert np.array_equal(masses.mass[:n].numpy(), plain)
    check_sums(masses)
    if not plain.any():
        return
    # Every edge between two slots, a rounding below and above it, and both ends of [0, 1).
    edges = np.cumsum(plain) / plain.sum()
    u = np.concatenate([[0, BELOW_ONE], rng.random(100), edges, np.nextafter(edges, 0), np.nextafter(edges, 1)])
    slots, mass = masses.draw(torch.from_numpy(np.clip(u, 0, BELOW_ONE)))
    assert (plain[slots.numpy()] > 0).all()
    assert np.array_equal(mass.numpy(), plain[slots.numpy()])
    inside = rng.random(200)
    expected = np.searchsorted(np.cumsum(plain), inside * plain.sum(), side="right")
    drawn = masses.draw(torch.from_numpy(inside))[0].numpy()
    assert (drawn == expected).mean() > 0.98, "but for roundings at an edge it is the plain inverse"


def test_sums_stay_right_after_ten_million_updates() -> None:
    masses, rng = Masses(10_000), np.random.default_rng(0)
    for _ in range(2_000):
        index = torch.from_numpy(rng.integers(0, 10_000, 5_000))
        masses.set(index, torch.from_numpy(10 ** rng.uniform(-9, 9, 5_000)))
    check_sums(masses)
    masses.set(torch.arange(10_000), torch.full((10_000,), 1e-9, dtype=torch.float64))
    assert list(masses.tensors().values())[-1].sum().item() == pytest.approx(1e-5, rel=1e-12), (
        "nothing is left of what was large"
    )


def filled(capacity: int, n: int, steps: int, alpha: float = 1.0, fake: float = 0.0, length: int = 1) -> Any:
    envs, buffer = Environments(n, 0, 0.2, fake), ReplayBuffer(capacity, n, example(n))
    chosen = Prioritized(buffer, alpha, length)
    for _ in range(steps):
        step, valid = fields(envs.step())
        chosen.add(buffer.add(step, valid if fake else None))
    return buffer, chosen, envs


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_sampling_is_in_proportion_to_priority(alpha: float) -> None:
    _, chosen, _ = filled(300, 3, 120, alpha)
    priority = torch.rand(300, generator=generator(5)) ** 4
    chosen.update(torch.arange(300), priority)
    expected = (priority.double() + EPSILON) ** alpha
    index = torch.cat([draw(chosen, 1000, rng, 0.4)[0] for rng in [generator(1)] for _ in range(300)])
    counts = torch.bincount(index, minlength=301)
    assert counts[300] == 0, "the slot of masked writes"
    frequent = expected / expected.sum() * len(index) > 5
    seen = torch.cat([counts[:300][frequent], counts[:300][~frequent].sum()[None]]).double()
    wanted = torch.cat([expected[frequent], expected[~frequent].sum()[None]])
    keep = wanted > 0
    assert chisquare(seen[keep].numpy(), (wanted / wanted.sum() * len(index))[keep].numpy()).pvalue > 1e-3
    if alpha == 0:
        assert expected.unique().tolist() == [1.0]


def test_importance_weights_worked_by_hand() -> None:
    _, chosen, _ = filled(4, 1, 4, alpha=0.5)
    priority = torch.tensor([1.0, 4.0, 16.0, 9.0])
    chosen.update(torch.arange(4), priority)
    probability = torch.tensor([0.1, 0.2, 0.4, 0.3])
    for beta in (0.0, 0.4, 1.0):
        index, weight = draw(chosen, 64, generator(2), beta)
        assert set(index.tolist()) == {0, 1, 2, 3}
        unscaled = (4 * probability) ** -beta
        assert torch.allclose(weight, (unscaled / unscaled.max())[index], rtol=1e-5)
        assert weight.dtype == torch.float32
        assert weight.max() == 1
    index, weight = draw(chosen, 1, generator(3), 1.0)
    assert weight.tolist() == [1.0], "the maximum is the batch's own"


def test_numbers_chosen_by_stay_as_they_were() -> None:
    _, chosen, _ = filled(8, 2, 4)
    numbers = torch.rand(20, dtype=torch.float64, generator=generator())
    before = numbers.clone()
    chosen.choose(numbers, 0.4)
    chosen.buffer.choose(numbers)
    assert torch.equal(numbers, before)


def test_full_correction_makes_the_mean_unbiased() -> None:
    _, chosen, _ = filled(50, 1, 50)
    value = torch.arange(50.0)
    chosen.update(torch.arange(50), 0.1 + value)
    index, weight = draw(chosen, 200_000, generator(4), 1.0)
    mean = (weight * value[index]).sum() / weight.sum()
    assert mean.item() == pytest.approx(24.5, abs=0.2)
    assert value[index].mean() > 30


def test_new_items_get_the_largest_priority_so_far() -> None:
    buffer, chosen, envs = filled(4, 1, 2)
    assert chosen.masses.mass[:4].tolist() == [1, 1, 0, 0], "the first ones get 1"
    chosen.update(torch.tensor([0]), torch.tensor([7.0]))
    chosen.update(torch.tensor([0]), torch.tensor([0.5]))
    for _ in range(3):
        chosen.add(buffer.add(fields(envs.step())[0]))
    largest = 7 + EPSILON
    assert chosen.masses.mass[:4].tolist() == pytest.approx([largest, 1, largest, largest])
    chosen.update(torch.tensor([1]), torch.tensor([0.0]))
    assert chosen.masses.mass[1] == EPSILON, "a vanishing error leaves a chance"


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 4),
    spare=st.integers(0, 17),
    steps=st.integers(1, 25),
    fake=st.sampled_from([0.0, 0.3]),
    length=st.integers(1, 4),
)
def test_exactly_what_is_stored_and_long_enough_has_mass(
    n: int, spare: int, steps: int, fake: float, length: int
) -> None:
    capacity = n * length + spare
    envs, buffer, reference = (
        Environments(n, 3, 0.2, fake),
        ReplayBuffer(capacity, n, example(n)),
        Reference(capacity, n),
    )
    chosen = Prioritized(buffer, 1.0, length)
    for _ in range(steps):
        rows = envs.step()
        reference.add(rows)
        step, valid = fields(rows)
        chosen.add(buffer.add(step, valid if fake else None))
    starts = {row[0] for ring in reference.rings for row in ring[: max(1, len(ring) - length + 1)]}
    massive = chosen.masses.mass.nonzero()[:, 0]
    assert chosen.masses.mass[massive].unique().tolist() in ([], [1.0])
    tags = buffer.select("obs", massive)["tag"]
    assert len(tags) == len(starts)
    assert {tuple(tag) for tag in tags.tolist()} == starts
    if starts:
        drawn = buffer.select("obs", draw(buffer, 60 * len(starts), generator(), length))["tag"]
        assert {tuple(tag) for tag in drawn.tolist()} == starts, "the uniform choice has the same starts"


def test_nothing_waits_for_the_device(tensors_only: None) -> None:  # noqa: F811
    buffer, chosen, envs = filled(23, 4, 9, fake=0.3)
    step, valid = fields(envs.step())
    draw(chosen, 8, generator(), 0.5)
    with NoSync():
        chosen.add(buffer.add(step, valid))
        index, _ = draw(chosen, 8, generator(), 0.5)
        chosen.update(index, torch.rand(8))


def test_an_empty_buffer_and_broken_priorities() -> None:
    chosen = Prioritized(ReplayBuffer(8, 4, example(4)), 0.6)
    with pytest.raises(UserError, match="empty buffer"):
        chosen.buffer.check_stored()
    _, chosen, _ = filled(8, 4, 2)
    chosen.update(torch.arange(3), torch.tensor([float("nan"), float("inf"), 1.0]))
    index, weight = draw(chosen, 100, generator(), 1.0)
    assert index.max() < 8
    assert weight.isfinite().all(), "the loss is what says that the run has diverged"


def test_a_priority_that_roundings_put_below_zero_counts_as_zero() -> None:
    _, chosen, _ = filled(8, 4, 2, alpha=0.6)
    chosen.update(torch.arange(3), torch.tensor([-3e-6, 0.0, float("nan")]))
    mass = chosen.masses.mass
    assert mass[0] == mass[1] == EPSILON**0.6
    assert math.isnan(chosen.statistics()["priority"]), "what is not a number is shown"


SETTINGS = ReplayConfig(capacity=60, batch_size=4, learning_starts=8, updates_per_frame=1.0, prioritized=True, beta=0.5)


def source(config: ReplayConfig = SETTINGS) -> tuple[Replay, DQN]:
    made = Replay(CartPole(3), config, seed=0)
    torch.manual_seed(0)
    return made, DQN(DQNConfig(network=NetworkConfig(name="mlp", kwargs={"hidden": [8]})), made.env.spec)


def test_every_update_is_drawn_with_the_priorities_of_the_one_before() -> None:
    made, agent = source()
    clock = Clock(1000, 1000)
    for _ in range(6):
        for number, batch in enumerate(made.collect(agent, clock)):
            if number == 1:
                assert batch.index.unique().tolist() == [2], "what has all the mass is all that is drawn"
            first = torch.zeros(60)
            first[2] = 1e9
            made.prioritized.update(torch.arange(60), first)  # type: ignore[union-attr]
            made.feedback(batch, Loss(torch.zeros(()), 4, priority=first[batch.index]))
    stats = made.statistics()
    assert stats["beta"] == 0.5
    assert 0 < stats["weight"] <= 1
    assert stats["priority"] > 1e6
    assert "priority" not in made.statistics(), "no update since"


def test_a_half_filled_interval_of_the_log_survives_a_checkpoint() -> None:
    _, chosen, _ = filled(8, 4, 2)
    chosen.update(draw(chosen, 4, generator(), 1.0)[0], torch.rand(4))
    _, other, _ = filled(8, 4, 2)
    other.load_state_dict(copy.deepcopy(chosen.state_dict()))
    assert other.statistics() == chosen.statistics() != {}


def test_an_agent_without_priorities_is_told() -> None:
    made, agent = source()
    clock = Clock(1000, 1000)
    batch = next(batch for _ in range(6) for batch in made.collect(agent, clock))
    with pytest.raises(UserError, match=r"source.prioritized: got true, expected false: the agent's loss gives no pri"):
        made.feedback(batch, Loss(torch.zeros(()), 4))


RECIPE: dict[str, Any] = {
    "env": {"num_envs": 3},
    "agent": {"name": "dqn"},
    "source": {"batch_size": 16, "learning_starts": 32, "updates_per_frame": 0.5, "capacity": 100, "prioritized": True},
}


def test_the_agent_contract_holds_with_priorities() -> None:
    check_agent(RECIPE)


@pytest.mark.parametrize("steps", [1, 40], ids=["not full", "full"])
def test_a_resume_in_the_middle_of_an_accumulation_is_exact(steps: int) -> None:
    recipe = copy.deepcopy(RECIPE) | {"optim": {"accumulate": 3}}
    check_resume(configs.validate(recipe), iterations=steps)


@pytest.mark.parametrize("beta", [{}, {"start": 0.6}])
def test_beta_reaches_one_and_is_logged_with_weights_that_count(beta: dict[str, float]) -> None:
    recipe = configs.override(RECIPE, {"budget.frames": 300} | {f"source.beta.{k}": v for k, v in beta.items()})
    trainer = build.trainer(configs.validate(recipe))
    trainer.fit()
    assert trainer.source.beta == 1.0  # type: ignore[attr-defined]
    stats = trainer.source.statistics()
    assert stats["beta"] == 1.0
    assert 0 < stats["weight"] < 1
    assert stats["priority"] > 0
    seen: list[Any] = []
    agent_loss = trainer.agent.loss
    trainer.agent.loss = lambda batch: (seen.append(batch), agent_loss(batch))[1]  # type: ignore[method-assign]
    iterate(trainer, 1)
    weight = seen[0].data.weight
    assert weight.shape == (16,)
    assert weight.min() < weight.max() == 1
    heavier = agent_loss(seen[0]._replace(data=seen[0].data._replace(weight=2 * weight)))
    assert heavier.total.item() == pytest.approx(2 * agent_loss(seen[0]).total.item())
