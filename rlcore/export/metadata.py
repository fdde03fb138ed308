"""The JSON file beside an exported one: what goes in and comes out, spaces, settings, and how it was checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from torch import Tensor

from rlcore import __version__
from rlcore.export.exported import Greedy, Signature
from rlcore.run import Run
from rlcore.spaces import Tokens


def space_json(space: gym.Space[Any]) -> dict[str, Any]:
    """Return a space as plain values; bounds that are one number everywhere as that number, infinite ones as None."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_json(part) for key, part in space.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_json(part) for part in space]}
    found: dict[str, Any] = {"type": type(space).__name__, "shape": list(space.shape or ()), "dtype": str(space.dtype)}
    if isinstance(space, Tokens):
        return found | {name: getattr(space, name) for name in ("vocabulary", "length", "pad", "bos", "eos")}
    if isinstance(space, spaces.Box):
        return found | {"low": _plain(space.low), "high": _plain(space.high)}
    if isinstance(space, spaces.MultiDiscrete):
        return found | {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.Discrete):
        return found | {"n": int(space.n), "start": int(space.start)}
    return found


def _plain(bound: np.ndarray) -> Any:
    if bound.size and (bound == bound.flat[0]).all():
        bound = bound.flat[0]
    return _finite(bound.tolist())


def _finite(x: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(x, list):
        return [_finite(part) for part in x]
    return x if np.isfinite(x) else None


def ports(names: Sequence[str], tensors: Sequence[Tensor], lengths: int = 0) -> list[dict[str, Any]]:
    """Return name, type and shape of tensors; the first ``lengths`` have a second dimension that may vary."""
    found = []
    for i, (name, x) in enumerate(zip(names, tensors, strict=True)):
        shape: list[Any] = ["batch", *x.shape[1:]]
        if i < lengths:
            shape[1] = "length"
        found.append({"name": name, "dtype": str(x.dtype).removeprefix("torch."), "shape": shape})
    return found


def describe(run: Run, greedy: Greedy) -> dict[str, Any]:
    """Return what there is to know of an exported function, as plain JSON values."""
    names: Signature = greedy.signature
    given = greedy.inputs()
    action = run.spec.action_space
    found: dict[str, Any] = {
        "rlcore": __version__,
        "run": run.path.name,
        "agent": run.config.agent.name,
        "inputs": ports(names.inputs, given, len(names.obs) if names.lengths else 0),
        "outputs": ports(names.outputs, greedy(*given), 1 if names.lengths else 0),
        "state": [{"input": name, "output": f"next_{name}", "at the start of an episode": 0} for name in names.state],
        "observation_space": space_json(run.spec.obs_space),
        "action_space": space_json(action),
        "action_start": np.asarray(run.spec.action_start).tolist(),
        "config": run.config.model_dump(mode="json"),
    }
    labels = getattr(run.predictor, "labels", None) or getattr(run.predictor, "classes", None)
    return found | ({"labels": labels} if labels else {})
