"""Environments by name: native ones, and any of gymnasium's with any keywords and wrappers."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import signal
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium.envs.registration import load_env_creator

from rlcore import minatar, registry
from rlcore.capture import Captured
from rlcore.config import Order
from rlcore.errors import UserError, nearest
from rlcore.gym_vector import MODES, GymVector
from rlcore.native import check_arguments
from rlcore.vector import Autoreset, Split, VectorEnv
from rlcore.worker_env import WorkerEnv

Backend = Literal["auto", "native", "sync", "async", "vector"]


def make_env(
    env_id: str,
    num_envs: int,
    *,
    backend: Backend = "auto",
    kwargs: dict[str, Any] = {},
    wrappers: Sequence[dict[str, Any]] = (),
    device: torch.device | str = "cpu",
    split: Split = "train",
    autoreset: Autoreset = "same_step",
    render_mode: str | None = None,
    extras: Sequence[str] = (),
    workers: int = 0,
    order: Order = "fixed",
) -> VectorEnv:
    """Build N environments.

    Args:
        env_id: a name of `rlcore.registry`, or an id that gymnasium knows.
        num_envs: how many.
        backend: "native" (batched torch code), "sync", "async" (one process each), "vector" (gymnasium's own batched
            code, which resets as it likes); "auto" is native where that exists and no wrappers are asked for,
            else sync.
        kwargs: the environment's own keywords.
        wrappers: applied to each environment in order: {"name": "TimeLimit", "max_episode_steps": 100}; names of
            gymnasium.wrappers or of `rlcore.registry`.
        device: where observations go.
        split: which part of a task's data is played.
        autoreset: "same_step", "next_step" or "disabled".
        render_mode: "rgb_array" or "human", where the environment can.
        extras: info keys to pass on as `Step.extras`: "is_success".
        workers: processes that step them, each its share one by one; 0: none. Backends "auto" and "sync" only.
        order: of workers' results, see `rlcore.worker_env.WorkerEnv`.

    Raises:
        UserError: an unknown id, wrapper or keyword, a missing package, or a combination that does not exist.
    """
    check_arguments(num_envs, autoreset)
    if workers and backend not in ("auto", "sync"):
        raise UserError(f"env.workers: got {workers}, expected 0 with backend '{backend}'; workers step one by one")
    if order == "arrival" and not workers:
        raise UserError("env.order: got arrival, expected fixed where env.workers is 0")
    options = kwargs if render_mode is None else kwargs | {"render_mode": render_mode}
    native = env_id in registry.names("envs")
    if backend == "native" or (backend == "auto" and native and not (wrappers and _known(env_id))):
        if workers:
            raise UserError(f"env.workers: got {workers}, expected 0: '{env_id}' is native, stepped as one batch")
        cls = _native(env_id, options, wrappers)
        return cls(num_envs, device=device, split=split, autoreset=autoreset, **options)
    if backend not in ("auto", "sync", "async", "vector"):
        raise UserError(f"backend: '{backend}' is unknown{nearest(backend, Backend.__args__)}")
    if not _known(env_id):
        raise UserError(f"environment '{env_id}' is unknown{nearest(env_id, [*gym.registry, *registry.names('envs')])}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium warns of old versions and of lost precision in spaces
        if backend == "vector":
            return GymVector(_vector(env_id, num_envs, options, wrappers, autoreset), device, extras, split)
        build = _Builder(env_id, options, wrappers)
        if workers:
            return WorkerEnv(_Share(build, autoreset, extras, split), num_envs, workers, device, order)
        return GymVector(_one_by_one(build, num_envs, backend == "async", autoreset), device, extras, split)


def _native(env_id: str, options: dict[str, Any], wrappers: Sequence[dict[str, Any]]) -> Callable[..., VectorEnv]:
    if wrappers:
        raise UserError(f"environment '{env_id}' is native and takes no wrappers; expected wrappers: []")
    cls = registry.find("envs", env_id)
    _check_keywords(cls, options, f"environment '{env_id}'")
    return cls


class _Builder:
    """Builds one environment, in this process or in a worker."""

    def __init__(self, env_id: str, kwargs: dict[str, Any], wrappers: Sequence[dict[str, Any]]) -> None:
        self.env_id, self.kwargs = env_id, kwargs
        self.process = os.getpid()
        self.wrappers = [(w.get("name"), {k: v for k, v in w.items() if k != "name"}) for w in wrappers]
        for name, options in self.wrappers:
            _check_keywords(_wrapper(name), options, f"wrapper '{name}'")

    def __call__(self) -> gym.Env[Any, Any]:
        if os.getpid() != self.process:  # a terminal sends Ctrl-C to workers too; it is the trainer's to answer
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _known(self.env_id)
            env = gym.make(self.env_id, **self.kwargs)
            if self.env_id.startswith("MinAtar/"):
                env = minatar.Seeded(env)
            for name, options in self.wrappers:
                env = _wrapper(name)(env, **options)
        return env


class _Share:
    """Builds a worker's share of the environments, which its process need not know by name."""

    def __init__(self, build: _Builder, autoreset: Autoreset, extras: Sequence[str], split: Split) -> None:
        self.build, self.extras = build, extras
        self.autoreset: Autoreset = autoreset
        self.split: Split = split
        self.spec = gym.spec(build.env_id)
        self.wrappers = {name: _wrapper(name) for name, _ in build.wrappers if name in registry.names("wrappers")}

    def __call__(self, num_envs: int, first: bool) -> VectorEnv:
        if not _known(self.build.env_id):
            gym.registry[self.spec.id] = self.spec
        for name, target in self.wrappers.items():
            if name not in registry.names("wrappers"):
                registry.register("wrappers", name, target)
        return GymVector(
            _one_by_one(self.build, num_envs, False, self.autoreset, first), "cpu", self.extras, self.split
        )


