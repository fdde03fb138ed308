"""Acting: episodes counted many steps at once, randomness drawn many steps at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.configs.value import PQNConfig
from agents.pqn import PQN
from envs.cartpole import CartPole
from rlcore.actor import Actor, EpisodeMeter
from rlcore.clock import Clock
from rlcore.config import NetworkConfig, RolloutConfig
from rlcore.errors import Diverged
from rlcore.meter import Meter
from rlcore.sources import Rollout
from rlcore.tree import tmap
from rlcore.types import Step


def random_steps(seed: int, count: int, n: int, judged: bool) -> list[Step]:
    rng = torch.Generator().manual_seed(seed)

    def coin(p: float) -> torch.Tensor:
        return torch.rand(n, generator=rng) < p

    return [
        Step(
            obs=torch.zeros(n),
            reward=torch.randn(n, generator=rng),
            terminated=coin(0.2),
            truncated=coin(0.1),
            next_obs=torch.zeros(n),
            valid=coin(0.8),
            extras={"is_success": coin(0.5)} if judged else {},
        )
        for _ in range(count)
    ]


def stacked(steps: list[Step]) -> Step:
    """Return steps one after the other, (T, N, ...)."""
    return tmap(lambda *x: torch.stack(x), *steps)


def slow(steps: list[Step]) -> dict[str, float]:
    """One environment and one step after the other."""
    returns, lengths, successes = [], [], []
    for n in range(len(steps[0].reward)):
        total = length = 0.0
        for step in steps:
            if not step.valid[n]:
                continue
            total, length = total + float(step.reward[n]), length + 1
            if step.terminated[n] or step.truncated[n]:
                returns.append(total)
                lengths.append(length)
                successes.append(float(step.extras["is_success"][n]) if step.extras else 0.0)
                total = length = 0.0
    if not returns:
        return {}
    means = {"episode_return": math.fsum(returns) / len(returns), "episode_length": sum(lengths) / len(lengths)}
    return means | ({"success_rate": sum(successes) / len(successes)} if steps[0].extras else {})


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 5), st.integers(1, 20), st.booleans())
@settings(deadline=None, max_examples=60)
def test_episodes_are_those_counted_one_by_one(seed: int, count: int, n: int, many: int, judged: bool) -> None:
    meter, steps = EpisodeMeter(n, torch.device("cpu")), random_steps(seed, count, n, judged)
    meter._many = many
    for i in range(0, count, 3):
        meter.add(stacked(steps[i : i + 3]))
    assert meter.flush() == pytest.approx(slow(steps), rel=1e-12)
    assert meter.flush() == {}, "what was told is not told again"


@given(st.integers(0, 10**6), st.lists(st.integers(0, 39), max_size=5), st.booleans())
@settings(deadline=None, max_examples=30)
def test_saving_the_episodes_changes_no_bit_of_their_means(seed: int, saves: list[int], judged: bool) -> None:
    steps = random_steps(seed, 40, 3, judged)
    plain, saved = (EpisodeMeter(3, torch.device("cpu")) for _ in range(2))
    plain._many = saved._many = 7
    for i, step in enumerate(steps):
        plain.add(stacked([step]))
        saved.add(stacked([step]))
        if i in saves:
            state = saved.state_dict()
            saved = EpisodeMeter(3, torch.device("cpu"))
            saved._many = 7
            saved.load_state_dict(state)
        if i == 25:
            assert plain.flush() == saved.flush()
    assert plain.flush() == saved.flush()


def test_cut_episodes_are_not_continued_and_those_that_ended_still_count() -> None:
    meter = EpisodeMeter(2, torch.device("cpu"))
    yes, no = torch.tensor([True, True]), torch.tensor([False, False])
    for reward, ended in ((1.0, no), (2.0, torch.tensor([True, False])), (4.0, no)):
        meter.add(stacked([Step(no, torch.full((2,), reward), ended, no, no, yes, {})]))
    meter.cut()
    meter.add(stacked([Step(no, torch.full((2,), 8.0), yes, no, no, yes, {})]))
    assert meter.flush() == {"episode_return": (3 + 8 + 8) / 3, "episode_length": 4 / 3}


def pqn(n: int) -> tuple[PQN, Actor]:
    torch.manual_seed(0)
    env = CartPole(n)
    return PQN(PQNConfig(network=NetworkConfig(name="mlp", kwargs={"hidden": [8]})), env.spec), Actor(env, 0)


@pytest.mark.parametrize("n", [1, 3])
def test_noise_of_many_steps_is_that_of_one_step_after_the_other(n: int) -> None:
    agent, actor = pqn(n)
    knobs = {"epsilon": torch.tensor(0.5)}
    (whole,) = actor.steps(agent, knobs, 6)
    after = actor.rng.get_state()
    agent, actor = pqn(n)
    alone = [actor.steps(agent, knobs, 1)[0] for _ in range(6)]
    assert torch.equal(torch.cat([one.act.action for one in alone]), whole.act.action)
    assert torch.equal(torch.cat([one.obs for one in alone]), whole.obs)
    assert torch.equal(actor.rng.get_state(), after)


class Broken(CartPole):
    """From the seventh step on the second environment sees NaN, or gets it for a reward."""

    what = "observation"

    def step(self, action: Any) -> Step:
        self.count = getattr(self, "count", 0) + 1
        step = super().step(action)
        if self.count >= 7:
            broken = {"observation": step.next_obs, "reward": step.reward.clone()}
            broken[self.what].view(4, -1)[1, -1] = math.nan
            return step._replace(reward=broken["reward"])
        return step


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_the_frame_of_what_breaks_is_told(what: str) -> None:
    env = Broken(4)
    env.what = what
    agent, _ = pqn(4)
    source = Rollout(env, RolloutConfig(horizon=10), seed=0)
    next(iter(source.collect(agent, Clock(1000, 1000))))
    with pytest.raises(Diverged, match=rf"^'{what}' became NaN at frame 28$"):
        source.meter.check()


def test_parts_of_different_shapes_are_watched_under_one_name() -> None:
    meter = Meter()
    for frame in range(5):
        meter.watch([frame], "observation", torch.zeros(1, 3, 2))
        meter.watch([frame], "observation", torch.full((1, 4), math.inf if frame == 3 else 0.0))
        meter.watch([frame], "observation", torch.zeros(1, 2000))
    with pytest.raises(Diverged, match=r"^'observation' became infinite at frame 3$"):
        meter.check()
