"""Runs as one HTML page that opens anywhere: what was run, how it learnt, how well it does, what it does wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import rlcore
from rlcore import curves, plots, runs
from rlcore.curves import Curve
from rlcore.errors import UserError
from rlcore.report import drawing
from rlcore.report.drawing import Picture
from rlcore.report.known import Table, interval, number
from rlcore.report.page import Page, html
from rlcore.report.sections import Section, section
from rlcore.statistics import iqm, stratified_bootstrap_ci


def report(
    folders: Sequence[Path], out: str | Path | None = None, which: str | None = None, episodes: int | None = None
) -> Path:
    """Write the report of one run, or of several with their comparison, and return its path.

    A finished run's evaluation is taken from its result.json; tasks are evaluated again, for what their figures and
    lists are made of, and so is everything if ``which`` or ``episodes`` are given, or the run has not finished.

    Args:
        folders: the runs'.
        out: an .html file; default: report.html in the run's folder, or in the one that holds all the runs.
        which: the checkpoint to evaluate: last, best or a frame; default: each run's eval.use.
        episodes: of the evaluation; default: each run's eval.final_episodes (tasks: the held-out split).

    Raises:
        UserError: a package is missing, or the file cannot be written.
    """
    path = Path(out) if out else Path(os.path.commonpath([folder.absolute() for folder in folders])) / "report.html"
    if path.suffix != ".html":
        raise UserError(f"--out {path}: expected a file that ends in .html")
    sections = [section(folder, f"run-{i}", which, episodes) for i, folder in enumerate(folders, 1)]
    _film(sections)
    text = html(_page(sections))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to '{path.parent}': {error.strerror}; expected a writable folder") from None
    runs.write_text(path, text)
    return path


def _film(sections: Sequence[Section]) -> None:
    """Show an episode of the only run, or of each recipe and environment the run in the middle of the results."""
    from rlcore.report.episode import episode
    from rlcore.run import load

    for kind in dict.fromkeys((made.recipe, made.environment) for made in sections):
        alike = [made for made in sections if (made.recipe, made.environment) == kind]
        played = [made for made in alike if made.headline and not made.task]
        if not played:
            continue
        middle = sorted(played, key=lambda made: made.evaluation["mean"])[len(played) // 2]
        try:
            middle.episode = episode(load(middle.run, middle.checkpoint), middle.evaluation["seed"]).picture
        except UserError as error:
            middle.notes.append(f"No episode is shown: {error}.")


def _page(sections: list[Section]) -> Page:
    made = time.strftime("%Y-%m-%d %H:%M")
    recipes = list(dict.fromkeys(one.recipe or one.title for one in sections))
    about = list(dict.fromkeys(f"{one.agent} on {one.environment}" for one in sections if one.agent))
    title = sections[0].title if len(sections) == 1 else f"{len(sections)} runs of {', '.join(recipes)}"
    page = Page(title, "; ".join(about), sections, made, rlcore.__version__)
    if len(sections) > 1:
        page.groups, page.comparison = _groups(sections), _comparison(sections)
        page.curves, page.notes = _curves(sections)
    return page


def _comparison(sections: Sequence[Section]) -> Table:
    """Return a row for every run, with a link to its section."""
    names = list(dict.fromkeys(name for one in sections for name in one.scores))
    rows = []
    for one in sections:
        facts = dict(one.facts)
        plain = [one.status, facts.get("Frames", ""), facts.get("Training", "")]
        rows.append([{"to": one.id, "text": one.title}, *plain, *(one.scores.get(name, "") for name in names)])
    numbers = ["frames", "training", *names]
    return Table("Every run, its intervals over episodes or examples", ["run", "status", *numbers], rows, numbers)


def _groups(sections: Sequence[Section]) -> Table:
    """Return a row for every recipe with several finished runs: its interquartile mean over them, with its interval."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for one in sections:
        if one.headline and one.status == "finished":
            name, value = one.headline
            groups.setdefault((one.recipe, one.environment, name), []).append(value)
    rows = []
    for (recipe, environment, name), values in groups.items():
        if len(values) > 1:
            ends = interval(*stratified_bootstrap_ci([[value] for value in values]))
            mean, worst, best = (number(x) for x in (sum(values) / len(values), min(values), max(values)))
            cells = [mean, number(iqm(values)), ends, worst, best]
            rows.append([recipe, environment, name, str(len(values)), *cells])
    numbers = ["runs", "mean", "IQM", "95 % interval", "lowest", "highest"]
    caption = "Recipes; intervals over training runs: they speak of training again with other seeds"
    return Table(caption, ["recipe", "environment", "score of a run", *numbers], rows, numbers)


def _curves(sections: Sequence[Section]) -> tuple[list[Picture], list[str]]:
    """Return the learning curves of all runs together, or why there are none."""
    try:
        rows, metric, _ = curves.entries([one.run for one in sections if one.curves], None, "frames", "recipe")
        panels: dict[str, dict[str, list[Curve]]] = {}
        for row in rows:
            panels.setdefault(row.environment, {}).setdefault(row.group, []).append(row.curve)
        figure = plots.learning_curves(panels, metric)
    except UserError as error:
        return [], [f"There are no common learning curves: {error}."]
    groups = list(dict.fromkeys(row.group for row in rows))
    alt = f"Learning curves of {', '.join(groups)}: interquartile mean of {metric} over runs with its 95 % interval."
    return [drawing.inline(figure, "all-curves", alt)], []