def _one_by_one(build: _Builder, num_envs: int, in_processes: bool, autoreset: Autoreset, first: bool = True) -> Any:
    """Return gymnasium's vector environment; ``first``: its environment 0 tests what is captured."""
    cls = gym.vector.AsyncVectorEnv if in_processes else gym.vector.SyncVectorEnv
    mode = {ours: theirs for theirs, ours in MODES.items()}[autoreset]
    envs = [Captured(build, verify=first and i == 0) for i in range(num_envs)]
    return _attempt(build.env_id, build.kwargs, lambda: cls(envs, copy=False, autoreset_mode=mode))


def _vector(
    env_id: str, num_envs: int, kwargs: dict[str, Any], wrappers: Sequence[dict[str, Any]], autoreset: Autoreset
) -> gym.vector.VectorEnv[Any, Any, Any]:
    if wrappers:
        raise UserError(f"environment '{env_id}': backend 'vector' takes no wrappers; use 'sync' or 'async'")
    entry = gym.spec(env_id).vector_entry_point
    if entry is None:
        raise UserError(f"environment '{env_id}' has no batched version in gymnasium; use backend 'sync' or 'async'")
    creator = _load(entry)
    mode = {ours: theirs for theirs, ours in MODES.items()}[autoreset]
    _check_keywords(creator, gym.spec(env_id).kwargs | kwargs | {"num_envs": num_envs}, f"environment '{env_id}'")
    known = inspect.signature(creator).parameters
    if "autoreset_mode" in known:
        kwargs = {"autoreset_mode": mode} | kwargs
    # ALE's batched games come with a preprocessing of their own, of which two parts are not for the environment to do:
    # rewards are clipped by the source, so that returns stay the game's, and the agent presses the fire button itself.
    kwargs = {name: False for name in ("reward_clipping", "use_fire_reset") if name in known} | kwargs
    vector = _attempt(
        env_id, kwargs, lambda: gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    )
    if autoreset == "disabled" and vector.metadata.get("autoreset_mode") != mode:
        raise UserError(f"environment '{env_id}': gymnasium's batched version always resets by itself; use 'sync'")
    return vector


def _attempt(env_id: str, kwargs: dict[str, Any], build: Callable[[], Any]) -> Any:
    """Call ``build`` and turn what goes wrong into one sentence."""
    try:
        return build()
    except TypeError as error:
        if unexpected := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            entry = gym.spec(env_id).entry_point
            _check_keywords(_load(entry), kwargs, f"environment '{env_id}'")
            raise UserError(f"environment '{env_id}': unknown keyword '{unexpected[1]}'") from error
        raise UserError(f"environment '{env_id}' cannot be built with {kwargs}: {error}") from error
    except UserError:
        raise
    except Exception as error:  # environments check their options as they like
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"environment '{env_id}' cannot be built with {kwargs}: {what}") from error


def _load(entry: Any) -> Any:
    return load_env_creator(entry) if isinstance(entry, str) else entry


def _known(env_id: str) -> bool:
    """Whether gymnasium knows the id, once the package that brings it is imported."""
    if ":" in env_id:
        raise UserError(f"environment '{env_id}' names a module; import it with --plugin and give the id alone")
    if env_id.startswith("rlcore/"):
        importlib.import_module("envs")
    if env_id.startswith("MinAtar/"):
        try:
            minatar.register()
        except ImportError as error:
            raise UserError(f"environment '{env_id}' needs MinAtar: pip install 'rlcore[minatar]'") from error
    if env_id.startswith("ALE/"):
        try:
            ale_py = importlib.import_module("ale_py")
            ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner per environment
        except ImportError as error:
            raise UserError(f"environment '{env_id}' needs ale_py: pip install 'rlcore[atari]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gym.spec(env_id)
    except gym.error.Error:
        return False
    return True


def _wrapper(name: str | None) -> Any:
    if name in registry.names("wrappers"):
        return registry.find("wrappers", name)
    if name not in gym.wrappers.__all__ or name == "vector":
        known = {*gym.wrappers.__all__, *registry.names("wrappers")} - {"vector"}
        raise UserError(f"wrapper '{name}' is unknown{nearest(str(name), known)}")
    if name in ("NormalizeObservation", "NormalizeReward"):
        raise UserError(
            f"wrapper '{name}' keeps statistics across episodes, so that what an agent sees would differ between "
            "training and evaluation and with num_envs; expected wrappers that begin anew with every episode"
        )
    return getattr(gym.wrappers, name)


def _check_keywords(target: Any, kwargs: dict[str, Any], what: str) -> None:
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in kwargs:
        if name not in parameters:
            known = [p for p in parameters if p not in ("num_envs", "device", "split", "autoreset", "env")]
            raise UserError(f"{what}: unknown keyword '{name}'{nearest(name, known)}")
    missing = [n for n, p in list(parameters.items())[1:] if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    if missing := [n for n in missing if n not in kwargs]:
        raise UserError(f"{what}: keyword '{missing[0]}' is missing")
