"""The results section of a set: a table with intervals, every seed, learning curves. The same runs, the same text."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlcore import config as configs
from rlcore import curves, plots, runs, study
from rlcore.errors import UserError, nearest
from rlcore.statistics import iqm, stratified_bootstrap_ci
from rlcore.study import Job, Set

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
    learning = [mean for mean in map(_while_learning, done) if mean is not None]
    return {
        "name": row.name,
        "environment": curves.environment(configs.read(done[0])) if done else None,
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
        if evaluation.get(job.row.metric, 0) is None:
            raise UserError(f"row '{job.row.name}': metric '{job.row.metric}' of {job.path} is not finite")
        if job.row.metric not in numbers:
            known = nearest(job.row.metric, numbers)
            raise UserError(f"row '{job.row.name}': metric '{job.row.metric}' is not in the evaluation{known}")
        seed |= {"score": evaluation[job.row.metric], "train_seconds": result["train_seconds"]}
    return seed


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


def figures(results: Set, rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw the learning curves of each environment's rows into a PNG file and return the files."""
    environments = dict.fromkeys(row["environment"] for row in rows if row["environment"])
    files = []
    for environment in environments:
        mine = {
            row["name"]: [Path(run["run"]) for run in row["runs"] if run["status"] == "finished"]
            for row in rows
            if row["environment"] == environment
        }
        slug = re.sub(r"[^a-z0-9]+", "_", re.sub(r"-v\d+", "", environment).lower()).strip("_")
        path = folder / f"{results.name}{f'_{slug}' if len(environments) > 1 else ''}.png"
        tables = {run: curves.read(run) for paths in mine.values() for run in paths}
        for metric in curves.METRICS:  # the first that all rows logged, or else what some logged while learning
            drawn = {
                name: [curves.curve(run, tables[run], metric) for run in paths]
                for name, paths in mine.items()
                if all(metric in tables[run] for run in paths)
            }
            if drawn and (len(drawn) == len(mine) or metric == curves.METRICS[-1]):
                figure = plots.learning_curves({environment: drawn}, metric)
                files.append(plots.save(figure, path))
                break
    return files


def _while_learning(run: Path) -> float | None:
    """Return the mean over training of the return while exploring, of 100 points on its curve."""
    frames, values = curves.read(run).get("train/episode_return", ((), ()))
    if len(frames) < 2:
        return None
    return float(np.interp(np.linspace(frames[0], frames[-1], 100), frames, values).mean())
