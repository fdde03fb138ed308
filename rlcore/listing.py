"""The runs under a folder as rows: found, described, filtered; and rows as a table, CSV or JSON. Imports no torch."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore import config as configs
from rlcore import plain_json, plain_yaml, runs
from rlcore.errors import UserError, nearest

COLUMNS = ("run", "recipe", "changed", "seed", "status", "frames", *runs.SCORES, "problem")
_LEFT = {"config.yaml", "manifest.json", "result.json", "progress.csv", "checkpoints"}  # what tells a run's folder
_SHOWN = 40  # characters of a setting in a table
_WIDE = 10_000  # characters of a line, where no terminal limits it


def listing(folder: str | Path, where: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what `runs.describe` says of every run under a folder, itself included, sorted by path.

    Runs may lie anywhere below, as FOLDER/ROW/seed-N. A broken one is a row, too; other folders are none.

    Args:
        folder: where to look.
        where: ``NAME=VALUE`` each: a column or a dotted setting that must have this value.

    Raises:
        UserError: there is no such folder, or a condition is none or names nothing that is known.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"folder '{folder}': is not there; expected a folder of runs")
    conditions = [_condition(text) for text in where]
    rows = [runs.describe(run) for run in sorted(find(root))]
    for name, value in conditions:
        values = [_value(row, name) for row in rows]
        if name not in COLUMNS and rows and all(found is _ABSENT for found in values):
            known = {key for row in rows for key in _settings(row)} | {*COLUMNS}
            raise UserError(f"--where {name}: no run has such a column or setting{nearest(name, known)}")
        rows = [row for row, found in zip(rows, values, strict=True) if found == value]
    return rows


def find(root: Path) -> Iterator[Path]:
    """Yield the folders of runs under ``root``, also those that have lost their config.yaml or never had one.

    A folder is a run's if it holds what a run leaves, or nothing at all. Links to runs count, links to folders of runs
    are not followed: they may lead round in circles.
    """
    for folder, inside, files in os.walk(root):
        here, held = Path(folder), {*inside, *files}
        if held & _LEFT or (not held - {runs.LOCK} and here != root):
            yield here
            inside.clear()
        inside[:] = [name for name in inside if not name.startswith(".")]
        links = (here / name for name in inside if (here / name).is_symlink())
        yield from (link for link in links if (link / "config.yaml").is_file())


_ABSENT = object()


def _condition(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"--where: got '{text}', expected NAME=VALUE, such as status=finished or optim.lr=0.001")
    return name, plain_yaml.parse(value, f"--where {name}")


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return {} if row["status"] == "broken" else configs.flatten(configs.read(row["run"]))


def _value(row: Mapping[str, Any], name: str) -> Any:
    return row.get(name) if name in COLUMNS else _settings(row).get(name, _ABSENT)


# Rows on paper


def shown(rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """Return rows of `listing` as "json", "csv" or a "table"."""
    if form != "table":
        return written(rows, COLUMNS, form)
    cells = []
    for row in rows:
        columns = (row[name] for name in COLUMNS[: COLUMNS.index("mean")])
        score = scored(row.get("iqm"), row.get("ci_low"), row.get("ci_high"))
        cells.append([*columns, row.get("mean"), score, row.get("problem")])
    bad = [row["status"] in ("broken", "failed") for row in rows]
    return table([*COLUMNS[: COLUMNS.index("mean")], "mean", "iqm [95 % interval]", "problem"], cells, bad)


def scored(value: Any, low: Any, high: Any) -> str:
    """Return a score with its interval, as far as they are there."""
    interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return "" if value is None else f"{value:.4g}{interval}"


def written(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], form: str) -> str:
    """Return rows as "json", with all they hold, or columns of them as "csv", where a mapping or a list is JSON."""
    if form == "json":
        return plain_json.dumps(rows)
    text = io.StringIO()
    lines = ([_cell(row.get(name)) for name in columns] for row in rows)
    csv.writer(text, lineterminator="\n").writerows([columns, *lines])
    return text.getvalue().rstrip("\n")


def _cell(value: Any) -> Any:
    return plain_json.dumps(value) if isinstance(value, (Mapping, list)) else value


def table(header: Sequence[str], lines: Sequence[Sequence[Any]], bad: Sequence[bool] = ()) -> str:
    """Return a table for people, columns that hold nothing left out; lines that are ``bad`` are red."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[_short(value) for value in line] for line in lines]
    filled = [i for i, name in enumerate(header) if any(line[i] for line in cells)]
    drawn = Table(*(header[i] for i in filled), box=None, pad_edge=False)
    for line, red in zip(cells, bad or [False] * len(cells), strict=True):
        drawn.add_row(*(Text(line[i]) for i in filled), style="red" if red else None)
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_short(inner)}" for name, inner in value.items())
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return text if isinstance(value, str) or len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
