"""The figures of a search: its trials in their order, and which settings mattered. Needs matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.study import Study

from rlcore.plots import COLOURS, house_style, save
from rlcore.search.definition import Search
from rlcore.search.report import described

_WIDTH = 7.2  # inches: a page's
_FEWEST = 4  # finished trials that importance is computed of


def draw(study: Study, search: Search, found: Sequence[dict[str, Any]], root: Path) -> list[Path]:
    """Draw history.png and .svg, and importance.png and .svg where enough trials finished; return the files.

    Raises:
        UserError: there is no matplotlib, or a file cannot be written.
    """
    figures = {"history": history(search, found)}
    if shares := importances(study):
        figures["importance"] = importance(shares, search)
    return [save(figure, root / f"{name}.{end}") for name, figure in figures.items() for end in ("png", "svg")]


def importances(study: Study) -> dict[str, float]:
    """Return each setting's share of what sets good trials apart, the largest first; the shares' sum is 1.

    Watanabe et al. (2023), "PED-ANOVA", https://arxiv.org/abs/2304.10255.

    Empty: fewer than four trials finished, or all are equally good.
    """
    values = [trial.value for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(values) < _FEWEST or len(set(values)) < 2:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # takes seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def history(search: Search, found: Sequence[dict[str, Any]]) -> Any:
    """Draw every trial's value and interval, the best so far, and the recipe's own."""
    done = [row for row in found if row["state"] == "finished"]
    choose = max if search.objective.maximize else min
    with house_style():
        figure, panel = _figure((_WIDTH, 3.8))
        for row in done:
            panel.vlines(row["trial"], row["ci_low"], row["ci_high"], color=COLOURS[0], alpha=0.35, linewidth=2)
        numbers, values = [row["trial"] for row in done], [row["value"] for row in done]
        panel.plot(numbers, values, "o", color=COLOURS[0], markersize=4.5, label="finished; bar: 95 % interval")
        best = [choose(values[: i + 1]) for i in range(len(values))]
        panel.step(numbers, best, where="post", color=COLOURS[1], label="best so far")
        if done and done[0]["trial"] == 0 and search.space.is_held():
            panel.axhline(values[0], color="0.35", linestyle=":", linewidth=1.5, label="the recipe itself (trial 0)")
        for state, marker, colour in (("pruned", "|", "0.45"), ("failed", "x", COLOURS[3])):
            at = [row["trial"] for row in found if row["state"] == state]
            if at:
                height = [0.02] * len(at)
                transform = panel.get_xaxis_transform()
                panel.plot(at, height, marker, color=colour, markersize=9, transform=transform, label=state)
        panel.set_xlabel("trial")
        panel.set_ylabel(_unit(search))
        if search.objective.name == "frames_to":
            from matplotlib.ticker import EngFormatter

            panel.yaxis.set_major_formatter(EngFormatter(sep=""))
        figure.legend(loc="outside lower center", ncols=5, fontsize=8, columnspacing=1.2, handletextpad=0.5)
        figure.suptitle(f"{search.definition.recipe} over {search.space.name}: {described(search)}", fontsize=9)
    return figure


def _unit(search: Search) -> str:
    name, budget = search.objective.name, search.config.budget.frames
    threshold = search.config.stop.threshold
    if name == "frames_to":
        return f"environment frames to {threshold:g}\n({2 * budget:,}: never)"
    return f"seconds of training to {threshold:g}" if name == "seconds_to" else name.replace("final/", "final ")


def importance(shares: dict[str, float], search: Search) -> Any:
    """Draw each setting's share as a bar."""
    with house_style():
        figure, panel = _figure((_WIDTH, 0.3 * len(shares) + 1.3))
        panel.barh(list(shares), list(shares.values()), color=COLOURS[0])
        for row, share in enumerate(shares.values()):
            panel.text(share, row, f" {share:.0%}", va="center", fontsize=9)
        panel.invert_yaxis()
        panel.margins(x=0.1)
        panel.grid(visible=False, axis="y")
        panel.set_xlabel("share of what sets good trials apart (PED-ANOVA)")
        figure.suptitle(f"{search.definition.recipe} over {search.space.name}: {search.objective.name}", fontsize=9)
    return figure


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()
