"""Recorded transitions: reading and writing ``.npz`` files and Minari data sets, and drawing from them.

A ``.npz`` file holds T steps, an episode's in order of time and one episode after the other, as arrays (T, ...)::

    observations, actions, rewards, terminations, truncations, next_observations
    action_masks, next_action_masks         optional, (T, actions) bool

``next_observations`` are true successors: at an episode's end its final observation, not the next episode's first. An
episode ends where ``terminations`` or ``truncations`` is true, and with the last row. Actions are the environment's own
(a Discrete space's begin at its start). The parts of a Dict are ``observations/KEY``, those of a Tuple
``observations/0``. A Minari data set holds the same, with ``action_mask`` among the infos.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import minari_sets
from rlcore.config import EnvConfig
from rlcore.errors import UserError, nearest
from rlcore.minari_sets import by_space, flat
from rlcore.tree import tmap
from rlcore.types import Spec, Transition
from rlcore.vector import Task

Array = np.ndarray[Any, Any]
MINARI = "minari:"
_FLAGS = {"terminated": "terminations", "truncated": "truncations"}
_MASKS = {"action_mask": "action_masks", "next_action_mask": "next_action_masks"}


class Steps(NamedTuple):
    """T steps on the CPU, an episode's in order of time; every field (T, ...)."""

    obs: Any  # tree
    action: Tensor  # discrete ones counted from 0
    reward: Tensor  # float32
    terminated: Tensor  # bool
    truncated: Tensor  # bool; the last step ends its episode in any case
    next_obs: Any  # tree: true successors
    extras: dict[str, Tensor]  # action_mask and next_action_mask, or nothing


class Recorded(Task):
    """A `Task` whose examples are transitions: what the Dataset source draws."""

    def __init__(self, transitions: Transition) -> None:
        self.transitions = transitions
        self.size = len(transitions.reward)

    def draw(self, index: Tensor) -> Transition:
        """Return the transitions (B, ...) at ``index`` (B,) int64."""
        return tmap(lambda x: x.index_select(0, index), self.transitions)


def load(data: str, spec: Spec, gamma: float, n_step: int, device: torch.device | str = "cpu") -> Recorded:
    """Read recorded steps and assemble their ``n_step`` returns, on ``device``; see `read` and `transitions`."""
    return Recorded(tmap(lambda x: x.to(device), transitions(read(data, spec), gamma, n_step)))


def transitions(steps: Steps, gamma: float, n_step: int) -> Transition:
    """Return a transition (T, ...) for every step, followed for at most ``n_step`` steps of its own episode.

    With n the number of steps really summed (Sutton and Barto, 2nd edition, equation 7.1)::

        reward = r_t + gamma r_{t+1} + ... + gamma**(n-1) r_{t+n-1}
        discount = gamma**n * (1 - terminated_{t+n-1}),   next_obs = the successor of step t+n-1
    """
    size = len(steps.reward)
    end = steps.terminated | steps.truncated
    end[-1] = True
    last, reward, discount = torch.arange(size), steps.reward.double(), torch.full((size,), gamma, dtype=torch.float64)
    for _ in range(n_step - 1):
        going = ~end[last]
        last = last + going  # the data's last step ends an episode, so this stays inside
        reward = reward + going * discount * steps.reward[last]
        discount = torch.where(going, discount * gamma, discount)
    return Transition(
        obs=steps.obs,
        action=steps.action,
        reward=reward.float(),
        discount=(discount * ~steps.terminated[last]).float(),
        next_obs=tmap(lambda x: x[last], steps.next_obs),
        extras={k: x[last] if k.startswith("next_") else x for k, x in steps.extras.items()},
    )


def read(data: str, spec: Spec) -> Steps:
    """Return the steps recorded in ``FILE.npz`` or the local Minari data set ``minari:ID``.

    Raises:
        UserError: there is no such thing, it cannot be read, or it does not fit the environment's spaces.
    """
    arrays = minari_sets.read(data.removeprefix(MINARI)) if _is_minari(data) else _read_npz(Path(data))
    return _steps(arrays, spec, f"'{data}'")


def write(to: str, steps: Steps, spec: Spec, env: EnvConfig | None = None, algorithm: str = "") -> None:
    """Write steps, the last of every episode marked terminated or truncated, to ``FILE.npz`` or ``minari:ID``.

    Args:
        to: a name that does not exist yet.
        steps: as `rlcore.evaluation.play` records them.
        spec: the environment's spaces.
        env: what a Minari data set names as its environment.
        algorithm: what a Minari data set names as its policy.

    Raises:
        UserError: the name is taken or not of this form, or the place cannot be written.
    """
    check_new(to)
    actions = steps.action.numpy() + np.asarray(spec.action_start, steps.action.numpy().dtype)
    arrays = dict(flat(steps.obs, "observations")) | {"actions": actions, "rewards": steps.reward.numpy()}
    arrays |= {name: getattr(steps, field).numpy() for field, name in _FLAGS.items()}
    arrays |= dict(flat(steps.next_obs, "next_observations"))
    arrays |= {_MASKS[k]: x.numpy() for k, x in steps.extras.items()}
    try:
        if _is_minari(to):
            actions_of = own_actions(spec)
            minari_sets.write(to.removeprefix(MINARI), arrays, spec.obs_space, actions_of, env, algorithm)
            return
        part = Path(f"{to}.part")
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType] - no array is named allow_pickle
        os.replace(part, to)
    except OSError as error:
        raise UserError(f"'{to}' cannot be written: {error.strerror or error}") from None


