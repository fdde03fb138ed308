"""In what two runs, or two groups of seeds, differ, and what came of it.

The difference of two means has Student's 95 % interval over the n differences d_i = b_i - a_i where items are paired,

    mean(d) -+ t_{0.975, n - 1} s_d / sqrt(n),

as the returns of two runs are that played the same episodes, and else Welch's (1947),

    mean(b) - mean(a) -+ t_{0.975, nu} sqrt(s_a^2 / n_a + s_b^2 / n_b).

Between two runs the items are episodes: it speaks of these two agents. Between two groups of seeds they are the runs'
mean returns: it speaks of training again. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlcore import config as configs
from rlcore import listing, plain_json, runs
from rlcore.ranking import numbers
from rlcore.statistics import iqm, mean_interval, stratified_bootstrap_ci

_SPREAD = {"std", "min", "max"}  # over episodes: no number of a group of runs


def difference(a: str | Path, b: str | Path) -> dict[str, Any]:
    """Return in what two runs, or two groups of runs, differ, and what came of it.

    Args:
        a: a run's folder, or a glob of the seeds of one recipe.
        b: likewise.

    Returns:
        a, b: the runs. settings, origin (versions, revision, machine, command) and result: by name the two values where
        they differ (result: all); of a group whose runs differ, a list. Of a group the numbers of its finished runs
        are averaged, but iqm, ci_low and ci_high are those of their mean returns over seeds. difference: mean
        (b's mean return minus a's), ci_low and ci_high (None where there is none) and over: of what.

    Raises:
        UserError: there are no such runs, or a config.yaml is broken.
    """
    sides = [runs.resolve(pattern) for pattern in (a, b)]
    settings = [[configs.flatten(configs.read(run)) for run in side] for side in sides]
    origins = [[_origin(run) for run in side] for side in sides]
    results = [_result(side) for side in sides]
    names = list(dict.fromkeys([*results[0], *results[1]]))
    return {
        "a": [str(run) for run in sides[0]],
        "b": [str(run) for run in sides[1]],
        "settings": _differing(*settings),
        "origin": _differing(*origins),
        "result": {name: [results[0].get(name), results[1].get(name)] for name in names},
        "difference": _of_means(sides[0], sides[1], *settings),
    }


def _origin(run: Path) -> dict[str, Any]:
    aside = ("format", "recipe", "seed", "started")
    return {k: v for k, v in configs.flatten(runs.read_json(run / "manifest.json")).items() if k not in aside}


def _differing(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return by name the values of two groups of mappings where they differ."""
    names = dict.fromkeys(name for one in (*a, *b) for name in one)
    both = {name: [_common([one.get(name) for one in side]) for side in (a, b)] for name in names}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def _common(values: list[Any]) -> Any:
    """Return the one value that all are, or a list of the different ones."""
    different = [value for i, value in enumerate(values) if value not in values[:i]]
    return different[0] if len(different) == 1 else different


def _result(side: Sequence[Path]) -> dict[str, Any]:
    """Return what came of a run, or of several."""
    described = [str(runs.describe(run)["status"]) for run in side]
    if len(side) == 1:
        return {"status": described[0], **numbers(side[0])}
    found = [numbers(run) for run, status in zip(side, described, strict=True) if status == "finished"]
    status = ", ".join(f"{described.count(status)} {status}" for status in dict.fromkeys(described))
    shared = set(found[0]).intersection(*found) - _SPREAD if found else set()
    columns = {name: [one[name] for one in found] for name in (found[0] if found else ()) if name in shared}
    means = {
        name: _common(values) if len({*values}) == 1 else sum(values) / len(values) for name, values in columns.items()
    }
    if "mean" in shared and len(found) > 1:
        returns = [one["mean"] for one in found]
        low, high = stratified_bootstrap_ci([[value] for value in returns])
        means |= {"iqm": iqm(returns), "ci_low": low, "ci_high": high}
    return {"status": status, **means}


