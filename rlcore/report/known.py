"""What a run's folder says by itself, without its agent: how it was run, how it ended, its settings and its log."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlcore import config as configs
from rlcore import runs

# What an evaluation says of every environment; whatever else it says are the task's own metrics.
_USUAL = ("episodes", "seed", "mean", "std", "iqm", "ci_low", "ci_high", "min", "max", "returns")


class Table(NamedTuple):
    """Rows of texts under a head.

    Attributes:
        caption: what they are; may be empty.
        head: the columns' names.
        rows: a text for each column, or {"to": id, "text": text} for a link within the page.
        numbers: names of the columns that hold numbers.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numbers: Sequence[str] = ()


NOTHING = Table("", (), ())


def settings(run: Path) -> tuple[Table, Table]:
    """Return the settings in which a run differs from its recipe, beside the recipe's, and all that it has.

    Raises:
        UserError: its config.yaml is broken.
    """
    raw = configs.read(run)
    every = Table("", ("setting", "value"), [(name, plain(value)) for name, value in configs.flatten(raw).items()])
    recipe = str(raw.get("recipe", ""))
    theirs = runs.shipped(recipe)
    if theirs is None:
        return Table(f"There is no shipped recipe '{recipe}' to compare the settings with.", (), ()), every
    rows = [(name, plain(value), plain(theirs.get(name))) for name, value in runs.changed(raw).items()]
    if not rows:
        return Table(f"All settings but the seed are those of the recipe {recipe}.", (), ()), every
    return Table(f"Changed from the recipe {recipe}:", ("setting", "this run", "recipe"), rows), every


def plain(value: Any) -> str:
    """Return a setting as it is written on a command line."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, ensure_ascii=False)


def facts(run: Path) -> list[tuple[str, str]]:
    """Return what was run, where and when, as (name, text); what is not known is left out."""
    about, result = (runs.read_json(run / f"{name}.json") for name in ("manifest", "result"))
    described = runs.describe(run)
    machine, packages = about.get("machine") or {}, about.get("packages") or {}
    saved = sorted(path.name for path in (run / "checkpoints").glob("[0-9b]*"))
    found = {
        "Status": described["status"],
        "Problem": described.get("problem"),
        "Stopped early": result.get("stopped"),
        "Recipe": about.get("recipe"),
        "Seed": about.get("seed"),
        "Command": about.get("command"),
        "Folder": str(run),
        "Started": about.get("started"),
        "Training": _seconds(result.get("train_seconds")),
        "Peak memory": _mebibytes(result.get("peak_memory_mib")),
        "Peak memory of the device": _mebibytes(result.get("peak_device_memory_mib")),
        "Frames": _count(described["frames"]),
        "Updates": _count(result.get("updates")),
        "Parameters": _parameters(result),
        "Checkpoints": ", ".join(name.lstrip("0") or "0" for name in saved),
        "Git": about.get("git"),
        "Versions": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
        "Python": about.get("python"),
        "Machine": ", ".join(str(machine[key]) for key in ("system", "processor") if machine.get(key)),
        "Processors": machine.get("cpus"),
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]


def size(run: Path, unit: str) -> list[dict[str, str]]:
    """Return the tiles that say how much was trained, in frames or examples as ``unit`` says."""
    result = runs.read_json(run / "result.json")
    seconds, frames = _seconds(result.get("train_seconds")), _count(runs.describe(run)["frames"])
    stopped = f"stopped: {result['stopped']}" if result.get("stopped") else ""
    size = _count(result.get("parameters"))
    tiles = [(f"{unit} trained on", frames, stopped), ("training", seconds, ""), ("parameters", size, "")]
    return [tile(label, value, note) for label, value, note in tiles if value]


def tile(label: str, value: str, note: str = "") -> dict[str, str]:
    """Return a number that stands out."""
    return {"label": label, "value": value, "note": note}


def metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the task's own metrics in an evaluation."""
    return {k: v for k, v in evaluation.items() if k not in _USUAL and isinstance(v, (int, float))}


def number(value: float | None) -> str:
    """Return a number with four digits, large ones in full; None, as JSON has what is not finite, in words."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:,.4g}"


def finite(values: Sequence[float | None]) -> list[float]:
    """Return which of the values are finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def interval(low: float | None = None, high: float | None = None) -> str:
    """Return an interval in words; empty: there is none."""
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def _count(n: Any) -> str | None:
    return f"{n:,}" if isinstance(n, int) else None


def _seconds(seconds: Any) -> str | None:
    return f"{seconds:,.1f} s" if isinstance(seconds, (int, float)) else None


def _mebibytes(size: Any) -> str | None:
    return f"{size:,.0f} MiB" if isinstance(size, (int, float)) else None


def _parameters(result: Mapping[str, Any]) -> str | None:
    total, trained = _count(result.get("parameters")), _count(result.get("trained_parameters"))
    return f"{total} ({trained} trained)" if total and trained and total != trained else total
