"""The data-quality report of a prepared table: a plain dict, and the same as text."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from envs.columns import OWN, Numeric
from envs.fitting import Prepared, outliers

HELD_OUT = ("validation", "test")


def report(prepared: Prepared) -> dict[str, Any]:
    """Describe every row and column of the table, and what was done to each.

    Returns:
        ``source``, ``rows``, ``duplicates`` (rows equal to an earlier one), ``no_target`` (rows without a
        target, left out), ``parts`` (per part: rows used, and left out for missing values and as outliers) and
        ``columns``: per column its name, role, type, missing cells, distinct values, min, mean, max and outliers
        (numbers only; over all rows, by the fences of the training rows), categories unknown to the training
        rows, and what was done.
    """
    table, encoding = prepared.table, prepared.encoding
    rows = set(zip(*table.cells.values(), strict=True))
    held_out = table.take(np.concatenate([prepared.parts[part] for part in HELD_OUT]))
    return {
        "source": table.name,
        "rows": len(table),
        "duplicates": len(table) - len(rows),
        "no_target": int(table.missing(encoding.target.name).sum()),
        "parts": {part: {"rows": len(rows), **prepared.dropped[part]} for part, rows in prepared.parts.items()},
        "columns": [_column(prepared, name, encoding.unknown(held_out)) for name in table.cells],
    }


def _column(prepared: Prepared, name: str, unknown: dict[str, int]) -> dict[str, Any]:
    table, encoding = prepared.table, prepared.encoding
    missing, values = table.missing(name), table.numbers(name)
    present = values[~missing] if values is not None else np.zeros(0)
    used = {feature.name for feature in encoding.features}
    role = "target" if name == encoding.target.name else "feature" if name in used else "left out"
    return {
        "name": name,
        "role": role,
        "type": "categorical" if values is None else "numeric" if len(present) else "empty",
        "missing": int(missing.sum()),
        "distinct": len({cell for cell, m in zip(table.cells[name], missing.tolist(), strict=True) if not m}),
        "min": float(present.min()) if len(present) else None,
        "mean": float(present.mean()) if len(present) else None,
        "max": float(present.max()) if len(present) else None,
        "outliers": int(outliers(table, name, prepared.fences).sum()) if len(present) else None,
        "unknown": unknown.get(name, 0),
        "done": _done(prepared, name, role),
    }


def _done(prepared: Prepared, name: str, role: str) -> str:
    """Say in a few words what happens to a column's cells."""
    if role == "left out":
        return "constant in the training rows" if name in prepared.features else "not a feature"
    if role == "target":
        target = prepared.encoding.target
        if target.classes is not None:
            return f"{len(target.classes)} classes"
        return "as it is" if target.std == 1 and target.mean == 0 else f"(y - {target.mean:.6g}) / {target.std:.6g}"
    feature = next(f for f in prepared.encoding.features if f.name == name)
    if isinstance(feature, Numeric):
        steps = [] if feature.clip is None else [f"clipped to [{feature.clip[0]:.6g}, {feature.clip[1]:.6g}]"]
        steps += [] if feature.fill is None else [f"missing = {feature.fill:.6g}"]
        return ", ".join([*steps, f"(x - {feature.mean:.6g}) / {feature.std:.6g}"])
    fill = "" if feature.fill is None else f", missing = {'own category' if feature.fill == OWN else feature.fill}"
    return f"one-hot, {len(feature.categories)} categories{fill}"


def render(report: dict[str, Any]) -> str:
    """Return the report as text, 160 columns wide."""
    parts = report["parts"].items()
    lines = [
        f"{report['source']}: {report['rows']} rows, {report['duplicates']} duplicated, "
        f"{report['no_target']} without target",
        *(
            f"  {part}: {counts['rows']} rows; left out: {counts['missing']} for missing values, "
            f"{counts['outliers']} as outliers"
            for part, counts in parts
        ),
    ]
    heads = ["name", "role", "type", "missing", "distinct", "min", "mean", "max", "outliers", "unknown", "done"]
    grid = Grid(*heads, box=None, pad_edge=False)
    for column in report["columns"]:
        grid.add_row(*(_cell(column[head]) for head in heads))
    text = io.StringIO()
    Console(file=text, width=160, color_system=None, markup=False, highlight=False, emoji=False).print(grid)
    return "\n".join([*lines, *(line.rstrip() for line in text.getvalue().splitlines())])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
