"""Acts and steps as one graph: what the environment does on its own, for every native one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_native import NATIVE
from torch import Tensor, nn

from envs.bit_flip import BitFlip
from envs.cartpole import CartPole
from envs.pendulum import Pendulum
from rlcore.actor import Acted, Actor
from rlcore.agent import Agent
from rlcore.compiled_play import ROWS, compiled_play
from rlcore.tree import leaves
from rlcore.types import Act, Batch, Loss


class Noisy(Agent):
    """Does what its noise says, moved by one weight, one knob and what it sees."""

    def __init__(self, env: Any) -> None:
        super().__init__(None, env.spec)
        self.continuous = isinstance(env, Pendulum)
        self.size = 1 if self.continuous else int(env.spec.action_space.n)
        self.weight = nn.Parameter(torch.zeros(()))

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"u": torch.rand(n, generator=generator)}

    def act(self, obs: Any, state: Any, knobs: Any, noise: Any, mask: Any = None, explore: bool = True) -> Act:
        seen = next(leaves(obs)).float().flatten(1).sum(1)
        u = (noise["u"] + self.weight + knobs["knob"] + 0.37 * seen) % 1
        action = 4 * u.unsqueeze(-1) - 2 if self.continuous else (u * self.size).long()
        return Act(action, state, {"u": u})

    def loss(self, batch: Batch) -> Loss:
        raise AssertionError


def options(cls: Any) -> dict[str, Any]:
    return {"bits": 4} if cls is BitFlip else {"max_episode_steps": 9}


def assert_same(one: list[Acted], other: list[Acted]) -> None:
    wholes = [[torch.cat(x) for x in zip(*map(flat, parts), strict=True)] for parts in (one, other)]
    for x, y in zip(*wholes, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5)


def flat(acted: Acted) -> list[Tensor]:
    return [*leaves(tuple(acted))]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("cls", NATIVE)
def test_played_steps_are_those_of_the_environment(cls: Any, n: int) -> None:
    envs = [cls(n, **options(cls)) for _ in range(2)]
    actors = [Actor(env, 3) for env in envs]
    agent = Noisy(envs[0])
    knobs = {"knob": torch.tensor(0.0)}
    actors[1].compiled = True
    ends = 0
    for count, compiled in ((5, True), (2 * ROWS + 3, True), (7, False), (ROWS, True), (1, True), (20, False)):
        actors[1].compiled = compiled  # the environment goes on from where the graph left it, and the graph from there
        one, other = (actor.steps(agent, knobs, count) for actor in actors)
        assert_same(one, other)
        torch.testing.assert_close(actors[1].obs, actors[0].obs)
        ends += sum(int((part.step.terminated | part.step.truncated).sum()) for part in one)
        with torch.no_grad():
            agent.weight.add_(0.3)
        knobs["knob"] += 0.1
        for place in zip(*(env.placed() for env in envs), strict=True):
            torch.testing.assert_close(*place)
    assert ends > 10 * n
    assert actors[0].plays is None and actors[1].plays is not None and actors[1].plays[1] is not None


@pytest.mark.usefixtures("interpreted")
def test_starts_that_were_made_ahead_are_not_those_after_a_graph() -> None:
    plain, played = (Actor(CartPole(6), 3) for _ in range(2))
    agent, knobs = Noisy(plain.env), {"knob": torch.tensor(0.0)}
    for count, compiled in ((30, False), (60, True), (60, False)):  # episodes of some twenty steps end one by one
        played.compiled = compiled
        assert_same(plain.steps(agent, knobs, count), played.steps(agent, knobs, count))


@pytest.mark.usefixtures("interpreted")
def test_what_was_returned_is_not_written_to_again() -> None:
    actor = Actor(CartPole(2), 0)
    actor.compiled = True
    agent, knobs = Noisy(actor.env), {"knob": torch.tensor(0.0)}
    first = actor.steps(agent, knobs, 4)
    before = [x.clone() for part in first for x in flat(part)]
    actor.steps(agent, knobs, 4)
    assert all(torch.equal(x, y) for x, y in zip(before, (x for part in first for x in flat(part)), strict=True))


@pytest.mark.usefixtures("interpreted")
def test_an_environments_options_are_those_of_its_graph() -> None:
    light, heavy = (Actor(CartPole(3, masscart=mass), 0) for mass in (1.0, 9.0))
    agent, knobs = Noisy(light.env), {"knob": torch.tensor(0.0)}
    light.compiled = heavy.compiled = True
    (one,), (other,) = (actor.steps(agent, knobs, 3) for actor in (light, heavy))
    assert torch.equal(one.act.action, other.act.action)
    assert not torch.allclose(one.step.next_obs, other.step.next_obs, rtol=1e-3)


@pytest.mark.usefixtures("interpreted")
def test_a_resumed_actor_plays_on() -> None:
    plain, saved = (Actor(CartPole(3), 0) for _ in range(2))
    plain.compiled = saved.compiled = True
    agent, knobs = Noisy(plain.env), {"knob": torch.tensor(0.0)}
    for actor in (plain, saved):
        actor.steps(agent, knobs, 40)
    state = saved.state_dict()
    again = Actor(CartPole(3), 1)
    again.compiled = True
    again.load_state_dict(state)
    for one, other in zip(plain.steps(agent, knobs, 40), again.steps(agent, knobs, 40), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(flat(one), flat(other), strict=True))


class Masked(CartPole):
    """Says that it has masks."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.spec = self.spec._replace(extras=frozenset({"action_mask"}))


@pytest.mark.usefixtures("interpreted")
def test_fake_rows_memories_and_masks_are_not_played(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"u": torch.zeros(2)}
    obs, knobs = torch.zeros(2, 4), {"knob": torch.tensor(0.0)}
    fake, plain, masked = CartPole(2, autoreset="next_step"), CartPole(2), Masked(2)
    assert compiled_play(Noisy(fake), fake, obs, (), knobs, given) is None
    assert compiled_play(Noisy(plain), plain, obs, torch.zeros(2, 3), knobs, given) is None
    assert compiled_play(Noisy(masked), masked, obs, (), knobs, given) is None
    assert compiled_play(Noisy(plain), plain, obs, (), knobs, given) is not None
    assert capsys.readouterr().err == "", "they were tried"


class Branches(CartPole):
    """Looks at a value in the middle of a step."""

    def dynamics(self, state: Any, action: Any) -> Any:
        return super().dynamics(state, action if float(action.sum()) >= 0 else -action)


def test_an_environment_that_cannot_be_traced_steps_uncompiled_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    actor = Actor(Branches(2), 0)
    actor.compiled = True
    agent, knobs = Noisy(actor.env), {"knob": torch.tensor(0.0)}
    plain = Actor(Branches(2), 0)
    actor.acts = agent, lambda inputs: agent.act(*inputs)  # its own compiling is not what is looked at here
    assert_same(plain.steps(agent, knobs, 20), actor.steps(agent, knobs, 20))
    actor.steps(agent, knobs, 20)
    assert capsys.readouterr().err.count("steps of Branches run uncompiled") == 1