def check_new(to: str) -> None:
    """Check that ``to`` names a place to record to.

    Raises:
        UserError: it is neither ``FILE.npz`` nor ``minari:ID``, or it exists already.
    """
    if _is_minari(to):
        taken = (minari_sets.folder(to.removeprefix(MINARI)) / "data").exists()
    else:
        taken = Path(to).exists()
        if not Path(to).absolute().parent.is_dir():
            raise UserError(f"'{to}' cannot be written: there is no folder '{Path(to).parent}'")
    if taken:
        raise UserError(f"'{to}' exists already; expected a new name")


def _is_minari(name: str) -> bool:
    if not (name.startswith(MINARI) or name.endswith(".npz")):
        raise UserError(f"recorded data '{name}': expected FILE.npz or {MINARI}ID, such as {MINARI}cartpole/expert-v0")
    return name.startswith(MINARI)


def _steps(arrays: Mapping[str, Array], spec: Spec, where: str) -> Steps:
    """Return arrays as steps, each looked through."""
    if "rewards" not in arrays:
        raise UserError(f"recorded data {where} lacks 'rewards'; it has {', '.join(sorted(arrays)) or 'nothing'}")
    size = len(arrays["rewards"]) if arrays["rewards"].ndim else 0
    if not size:
        raise UserError(f"recorded data {where} holds no transitions")

    def leaf(name: str, space: spaces.Space[Any]) -> Tensor:
        if name not in arrays:
            have = ", ".join(sorted(arrays))
            raise UserError(f"recorded data {where} lacks '{name}'; it has {have}")
        return _checked(arrays[name], space, size, f"recorded data {where}: '{name}'")

    number, flag = spaces.Box(-np.inf, np.inf, ()), spaces.Discrete(2)
    actions = spec.action_space
    masks = [name for name in _MASKS if _MASKS[name] in arrays]
    if masks and not (isinstance(actions, spaces.Discrete) and len(masks) == 2):
        raise UserError(f"recorded data {where} has '{_MASKS[masks[0]]}'; expected both masks, of Discrete actions")
    steps = Steps(
        obs=by_space(spec.obs_space, "observations", leaf),
        action=leaf("actions", own_actions(spec)) - torch.as_tensor(spec.action_start),
        reward=leaf("rewards", number),
        **{field: leaf(name, flag).bool() for field, name in _FLAGS.items()},
        next_obs=by_space(spec.obs_space, "next_observations", leaf),
        extras={k: leaf(_MASKS[k], spaces.MultiBinary(int(actions.n))).bool() for k in masks},  # pyright: ignore[reportAttributeAccessIssue]
    )
    if masks:
        allowed = steps.extras["action_mask"].gather(1, steps.action[:, None])[:, 0]
        if not allowed.all():
            row = int(allowed.int().argmin())
            raise UserError(f"recorded data {where}: row {row} has an action that its own 'action_masks' rules out")
    return steps


def _checked(array: Array, space: spaces.Space[Any], size: int, what: str) -> Tensor:
    """Return an array (T, ...) of a space's elements as a tensor of the type that agents see."""
    shape = (size, *(space.shape or ()))
    if array.shape != shape:
        raise UserError(f"{what} has shape {array.shape}, expected {shape}: the environment's space is {space}")
    real = isinstance(space, spaces.Box) and space.dtype != np.uint8
    if array.dtype.kind not in ("biuf" if real else "biu"):
        raise UserError(f"{what} has numbers of type {array.dtype}, expected {'real' if real else 'whole'} ones")
    if real:
        # Observations cross a Box's bounds in play; the environment clips actions, so that what was done lies inside.
        good = np.isfinite(array)
        if what.endswith("'actions'"):
            good &= (array >= space.low - 1e-4) & (array <= space.high + 1e-4)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        low, high = _range(space)
        good = (array >= low) & (array <= high)
    if not good.all():
        row = int(np.argmin(good.reshape(size, -1).all(1)))
        raise UserError(f"{what} is {array[row]} in row {row}, expected finite elements of {space}")
    dtype = np.float32 if real else np.uint8 if space.dtype == np.uint8 else np.int64
    return torch.from_numpy(np.array(array, dtype))


def _range(space: Any) -> tuple[Any, Any]:
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    low = np.asarray(space.start)
    return low, low + (space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n) - 1


def own_actions(spec: Spec) -> Any:
    """Return the environment's own action space: agents count discrete actions from 0."""
    space, start = spec.action_space, spec.action_start
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n), start=int(start))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec, start=np.broadcast_to(start, space.nvec.shape).astype(space.dtype))
    return space


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        known = [p.name for p in path.parent.glob("*.npz")]
        raise UserError(f"there is no recorded data '{path}'{nearest(path.name, known) if known else ''}") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"recorded data '{path}' cannot be read: {' '.join(str(error).split())}") from None
