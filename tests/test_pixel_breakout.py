"""PixelBreakout against MinAtar's Breakout: from any state, and over whole episodes with the same draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import envs  # noqa: F401  registers with gymnasium
from envs.pixel_breakout import PixelBreakout
from rlcore import minatar
from rlcore.errors import UserError
from rlcore.make import make_env
from rlcore.testing import check_agent, check_env

MINIMAL = [0, 1, 3]  # MinAtar's numbers of our actions
DIRECTIONS = [(-1, -1), (1, -1), (1, 1), (-1, 1)]


class Draws:
    """Answers MinAtar's game as the generator that is in our state would: whether to stick, and the ball's side."""

    def __init__(self, state: int, side: int) -> None:
        self.state, self.side = state, side

    def rand(self) -> float:
        self.state = z = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return ((z ^ (z >> 31)) >> 11) / 2**53

    def randint(self, n: int) -> int:
        assert n == 2
        return self.side


def original() -> Any:
    minatar.register()
    from minatar import Environment

    return Environment("breakout", sticky_action_prob=0.1)


def begin(game: Any, state: torch.Tensor) -> None:
    """Start MinAtar's game as the start state (11,) of ours."""
    game.random = game.env.random = Draws(int(state[0]) % 2**64, int(state[3]) // 9)
    game.last_action = 0
    game.reset()


def state_of(game: Any) -> list[int]:
    g = game.env
    wall = sum(1 << i for i in range(30) if g.brick_map[1 + i // 10, i % 10])
    ball = [g.pos, g.ball_x, g.ball_y, g.last_x, g.last_y, *DIRECTIONS[g.ball_dir], int(g.strike), wall]
    return [MINIMAL.index(game.last_action), *map(int, ball)]


def put(game: Any, state: list[int]) -> None:
    """Set MinAtar's game to a state of ours."""
    g = game.env
    rng, last, g.pos, g.ball_x, g.ball_y, g.last_x, g.last_y, dx, dy, strike, wall = state
    g.ball_dir, g.strike, g.terminal = DIRECTIONS.index((dx, dy)), bool(strike), False
    g.brick_map = np.zeros((10, 10))
    for i in range(30):
        g.brick_map[1 + i // 10, i % 10] = wall >> i & 1
    game.last_action = MINIMAL[last]
    game.random = g.random = Draws(rng % 2**64, 0)


def random_states(n: int, rng: np.random.Generator) -> torch.Tensor:
    """Return states (n, 11), walls full, broken and empty, the ball anywhere above the paddle."""
    columns = [rng.integers(2**53, size=n), rng.integers(3, size=n), rng.integers(10, size=n)]
    columns += [rng.integers(10, size=n), rng.integers(9, size=n), rng.integers(10, size=n), rng.integers(9, size=n)]
    columns += [rng.choice([-1, 1], n), rng.choice([-1, 1], n), rng.integers(2, size=n)]
    kept = rng.choice([0.0, 0.3, 1.0], n)
    columns += [sum((rng.random(n) < kept).astype(np.int64) << i for i in range(30))]
    return torch.from_numpy(np.stack(columns, 1).astype(np.int64))


def test_every_state_goes_on_as_minatars() -> None:
    n, rng, game = 8_000, np.random.default_rng(0), original()
    env = PixelBreakout(n, autoreset="disabled")
    states = random_states(n, rng)
    env._state.copy_(states)
    actions = rng.integers(0, 3, n)
    step = env.step(torch.from_numpy(actions))
    after = env._state[:, 1:].tolist()
    seen: dict[str, int] = {}
    for i, state in enumerate(states.tolist()):
        put(game, state)
        reward, terminal = game.act(MINIMAL[actions[i]])
        assert (float(step.reward[i]), bool(step.terminated[i])) == (reward, terminal)
        assert after[i] == state_of(game), f"from {state} by {actions[i]}"
        assert np.array_equal(step.next_obs[i].numpy(), game.state())
        refilled = state[10] == 0 and after[i][-1] != 0
        stuck = MINIMAL[actions[i]] != game.last_action
        for name, is_so in (("reward", reward), ("terminal", terminal), ("refilled", refilled), ("stuck", stuck)):
            seen[name] = seen.get(name, 0) + int(is_so)
        kept = after[i][2] != state[4] + state[8] and not reward and after[i][7] != state[8]
        seen["bounced"] = seen.get("bounced", 0) + int(kept)
    assert not step.truncated.any()
    assert min(seen.values()) > 40, seen


def test_episodes_are_minatars_from_start_to_end() -> None:
    n, rng = 8, np.random.default_rng(1)
    env = PixelBreakout(n)
    obs, _ = env.reset(0)
    games = [original() for _ in range(n)]
    for i, game in enumerate(games):
        begin(game, env._state[i])
        assert np.array_equal(obs[i].numpy(), game.state())
    ends = bricks = 0
    for _ in range(1000):
        paddle, x = env._state[:, 2], env._state[:, 3] + env._state[:, 7] * (9 - env._state[:, 4]).clamp(max=1)
        actions = torch.where(paddle < x, 2, torch.where(paddle > x, 1, 0))  # follows the ball,
        actions = torch.where(torch.from_numpy(rng.random(n) < 0.02), torch.from_numpy(rng.integers(0, 3, n)), actions)
        step = env.step(actions)
        for i, game in enumerate(games):
            reward, terminal = game.act(MINIMAL[int(actions[i])])
            assert (float(step.reward[i]), bool(step.terminated[i])) == (reward, terminal)
            assert np.array_equal(step.next_obs[i].numpy(), game.state())
            if terminal:
                begin(game, env._state[i])
            else:
                assert env._state[i, 0] == game.random.state - 2**64 * (game.random.state >= 2**63)
            assert np.array_equal(step.obs[i].numpy(), game.state())
            ends, bricks = ends + terminal, bricks + reward
    assert ends > 10
    assert bricks > 200


def test_balls_come_from_either_side_and_actions_stick_one_time_in_ten() -> None:
    env = PixelBreakout(4000)
    env.reset(0)
    assert abs(float((env._state[:, 3] == 9).float().mean()) - 0.5) < 0.04
    stuck = []
    for _ in range(8):
        action = (env._state[:, 1] + 1) % 3  # never the last
        step = env.step(action)
        stuck.append((env._state[:, 1] != action)[~step.terminated].float().mean().item())
    assert all(abs(x - 0.1) < 0.02 for x in stuck)
    never = PixelBreakout(100, sticky_action_prob=0)
    never.step(torch.ones(100, dtype=torch.int64))
    assert (never._state[:, 1] == 1).all()


def test_it_conforms() -> None:
    check_env("PixelBreakout-v0", steps=24, num_envs=2, kwargs={"max_episode_steps": 11})


@pytest.mark.slow
def test_it_conforms_for_longer_also_in_gymnasiums_view() -> None:
    check_env("PixelBreakout-v0", steps=100)
    check_env("rlcore/PixelBreakout-v0", steps=25, num_envs=2, kwargs={"max_episode_steps": 9})


@pytest.mark.slow
def test_pqn_conforms_on_it() -> None:
    check_agent(
        {
            "env": {"id": "PixelBreakout-v0", "num_envs": 4},
            "agent": {"name": "pqn", "network": {"name": "minatar_cnn", "kwargs": {"features": 16}}},
            "source": {"horizon": 8, "epochs": 4, "minibatches": 2},
            "optim": {"name": "radam", "lr": 5e-3},
        }
    )


def test_it_renders() -> None:
    env = PixelBreakout(2, render_mode="rgb_array")
    env.reset(0)
    left, right = env.render()
    assert left.shape == (160, 160, 3)
    assert left.dtype == np.uint8
    assert (left[9 * 16, 4 * 16] == [90, 160, 255]).all()
    env._state[0, 10] = 0  # no wall
    env.step(torch.zeros(2, dtype=torch.int64))
    left = env.render()[0]
    _, _, _, x, y, old_x, old_y = env._state[0, :7].tolist()
    assert (left[y * 16 : y * 16 + 16, x * 16 : x * 16 + 16] == 255).all()
    assert (left[old_y * 16 : old_y * 16 + 16, old_x * 16 : old_x * 16 + 16] == 120).all()
    assert right[16, 0].tolist() == [220, 90, 60]
    with pytest.raises(UserError, match="without a render_mode"):
        PixelBreakout(1).render()


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"sticky_action_prob": 1.5}, r"sticky_action_prob: 1\.5 is not in \[0, 1\]"),
        ({"max_episode_steps": 0}, "max_episode_steps: 0 is not a whole number above 0"),
        ({"render_mode": "human"}, "render_mode: 'human' cannot be had; expected 'rgb_array'"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_env("PixelBreakout-v0", 1, kwargs=kwargs)
