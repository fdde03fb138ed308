"""The progress.csv files of several runs as arrays: columns by name, a common grid, groups, scores. Imports no torch.

Between two rows of a run its column is linear. Before the first row of any run of a group nothing is known, so the
group's curve begins there. Beyond its end a run keeps its last value, and the figures mark that, if its own rule
stopped it (``stop.metric``), or, over time, if it finished: it would spend no more time. Any other end (budget, kill,
failure, still training) is the end of what is known, and of its group's curve.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlcore import config as configs
from rlcore import runs as folders
from rlcore.errors import UserError, nearest, note

METRICS = ("eval/return_mean", "train/episode_return")  # the first that all runs logged is drawn
SECONDS = "time/train_seconds"
_POINTS = 200  # of a grid, at most
Columns = dict[str, tuple[np.ndarray, np.ndarray]]  # frames (T,) and values (T,) of the rows that have one


class Curve(NamedTuple):
    """A column of one run: ``y`` (T,) over ascending ``x`` (T,); whether its last value holds beyond its end."""

    run: Path
    x: np.ndarray
    y: np.ndarray
    held: bool


class Grid(NamedTuple):
    """Curves on common points ``x`` (T,): ``values`` (runs, T).

    ``stops`` (S,), ascending, are where runs ended whose last value is carried on from there.
    ``shortest`` is the run that ends the grid although others go on, if any.
    """

    x: np.ndarray
    values: np.ndarray
    stops: np.ndarray
    shortest: Path | None


class Entry(NamedTuple):
    """A run in a figure."""

    run: Path
    group: str
    environment: str
    curve: Curve
    score: float


def read(run: Path) -> Columns:
    """Return the columns of a run's progress.csv that have values; a row that a kill left half-written is dropped.

    Raises:
        UserError: a cell is no number, or the frames descend.
    """
    path = run / "progress.csv"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    whole, _, _ = text.rpartition("\n")
    found: dict[str, list[tuple[float, float]]] = {}
    frames = -1.0
    for line, row in enumerate(csv.DictReader(io.StringIO(whole)), 2):
        try:
            numbers = {name: float(text) for name, text in row.items() if text}
            previous, frames = frames, numbers["frames"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} line {line}: expected a number of frames and of each metric ({error})") from None
        if not frames >= previous:
            raise UserError(f"{path} line {line}: frame {frames:.0f} follows {previous:.0f}; expected them to ascend")
        for name, value in numbers.items():
            found.setdefault(name, []).append((frames, value))
    found.pop("frames", None)
    return {name: (pairs[:, 0], pairs[:, 1]) for name, pairs in ((n, np.array(p)) for n, p in found.items())}


def curve(run: Path, columns: Columns, metric: str, x: str = "frames") -> Curve:
    """Return a column of a run over ``x``: environment ``frames``, or ``time``, seconds of training.

    Raises:
        UserError: a value is not finite, or the run logged no time.
    """
    frames, values = columns[metric]
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        raise UserError(f"run '{run}': {metric} is {values[bad[0]]} at frame {frames[bad[0]]:.0f}; expected numbers")
    if x == "time":
        if SECONDS not in columns:
            raise UserError(f"run '{run}': logged no {SECONDS}; expected it for the axis of time")
        at, seconds = columns[SECONDS]
        frames = np.interp(frames, [0.0, *at], [0.0, *seconds])
    result = folders.read_json(run / "result.json")
    return Curve(run, frames, values, result.get("status") == "finished" if x == "time" else "stopped" in result)


def grid(curves: Sequence[Curve]) -> Grid:
    """Put curves on the union of their points, or 200 even ones and the stops where there are more.

    See the module for where the grid begins and ends.

    Raises:
        UserError: one ends before another begins.
    """
    first = max(curve.x[0] for curve in curves)
    longest = max(curve.x[-1] for curve in curves)
    limits = [curve for curve in curves if not curve.held]
    limit = min(limits, key=lambda curve: curve.x[-1], default=None)
    last = longest if limit is None else limit.x[-1]
    if last < first:
        late = max(curves, key=lambda curve: curve.x[0]).run
        raise UserError(f"run '{late}' begins at {first:.6g}, where another of its group has ended ({last:.6g})")
    stops = np.sort([curve.x[-1] for curve in curves if curve.held and curve.x[-1] < last])
    points = np.unique(np.concatenate([curve.x for curve in curves]))
    points = points[(points >= first) & (points <= last)]
    if len(points) > _POINTS:
        points = np.union1d(np.linspace(first, last, _POINTS), stops)
    values = np.stack([np.interp(points, curve.x, curve.y) for curve in curves])
    return Grid(points, values, stops, limit.run if limit is not None and last < longest else None)


def chosen(tables: Mapping[Path, Columns], metric: str | None) -> str:
    """Return the metric to draw: the named one, or the first of `METRICS` that all runs logged, or any.

    Raises:
        UserError: no run logged it.
    """
    known = set().union(*tables.values())
    if metric is None:
        found = [name for name in METRICS if all(name in columns for columns in tables.values())]
        found += [name for name in METRICS if name in known]
        if not found:
            raise UserError(f"the runs logged neither {' nor '.join(METRICS)}; expected --metric NAME{_known(known)}")
        return found[0]
    if metric not in known:
        raise UserError(f"metric '{metric}' is in no run's progress.csv{_known(known, metric)}")
    return metric


def is_return(metric: str) -> bool:
    """Whether a metric is a return, of which more is better."""
    return metric in METRICS or metric.startswith("eval/return_")


def _known(names: set[str], name: str = "") -> str:
    return nearest(name, names) if names else "; the runs have logged nothing yet"


def entries(runs: Sequence[Path], metric: str | None, x: str, by: str) -> tuple[list[Entry], str, str]:
    """Return the runs with their groups, curves and scores, the metric, and in words what the score is.

    Runs that did not log the metric are left out, and named.

    Raises:
        UserError: no run logged the metric, or has the field; a run is broken.
    """
    tables = {run: read(run) for run in runs}
    name = chosen(tables, metric)
    if without := [run for run in runs if name not in tables[run]]:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        note(f"left out, for {name} was never logged: {', '.join(map(str, without[:3]))}{more}")
    settings = {run: configs.read(run) for run in runs if name in tables[run]}
    labels = groups(settings, by)
    drawn = {run: curve(run, tables[run], name, x) for run in settings}
    scores, said = _scores(drawn, name)
    rows = [Entry(run, group, environment(settings[run]), drawn[run], scores[run]) for run, group in labels.items()]
    return rows, name, said


def groups(settings: Mapping[Path, Mapping[str, Any]], by: str) -> dict[Path, str]:
    """Return each run's group by ``recipe``, ``seed``, or any settings field by its dotted name.

    Args:
        settings: each run's, nested; their order is kept, but numbers ascend.

    Raises:
        UserError: no run has such a field.
    """
    flat = {run: configs.flatten(tree) for run, tree in settings.items()}
    known = set().union(*flat.values())
    if by not in known:
        raise UserError(f"--group-by {by}: is no settings field of these runs{nearest(by, known)}")
    values: dict[Path, Any] = {run: fields.get(by) for run, fields in flat.items()}
    order = list(values)
    if all(isinstance(value, (int, float)) for value in values.values()):
        order.sort(key=lambda run: values[run])
    return {run: _label(by, values[run]) for run in order}


def _label(by: str, value: Any) -> str:
    return value if isinstance(value, str) and value else f"{by} = {'unset' if value is None else json.dumps(value)}"


def environment(settings: Mapping[str, Any]) -> str:
    """Return the environment of complete settings as a table names it: its id and what it differs in."""
    env = settings["env"]
    parts = [f"{name}={value}" for name, value in env["kwargs"].items() if isinstance(value, (bool, int, float, str))]
    parts += [wrapper["name"] for wrapper in env["wrappers"]]
    return env["id"] + (f" ({', '.join(parts)})" if parts else "")


def _scores(curves: Mapping[Path, Curve], metric: str) -> tuple[dict[Path, float], str]:
    """Return each run's score and what it is: its final evaluation's where all have one, else the last value."""
    key = metric.removeprefix("eval/").removeprefix("return_")
    evaluations = {run: folders.read_json(run / "result.json").get("evaluation") or {} for run in curves}
    found = {run: evaluation.get(key) for run, evaluation in evaluations.items()}
    if metric.startswith("eval/") and all(isinstance(v, (int, float)) and math.isfinite(v) for v in found.values()):
        episodes = {evaluation.get("episodes") for evaluation in evaluations.values()}
        over = f" ({episodes.pop()} episodes)" if len(episodes) == 1 else ""
        what = f"{key} return" if metric.startswith("eval/return_") else key
        return {
            run: float(value) for run, value in found.items() if value is not None
        }, f"{what} of the final evaluation{over}"
    return {run: float(curve.y[-1]) for run, curve in curves.items()}, f"last logged {metric}"


def score_tables(rows: Sequence[Entry]) -> dict[str, np.ndarray]:
    """Return each group's scores (runs, environments).

    Of one environment as they are; of several, scaled so that the lowest run of each environment has 0, the highest 1.

    Raises:
        UserError: a group lacks an environment, or has more runs of one than of another.
    """
    found: dict[str, dict[str, list[float]]] = {}
    environments = list(dict.fromkeys(row.environment for row in rows))
    for row in rows:
        found.setdefault(row.group, {name: [] for name in environments})[row.environment].append(row.score)
    for group, scores in found.items():
        counts = {name: len(values) for name, values in scores.items()}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise UserError(f"group '{group}' has runs {said}; expected as many of each")
    tables = {group: np.array(list(scores.values())).T for group, scores in found.items()}
    if len(environments) > 1:
        every = np.concatenate(list(tables.values()))
        low, span = every.min(0), np.ptp(every, axis=0)
        tables = {group: (t - low) / np.where(span > 0, span, 1.0) for group, t in tables.items()}
    return tables
