"""A recipe over many seeds: train in parallel processes, tabulate, draw the learning curve. Restartable."""

from __future__ import annotations

import csv
import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from rlcore import api, runs
from rlcore.errors import UserError
from rlcore.statistics import iqm, stratified_bootstrap_ci

CURVES = {  # the first that a run logs: how the axis calls it
    "train/episode_return": "episode return while exploring",
    "eval/return_mean": "mean return of evaluation",
}


def train_seeds(recipe: str, seeds: Sequence[int], folder: Path, jobs: int = 1, **overrides: Any) -> list[Path]:
    """Train every seed that has no finished run under ``folder/recipe`` yet; return the run folders.

    Raises:
        UserError: the recipe or an override is wrong, or a run failed.
    """
    paths = [folder / recipe / f"seed-{seed}" for seed in seeds]
    todo = [
        (seed, path) for seed, path in zip(seeds, paths, strict=True) if runs.describe(path)["status"] != "finished"
    ]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_train, recipe, seed, path, overrides) for seed, path in todo]
        for done in as_completed(futures):
            print(done.result(), flush=True)
    return paths


def _train(recipe: str, seed: int, path: Path, overrides: dict[str, Any]) -> str:
    begun = (path / "config.yaml").exists()
    given = {} if begun else {**overrides, "seed": seed}
    run = api.train(None if begun else recipe, out=path, resume=begun, **given)
    evaluation = run.result["evaluation"]
    return f"{path}: mean {evaluation['mean']:.6g} in {run.result['train_seconds']:.1f} s"


def summarise(paths: Sequence[Path]) -> dict[str, Any]:
    """Return each run's result and the interquartile mean over runs with its stratified bootstrap interval."""
    results = [runs.read_json(path / "result.json") or {} for path in paths]
    means = [result["evaluation"]["mean"] for result in results]
    seconds = [result["train_seconds"] for result in results]
    low, high = stratified_bootstrap_ci([[mean] for mean in means])
    return {
        "runs": [
            {
                "seed": path.name.removeprefix("seed-"),
                "mean": mean,
                "min": r["evaluation"]["min"],
                "seconds": r["train_seconds"],
            }
            for path, mean, r in zip(paths, means, results, strict=True)
        ],
        "mean": statistics.fmean(means),
        "worst": min(means),
        "iqm": iqm(means),
        "ci_low": low,
        "ci_high": high,
        "median_seconds": statistics.median(seconds),
        "slowest_seconds": max(seconds),
        "frames": results[0]["frames"],
        "episodes": results[0]["evaluation"]["episodes"],
    }


def table(name: str, summary: dict[str, Any]) -> str:
    """Return a summary as a Markdown table."""
    rows = [f"| {r['seed']} | {r['mean']:.6g} | {r['min']:.6g} | {r['seconds']:.1f} |" for r in summary["runs"]]
    return "\n".join(
        [
            f"**{name}**, {summary['frames']} frames, {len(rows)} seeds: interquartile mean {summary['iqm']:.2f} "
            f"(95 % interval {summary['ci_low']:.2f} to {summary['ci_high']:.2f}), worst seed {summary['worst']:.2f}; "
            f"training time median {summary['median_seconds']:.1f} s, slowest {summary['slowest_seconds']:.1f} s.",
            "",
            f"| seed | mean return of {summary['episodes']} episodes | worst episode | training, s |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def curve(paths: Sequence[Path]) -> tuple[str, np.ndarray, np.ndarray]:
    """Return a name of `CURVES`, frames (T,) and values (runs, T) on a common grid of 100 points.

    Raises:
        UserError: the runs logged none of them twice.
    """
    tables = []
    for path in paths:
        with (path / "progress.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    for column in CURVES:
        series = [np.array([(int(r["frames"]), float(r[column])) for r in rows if r.get(column)]) for rows in tables]
        if min(map(len, series)) > 1:
            grid = np.linspace(max(s[0, 0] for s in series), min(s[-1, 0] for s in series), 100)
            return column, grid, np.stack([np.interp(grid, s[:, 0], s[:, 1]) for s in series])
    raise UserError(f"{paths[0]}: has no learning curve; expected at least two values of {' or '.join(CURVES)}")


def draw(paths: Sequence[Path], figure: Path, title: str) -> None:
    """Draw the mean over runs with its 95 % bootstrap interval and every run, as PNG or SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    column, frames, values = curve(paths)
    rng = np.random.default_rng(0)
    resampled = values[rng.integers(len(values), size=(2000, len(values)))].mean(1)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    fig, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.plot(frames / 1000, values.T, color="0.75", linewidth=0.7)
    axes.fill_between(frames / 1000, low, high, color="#0072B2", alpha=0.25, linewidth=0)
    axes.plot(frames / 1000, values.mean(0), color="#0072B2", linewidth=2)
    axes.set(title=title, xlabel="environment frames (thousands)", ylabel=CURVES[column])
    axes.plot([], [], color="0.75", label="one seed")
    axes.plot([], [], color="#0072B2", linewidth=2, label=f"mean of {len(values)} seeds, 95 % interval")
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure, dpi=150)
    plt.close(fig)
