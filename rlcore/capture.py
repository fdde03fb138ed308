"""The exact state of gymnasium environments, for checkpoints: nothing is pickled, a fresh environment continues.

Classic control is captured by its attributes, MuJoCo by its integration state before the last simulation, which is
simulated again, ALE by its emulator's state; everything else by the generator before the episode's reset and the
actions since, which are replayed. The wrappers' attributes and the generator come along. The first capture is put to
the test: a fresh environment restored from another's must go on exactly as that one does.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.registration import EnvSpec

from rlcore.capture_core import Core, find_core, isolate
from rlcore.errors import UserError
from rlcore.freeze import NotCapturable, freeze, thaw

NOT_STATE = ("env", "_saved_kwargs", "_cached_spec", "_metadata", "_action_space", "_observation_space")
TEST_STEPS = 200


class Capture(gym.Wrapper[Any, Any, Any, Any]):
    """The outermost wrapper of an environment: captures and restores its state.

    Args:
        env: the environment with all its wrappers.
        build: makes a fresh ``env``; given, the first capture is tested on it.
    """

    def __init__(self, env: gym.Env[Any, Any], build: Callable[[], gym.Env[Any, Any]] | None = None) -> None:
        super().__init__(env)
        self.build = build
        self.core: Core | None = find_core(env.unwrapped)
        self.episode: dict[str, Any] = {}  # how it began, if it has to be replayed
        self.actions = bytearray()
        self.action = np.zeros(())  # the last one; all have its shape and dtype
        self.digest = 0  # of what the episode has shown so far
        self.ended = self.must_reset = False
        self.why = _declared(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, remembering how to do it again."""
        self.ended = self.must_reset = False
        replayed = self.core is None and self.why is None
        if replayed:
            self.actions.clear()
            try:
                self.episode = {"seed": seed, "options": freeze(options), "before": self._around()}
            except NotCapturable as error:
                self.why = str(error)
        isolate(self.env.unwrapped)
        obs, info = self.env.reset(seed=seed, options=options)
        if replayed:
            self.digest = fingerprint(obs)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; an episode's last observation is a copy, which outlives the reset that follows."""
        if self.must_reset:  # a restored environment owes the reset that a NEXT_STEP vector would have made now
            obs, info = self.reset()
            return obs, 0.0, False, False, info
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.ended = bool(terminated or truncated)
        if self.core is None and self.why is None:
            self.action = np.asarray(action)
            self.actions += self.action.tobytes()
            self.digest = fingerprint(reward, fingerprint(obs, self.digest))
        return copy.deepcopy(obs) if self.ended else obs, reward, terminated, truncated, info

    def _around(self) -> dict[str, Any]:
        """Return the generator and the attributes of the wrappers."""
        core = self.env.unwrapped
        generator = core.np_random  # made now if there is none: a later reset without a seed depends on it
        around: dict[str, Any] = {"rng": freeze(generator), "seeded": freeze(core._np_random_seed), "wrappers": []}
        for wrapper in _chain(self.env):
            attributes = {name: value for name, value in vars(wrapper).items() if _is_state(name, value)}
            around["wrappers"].append({n: _freeze_attribute(wrapper, n, v) for n, v in attributes.items()})
        return around

    def _restore_around(self, state: dict[str, Any]) -> None:
        wrappers = list(_chain(self.env))
        if len(wrappers) != len(state["wrappers"]):
            raise UserError(
                f"environment {_name(self)} was captured in {len(state['wrappers'])} wrappers, not {len(wrappers)}"
            )
        core = self.env.unwrapped
        core._np_random, core._np_random_seed = thaw(state["rng"]), thaw(state["seeded"])
        for wrapper, attributes in zip(wrappers, state["wrappers"], strict=True):
            for name, value in attributes.items():
                setattr(wrapper, name, thaw(value, getattr(wrapper, name, None)))

    def capture(self) -> dict[str, Any]:
        """Return the state, or {"why": ...} in one sentence when there is none to be had."""
        if self.why is None and self.build is not None:
            self.why, self.build = _test(self.build), None
        if self.why is not None:
            return {"why": self.why}
        try:
            state: dict[str, Any] = {"ended": self.ended, "around": self._around()}
        except NotCapturable as error:
            self.why = str(error)
            return {"why": self.why}
        if self.core is not None:
            return state | {"core": self.core.save()}
        actions = np.frombuffer(self.actions, self.action.dtype).reshape(-1, *self.action.shape).copy()  # (T, ...)
        return state | {"episode": self.episode, "actions": actions, "digest": self.digest}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where ``capture`` was called.

        Raises:
            UserError: the episode, replayed, does not show what it showed then.
        """
        if self.core is not None:
            self.reset()
            self.core.load(state["core"])
        else:
            self._replay(state)
        self._restore_around(state["around"])
        self.ended = self.must_reset = state["ended"]

    def _replay(self, state: dict[str, Any]) -> None:
        episode = state["episode"]
        self._restore_around(episode["before"])
        self.reset(seed=episode["seed"], options=thaw(episode["options"]))
        for action in state["actions"]:
            self.step(action.copy())
        if self.digest != state["digest"]:
            raise UserError(
                f"environment {_name(self)}: its captured episode of {len(state['actions'])} steps, replayed, goes "
                f"otherwise: it depends on more than its generator and its actions, or its version has changed"
            )

    captured = property(
        lambda self: None, restore, doc="Write-only: lets a vector environment give each its own state."
    )


class Captured:
    """Builds an environment ready to be captured, in this process or in a worker.

    Args:
        build: makes the environment with its wrappers.
        verify: whether this one tests its first capture on fresh environments.
    """

    def __init__(self, build: Callable[[], gym.Env[Any, Any]], verify: bool = True) -> None:
        self.build, self.verify = build, verify

    def __call__(self) -> gym.Env[Any, Any]:
        """Build it."""
        return Capture(self.build(), self.build if self.verify else None)


def capturable(env: gym.vector.VectorEnv[Any, Any, Any]) -> str | None:
    """Return why a vector environment cannot be captured, as far as that is known in advance, or None."""
    if env is not env.unwrapped:
        return f"the vector wrapper {type(env).__name__} may hold state of its own"
    if type(env) is CartPoleVectorEnv:
        return None
    if not isinstance(env, gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv):
        return f"{type(env).__name__} is natively vectorised and keeps its state to itself"
    if not all(isinstance(build, Captured) for build in env.env_fns):
        return "its environments were not built by make_env or rlcore.capture.Captured"
    return next((why for why in env.get_attr("why") if why), None)


def capture_vector(env: gym.vector.VectorEnv[Any, Any, Any]) -> tuple[list[dict[str, Any]], str | None]:
    """Return the environments' states, and why there are none or None."""
    if isinstance(env, CartPoleVectorEnv):
        state = {name: freeze(getattr(env, name)) for name in _VECTOR_CARTPOLE}
        return [state] + [{} for _ in range(env.num_envs - 1)], None  # they share one generator
    states = list(env.call("capture"))  # pyright: ignore[reportAttributeAccessIssue]
    return states, next((state["why"] for state in states if "why" in state), None)


