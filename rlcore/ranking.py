"""Which recipe scores best over its seeds, and which run is best, by any number that runs leave. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore import config as configs
from rlcore import curves, listing, runs
from rlcore.errors import UserError, nearest
from rlcore.statistics import iqm, stratified_bootstrap_ci

_FOLD = "env.kwargs.fold"  # what tells replicates of one recipe apart, beside the seed


# One number of a run


def numbers(run: Path) -> dict[str, float]:
    """Return a run's numbers by name: those of its final evaluation, before others of result.json (frames, ...)."""
    result = runs.read_json(run / "result.json")
    evaluation = result.get("evaluation")
    every = {**result, **(evaluation if isinstance(evaluation, dict) else {})}
    return {name: value for name, value in every.items() if isinstance(value, (int, float))}


def logged(run: Path) -> dict[str, float]:
    """Return the last number of every column of a run's progress.csv.

    Raises:
        UserError: a cell is no number.
    """
    return {name: float(values[-1]) for name, (_, values) in curves.read(run).items()}


def scores(finished: Sequence[Path], metric: str) -> list[float]:
    """Return the number ``metric`` of each run, NaN where it has none.

    Raises:
        UserError: none of the runs has it, or they play different environments.
    """
    found = []
    for run in finished:
        known = numbers(run)
        found.append((known if metric in known else logged(run)).get(metric, math.nan))
    if finished and all(math.isnan(value) for value in found):
        names = {name for run in finished for name in {**numbers(run), **logged(run)}}
        if metric not in names:
            raise UserError(f"--metric {metric}: no finished run has such a number{nearest(metric, names)}")
    played = {str(configs.flatten(configs.read(run)).get("env.id")): run for run in reversed(finished)}
    if len(played) > 1:
        *_, (other, second), (one, first) = played.items()
        what = f"{first} plays {one}, but {second} plays {other}"
        raise UserError(
            f"--metric {metric}: {what}; expected runs of one environment (of a folder: --where env.id={one})"
        )
    return found


# Many runs


def best(rows: Sequence[Mapping[str, Any]], metric: str = "mean", mode: str = "max") -> dict[str, Any]:
    """Return the row of the finished run with the largest (or, with mode "min", smallest) metric, and its ``value``.

    Args:
        rows: as `listing.listing` gives them.
        metric: a name in `numbers` or, failing that, in `logged`.
        mode: "max" or "min". Of equals the first counts.

    Raises:
        UserError: as `scores`, or no run has finished with this number.
    """
    finished = [row for row in rows if row["status"] == "finished"]
    values = scores([Path(row["run"]) for row in finished], metric)
    rated = [(value, row) for value, row in zip(values, finished, strict=True) if math.isfinite(value)]
    if not rated:
        raise UserError(f"--metric {metric}: none of {len(rows)} runs has finished with such a number")
    sign = 1 if mode == "max" else -1
    value, row = max(rated, key=lambda one: sign * one[0])
    return {**row, "metric": metric, "value": value}


def rank(folders: Sequence[Path], metric: str = "mean", mode: str = "max") -> list[dict[str, Any]]:
    """Return a row for every recipe and its changed settings, the best interquartile mean over seeds first.

    Only finished runs count, and each seed (of each fold) once: of several the last by name. Settings of a recipe that
    is not shipped count as changed where its runs here differ in them.

    Returns:
        Rows of recipe, changed, seeds, iqm (None without a run that counts, these rows are last), ci_low and ci_high
        (95 % stratified bootstrap interval over seeds; None for fewer than two), values and runs (of the seeds), and
        uncounted: the other runs, and why.

    Raises:
        UserError: as `scores`.
    """
    every = [runs.describe(run) for run in folders]
    finished = [Path(row["run"]) for row in every if row["status"] == "finished"]
    value = dict(zip(map(str, finished), scores(finished, metric), strict=True))
    groups = [_scored(group, value) for group in _groups(every)]
    sign = -1 if mode == "max" else 1
    return sorted(groups, key=lambda row: math.inf if row["iqm"] is None else sign * row["iqm"])


def _groups(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return described runs by recipe and changed settings, each with its ``replicate``: the seed, and the fold."""
    settings = {row["run"]: _settings(Path(row["run"])) for row in rows}
    groups: dict[str, list[dict[str, Any]]] = {}
    for recipe in dict.fromkeys(str(row["recipe"]) for row in rows):
        alike = [row for row in rows if str(row["recipe"]) == recipe]
        varying = _varying([settings[row["run"]] for row in alike]) if runs.shipped(recipe) is None else []
        for row in alike:
            mine = settings[row["run"]]
            changed = row["changed"] | {name: mine.get(name) for name in varying}
            changed = {name: changed[name] for name in sorted(changed) if name != _FOLD}
            replicate = f"{row['seed']}" + (f" fold {mine[_FOLD]}" if _FOLD in mine else "")
            key = json.dumps([recipe, changed], default=str)
            groups.setdefault(key, []).append({**row, "changed": changed, "replicate": replicate})
    return list(groups.values())


def _settings(run: Path) -> dict[str, Any]:
    try:
        return configs.flatten(configs.read(run))
    except UserError:  # a broken run has none
        return {}


def _varying(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the settings that vary, but seed and compile; a run without any settings varies in none."""
    held = [one for one in settings if one]
    names = {name for one in held for name in one} - {"seed", "compile"}
    return [name for name in names if len({json.dumps(one.get(name), default=str) for one in held}) > 1]


def _scored(group: list[dict[str, Any]], value: Mapping[str, float]) -> dict[str, Any]:
    """Return the row of one recipe and its changed settings."""
    counted: dict[str, str] = {}
    uncounted: dict[str, str] = {}
    for row in sorted(group, key=lambda row: row["run"]):
        if row["status"] != "finished":
            uncounted[row["run"]] = str(row["status"])
        elif not math.isfinite(value[row["run"]]):
            uncounted[row["run"]] = "without the number"
        else:
            if row["replicate"] in counted:
                uncounted[counted[row["replicate"]]] = "repeated"
            counted[row["replicate"]] = row["run"]
    values = [value[run] for run in counted.values()]
    low, high = stratified_bootstrap_ci([[one] for one in values]) if len(values) > 1 else (None, None)
    score = {"iqm": iqm(values) if values else None, "ci_low": low, "ci_high": high, "values": values}
    what = {"recipe": group[0]["recipe"], "changed": group[0]["changed"], "seeds": list(counted)}
    return {**what, **score, "runs": list(counted.values()), "uncounted": uncounted}


def shown(ranked: Sequence[Mapping[str, Any]], metric: str, form: str) -> str:
    """Return what `rank` returns as "json", "csv" or a "table"."""
    if form != "table":
        return listing.written(ranked, tuple(ranked[0]), form)
    lines = []
    for place, row in enumerate(ranked, 1):
        why = list(row["uncounted"].values())
        left = ", ".join(f"{why.count(reason)} {reason}" for reason in dict.fromkeys(why))
        score = listing.scored(row["iqm"], row["ci_low"], row["ci_high"])
        seeds = f"{len(row['seeds'])}: {', '.join(row['seeds'])}" if row["seeds"] else "0"
        lines.append([place, row["recipe"], row["changed"], seeds, score, left])
    header = ("", "recipe", "changed", "seeds", f"iqm of {metric} [95 % interval over seeds]", "not counted")
    return listing.table(header, lines, [row["iqm"] is None for row in ranked])
