"""rlcore: a reinforcement-learning-first agent framework. One Trainer hosts every regime.

    run = rlcore.train("cartpole_dqn", seed=0)
    run.evaluate()["mean"]
    rlcore.load("runs/...").act(obs)

Importing this package imports no torch; the first use of `train`, `load` or `evaluate` does.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.errors import UserError
from rlcore.registry import register

if TYPE_CHECKING:
    from rlcore.api import Run, evaluate, load, record, train

__version__ = "0.1.0"
__all__ = ["Run", "UserError", "evaluate", "load", "record", "register", "train"]


def _check_not_shadowed() -> None:
    home = Path(__file__).resolve().parent.parent
    for name in ("agents", "envs"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            raise ImportError(
                f"package '{name}' is {found or 'missing'}, not rlcore's own in {home}: another distribution or folder "
                f"of that name comes first on sys.path; rename or uninstall it"
            )


_check_not_shadowed()


def __getattr__(name: str) -> Any:
    if name in ("Run", "evaluate", "load", "record", "train"):
        from rlcore import api

        return getattr(api, name)
    raise AttributeError(f"module 'rlcore' has no attribute '{name}'")
