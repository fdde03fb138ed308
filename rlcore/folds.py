"""Cross-validation: K runs of one recipe, each with another K-th of the rows held out, and their mean.

The run of fold i is an ordinary one in ``OUT/fold-i``; OUT/folds.json says what came out. With m_i a metric of fold i,

    mean = sum_i m_i / K,    interval = mean -+ t_{0.975, K - 1} * s / sqrt(K),    s^2 = sum_i (m_i - mean)^2 / (K - 1)

is Student's 95 % interval. The folds share most of their training data, which no interval of one set of folds can
account for (Bengio and Grandvalet 2004): take it as a lower bound of the uncertainty.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcore import api, registry, runs
from rlcore import config as configs
from rlcore.config import Config
from rlcore.errors import UserError
from rlcore.statistics import mean_interval

_UNREPORTED = {"episodes", "seed", "std", "iqm", "ci_low", "ci_high", "min", "max", "returns"}


def train(
    recipe: str | Path | Mapping[str, Any] | None,
    folds: int,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = True,
    **overrides: Any,
) -> dict[str, Any]:
    """Train a recipe on every fold, one after the other, and return what is written to ``out``/folds.json.

    Args:
        recipe: as `api.train` takes it; with ``resume`` also a set's folder.
        folds: K, at least 2.
        out: the set's folder; default: a fresh one under ``runs/``.
        resume: continue the set in ``out`` (default: ``recipe``): finished runs stay, the others go on or begin.
        quiet: show no progress.
        overrides: settings by name, of all runs.

    Returns:
        ``folds``, the ``runs``' folders, and ``metrics`` by name: ``folds`` (K numbers), ``mean``, ``ci_low`` and
        ``ci_high``. The metric "mean" is the mean reward.

    Raises:
        UserError: as `api.train`; or the environment has no folds, or the folder holds another set or none.
        KeyboardInterrupt: as `api.train`; the message says how to go on.
    """
    if folds < 2:
        raise UserError(f"--folds: got {folds}, expected at least 2")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "--folds: got several processes, expected one; with torchrun train each env.kwargs.fold by itself"
        )
    if resume:
        folder, recipe = _found(recipe, out, folds)
    else:
        raw = configs.override(configs.read(recipe or "cartpole_dqn"), overrides)
        folder = _begun(configs.validate(raw), out)
    paths = [folder / f"fold-{i}" for i in range(folds)]
    results = []
    for i, path in enumerate(paths):
        own = {**overrides, "env.kwargs.folds": folds, "env.kwargs.fold": i}
        begun = (path / "config.yaml").exists()
        source = recipe if begun or recipe is not None else configs.read(paths[0])
        try:
            run = api.train(source, out=path, resume=begun, quiet=quiet, **own)
        except KeyboardInterrupt:
            where = f"continue with --folds {folds} --resume --out {folder}"
            raise KeyboardInterrupt(f"interrupted in fold {i} of {folds}; {where}") from None
        except UserError:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is empty: nothing has begun
            raise
        results.append(run.result["evaluation"])
    found = {"folds": folds, "runs": [str(path) for path in paths], "metrics": summarized(results)}
    runs.write_json(folder / "folds.json", found)
    return found


def _begun(config: Config[Any], out: str | Path | None) -> Path:
    """Return the folder of a new set."""
    name = config.env.id
    if not (name in registry.names("envs") and getattr(registry.find("envs", name), "has_folds", False)):
        raise UserError(f"--folds: environment '{name}' has none; expected a task over rows, such as a table's")
    if out is not None and (Path(out) / "fold-0").exists():
        raise UserError(f"--out {out}: holds folds already; add --resume to continue them, or give another folder")
    return runs.create(out, config)


def _found(recipe: Any, out: str | Path | None, folds: int) -> tuple[Path, Any]:
    """Return the folder of a set that is to go on, and the recipe, if one is given."""
    if out is None and isinstance(recipe, (str, Path)):
        out, recipe = recipe, None
    if out is None or not (Path(out) / "fold-0" / "config.yaml").exists():
        raise UserError(f"--folds: '{out or ''}' holds no folds; expected with --resume the folder of a set of folds")
    held = configs.read(Path(out) / "fold-0")["env"]["kwargs"].get("folds")
    if held != folds:
        raise UserError(f"--folds: got {folds}, but {out} holds a set of {held}; expected the same number")
    return Path(out), recipe


def summarized(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the metrics that all K results have: ``folds`` (K numbers), ``mean``, ``ci_low`` and ``ci_high``."""
    metrics = {}
    for name in results[0]:
        values: list[Any] = [result.get(name, "") for result in results]
        values = [math.nan if value is None else value for value in values]  # was not finite
        if name not in _UNREPORTED and all(isinstance(value, (int, float)) for value in values):
            mean, low, high = mean_interval(values)
            metrics[name] = {"folds": values, "mean": mean, "ci_low": low, "ci_high": high}
    return metrics


def table(found: dict[str, Any]) -> str:
    """Return what `train` returned as a readable table: a line a metric, a column a fold."""
    k = found["folds"]
    rows = [["", "mean", "95 % interval", *(f"fold {i}" for i in range(k))]]
    for name, metric in found["metrics"].items():
        interval = f"[{metric['ci_low']:.4g}, {metric['ci_high']:.4g}]"
        rows.append([name, f"{metric['mean']:.6g}", interval, *(f"{value:.4g}" for value in metric["folds"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.append(f"{k} folds; Student's t interval of the mean over folds; runs: {Path(found['runs'][0]).parent}")
    return "\n".join(lines)
