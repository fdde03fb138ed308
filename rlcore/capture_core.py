"""The simulators whose state can be read out exactly, without replaying the episode."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from rlcore.encoding import decode, encode
from rlcore.freeze import freeze, thaw

CLASSIC = {
    "CartPoleEnv": ("state", "steps_beyond_terminated"),
    "MountainCarEnv": ("state",),
    "Continuous_MountainCarEnv": ("state",),
    "PendulumEnv": ("state", "last_u"),
    "AcrobotEnv": ("state",),
}


class Core(ABC):
    """Reads and writes the state of one unwrapped environment."""

    @abstractmethod
    def save(self) -> dict[str, Any]:
        """Return the state."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Set the state of an environment that has been reset."""


class Classic(Core):
    """Classic control: a few attributes."""

    def __init__(self, env: Any) -> None:
        self.env, self.names = env, CLASSIC[type(env).__name__]

    def save(self) -> dict[str, Any]:
        """Return the attributes."""
        return {name: freeze(getattr(self.env, name)) for name in self.names}

    def load(self, state: dict[str, Any]) -> None:
        """Set the attributes."""
        for name, value in state.items():
            setattr(self.env, name, thaw(value))


class MuJoCo(Core):
    """MuJoCo: mjSTATE_INTEGRATION before the last simulation, and that simulation once more.

    The integration state alone is not enough: positions of bodies and contact forces, which rewards and observations
    read, are left over from the last simulation, one substep behind.
    """

    def __init__(self, env: Any) -> None:
        mujoco: Any = importlib.import_module("mujoco")
        self.mujoco, self.env = mujoco, env
        self.kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self.before = np.empty(mujoco.mj_stateSize(env.model, self.kind))
        self.simulated = False
        self.simulate, self.restart = env._step_mujoco_simulation, env.reset
        env._step_mujoco_simulation, env.reset = self._simulate, self._reset

    def _reset(self, **kwargs: Any) -> Any:
        self.simulated = False
        return self.restart(**kwargs)

    def _simulate(self, ctrl: Any, n_frames: int) -> None:
        self.mujoco.mj_getState(self.env.model, self.env.data, self.before, self.kind)
        self.simulated = True
        self.simulate(ctrl, n_frames)

    def save(self) -> dict[str, Any]:
        """Return the integration state before the last simulation, and that one's controls."""
        if not self.simulated:
            self.mujoco.mj_getState(self.env.model, self.env.data, self.before, self.kind)
        return {"before": self.before.copy(), "simulated": self.simulated, "ctrl": self.env.data.ctrl.copy()}

    def load(self, state: dict[str, Any]) -> None:
        """Set the integration state and simulate again."""
        model, data = self.env.model, self.env.data
        self.mujoco.mj_setState(model, data, state["before"], self.kind)
        if state["simulated"]:
            self.env.do_simulation(state["ctrl"], self.env.frame_skip)
        else:  # as a reset does; it moves the solver's warm start, which belongs to the state
            self.mujoco.mj_forward(model, data)
            self.mujoco.mj_setState(model, data, state["before"], self.kind)


class ALE(Core):
    """Atari: the emulator's own state, its random generator included, and the last actions.

    With sticky actions the emulator also depends on the action that it executed last, which is in no state and cannot
    be asked for. So the environment keeps an older state of the emulator and the actions since then, at least 32 of
    them or all of the episode: acting them out again brings back the executed action, whatever it was before, unless
    it has stuck for 32 steps (a chance of 0.25**32 at the usual stickiness).
    """

    STEPS = 32

    def __init__(self, env: Any) -> None:
        self.env = env
        self.older: tuple[Any, list[Any]] = (None, [])  # an emulator state and the actions until the newer one
        self.newer: tuple[Any, list[Any]] = (None, [])  # an emulator state and the actions since
        self.step, self.restart = env.step, env.reset
        env.step, env.reset = self._step, self._reset

    def _clone(self) -> Any:
        return self.env.clone_state(include_rng=True)

    def _reset(self, **kwargs: Any) -> Any:
        result = self.restart(**kwargs)
        self.older = self.newer = self._clone(), []
        return result

    def _step(self, action: Any) -> Any:
        if len(self.newer[1]) >= self.STEPS:
            self.older, self.newer = self.newer, (self._clone(), [])
        self.newer[1].append(action)
        return self.step(action)

    def save(self) -> dict[str, Any]:
        """Return the emulator's state, the older one and the actions between them."""
        (anchor, actions), since = self.older, self.newer[1]
        actions = freeze(since if actions is since else actions + since)
        return {"anchor": anchor.serialize(), "actions": actions, "emulator": self._clone().serialize()}

    def load(self, state: dict[str, Any]) -> None:
        """Act out the actions since the older state, then set the emulator's state."""
        import ale_py

        anchor = ale_py.ALEState(state["anchor"])
        self.older = self.newer = anchor, thaw(state["actions"])
        self.env.restore_state(anchor)
        for action in self.newer[1]:
            self.step(action)
        self.env.restore_state(ale_py.ALEState(state["emulator"]))


class Native(Core):
    """One of our own environments behind gymnasium's interface: what it captures itself."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def save(self) -> dict[str, Any]:
        """Return what the environment captures, its tensors as arrays: it may pass between processes."""
        tensors: dict[str, Tensor] = {}
        tree = encode(self.env.capture(), tensors)
        return {"tree": tree, "tensors": {name: tensor.cpu().numpy() for name, tensor in tensors.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what the environment captured."""
        tensors = {name: from_numpy(array) for name, array in state["tensors"].items()}
        self.env.restore(decode(state["tree"], tensors))


def find_core(env: Any) -> Core | None:
    """Return what reads an unwrapped environment, or None if its episodes have to be replayed.

    Subclasses made elsewhere may hold more state, so only the very classes count.
    """
    module, name = type(env).__module__, type(env).__name__
    if module.startswith("gymnasium.envs.classic_control.") and name in CLASSIC:
        return Classic(env)
    if module.startswith("gymnasium.envs.mujoco."):
        return MuJoCo(env)
    if module == "rlcore.as_gym" and name == "GymEnv" and env.env.why_not_capturable is None:
        return Native(env.env)
    if module == "ale_py.env" and name == "AtariEnv" and isinstance(env._frameskip, int):
        return ALE(env)
    return None


def isolate(env: Any) -> None:
    """Give an environment about to be reset a new Box2D world, where its reset would go on in the old one.

    Destroyed bodies leave traces in a world's broad phase: without this, an episode of BipedalWalker or CarRacing
    depends on all episodes before it, not on its seed alone. (LunarLander's reset makes a new world by itself.)
    """
    if type(env).__module__ in ("gymnasium.envs.box2d.bipedal_walker", "gymnasium.envs.box2d.car_racing"):
        env._destroy()
        env.world = type(env.world)(gravity=env.world.gravity)
