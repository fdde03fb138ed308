"""The conformance suite of environments: what the engine relies on, held bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rlcore.encoding import decode, encode
from rlcore.gym_vector import GymVector
from rlcore.make import make_env
from rlcore.tree import leaves, tmap
from rlcore.types import Step
from rlcore.vector import Autoreset, VectorEnv

Factory = Callable[..., "VectorEnv | gym.vector.VectorEnv[Any, Any, Any]"]
MODES: tuple[Autoreset, ...] = ("same_step", "next_step", "disabled")


class Rows(NamedTuple):
    """T real transitions of one environment, each field (T, ...)."""

    obs: Any
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    next_obs: Any
    extras: dict[str, Tensor]  # of the transition itself: not the mask of the observation after a reset


def check_env(
    make: str | Factory | gym.vector.VectorEnv[Any, Any, Any],
    *,
    num_envs: int = 3,
    steps: int = 200,
    seed: int = 0,
    modes: tuple[Autoreset, ...] = MODES,
    capturable: bool = True,
    **kwargs: Any,
) -> None:
    """Hold an environment to the contract of `rlcore.vector.VectorEnv`.

    Args:
        make: an id for `rlcore.make.make_env`; or ``make(num_envs, autoreset=mode)``, which returns a vector
            environment of ours or of gymnasium; or one gymnasium.vector environment, of which only the contract
            and that its seeds repeat are checked.
        num_envs: environments side by side.
        steps: transitions of each that are compared.
        seed: of environment 0.
        modes: the autoreset modes that it has.
        capturable: whether its state can be captured; if not, it has to say why.
        kwargs: for `make_env`.

    Raises:
        AssertionError: says what does not hold.
    """
    if isinstance(make, gym.vector.VectorEnv):
        env = GymVector(make)
        _contract(env, steps, seed)
        first = _Player(env, seed, steps).play(steps)
        _same(first, _Player(env, seed, steps).play(steps), "reset with its seed again, it does not repeat")
        return
    factory = _factory(make, kwargs)
    reference: list[Rows] | None = None
    for mode in modes:
        with _Closing(factory(num_envs, mode)) as env:
            _contract(env, steps, seed)
        with _Closing(factory(num_envs, mode)) as env:
            rows = _Player(env, seed, steps).play(steps)
            reference = reference or rows
            _same(reference, rows, f"autoreset '{mode}' goes otherwise than '{modes[0]}', fake rows dropped")
            again = _Player(env, seed, steps).play(steps)
            _same(rows, again, "reset with its seed again, a used environment does not repeat")
        _capture(factory, num_envs, mode, steps, seed, capturable)
    _seeding(factory, num_envs, modes[0], steps, seed)
    if "disabled" in modes:
        _masked_reset(factory, num_envs, seed)
    _clipping(factory, num_envs, modes[0], seed)


class _Closing:
    def __init__(self, env: VectorEnv) -> None:
        self.env = env

    def __enter__(self) -> VectorEnv:
        return self.env

    def __exit__(self, *_: object) -> None:
        self.env.close()


class _Player:
    """Steps an environment with actions that depend only on the seed, the environment and its count of transitions."""

    def __init__(self, env: VectorEnv, seed: int, steps: int, columns: list[int] | None = None, reset: Any = None):
        self.env = env
        self.columns = columns or list(range(env.num_envs))
        self.table = torch.stack([_actions(env, column, steps) for column in self.columns], 1)  # (T, N, ...)
        self.count = torch.zeros(env.num_envs, dtype=torch.int64)
        self.obs, self.extras = env.reset(seed if reset is None else reset)
        self.seen: list[tuple[Any, ...]] = []

    def action(self) -> Tensor:
        """Return the next actions (N, ...), moved to allowed ones."""
        action = self.table[self.count % len(self.table), torch.arange(self.env.num_envs)].to(self.env.device)
        if (mask := self.extras.get("action_mask")) is not None:
            nth = action % mask.sum(1)
            action = ((mask.cumsum(1) == nth[:, None] + 1) & mask).int().argmax(1)
        return action

    def step(self) -> Step:
        """Step once, note the real transitions, and reset ended environments in DISABLED mode."""
        step = self.env.step(self.action())
        extras = {k: v for k, v in step.extras.items() if k != "action_mask"}
        self.seen.append((step.valid, self.obs, *step[1:5], extras))
        self.count += step.valid.cpu()
        self.obs, self.extras = step.obs, step.extras
        ended = step.terminated | step.truncated
        if self.env.autoreset == "disabled" and ended.any():
            self.obs, self.extras = self.env.reset(mask=ended)
        return step

    def play(self, steps: int) -> list[Rows]:
        """Play on until every environment has made ``steps`` transitions; return those, by environment."""
        self.seen, goal = [], self.count + steps
        while bool((self.count < goal).any()):
            self.step()
        valid, *fields = tmap(lambda *xs: torch.stack(xs), *self.seen)  # (T, N, ...)
        index = [valid[:, i].nonzero()[:steps, 0] for i in range(self.env.num_envs)]
        return [Rows(*tmap(lambda x, i=i, t=t: x[t, i], tuple(fields))) for i, t in enumerate(index)]


def _factory(make: str | Factory, kwargs: dict[str, Any]) -> Callable[[int, Autoreset], VectorEnv]:
    def build(num_envs: int, mode: Autoreset) -> VectorEnv:
        """Build that many environments, and see that they are what was asked for."""
        env: Any = make_env(make, num_envs, autoreset=mode, **kwargs) if isinstance(make, str) else None
        env = make(num_envs, autoreset=mode) if callable(make) else env
        env = GymVector(env) if isinstance(env, gym.vector.VectorEnv) else env
        assert env.autoreset == mode, f"asked for autoreset '{mode}', it resets '{env.autoreset}'; give modes=(...)"
        assert env.num_envs == num_envs, f"asked for {num_envs} environments, it has {env.num_envs}"
        return env

    return build


def _actions(env: VectorEnv, column: int, count: int) -> Tensor:
    space = copy.deepcopy(env.spec.action_space)
    space.seed(column)
    return torch.as_tensor(np.stack([np.asarray(space.sample()) for _ in range(count)]))


def _contract(env: VectorEnv, steps: int, seed: int) -> None:
    n = env.num_envs
    player = _Player(env, seed, steps)
    _contained(env, player.obs, "reset's observation")
    before, was_ended = tmap(torch.clone, player.obs), torch.zeros(n, dtype=torch.bool, device=env.device)
    seen: list[tuple[Any, Any]] = []
    ends = moved = 0
    for t in range(steps):
        step = player.step()
        what = f"step {t}"
        _shapes(env, step, what)
        _contained(env, step.obs, f"{what}'s observation")
        _contained(env, step.next_obs, f"{what}'s successor")
        ended = step.terminated | step.truncated
        fake = was_ended if env.autoreset == "next_step" else torch.zeros_like(was_ended)
        assert torch.equal(~step.valid, fake), f"{what}: valid is {step.valid.tolist()}, expected {(~fake).tolist()}"
        quiet = (step.reward == 0) & ~ended
        assert bool(quiet[fake].all()), f"{what}: a fake row has a reward or ends an episode"
        same = _rows_equal(step.obs, step.next_obs)
        where = ended if env.autoreset == "same_step" else torch.zeros_like(ended)
        assert bool(same[~where].all()), f"{what}: within an episode the successor is not the next observation"
        ends, moved = ends + int(where.sum()), moved + int((where & ~same).sum())
        assert env.always_valid <= bool(step.valid.all()), f"{what}: always_valid does not hold"
        seen.append((step.next_obs, tmap(torch.clone, step.next_obs)))
        was_ended = ended
    for kept, copied in seen:
        assert _equal(kept, copied), "an observation changed after it was returned: its buffer is used again"
    constant = all(_equal(before, copied) for _, copied in seen)
    assert ends == 0 or moved > 0 or constant, "the successor at an episode's end is always the next episode's start"


def _shapes(env: VectorEnv, step: Step, what: str) -> None:
    n = env.num_envs
    expected = {"reward": torch.float32, "terminated": torch.bool, "truncated": torch.bool, "valid": torch.bool}
    for name, dtype in expected.items():
        value = getattr(step, name)
        good = value.shape == (n,) and value.dtype == dtype and value.device.type == env.device.type
        assert good, f"{what}: {name} is {value.dtype} {tuple(value.shape)} on {value.device}, expected {dtype} ({n},)"
    assert set(step.extras) == env.spec.extras, f"{what}: extras {set(step.extras)}, declared {set(env.spec.extras)}"
    for name, value in step.extras.items():
        assert value.shape[:1] == (n,), f"{what}: extra '{name}' is {tuple(value.shape)}, expected {n} rows"
    assert bool(step.reward.isfinite().all()), f"{what}: reward is {step.reward.tolist()}"


def _contained(env: VectorEnv, obs: Any, what: str) -> None:
    for i in range(env.num_envs):
        row = _as_element(env.spec.obs_space, tmap(lambda x, i=i: x[i].cpu().numpy(), obs))
        assert env.spec.obs_space.contains(row), f"{what} {row} is not in {env.spec.obs_space}"


def _as_element(space: gym.Space[Any], row: Any) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {k: _as_element(v, row[k]) for k, v in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(_as_element(v, x) for v, x in zip(space, row, strict=True))
    if isinstance(space, gym.spaces.Box):
        return row
    assert row.dtype == np.int64, f"an element of {space} is {row.dtype}, expected int64"
    return row[()] if isinstance(space, gym.spaces.Discrete) else row.astype(space.dtype)


def _seeding(factory: Any, n: int, mode: Autoreset, steps: int, seed: int) -> None:
    with _Closing(factory(n, mode)) as env:
        first = _Player(env, seed, steps).play(steps)
    with _Closing(factory(n, mode)) as env:
        listed = _Player(env, seed, steps, reset=[seed + i for i in range(n)]).play(steps)
        _same(first, listed, f"seeds [{seed}, ...] go otherwise than the seed {seed}")
    for i in range(n):
        with _Closing(factory(1, mode)) as env:
            alone = _Player(env, seed + i, steps, columns=[i]).play(steps)
            _same(
                [first[i]],
                alone,
                f"environment {i} of seed {seed} goes otherwise than environment 0 of seed {seed + i}",
            )
    with _Closing(factory(n, mode)) as env:
        others = _Player(env, seed, steps, columns=[0, *range(n, 2 * n - 1)]).play(steps)
        _same(first[:1], others[:1], "environment 0 depends on what the other environments do")
    restarts = []
    for _ in range(2):
        with _Closing(factory(n, mode)) as env:
            env.reset(seed)
            restarts.append([tmap(torch.clone, env.reset()[0]) for _ in range(3)])
    assert all(map(_equal, *restarts)), "reset without a seed does not go on with the seeded streams"


def _masked_reset(factory: Any, n: int, seed: int) -> None:
    with _Closing(factory(n, "disabled")) as env:
        player = _Player(env, seed, 4)
        player.step()
        obs = tmap(torch.clone, player.obs)
        mask = torch.arange(n, device=env.device) == 0
        after, _ = env.reset([seed + i for i in range(n)], mask=mask)
        assert bool(_rows_equal(after, obs)[1:].all()), "a masked reset changes environments outside the mask"
        start, _ = env.reset(seed)
        assert bool(_rows_equal(after, start)[0]), "a masked reset does not start from the seed given"


def _clipping(factory: Any, n: int, mode: Autoreset, seed: int) -> None:
    with _Closing(factory(n, mode)) as inside, _Closing(factory(n, mode)) as outside:
        space = inside.spec.action_space
        if not isinstance(space, gym.spaces.Box) or not space.is_bounded():
            return
        first, second = _Player(inside, seed, 20), _Player(outside, seed, 20)
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        second.table = (second.table - (low + high) / 2) * 10
        first.table = second.table.clamp(low, high)
        _same(first.play(10), second.play(10), "an action outside the Box does not act as the nearest one inside")


def _capture(factory: Any, n: int, mode: Autoreset, steps: int, seed: int, capturable: bool) -> None:
    with _Closing(factory(n, mode)) as env, _Closing(factory(n, mode)) as undisturbed:
        player, other = _Player(env, seed, steps), _Player(undisturbed, seed, steps)
        for lead in (0, 7, steps // 2):
            for t in range(lead + steps * (lead == 7)):
                ended = _ended(player.step()) | _ended(other.step())
                if t >= lead and ended:
                    break  # where a NEXT_STEP environment owes a reset
            states = env.capture()
            if states is None:
                assert not capturable, f"it cannot be captured: {env.why_not_capturable}"
                assert env.why_not_capturable, "it cannot be captured and does not say why in why_not_capturable"
                return
            assert capturable, "it was said not to be capturable, but is"
            assert len(states) == n, f"capture gave {len(states)} states of {n} environments"
            with _Closing(factory(n, mode)) as fresh:
                twin = _restored(player, fresh, states)
                rows = other.play(steps)
                _same(rows, player.play(steps), "an environment goes otherwise after it was captured")
                _same(
                    rows, twin.play(steps), f"a fresh environment restored in mode '{mode}' does not go on as it should"
                )


def _ended(step: Step) -> bool:
    return bool((step.terminated | step.truncated).any())


def _restored(player: _Player, fresh: VectorEnv, states: list[Any]) -> _Player:
    twin = copy.copy(player)
    tensors: dict[str, Tensor] = {}
    fresh.reset(999)
    fresh.restore(decode(encode(states, tensors), tensors))
    twin.env, twin.count = fresh, player.count.clone()
    return twin


def _same(expected: list[Rows], found: list[Rows], what: str) -> None:
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        if _equal(tuple(a), tuple(b)):
            continue
        same = {
            name: _rows_equal(getattr(a, name), getattr(b, name)) for name in Rows._fields if getattr(a, name) != {}
        }
        t, name = min((int((~rows).int().argmax()), name) for name, rows in same.items() if not rows.all())
        x, y = (tmap(lambda leaf, t=t: leaf[t].tolist(), getattr(rows, name)) for rows in (a, b))
        raise AssertionError(f"{what}: {name} of transition {t} of environment {i} is {y}, expected {x}")


def _equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def _rows_equal(a: Any, b: Any) -> Tensor:
    return torch.stack([(x == y).reshape(len(x), -1).all(1) for x, y in zip(leaves(a), leaves(b), strict=True)]).all(0)
