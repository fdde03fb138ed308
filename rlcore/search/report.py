"""What a search leaves behind: a row for every trial, the best recipe, a table."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from rlcore import config as configs
from rlcore import runs
from rlcore.search import spaces
from rlcore.search.definition import Search, trial_folder

_STATES = {TrialState.COMPLETE: "finished", TrialState.FAIL: "failed"}
_SHOWN = 10  # trials in the table


def rows(study: Study, search: Search, root: Path) -> list[dict[str, Any]]:
    """Return trial, state, value, its interval, values by seed, settings, seconds, why it failed, and its folder."""
    return [_row(trial, search, root) for trial in study.get_trials(deepcopy=False)]


def _row(trial: FrozenTrial, search: Search, root: Path) -> dict[str, Any]:
    low, high = trial.user_attrs.get("interval", (None, None))
    done = trial.state == TrialState.COMPLETE
    return {
        "trial": trial.number,
        "state": _STATES.get(trial.state, trial.state.name.lower()),
        "value": trial.value if done else None,
        "ci_low": low,
        "ci_high": high,
        "values": trial.user_attrs.get("values", []),
        "settings": {name: _choice(search, name, value) for name, value in trial.params.items()},
        "seconds": trial.user_attrs.get("seconds"),
        "problem": trial.user_attrs.get("error", ""),
        "folder": str(trial_folder(root, trial.number)),
    }


def _choice(search: Search, name: str, value: Any) -> Any:
    """Return the value of a setting that the storage keeps as its label."""
    choices = search.space.dimensions[name].choices or []
    return next((choice for choice in choices if spaces.label(choice) == value), value)


def ranked(found: Sequence[dict[str, Any]], search: Search) -> list[dict[str, Any]]:
    """Return the finished trials, best first; of equals the earlier."""
    sign = -1 if search.objective.maximize else 1
    return sorted(
        (row for row in found if row["state"] == "finished"), key=lambda row: (sign * row["value"], row["trial"])
    )


def counted(found: Sequence[dict[str, Any]]) -> str:
    """Return how many trials there are, and how they ended."""
    states = Counter(row["state"] for row in found if row["state"] != "waiting")
    return f"{sum(states.values())} trials ({', '.join(f'{n} {state}' for state, n in sorted(states.items()))})"


def write(study: Study, search: Search, root: Path) -> None:
    """(Re)write trials.csv, table.txt and, once a trial has finished, best.yaml."""
    found = rows(study, search, root)
    runs.write_text(root / "trials.csv", _csv(found, search))
    runs.write_text(root / "table.txt", table(found, search) + "\n")
    if best := ranked(found, search)[:1]:
        runs.write_text(root / "best.yaml", best_recipe(best[0], found, search))


def _csv(found: Sequence[dict[str, Any]], search: Search) -> str:
    plain = [name for name in found[0] if name != "settings"] if found else ["trial"]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*plain, *search.space.dimensions], lineterminator="\n")
    writer.writeheader()
    for row in found:
        values = {**{name: row[name] for name in plain}, **row["settings"]}
        writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in values.items()})
    return file.getvalue()


def best_recipe(best: dict[str, Any], found: Sequence[dict[str, Any]], search: Search) -> str:
    """Return the best trial's settings as a complete recipe, with where it comes from on top."""
    definition = search.definition
    raw = configs.override(definition.settings, {**best["settings"], "recipe": f"{definition.recipe}_tuned"})
    about = [
        f"The best of {counted(found)} of a search over {definition.recipe}: trial {best['trial']}, {worth(best)}",
        f"({described(search)}).",
        "The best of many is flattered by chance: train it with other seeds before you trust it.",
    ]
    own = [row for row in found if row["trial"] == 0 and row["state"] == "finished"]
    if own and search.space.is_held():
        about.append(f"The recipe that the search began with (trial 0): {worth(own[0])}.")
    return "".join(f"# {line}\n" for line in about) + configs.dump(configs.validate(raw))


def described(search: Search) -> str:
    """Return what the values of a search's trials are, in a clause."""
    better = "higher" if search.objective.maximize else "lower"
    return f"{search.objective.name}, {better} is better, interquartile mean over seeds {search.definition.seeds}"


def worth(row: dict[str, Any]) -> str:
    """Return a trial's value with its interval."""
    return f"{row['value']:.6g} [{row['ci_low']:.6g}, {row['ci_high']:.6g}]"


def table(found: Sequence[dict[str, Any]], search: Search) -> str:
    """Return the best trials and the recipe's own as a table, with 95 % bootstrap intervals over seeds."""
    from rich.console import Console
    from rich.table import Table

    best = ranked(found, search)
    shown = best[:_SHOWN] + [row for row in best[_SHOWN:] if row["trial"] == 0 and search.space.is_held()]
    names = [name for name in search.space.dimensions if any(name in row["settings"] for row in shown)]
    short = {name: name.rsplit(".", 1)[-1] for name in names}
    twice = {last for last, n in Counter(short.values()).items() if n > 1}
    drawn = Table(
        "trial", search.objective.name, "seeds", *(n if short[n] in twice else short[n] for n in names), box=None
    )
    for row in shown:
        own = " (the recipe)" if row["trial"] == 0 and search.space.is_held() else ""
        settings = (_short(row["settings"].get(name)) for name in names)
        drawn.add_row(f"{row['trial']}{own}", worth(row), " ".join(f"{v:.5g}" for v in row["values"]), *settings)
    console = Console(width=None if sys.stdout.isatty() else 200)
    with console.capture() as captured:
        console.print(drawn, markup=False)
    title = f"{counted(found)} in {study_name(search)}; {described(search)}, 95 % bootstrap interval"
    return f"{title}\n{captured.get().rstrip()}"


def study_name(search: Search) -> str:
    """Return what was searched."""
    return f"{search.definition.recipe} over {search.space.name}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else json.dumps(value) if isinstance(value, (list, dict)) else str(value)
