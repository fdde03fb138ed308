"""Our vector environments as gymnasium's: `gymnasium.make` and `gymnasium.make_vec` of any registered name.

gymnasium.register(
    "rlcore/CartPole-v1",
    entry_point="rlcore.as_gym:GymEnv",
    vector_entry_point="rlcore.as_gym:GymVectorEnv",
    kwargs={"name": "CartPole-v1"},  # the name registered with rlcore
)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, iterate
from torch import Tensor, as_tensor

from rlcore import registry
from rlcore.gym_vector import MODES
from rlcore.native import seed_list
from rlcore.tree import tmap
from rlcore.vector import VectorEnv


def build(name: str, num_envs: int, autoreset: AutoresetMode, render_mode: str | None, kwargs: Any) -> VectorEnv:
    """Build the environment registered as ``name``."""
    if render_mode is not None:
        kwargs = kwargs | {"render_mode": render_mode}
    return registry.find("envs", name)(num_envs, autoreset=MODES[autoreset], **kwargs)


def metadata(env: VectorEnv) -> dict[str, Any]:
    """Return what gymnasium wants to know of rendering."""
    return {"render_modes": ["human", "rgb_array"] if hasattr(env, "render") else [], "render_fps": 50}


def last_info(extras: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the extras that belong to a step's true successor, under gymnasium's names."""
    info = {k: v for k, v in extras.items() if k not in ("action_mask", "next_action_mask")}
    return info | ({"action_mask": extras["next_action_mask"]} if "next_action_mask" in extras else {})


def numpy(tree: Any) -> Any:
    """Return arrays of their own for a tree of tensors."""
    return tmap(lambda x: x.detach().cpu().numpy().copy(), tree)


class GymEnv(gym.Env[Any, Any]):
    """One environment of ours as a gymnasium environment."""

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 50}

    def __init__(self, name: str, render_mode: str | None = None, **kwargs: Any) -> None:
        self.env = build(name, 1, AutoresetMode.DISABLED, render_mode, kwargs)
        self.metadata = metadata(self.env)
        self.render_mode = render_mode
        self.observation_space, self.action_space = self.env.spec.obs_space, self.env.spec.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; without any seed so far, from a random one."""
        if seed is None and self._np_random is None:
            seed = int(self.np_random.integers(2**31))
        elif seed is not None:
            super().reset(seed=seed)
        obs, extras = self.env.reset(seed)
        return _first(obs), _first(extras)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Apply an action."""
        step = self.env.step(as_tensor(np.asarray(action)[None], device=self.env.device))
        info = _first(last_info(step.extras))
        return _first(step.next_obs), step.reward.item(), bool(step.terminated), bool(step.truncated), info

    def render(self) -> Any:
        """Return the picture, where the environment draws one."""
        return self.env.render()[0]  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


class GymVectorEnv(gym.vector.VectorEnv[Any, Any, np.ndarray]):
    """N environments of ours as a gymnasium vector environment, SAME_STEP unless told otherwise."""

    def __init__(
        self,
        name: str,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        mode = AutoresetMode(autoreset_mode)
        self.env = build(name, num_envs, mode, render_mode, kwargs)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.metadata = metadata(self.env) | {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = self.env.spec.obs_space, self.env.spec.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes: all, or those of ``options["reset_mask"]``; without any seed so far, from random ones."""
        if seed is None and self._np_random is None:
            seed = int(self.np_random.integers(2**31))
        elif seed is not None:
            super().reset(seed=seed_list(seed, self.num_envs)[0])
        mask = (options or {}).get("reset_mask")
        obs, extras = self.env.reset(seed, None if mask is None else as_tensor(mask, device=self.env.device))
        return numpy(obs), self._infos(extras, np.ones(self.num_envs, np.bool_) if mask is None else mask)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Apply actions (N, ...)."""
        step = self.env.step(as_tensor(np.asarray(actions), device=self.env.device))
        terminated, truncated = numpy(step.terminated), numpy(step.truncated)
        ended = terminated | truncated
        info = last_info(step.extras)
        if self.env.autoreset != "same_step":
            infos = self._infos(info, np.ones_like(ended))
        else:
            infos = self._infos(info, ~ended)
            if "action_mask" in step.extras:
                infos |= self._infos({"action_mask": step.extras["action_mask"]}, np.ones_like(ended))
            if ended.any():
                infos |= self._final(numpy(step.next_obs), info, ended)
        return numpy(step.obs), numpy(step.reward).astype(np.float64), terminated, truncated, infos

    def _infos(self, extras: dict[str, Tensor], present: np.ndarray) -> dict[str, Any]:
        return {k: v for name, x in extras.items() for k, v in ((name, numpy(x)), (f"_{name}", present))}

    def _final(self, last: Any, extras: dict[str, Tensor], ended: np.ndarray) -> dict[str, Any]:
        final_obs = np.full(self.num_envs, None, dtype=object)
        rows = list(iterate(self.observation_space, last))
        for i in np.flatnonzero(ended):
            final_obs[i] = rows[i]
        final_info = self._infos(extras, ended)
        return {"final_obs": final_obs, "_final_obs": ended, "final_info": final_info, "_final_info": ended}

    def render(self) -> Any:
        """Return the pictures, where the environment draws them."""
        return tuple(self.env.render())  # pyright: ignore[reportAttributeAccessIssue]

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environment."""
        self.env.close()


def _first(tree: Any) -> Any:
    return numpy(tmap(lambda x: x[0], tree))