_VECTOR_CARTPOLE = ("state", "steps", "prev_done", "low", "high", "_np_random", "_np_random_seed")


def restore_vector(env: gym.vector.VectorEnv[Any, Any, Any], states: list[dict[str, Any]]) -> None:
    """Continue where `capture_vector` was called."""
    env.reset()  # forget the vector's own pending resets
    if isinstance(env, CartPoleVectorEnv):
        for name, value in states[0].items():
            setattr(env, name, thaw(value))
    else:
        env.set_attr("captured", states)  # pyright: ignore[reportAttributeAccessIssue]


def fingerprint(value: Any, crc: int = 0) -> int:
    """Return a checksum of nested observations, rewards and flags, going on from ``crc``."""
    if isinstance(value, np.ndarray):
        return zlib.crc32(value.tobytes(), crc)
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            crc = fingerprint(item, crc)
        return crc
    return zlib.crc32(np.asarray(value).tobytes(), crc)


def _test(build: Callable[[], gym.Env[Any, Any]]) -> str | None:
    """Return None if a fresh environment restored from another's capture goes on exactly as that one, else why not."""
    first, second = Capture(build()), Capture(build())
    try:
        first.reset(seed=0)
        for episode in range(4):  # what a fresh environment may lack shows after some episodes
            _play(first, TEST_STEPS // 5, episode)
            first.reset()
        _play(first, TEST_STEPS // 2, 4)
        state = first.capture()
        if "why" in state:
            return state["why"]
        second.restore(state)
        if _play(first, TEST_STEPS, 5) != _play(second, TEST_STEPS, 5):
            return f"a fresh {_name(first)} restored from a capture does not go on as the captured one does"
    except UserError as error:
        return str(error)
    finally:
        first.close()
        second.close()
    return None


def _play(env: Capture, steps: int, seed: int) -> int:
    """Return the checksum of what random actions lead to."""
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    crc = 0
    for _ in range(steps):
        if env.ended:
            crc = fingerprint(env.reset()[0], crc)
        crc = fingerprint(env.step(space.sample())[:4], crc)
    return crc


def _declared(env: gym.Env[Any, Any]) -> str | None:
    if env.spec is not None and env.spec.nondeterministic:
        return f"environment {_name(env)} declares itself nondeterministic"
    return None


def _chain(env: gym.Env[Any, Any]) -> Iterator[gym.Wrapper[Any, Any, Any, Any]]:
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, gym.wrappers.PassiveEnvChecker):  # it remembers what it has checked, no more
            yield env
        env = env.env


def _is_state(name: str, value: Any) -> bool:
    constant = isinstance(value, gym.Env | gym.Space | EnvSpec | ModuleType | type) or callable(value)
    return name not in NOT_STATE and not constant


def _freeze_attribute(owner: Any, name: str, value: Any) -> Any:
    try:
        return freeze(value, attribute=True)
    except NotCapturable as error:
        raise NotCapturable(f"wrapper {type(owner).__name__} holds {error} in '{name}'") from None


def _name(env: gym.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
