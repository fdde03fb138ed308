"""The results section of a set: a table with intervals, every seed, learning curves. The same runs, the same text."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlcore import config as configs
from rlcore import runs, study
from rlcore.config import Config
from rlcore.errors import UserError, nearest
from rlcore.statistics import iqm, stratified_bootstrap_ci
from rlcore.study import Job, Set

CURVES = {  # the first that all runs of a figure log: how the axis calls it
    "eval/return_mean": "mean return of evaluation",
    "train/episode_return": "return while exploring",
}
SHARE = 0.9  # of the seeds must reach a row's floor


def summarise(results: Set, every: Sequence[Job]) -> list[dict[str, Any]]:
    """Return each row's numbers, JSON-ready: the score over seeds, the reference, the mark, every run.

    Keys that need a finished run, or two, are None without. The mark is ``beaten`` (the goal is reached and
    the reference exceeded), ``met`` (the goal is reached, or without one the reference), ``below``,
    ``incomplete`` (a seed failed or has not finished), or empty where there is nothing to compare with.

    Raises:
        UserError: a run has no such metric.
    """
    rows = [_row([job for job in every if job.row == row]) for row in results.rows]
    scores = {row["name"]: row["iqm"] for row in rows}
    for row, wanted in zip(rows, results.rows, strict=True):
        row["reference"] = scores[wanted.baseline] if wanted.baseline else wanted.reference
        row["mark"] = _mark(row)
    return rows


def _row(mine: Sequence[Job]) -> dict[str, Any]:
    row = mine[0].row
    seeds = [_seed(job) for job in mine]
    done = [job.path for job, seed in zip(mine, seeds, strict=True) if seed["status"] == "finished"]
    scores = [seed["score"] for seed in seeds if seed["score"] is not None]
    ours = [runs.read_json(path / "result.json") for path in done]
    frames = [result["frames"] for result in ours]
    level = row.goal if row.floor is None else row.floor
    interval = stratified_bootstrap_ci([[score] for score in scores]) if len(scores) > 1 else (None, None)
    learning = [curve[1].mean() for path in done for curve in [_curves([path]).get("train/episode_return")] if curve]
    return {
        "name": row.name,
        "environment": _environment(configs.validate(configs.read(done[0]))) if done else None,
        "metric": row.metric,
        "frames": [min(frames), max(frames)] if ours else None,  # a run may stop before its budget is spent
        "episodes": ours[0]["evaluation"]["episodes"] if ours else None,
        "seeds": len(seeds),
        "finished": len(scores),
        "mean": statistics.fmean(scores) if scores else None,
        "iqm": iqm(scores) if scores else None,
        "ci_low": interval[0],
        "ci_high": interval[1],
        "worst": min(scores, default=None),
        "level": level,
        "reached": None if level is None else sum(score >= level for score in scores),
        "floor": row.floor,
        "while_learning": iqm(learning) if learning else None,
        "train_seconds": statistics.median(result["train_seconds"] for result in ours) if ours else None,
        "goal": row.goal,
        "baseline": row.baseline or None,
        "command": study.command(mine[0]).replace(f"--seed={mine[0].seed}", "--seed=N"),
        "peer": row.peer or None,
        "runs": seeds,
    }


def _seed(job: Job) -> dict[str, Any]:
    status, problem = job.status()
    seed = {"seed": job.seed, "run": str(job.path), "status": status, "problem": problem, "score": None}
    if status == "finished":
        result = runs.read_json(job.path / "result.json")
        evaluation = result["evaluation"]
        numbers = {name for name, value in evaluation.items() if isinstance(value, float)}
        if job.row.metric not in numbers:
            known = nearest(job.row.metric, numbers)
            raise UserError(f"row '{job.row.name}': metric '{job.row.metric}' is not in the evaluation{known}")
        seed |= {"score": evaluation[job.row.metric], "train_seconds": result["train_seconds"]}
    return seed


def _environment(config: Config[Any]) -> str:
    """Return an environment as a table names it: its id and what it differs in."""
    plain = {k: v for k, v in config.env.kwargs.items() if isinstance(v, (bool, int, float, str))}
    parts = [f"{name}={value}" for name, value in plain.items()]
    parts += [wrapper["name"] for wrapper in config.env.wrappers]
    return config.env.id + (f" ({', '.join(parts)})" if parts else "")


def _mark(row: dict[str, Any]) -> str:
    goal, reference, score = row["goal"], row["reference"], row["iqm"]
    target = reference if goal is None else goal
    if target is None:
        return ""
    if row["finished"] < row["seeds"]:
        return "incomplete"
    few = row["floor"] is not None and row["reached"] < SHARE * row["seeds"]
    if score < target or few:
        return "below"
    return "beaten" if reference is not None and score > reference else "met"


# Text


def section(results: Set, rows: Sequence[dict[str, Any]], arguments: str, figures: Sequence[str] = ()) -> str:
    """Return the set's results as Markdown; ``arguments`` are those of benchmark.py, ``figures`` pictures' paths."""
    lines = [f"## {results.title}", "", *([results.about.strip(), ""] if results.about else [])]
    lines += [f"`python scripts/benchmark.py results {arguments}`", "", *_table(rows), "", _caption(rows)]
    problems = [
        f"- `{row['name']}` seed {run['seed']}: {run['status']}{': ' * bool(run['problem'])}{run['problem']}"
        for row in rows
        for run in row["runs"]
        if run["status"] != "finished" and row["finished"]
    ]
    problems += [f"- `{row['name']}`: {_nothing(row)}" for row in rows if not row["finished"]]
    lines += ["", "Not finished:", "", *problems] if problems else []
    lines += ["", "Each seed's score:", "", *_every_seed(rows)]
    for figure in figures:
        lines += ["", f"![Learning curves: {Path(figure).stem}]({figure})"]
    return "\n".join(lines) + "\n"


def _nothing(row: dict[str, Any]) -> str:
    said = sorted({f"{run['status']}{': ' * bool(run['problem'])}{run['problem']}" for run in row["runs"]})
    return f"no seed of {row['seeds']} has finished ({'; '.join(said)})"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = ["", "environment", "frames", "seeds", "mean", "IQM (95 % interval)", "worst seed", "seeds at level"]
    head += ["while learning", "training", "reference", "goal", "mark"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        seeds = f"{row['seeds']}" if row["finished"] == row["seeds"] else f"{row['finished']} of {row['seeds']}"
        interval = "" if row["ci_low"] is None else f" ({_number(row['ci_low'])} to {_number(row['ci_high'])})"
        reached = "" if row["level"] is None else f"{row['reached']} ≥ {_number(row['level'])}"
        reference = _number(row["reference"]) + (f" (`{row['baseline']}`)" if row["baseline"] else "")
        seconds = "" if row["train_seconds"] is None else f"{row['train_seconds']:,.1f} s"
        metric = "" if row["metric"] == "mean" else f", {row['metric']}"
        cells = [f"`{row['name']}`{metric}", row["environment"] or "", _span(row["frames"])]
        cells += [seeds, _number(row["mean"]), _number(row["iqm"]) + interval, _number(row["worst"]), reached]
        cells += [_number(row["while_learning"]), seconds, reference, _number(row["goal"])]
        cells.append(f"**{row['mark']}**" if row["mark"] else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _span(ends: Sequence[int] | None) -> str:
    return " to ".join(f"{end:,}" for end in dict.fromkeys(ends or ()))


def _caption(rows: Sequence[dict[str, Any]]) -> str:
    episodes = " or ".join(str(n) for n in sorted({row["episodes"] for row in rows if row["episodes"]}))
    return (
        f"A seed's score is its mean over {episodes or 'the'} seeded greedy episodes of the last checkpoint, "
        "or of the best where its recipe says so by `eval.use` (tasks: over the held-out split). "
        "IQM: interquartile mean over seeds, with its stratified bootstrap interval. While "
        "learning: interquartile mean over seeds of the return averaged over training, exploration included. Training: "
        "median seconds of training alone; runs trained side by side (`--jobs`) share the machine, which blurs it. "
        "Mark: *met*, the IQM reaches the goal (without one, the reference) and, where the level is below the goal, "
        "nine of ten seeds reach that; *beaten*, it also exceeds the reference; else *below*."
    )


def _every_seed(rows: Sequence[dict[str, Any]]) -> list[str]:
    numbers = sorted({run["seed"] for row in rows for run in row["runs"]})
    lines = [f"| seed | {' | '.join(map(str, numbers))} | command |", "|" + "---|" * (len(numbers) + 2)]
    for row in rows:
        found = {run["seed"]: run for run in row["runs"]}
        cells = [(_number(found[n]["score"]) or found[n]["status"]) if n in found else "" for n in numbers]
        lines.append(f"| `{row['name']}` | {' | '.join(cells)} | `{row['command']}` |")
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def insert(document: Path, name: str, text: str) -> None:
    """Put a set's section between its markers in a document; what stands around it stays. New markers go to the end.

    Raises:
        UserError: a marker is missing or stands in the wrong place, or the file cannot be written.
    """
    first, last = f"<!-- results {name} -->\n", f"<!-- end of results {name} -->\n"
    old = document.read_text(encoding="utf-8") if document.exists() else "# Results\n"
    if (old.count(first), old.count(last)) == (0, 0):
        new = f"{old.rstrip()}\n\n{first}{text}{last}"
    elif (old.count(first), old.count(last)) != (1, 1) or old.index(last) < old.index(first):
        raise UserError(f"{document}: expected '{first.strip()}' once and '{last.strip()}' once after it")
    else:
        new = old[: old.index(first)] + first + text + old[old.index(last) :]
    document.parent.mkdir(parents=True, exist_ok=True)
    runs.write_text(document, new)


# Learning curves

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")  # Okabe and Ito's, for all kinds of sight
_APART = 0.06  # of a panel's height, between labels
Curve = tuple[np.ndarray, np.ndarray]  # frames (T,), values (runs, T)


def figures(results: Set, rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw the learning curves of each environment's rows into a PNG file and return the files."""
    environments = dict.fromkeys(row["environment"] for row in rows if row["environment"])
    drawn = []
    for environment in environments:
        mine = {
            row["name"]: _curves([Path(run["run"]) for run in row["runs"] if run["status"] == "finished"])
            for row in rows
            if row["environment"] == environment
        }
        slug = re.sub(r"[^a-z0-9]+", "_", re.sub(r"-v\d+", "", environment).lower()).strip("_")
        path = folder / f"{results.name}{f'_{slug}' if len(environments) > 1 else ''}.png"
        for column in CURVES:
            curves = {name: found[column] for name, found in mine.items() if column in found}
            if curves and (len(curves) == len(mine) or column == list(CURVES)[-1]):
                draw(curves, path, environment, CURVES[column])
                drawn.append(path)
                break
    return drawn


