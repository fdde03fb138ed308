"""Native environments as other devices run them: one graph, the same numbers, in place; and starts made ahead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces

from envs.acrobot import Acrobot
from envs.bit_flip import BitFlip
from envs.cartpole import CartPole, CartPolePositions
from envs.mountain_car import MountainCar
from envs.pendulum import Pendulum
from envs.pixel_breakout import PixelBreakout
from rlcore.arrays import on_tensors, uniforms
from rlcore.tree import leaves

NATIVE = [Acrobot, BitFlip, CartPole, CartPolePositions, MountainCar, Pendulum, PixelBreakout]


def random_actions(env: Any, n: int) -> torch.Tensor:
    space = env.spec.action_space
    if isinstance(space, spaces.Box):
        return torch.rand(n, 1) * 4 - 2
    return torch.randint(int(space.n), (n,))


def play(env: Any, step: Any, actions: list[torch.Tensor]) -> list[Any]:
    env.reset(5)
    seen = []
    for action in actions:
        seen.append(step(action))
        if env.autoreset == "disabled":
            env.reset(mask=seen[-1].terminated | seen[-1].truncated)
    return seen


@pytest.mark.parametrize(
    "autoreset", ["same_step", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("next_step", "disabled"))]
)
@pytest.mark.parametrize("cls", NATIVE)
def test_a_step_on_tensors_is_one_graph_and_that_of_arrays(cls: Any, autoreset: Any) -> None:
    limit: dict[str, Any] = {"bits": 4} if cls is BitFlip else {"max_episode_steps": 9}
    arrays = cls(6, autoreset=autoreset, **limit)
    actions = [random_actions(arrays, 6) for _ in range(30)]
    expected = play(arrays, arrays.step, actions)
    with on_tensors():  # what other devices do
        tensors = arrays.twin()
        where = [x.data_ptr() for x in tensors.placed()]
        step = torch.compile(tensors.step, fullgraph=True, backend="eager")  # a branch on, or look at, a value raises
        found = play(tensors, step, actions)
    for one, other in zip(expected, found, strict=True):
        for x, y in zip(leaves(tuple(one)), leaves(tuple(other)), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    assert int(tensors._episode.sum()) > 6
    assert where == [x.data_ptr() for x in tensors.placed()], "graphs write where they were recorded"


def test_starts_that_are_made_ahead_are_those_of_the_generator() -> None:
    env = CartPole(40)
    env.reset(3)
    actions, seen = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        step = env.step(torch.randint(2, (40,), generator=actions))
        ended = step.terminated | step.truncated
        start = (uniforms(env._key, env._episode, 4) * 0.1 - 0.05).float()
        assert torch.equal(step.obs[ended], start[ended])
        assert torch.equal(step.obs[~ended], step.next_obs[~ended])
        assert env._steps[ended].eq(0).all()
        seen += int(ended.sum())
    assert seen > 300
    saved = env.capture()
    other = CartPole(40)
    other.reset(77)
    for _ in range(50):
        other.step(torch.randint(2, (40,), generator=actions))
    other.restore(saved)  # what was made ahead belongs to other seeds
    for _ in range(100):
        action = torch.randint(2, (40,), generator=actions)
        assert torch.equal(env.step(action).obs, other.step(action).obs)

    start = (uniforms(CartPole(40)._key, torch.zeros(40, dtype=torch.int64), 4) * 0.1 - 0.05).float()
    assert torch.equal(env.reset(0)[0], start)


@pytest.mark.parametrize("autoreset", ["same_step", "next_step", "disabled"])
@pytest.mark.parametrize("cls", NATIVE)
def test_an_environment_alone_does_what_it_does_among_others(cls: Any, autoreset: Any) -> None:
    options: dict[str, Any] = {"autoreset": autoreset} | ({"bits": 4} if cls is BitFlip else {"max_episode_steps": 9})
    alone, among = cls(1, **options), cls(3, **options)
    alone.reset(5)
    among.reset(5)
    for i in range(60):
        if i == 23:
            saved, alone = alone.capture(), cls(1, **options)
            alone.restore(saved)
        action = random_actions(among, 3) * (2 if cls is Pendulum else 1)  # torques beyond the bounds, too
        one, three = alone.step(action[:1]), among.step(action)
        for x, y in zip(leaves(tuple(one)), leaves(tuple(three)), strict=True):
            assert x.dtype == y.dtype
            assert x.shape == y[:1].shape
            assert torch.equal(x, y[:1])
        if autoreset == "disabled":
            for env, step in ((alone, one), (among, three)):
                env.reset(mask=step.terminated | step.truncated)
    assert torch.equal(alone._state, among._state[:1])


@pytest.mark.parametrize("cls", NATIVE)
def test_what_is_constant_cannot_be_written_to(cls: Any) -> None:
    env = cls(3)
    step = env.step(random_actions(env, 3))
    with pytest.raises(RuntimeError, match="single memory location"):
        step.valid.logical_not_()
