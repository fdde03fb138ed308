"""Writes what was measured: medians, spreads, and ratios pair by pair, as the generated part of a Markdown page.

Repetition i of one contender is paired with repetition i of another, measured within the same minute; a ratio is the
median of the pairs' ratios, its spread the smallest and the largest.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.speed.harness import Bench
from rlcore.speed.settings import Comparison, Contender

Results = dict[int, dict[str, Any]]  # by repetition
Row = list[str]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the smallest and the largest."""
    return statistics.median(values), min(values), max(values)


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Return ours / theirs of every repetition that both have."""
    return [ours[i] / theirs[i] for i in sorted(ours.keys() & theirs.keys())]


def rate(result: Mapping[str, Any]) -> float:
    """Return frames (or tokens) a second of training."""
    return result["frames"] / result["seconds"]


def number(x: float) -> str:
    """Write a number with three digits that matter, large ones in full."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def written(values: Sequence[float]) -> str:
    """Write a median and, of several values, their spread."""
    middle, low, high = spread(values)
    return number(middle) if len(values) == 1 else f"{number(middle)} ({number(low)} to {number(high)})"


def render(bench: Bench, comparisons: Sequence[Comparison], command: str) -> str:
    """Return the generated part of the page."""
    blocks = []
    for comparison in comparisons:
        found = {c.name: bench.results(comparison, c) for c in comparison.contenders}
        absent = {c.name: bench.absent(comparison, c) for c in comparison.contenders}
        if not any(found.values()) and not any(absent.values()):
            continue  # nobody asked for it yet
        body = {"race": _race, "solve": _solve, "loss": _loss, "values": _values, "rows": _rows}[comparison.kind]
        header, rows = body(comparison, found)
        for contender in comparison.contenders:
            if not found[contender.name]:
                why = absent[contender.name] or "not measured"
                rows.append([contender.name or "ours", why, *[""] * (len(header) - 2)])
        about = [comparison.about.strip(), *_remarks(comparison, found)]
        blocks.append("\n\n".join([f"## {comparison.title}", " ".join(filter(None, about)), _table(header, rows)]))
    every = [r for c in comparisons for x in c.contenders for r in bench.results(c, x).values()]
    return "\n\n".join([_preamble(command, every), *blocks]) + "\n"


def _table(header: Row, rows: Sequence[Row]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _preamble(command: str, every: Sequence[dict[str, Any]]) -> str:
    versions = sorted({r["library"] for r in every if "library" in r})
    pythons = sorted({f"Python {r['versions']['python']} with torch {r['versions']['torch']}" for r in every})
    return (
        f"`{command}` on {machine()}. Every measurement is a fresh process with one thread, on one core unless said; "
        "contenders take turns, and a ratio is the median over pairs of neighbours (in brackets the smallest and the "
        "largest). "
        f"Versions: {', '.join([*versions, *pythons]) or 'nothing measured yet'}."
    )


def machine() -> str:
    """Return what the processor is and how many of its cores there are."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def _race(comparison: Comparison, found: Mapping[str, Results]) -> tuple[Row, list[Row]]:
    ours = [name for name in comparison.ours if found.get(name)]
    rates = {name: {i: rate(r) for i, r in results.items()} for name, results in found.items()}
    header = ["", comparison.unit, *[f"{name} / this" for name in ours], "training, s", "updates", "whole process, s"]
    rows = []
    for name, results in found.items():
        if not results:
            continue
        against = [ratios(rates[mine], rates[name]) if mine != name else [] for mine in ours]
        columns = [written(x) if x else "" for x in against]
        seconds, whole = ([r[key] for r in results.values()] for key in ("seconds", "process_seconds"))
        updates = number(statistics.median(r["updates"] for r in results.values()))
        rows.append([name, written([*rates[name].values()]), *columns, written(seconds), updates, written(whole)])
    return header, rows


def _remarks(comparison: Comparison, found: Mapping[str, Results]) -> list[str]:
    """Tell what compilation took, where it was left out."""
    said = []
    for name, results in found.items():
        if compiling := [r["compile_seconds"] for r in results.values() if "compile_seconds" in r]:
            said.append(f"Not counted: what compiling of '{name}' takes, {written(compiling)} s.")
    return said


def _solve(comparison: Comparison, found: Mapping[str, Results]) -> tuple[Row, list[Row]]:
    header = ["", "solved", "training, s: median", "worst", "frames: median", "whole process, s: median"]
    rows = []
    for contender in comparison.contenders:
        results = [*found[contender.name].values()]
        if not results:
            continue
        solved, seconds = sum(r["solved"] for r in results), [budgeted(r, contender) for r in results]
        frames, whole = ([r[key] for r in results] for key in ("frames", "process_seconds"))
        middle = [number(statistics.median(x)) for x in (seconds, frames, whole)]
        rows.append([contender.name, f"{solved}/{len(results)}", middle[0], number(max(seconds)), *middle[1:]])
    return header, rows


def budgeted(result: Mapping[str, Any], contender: Contender) -> float:
    """Return the seconds of training; of a failure, those of its whole budget at the pace it had."""
    short = contender.job["frames"] / result["frames"]
    return result["seconds"] * (1.0 if result["solved"] else max(1.0, short))


def _loss(comparison: Comparison, found: Mapping[str, Results]) -> tuple[Row, list[Row]]:
    header = ["", "training, s", "updates", "validation loss", "whole process, s"]
    rows = []
    for name, results in found.items():
        if results:
            last = [r["losses"][-1][-1] for r in results.values()]
            columns = [[r[key] for r in results.values()] for key in ("seconds", "updates", "process_seconds")]
            rows.append(
                [name, written(columns[0]), written(columns[1]), f"{statistics.median(last):.3f}", written(columns[2])]
            )
    return header, rows


def _values(comparison: Comparison, found: Mapping[str, Results]) -> tuple[Row, list[Row]]:
    results = [r["values"] for name in found for r in found[name].values()]
    names = list(dict.fromkeys(name for values in results for name in values))
    rows = [[name, written([values[name] for values in results if name in values])] for name in names]
    return ["", "median (smallest to largest)" if len(results) > 1 else "measured"], rows


def _rows(comparison: Comparison, found: Mapping[str, Results]) -> tuple[Row, list[Row]]:
    """Show a measurement's own table."""
    rows = [row for results in found.values() for result in results.values() for row in result["rows"]]
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["", ""]
    return [name.replace("_", " ") for name in names], [[_cell(row.get(name)) for name in names] for row in rows]


def _cell(x: Any) -> str:
    if x is None or isinstance(x, str):
        return x or ""
    return f"{x:,}" if isinstance(x, int) else number(x)