def _curves(paths: Sequence[Path]) -> dict[str, Curve]:
    """Return what of `CURVES` all runs logged, on a common grid of 100 points; an ended run keeps its last value."""
    tables = []
    for path in paths:
        with (path / "progress.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    found: dict[str, Curve] = {}
    for column in CURVES if paths else ():
        series = [np.array([(int(r["frames"]), float(r[column])) for r in rows if r.get(column)]) for rows in tables]
        if all(map(len, series)) and max(map(len, series)) > 1:
            grid = np.linspace(max(s[0, 0] for s in series), max(s[-1, 0] for s in series), 100)
            found[column] = grid, np.stack([np.interp(grid, s[:, 0], s[:, 1]) for s in series])
    return found


def draw(curves: dict[str, Curve], path: Path, title: str, ylabel: str) -> None:
    """Draw mean over runs and its 95 % bootstrap interval: a few curves together, many each before the others."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    together = len(curves) <= len(_COLOURS)
    columns = 1 if together else 4
    lines = 1 if together else -(-len(curves) // columns)
    size = (7.2, 4.0) if together else (2.6 * columns, 1.9 * lines + 0.4)
    figure, axes = plt.subplots(
        lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for i, (name, curve) in enumerate(curves.items()):
        panel = axes[0, 0] if together else axes.flat[i]
        if not together:
            for frames, values in curves.values():
                panel.plot(frames / 1000, values.mean(0), color="0.8", linewidth=0.7)
            panel.set_title(name, fontsize=9, fontweight="bold")
        _plot(panel, *curve, _COLOURS[i if together else 0])
    if together:
        _label(axes[0, 0], curves)
    for panel in axes.flat[1 if together else len(curves) :]:
        panel.set_visible(False)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    seeds = sorted({len(values) for _, values in curves.values()})
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    figure.suptitle(f"{title}: mean of {over} seeds, 95 % interval", fontsize=11)
    figure.supxlabel("environment frames (thousands)", fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot(panel: Any, frames: np.ndarray, values: np.ndarray, colour: str) -> None:
    resampled = values[np.random.default_rng(0).integers(len(values), size=(2000, len(values)))].mean(1)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    panel.fill_between(frames / 1000, low, high, color=colour, alpha=0.2, linewidth=0)
    panel.plot(frames / 1000, values.mean(0), color=colour, linewidth=1.8)


def _label(panel: Any, curves: dict[str, Curve]) -> None:
    """Write each curve's name beside its end, apart from its neighbours and no higher than the panel."""
    bottom, top = panel.get_ylim()
    ends = [(float(values[:, -1].mean()), name) for name, (_, values) in curves.items()]
    ends = sorted(((end - bottom) / (top - bottom), name) for end, name in ends)
    heights = [0.0] * len(ends)
    for i, (end, _) in enumerate(ends):
        heights[i] = max(end, heights[i - 1] + _APART if i else end)
    for i in range(len(ends) - 1, -1, -1):
        heights[i] = min(heights[i], heights[i + 1] - _APART if i + 1 < len(ends) else 1.0)
    for height, (_, name) in zip(heights, ends, strict=True):
        colour = _COLOURS[list(curves).index(name)]
        panel.text(1.01, height, name, color=colour, transform=panel.transAxes, va="center", fontsize=9)