def _of_means(
    a: Sequence[Path], b: Sequence[Path], settings_a: Sequence[dict[str, Any]], settings_b: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the difference of the mean returns of two runs, or of two groups."""
    none = {"mean": None, "ci_low": None, "ci_high": None}
    if len({one.get("env.id") for one in (*settings_a, *settings_b)}) > 1:
        return {**none, "over": "nothing: different environments"}
    evaluations = [[e for run in side if (e := _evaluation(run))] for side in (a, b)]
    if not all(evaluations):
        return {**none, "over": "nothing: no final evaluation"}
    if len(a) == len(b) == 1:
        (one,), (other,) = evaluations
        x, y = one["returns"], other["returns"]
        same = one["seed"] == other["seed"] and len(x) == len(y) and _same_env(settings_a[0], settings_b[0])
        what = "episodes, paired" if same else "episodes"
    else:
        x, y = ([one["mean"] for one in side] for side in evaluations)
        same, what = False, "seeds"
    low, high = _paired(x, y) if same else _welch(x, y)
    count = f"{len(x)}" if same else f"{len(x)} and {len(y)}"
    return {"mean": sum(y) / len(y) - sum(x) / len(x), "ci_low": low, "ci_high": high, "over": f"{count} {what}"}


def _evaluation(run: Path) -> dict[str, Any]:
    result = runs.read_json(run / "result.json").get("evaluation")
    if not isinstance(result, dict) or not {"mean", "returns", "seed"} <= result.keys():
        return {}
    return {} if None in (result["mean"], *result["returns"]) else result  # None: was not finite


def _same_env(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    names = {name for name in {*one, *other} if name.startswith(("env.kwargs", "env.wrappers", "eval.max_steps"))}
    return all(one.get(name) == other.get(name) for name in names)


def _paired(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None]:
    _, low, high = mean_interval(np.asarray(y) - np.asarray(x))
    return (None, None) if np.isnan(low) else (low, high)


def _welch(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None]:
    from scipy.stats import t

    n, m = len(x), len(y)
    if min(n, m) < 2:
        return None, None  # one has no spread
    middle, u, v = np.mean(y) - np.mean(x), np.var(x, ddof=1) / n, np.var(y, ddof=1) / m
    if u + v == 0:
        return float(middle), float(middle)
    nu = (u + v) ** 2 / (u**2 / (n - 1) + v**2 / (m - 1))
    reach = t.ppf(0.975, nu) * (u + v) ** 0.5
    return float(middle - reach), float(middle + reach)


def shown(found: Mapping[str, Any], form: str) -> str:
    """Return what `difference` returns as "json", "csv" or a "table"."""
    if form == "json":
        return plain_json.dumps(found)
    parts = ("settings", "origin", "result")
    rows = [{"part": p, "name": name, "a": a, "b": b} for p in parts for name, (a, b) in found[p].items()]
    rows += [{"part": "difference", "name": name, "b": value} for name, value in found["difference"].items()]
    columns = ("part", "name", "a", "b")
    if form == "csv":
        return listing.written(rows, columns, form)
    titles = [found[side][0] if len(found[side]) == 1 else f"{len(found[side])} runs" for side in ("a", "b")]
    lines: list[list[Any]] = []
    for part in parts:
        mine = [[f"  {row['name']}", row["a"], row["b"]] for row in rows if row["part"] == part]
        lines += [[part if mine else f"{part}: no difference", None, None], *mine]
    drawn = listing.table(("", *titles), lines)
    made = found["difference"]
    if made["mean"] is None:
        return f"{drawn}\n\ndifference of mean returns: none, over {made['over']}"
    score = listing.scored(made["mean"], made["ci_low"], made["ci_high"])
    interval = "95 % interval" if made["ci_low"] is not None else "no interval"
    return f"{drawn}\n\ndifference of mean returns: {score} ({interval}, over {made['over']})"
