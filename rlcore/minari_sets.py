"""Local Minari data sets as flat arrays of steps; see `rlcore.recorded` for their names."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlcore.config import EnvConfig
from rlcore.errors import UserError, nearest

Array = np.ndarray[Any, Any]


def by_space(space: Any, name: str, leaf: Callable[[str, Any], Any]) -> Any:
    """Return the tree of a space's structure whose leaves are ``leaf(name, space)``, such as observations/KEY."""
    if isinstance(space, spaces.Dict):
        return {key: by_space(part, f"{name}/{key}", leaf) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(by_space(part, f"{name}/{i}", leaf) for i, part in enumerate(space))
    return leaf(name, space)


def flat(tree: Any, name: str) -> Iterator[tuple[str, Array]]:
    """Yield the leaves of a tree with their names, such as observations/KEY."""
    if isinstance(tree, (dict, tuple)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from flat(value, f"{name}/{key}")
    else:
        yield name, np.asarray(tree)


def _minari() -> Any:
    try:
        return importlib.import_module("minari")
    except ImportError:
        raise UserError("Minari data sets need minari: pip install 'rlcore[minari]'") from None


def folder(name: str) -> Path:
    """Return the folder of a data set, there or not.

    Raises:
        UserError: minari is not installed, or this is no name with a version.
    """
    _minari()
    try:
        importlib.import_module("minari.dataset.minari_dataset").parse_dataset_id(name)
    except (ValueError, TypeError):
        example = "such as cartpole/expert-v0"
        raise UserError(f"Minari data set '{name}': expected a name with a version, {example}") from None
    return importlib.import_module("minari.storage.datasets_root_dir").get_dataset_path(name)


def read(name: str) -> dict[str, Array]:
    """Return all steps of a data set as arrays (T, ...) by name.

    Raises:
        UserError: there is none of this name here, or it cannot be read.
    """
    minari, path = _minari(), folder(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its author left out
        if not (path / "data").exists():
            raise UserError(f"there is no local Minari data set '{name}'{nearest(name, minari.list_local_datasets())}")
        try:
            episodes = [_steps(episode) for episode in minari.load_dataset(name)]
            shared = {key for key in {*(key for e in episodes for key in e)} if all(key in e for e in episodes)}
            return {key: np.concatenate([episode[key] for episode in episodes]) for key in shared}
        except Exception as error:  # whatever it meets in a damaged one
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"Minari data set '{name}' cannot be read: {what}") from None


def _steps(episode: Any) -> dict[str, Array]:
    """Return one episode of L steps, which has L + 1 observations, as arrays of L rows."""
    arrays = {name: np.array(getattr(episode, name)) for name in ("actions", "rewards", "terminations", "truncations")}
    for key, x in flat(episode.observations, "observations"):
        arrays |= {key: x[:-1], f"next_{key}": x[1:]}
    if not (arrays["terminations"] | arrays["truncations"])[-1:].all():  # one that was left unfinished
        arrays["truncations"][-1] = True
    if (mask := (episode.infos or {}).get("action_mask")) is not None:
        arrays |= {"action_masks": mask[:-1], "next_action_masks": mask[1:]}
    return arrays


def write(
    name: str,
    arrays: dict[str, Array],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    env: EnvConfig | None,
    algorithm: str,
) -> None:
    """Write arrays (T, ...) by name, every episode's last step terminated or truncated, as a new data set."""
    minari = _minari()
    buffer = importlib.import_module("minari.data_collector").EpisodeBuffer
    ends = (np.flatnonzero(arrays["terminations"] | arrays["truncations"]) + 1).tolist()
    buffers = []
    for first, end in zip([0, *ends], ends, strict=False):
        part = {key: x[first:end] for key, x in arrays.items()}

        def whole(key: str, _: Any = None, part: dict[str, Array] = part) -> Array:
            return np.concatenate([part[key], part[f"next_{key}"][-1:]])  # one row more than there are steps

        fields = {key: part[key] for key in ("actions", "rewards", "terminations", "truncations")}
        infos = {"action_mask": whole("action_masks")} if "action_masks" in part else None
        observations = by_space(observation_space, "observations", whole)
        buffers.append(buffer(observations=observations, infos=infos, **fields))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an author and a description that nobody gave
        minari.create_dataset_from_buffers(
            name,
            buffers,
            env=_env_spec(env),
            observation_space=observation_space,
            action_space=action_space,
            algorithm_name=algorithm or None,
            jpeg_encoding=False,  # lossy
        )


def _env_spec(env: EnvConfig | None) -> Any:
    """Return gymnasium's recipe of the environment, where that is all there is to it and can be written as text."""
    if env is None or env.wrappers or env.id not in gym.registry:
        return None
    spec = copy.deepcopy(gym.spec(env.id))
    spec.kwargs.update(env.kwargs)
    try:
        spec.to_json()
    except (ValueError, TypeError):  # made by a class or from objects of this process
        return None
    return spec
