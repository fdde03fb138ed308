"""Any gymnasium.vector environment as ours: every autoreset mode, space and info normalised here, once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from torch import Tensor

from rlcore.capture import capturable, capture_vector, restore_vector
from rlcore.errors import UserError, nearest
from rlcore.native import check_states, seed_list
from rlcore.tree import tmap
from rlcore.types import Spec, Step
from rlcore.vector import Autoreset, Split, VectorEnv

MODES: dict[AutoresetMode, Autoreset] = {
    AutoresetMode.SAME_STEP: "same_step",
    AutoresetMode.NEXT_STEP: "next_step",
    AutoresetMode.DISABLED: "disabled",
}
PER_STEP = ("action_mask", "is_success")  # the info keys that become extras
SUCCESS = {"is_success", "success"}  # what environments call it


def tensor_space(space: spaces.Space[Any], where: str) -> spaces.Space[Any]:
    """Return the space of what agents see: Box in float32 or uint8, the discrete kinds in int64.

    Raises:
        UserError: a space whose elements are no fixed number of tensors.
    """
    if isinstance(space, spaces.Box):
        if space.dtype in (np.uint8, np.float32):
            return space
        with np.errstate(over="ignore"):
            return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    if isinstance(space, spaces.Dict):
        return spaces.Dict({k: tensor_space(v, where) for k, v in space.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([tensor_space(v, where) for v in space])
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return space
    raise UserError(
        f"{where}: {type(space).__name__} spaces cannot be served; expected Box, Discrete, MultiDiscrete, MultiBinary, "
        f"Dict or Tuple"
    )


def agent_action_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the space that agents act in: discrete actions count from 0.

    Raises:
        UserError: a kind of space that no agent acts in.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec)
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return space
    raise UserError(
        f"action space: {type(space).__name__} cannot be served; expected Discrete, MultiDiscrete, MultiBinary or Box"
    )


class GymVector(VectorEnv):
    """Adapts a gymnasium.vector.VectorEnv, whatever its autoreset mode, and takes it over.

    Observations become float32, uint8 or int64 tensors, Dict and Tuple spaces trees of them. Discrete actions
    count from 0 whatever the space's start; continuous ones are clipped to the Box here and nowhere else. An
    ``action_mask`` in the info of the first reset declares the extras action_mask and next_action_mask, and a goal
    environment the extra is_success.

    Args:
        env: the vector environment; it is reset with seed 0.
        device: where observations go.
        extras: "is_success", to pass that key of the infos on; False where an info lacks it.
        split: kept for information; gymnasium environments hold nothing out.

    Raises:
        UserError: a space cannot be served, or the environment does not say how it resets.
    """

    batched: ClassVar[bool] = False

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
        device: torch.device | str = "cpu",
        extras: Sequence[str] = (),
        split: Split = "train",
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode not in MODES:
            raise UserError(f"{env}: metadata['autoreset_mode'] is {mode!r}; expected an AutoresetMode of gymnasium")
        self.env, self.num_envs, self.device, self.split = env, env.num_envs, torch.device(device), split
        self.autoreset = MODES[mode]
        self.always_valid = self.autoreset != "next_step"
        if unknown := [name for name in extras if name != "is_success"]:
            raise UserError(f"extras: '{unknown[0]}' cannot be passed on{nearest(unknown[0], ['is_success'])}")
        self._space = env.single_observation_space
        obs_space = tensor_space(self._space, "observation space")
        self._dtypes = _dtypes(obs_space)
        self._actions = _ActionReader(env.single_action_space, self.num_envs)
        self.why_not_capturable = capturable(env)
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        self._mask: Tensor | None = None  # (N, actions) bool: those allowed now
        obs, info = self._reset_env(0, None)
        self._obs = self._read(obs)  # of the last step; in DISABLED mode a reset leaves rows out
        declared = set(extras)
        if "action_mask" in info:
            declared |= {"action_mask", "next_action_mask"}
            self._mask = self._bool(info["action_mask"])
        self._goals = _goal_env(env)
        self.has_goals = self._goals is not None
        if self.has_goals:
            declared |= {"is_success"}
        start = 0 if self._actions.start is None else self._actions.start
        self.spec = Spec(obs_space, agent_action_space(env.single_action_space), frozenset(declared), start)

    def reset(
        self, seed: int | Sequence[int] | None = None, mask: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Start new episodes; see `VectorEnv.reset`.

        Raises:
            UserError: a natively vectorised environment was given seeds that are not consecutive, or a mask.
        """
        flags = None if mask is None else mask.cpu().numpy()
        if flags is not None and not flags.any():  # none of these, of another process perhaps
            return self._obs, {} if self._mask is None else {"action_mask": self._mask}
        self._ended[... if flags is None else flags] = False
        raw, info = self._reset_env(seed, flags)
        obs = self._read(raw)
        if mask is not None:
            obs = tmap(lambda new, old: torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old), obs, self._obs)
        self._obs = obs
        extras = {}
        if self._mask is not None:
            new = self._bool(info["action_mask"])
            self._mask = new if mask is None else torch.where(mask[:, None], new, self._mask)
            extras = {"action_mask": self._mask}
        return obs, extras

    def _reset_env(self, seed: int | Sequence[int] | None, mask: np.ndarray | None) -> tuple[Any, dict[str, Any]]:
        seeds: Any = None if seed is None else seed_list(seed, self.num_envs)
        if seeds and not isinstance(self.env.unwrapped, gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv):
            if seeds != seed_list(seeds[0], self.num_envs):
                raise UserError(f"seed: {self.env} is natively vectorised and takes consecutive seeds, not {seed}")
            seeds = seeds[0]
        return self.env.reset(seed=seeds, options=None if mask is None else {"reset_mask": mask})

    def step(self, action: Tensor) -> Step:
        """Apply actions (N, ...) as the agent's action space has them, and return what happened."""
        raw, reward, terminated, truncated, info = self.env.step(self._actions(action))
        obs = next_obs = self._read(raw)
        valid = ~self._ended
        ended = terminated | truncated
        if self.autoreset == "same_step":
            if ended.any():
                next_obs = self._successors(obs, info, np.flatnonzero(ended))
        else:
            self._ended, self._obs = ended, obs
        return Step(
            obs,
            self._tensor(reward, np.float32),
            self._tensor(terminated, np.bool_),
            self._tensor(truncated, np.bool_),
            next_obs,
            self._tensor(valid, np.bool_),
            self._extras(info, ended) if self.spec.extras else {},
        )

    def _successors(self, obs: Any, info: dict[str, Any], rows: np.ndarray) -> Any:
        """Return ``obs`` (N, ...) with the final observations of the ended episodes in their rows."""
        final = info["final_obs"]
        if isinstance(final, np.ndarray) and final.dtype == object:
            empty = create_empty_array(self._space, len(rows))
            final = concatenate(self._space, cast(Any, final[rows]), empty)
        else:  # natively vectorised environments give one batch
            final = _rows(final, rows)
        index = torch.from_numpy(rows).to(self.device)
        return tmap(lambda x, new: x.index_copy(0, index, new), obs, self._read(final))

    def _extras(self, info: dict[str, Any], ended: np.ndarray) -> dict[str, Tensor]:
        last = info.get("final_info", {}) if self.autoreset == "same_step" else info
        extras = {}
        if self._mask is not None:
            if "action_mask" not in info:
                raise UserError(f"{self.env}: a step's info lacks the 'action_mask' that the reset's info has")
            self._mask = after = self._bool(info["action_mask"])
            if last is not info and "action_mask" in last:
                after = torch.where(self._bool(ended)[:, None], self._bool(last["action_mask"]), after)
            extras = {"action_mask": self._mask, "next_action_mask": after}
        if "is_success" in self.spec.extras:
            success = np.zeros(self.num_envs, dtype=np.bool_)
            for source in (info, last):  # an episode's own last info wins over that of the reset
                for name in SUCCESS & source.keys():
                    present = source.get(f"_{name}", True)
                    success = np.where(present, np.asarray(source[name], dtype=np.bool_), success)
            extras["is_success"] = self._bool(success)
        return extras

    def compute_reward(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Return the environment's own rewards (B,) float32 of steps that achieved goals (B, ...); see `VectorEnv`."""
        assert self._goals is not None
        return self._tensor(self._of_goals(self._goals.compute_reward, achieved, desired), np.float32)

    def compute_terminated(self, achieved: Tensor, desired: Tensor) -> Tensor | None:
        """Return whether the environment says that such steps end episodes, (B,) bool; None: it does not say."""
        function = getattr(self._goals, "compute_terminated", None)
        return None if function is None else self._tensor(self._of_goals(function, achieved, desired), np.bool_)

    def _of_goals(self, function: Callable[..., Any], achieved: Tensor, desired: Tensor) -> np.ndarray:
        dtype = self._space["desired_goal"].dtype  # pyright: ignore[reportIndexIssue]
        a, b = (x.cpu().numpy().astype(dtype) for x in (achieved, desired))
        try:
            result = np.asarray(function(a, b, {}))
        except ValueError:  # the truth of an array: written for one goal
            result = np.empty(())
        if result.shape != (len(a),):
            result = np.array([function(x, y, {}) for x, y in zip(a, b, strict=True)])
        return result

    def _read(self, obs: Any) -> Any:
        return _convert(obs, self._dtypes, self._tensor)

    def _tensor(self, x: Any, dtype: Any) -> Tensor:
        own = _copied(x, dtype)
        return own if self.device.type == "cpu" else own.to(self.device, non_blocking=True)

    def _bool(self, x: Any) -> Tensor:
        return self._tensor(x, np.bool_)

    def render(self) -> Sequence[Any] | None:
        """Return one frame per environment, as the environment renders it."""
        return self.env.render()

    def capture(self) -> list[dict[str, Any]] | None:
        """Return one state per environment, or None and set ``why_not_capturable``; see `VectorEnv.capture`."""
        if self.why_not_capturable is not None:
            return None
        states, self.why_not_capturable = capture_vector(self.env)
        if self.why_not_capturable is not None:
            return None
        captured = [{"env": state, "ended": ended} for state, ended in zip(states, self._ended.tolist(), strict=True)]
        if self.autoreset == "disabled":
            captured = [state | {"obs": tmap(lambda x, i=i: x[i].cpu(), self._obs)} for i, state in enumerate(captured)]
        if self._mask is not None:
            captured = [state | {"mask": mask} for state, mask in zip(captured, self._mask.cpu(), strict=True)]
        return captured

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Continue exactly where `capture` was called.

        Raises:
            UserError: the states are those of other environments.
        """
        check_states(states, self.num_envs)
        restore_vector(self.env, [s["env"] for s in states])
        self._ended = np.array([s["ended"] for s in states])
        if self.autoreset == "disabled":
            self._obs = tmap(lambda *rows: torch.stack(rows).to(self.device), *[s["obs"] for s in states])
        if self._mask is not None:
            self._mask = torch.stack([s["mask"] for s in states]).to(self.device)

    def close(self) -> None:
        """Close the environments and their processes, also where an interrupt or a crash left them in mid-step."""
        if self._goals is not None and isinstance(self.env.unwrapped, gym.vector.AsyncVectorEnv):
            self._goals.close()  # one of our own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.env.close()
            except (EOFError, OSError):  # a process is gone
                self.env.closed = True
                for process in getattr(self.env, "processes", []):
                    process.terminate()


class _ActionReader:
    """Turns agents' action tensors into arrays that the environment takes."""

    def __init__(self, space: spaces.Space[Any], n: int) -> None:
        self.batch = batch_space(space, n)
        self.start = space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else None
        self.box = isinstance(space, spaces.Box)

    def __call__(self, action: Tensor) -> np.ndarray:
        x = action.detach().cpu().numpy()
        if self.start is not None:
            x = x + self.start
        if self.box:
            x = np.clip(x, self.batch.low, self.batch.high)  # pyright: ignore[reportAttributeAccessIssue]
        return x.astype(self.batch.dtype).reshape(self.batch.shape)


def _goal_env(env: gym.vector.VectorEnv[Any, Any, Any]) -> Any:
    """Return one unwrapped goal environment, never stepped, where the vector environment holds such; else None."""
    space, vector = env.single_observation_space, env.unwrapped
    if not isinstance(space, spaces.Dict) or not {"observation", "achieved_goal", "desired_goal"} <= space.keys():
        return None
    if isinstance(vector, gym.vector.SyncVectorEnv):
        one = vector.envs[0].unwrapped
    elif isinstance(vector, gym.vector.AsyncVectorEnv):
        one = vector.env_fns[0]().unwrapped
    else:
        return None
    return one if hasattr(one, "compute_reward") else None


def _dtypes(space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {k: _dtypes(v) for k, v in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_dtypes(v) for v in space)
    return space.dtype if isinstance(space, spaces.Box) else np.int64


def _convert(x: Any, dtypes: Any, leaf: Any) -> Any:
    if isinstance(dtypes, dict):
        return {k: _convert(x[k], v, leaf) for k, v in dtypes.items()}
    if isinstance(dtypes, tuple):
        return tuple(_convert(a, b, leaf) for a, b in zip(x, dtypes, strict=True))
    return leaf(x, dtypes)


def as_tensors(space: spaces.Space[Any], obs: Any) -> Any:
    """Return observations of a space, one or a batch, as the tensors that agents see.

    Raises:
        UserError: they are not of the space's structure, or not numbers.
    """
    try:
        return _convert(obs, _dtypes(tensor_space(space, "obs")), _copied)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"obs: got {obs!r}, expected an observation of {space} ({error})") from None


def _copied(x: Any, dtype: Any) -> Tensor:
    """Return a copy, for environments reuse what they return, row by row in memory.

    Products of matrices may round otherwise where these lie column by column, and no checkpoint keeps that.
    """
    return torch.from_numpy(np.array(x, dtype=dtype, order="C"))


def _rows(x: Any, rows: np.ndarray) -> Any:
    return tmap(lambda leaf: leaf[rows], x)
