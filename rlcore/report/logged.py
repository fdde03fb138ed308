"""What a run logged, drawn: its learning curves, everything else small, and its evaluations in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlcore import curves
from rlcore.curves import Columns
from rlcore.report import drawing
from rlcore.report.drawing import Line, Picture
from rlcore.report.known import Table, number

FRAMES, EXAMPLES = "environment frames", "examples drawn"
_LOSSES = ("loss", "cross_entropy")  # names of an evaluation for what train/loss is
_RETURNS = ("mean", "iqm", "ci_low", "ci_high")


class Logged(NamedTuple):
    """Pictures of progress.csv."""

    curves: list[Picture]
    diagnostics: list[Picture]
    evaluations: Table | None


def logged(run: Path, name: str, task: bool, metrics: Sequence[str]) -> Logged:
    """Draw a run's log; values that are not finite are left out.

    Args:
        run: its folder.
        name: sets the figures' ids apart from other runs'.
        task: whether it learns from examples.
        metrics: an evaluation's own ones; the first that was logged is drawn large.

    Raises:
        UserError: progress.csv is broken.
    """
    columns = {n: (x[np.isfinite(y)], y[np.isfinite(y)]) for n, (x, y) in curves.read(run).items()}
    columns = {n: (x, y) for n, (x, y) in columns.items() if len(x)}
    across = EXAMPLES if task else FRAMES
    figures = _of_task(columns, metrics) if task else _of_play(columns)
    large = [
        drawing.lines(list(lines.values()), f"{name}-curve-{i}", across, axis)
        for i, (axis, lines) in enumerate(figures)
    ]
    aside = {"updates", "time/train_seconds", *(f"eval/return_{part}" for part in _RETURNS)}
    aside = aside.union(*(lines for _, lines in figures))
    kinds = {"train": 0, "eval": 1, "time": 2}
    rest = sorted(set(columns) - aside, key=lambda n: (kinds.get(n.partition("/")[0], 3), n))
    small = [
        drawing.lines([Line(n, *columns[n])], f"{name}-small-{i}", across, "", small=True) for i, n in enumerate(rest)
    ]
    return Logged(large, small, _every(columns, across))


def _of_play(columns: Columns) -> list[tuple[str, dict[str, Line]]]:
    """Return the figures of episodes: of each the axis, and its lines by column."""
    lines = {}
    if "eval/return_iqm" in columns:
        x, y = columns["eval/return_iqm"]
        ends = (np.interp(x, *columns[f"eval/return_{end}"]) for end in ("ci_low", "ci_high"))
        lines["eval/return_iqm"] = Line("evaluation: IQM, 95 % interval", x, y, *ends)
    if "train/episode_return" in columns:
        lines["train/episode_return"] = Line("training: mean, exploring", *columns["train/episode_return"])
    figures = [("return of an episode", lines)] if lines else []
    if "train/loss" in columns:
        figures.append(("loss", {"train/loss": Line("training", *columns["train/loss"])}))
    return figures


def _of_task(columns: Columns, metrics: Sequence[str]) -> list[tuple[str, dict[str, Line]]]:
    """Return the figures of examples: the metric by which they are judged, and the losses."""
    figures = []
    chosen = next((n for n in metrics if f"eval/{n}" in columns and n not in (*_LOSSES, "return_mean")), None)
    if chosen:
        figures.append((chosen, {f"eval/{chosen}": Line("validation", *columns[f"eval/{chosen}"])}))
    losses = {"train/loss": "training"} | {f"eval/{n}": f"validation ({n})" for n in _LOSSES}
    lines = {name: Line(said, *columns[name]) for name, said in losses.items() if name in columns}
    return [*figures, ("loss", lines)] if lines else figures


def _every(columns: Columns, across: str) -> Table | None:
    """Return the numbers of every evaluation during training."""
    rows: dict[float, dict[str, str]] = {}
    for name in (names := [name for name in columns if name.startswith("eval/")]):
        for at, value in zip(*columns[name], strict=True):
            rows.setdefault(at, {})[name] = number(value)
    head = [across, *(name.removeprefix("eval/") for name in names)]
    cells = [[f"{at:,.0f}", *(row.get(name, "") for name in names)] for at, row in sorted(rows.items())]
    return Table("", head, cells, head) if cells else None
