"""The house style, and the figures of runs: learning curves, performance profiles, improvement, interval estimates.

Every figure says which statistic it shows, of how many runs, and what its intervals are. The same runs give the same
bytes: files hold no date, and names inside an SVG come from a fixed salt. Text in an SVG is text. Needs matplotlib.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlcore import curves
from rlcore.curves import Curve, Entry
from rlcore.errors import UserError, note
from rlcore.statistics import Estimate, aggregates, iqm_over_runs, performance_profile, probability_of_improvement

# Okabe and Ito (2008), "Color Universal Design": told apart by the colour-blind. Their yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GROUPS = 24  # in a figure, at most
_PAIRS = 15  # those of six groups; of more groups each is compared with the best
_TAUS = 200
_GAP = "optimality gap"
_WIDTH = 7.2  # inches: a page's, so that text has its size
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "figure.titlesize": 10,
    "figure.labelsize": 10,
    "grid.alpha": 0.3,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "butt",
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "svg.hashsalt": "rlcore",
}
_AXES = {"eval/return_mean": "mean return of evaluation", "train/episode_return": "return while exploring"}
_INTERVAL = "95 % stratified bootstrap interval over runs"
_STOPPED = "○: a run {}; its last value is carried on (dashed: so are those of most runs)"


class Line(NamedTuple):
    """A curve (T,) with its interval, of so many runs; ``stops`` are of those that ended before."""

    label: str
    runs: int
    x: np.ndarray
    estimate: Estimate
    stops: np.ndarray = np.empty(0)


def _count(*runs: int) -> str:
    if max(runs) > min(runs):
        return f"{min(runs)} to {max(runs)} runs"
    return f"{runs[0]} runs" if runs[0] > 1 else "1 run, no interval"


def _legend(label: str, lines: Sequence[Line]) -> str:
    return f"{textwrap.fill(label, 24)}\n({_count(*(line.runs for line in lines if line.label == label))})"


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style.

    Raises:
        UserError: there is no matplotlib.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'rlcore[plot]'") from None
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def save(figure: Any, path: Path) -> Path:
    """Write a figure as the end of the name says, .png or .svg, and return the path.

    Raises:
        UserError: it cannot be written.
    """
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with house_style():
            figure.savefig(path, metadata=metadata)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}; expected a writable folder") from error
    return path


def plot(
    runs: Sequence[Path], out: Path, x: str = "frames", by: str = "recipe", metric: str | None = None
) -> dict[str, Any]:
    """Draw the figures of runs into the folder ``out``, as PNG and SVG, and return their numbers, JSON-ready.

    Args:
        x: ``frames`` or ``time``, of the learning curves.
        by: what makes a group: ``recipe``, ``seed`` or a settings field by its dotted name.
        metric: a column of progress.csv, by default the mean return.

    Raises:
        UserError: a run or the metric cannot be drawn, there are too many groups, or the folder cannot be written.
    """
    rows, metric, said = curves.entries(runs, metric, x, by)
    members: dict[str, list[Entry]] = {}
    panels: dict[str, dict[str, list[Curve]]] = {}
    for row in rows:
        members.setdefault(row.group, []).append(row)
        panels.setdefault(row.environment, {}).setdefault(row.group, []).append(row.curve)
    if len(members) > GROUPS:
        raise UserError(f"--group-by {by}: makes {len(members)} groups, expected at most {GROUPS}")
    figures = {"curves": learning_curves(panels, metric, x)}
    groups = {
        name: {"runs": [str(row.run) for row in mine], "scores": [row.score for row in mine]}
        for name, mine in members.items()
    }
    numbers: dict[str, Any] = {"metric": metric, "score": said, "groups": groups}
    try:
        tables = curves.score_tables(rows)
    except UserError as error:
        note(f"profiles, intervals and improvement are left out: {error}")
    else:
        scaled = ", scaled: 0 the lowest run and 1 the highest of each environment" if len(panels) > 1 else ""
        figures |= _scored(tables, said + scaled, numbers)
    files = [save(figure, out / f"{name}.{end}") for name, figure in figures.items() for end in ("png", "svg")]
    return numbers | {"files": list(map(str, files))}


def _scored(tables: Mapping[str, np.ndarray], said: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of scores; their numbers are added to ``numbers``."""
    rated = curves.is_return(numbers["metric"])  # else nothing says whether high is good
    target = max(float(table.max()) for table in tables.values())
    found = {name: aggregates(table, target) for name, table in tables.items()}
    if not rated:
        found = {name: {s: one[s] for s in one if s != _GAP} for name, one in found.items()}
    for name, estimates in found.items():
        numbers["groups"][name] |= {statistic: _plain(estimate) for statistic, estimate in estimates.items()}
    figures = {"profiles": profiles(tables, said, rated), "intervals": intervals(tables, found, said, target)}
    if len(tables) == 1:
        note("improvement is left out: it compares groups, and there is one")
        return figures
    compared = {pair: probability_of_improvement(tables[pair[0]], tables[pair[1]]) for pair in _pairs(found)}
    numbers["improvement"] = [{"x": a, "y": b, **_plain(estimate)} for (a, b), estimate in compared.items()]
    return figures | {"improvement": improvement(compared, {name: len(table) for name, table in tables.items()})}


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {end: None if np.isnan(number) else float(number) for end, number in estimate._asdict().items()}


def _pairs(found: Mapping[str, Mapping[str, Estimate]]) -> list[tuple[str, str]]:
    every = list(itertools.combinations(found, 2))
    if len(every) <= _PAIRS:
        return every
    best = max(found, key=lambda name: float(found[name]["IQM"].value))
    return [(best, name) for name in found if name != best]


# Figures over an axis


def learning_curves(panels: Mapping[str, Mapping[str, Sequence[Curve]]], metric: str, x: str = "frames") -> Any:
    """Draw the interquartile mean over runs of each environment's groups, a panel for each environment.

    Where a run ends its group's curve before others end, a note says so.
    """
    unit = "environment frames" if x == "frames" else "seconds of training"
    drawn: dict[str, list[Line]] = {}
    for environment, groups in panels.items():
        for name, mine in groups.items():
            grid = curves.grid(mine)
            if grid.shortest is not None:
                end = f"{grid.x[-1]:,.0f} {unit}, where run '{grid.shortest}' ends"
                note(f"the curve of '{name}' ends at {end}; what others of its runs did later is not drawn")
            line = Line(name, len(mine), grid.x, iqm_over_runs(grid.values), grid.stops)
            drawn.setdefault(environment, []).append(line)
    title = f"Learning curves: interquartile mean over runs; shaded: {_INTERVAL}"
    if any(len(line.stops) for lines in drawn.values() for line in lines):
        title += f"\n{_STOPPED.format('reached its target and stopped' if x == 'frames' else 'finished')}"
    return _lines(drawn, unit, _AXES.get(metric, metric), title)


def profiles(tables: Mapping[str, np.ndarray], said: str, rated: bool = True) -> Any:
    """Draw the fraction of runs above each score: exact steps, or 200 points where there are more scores."""
    scores = np.unique(np.concatenate([table.ravel() for table in tables.values()]))
    taus = scores if len(scores) <= _TAUS else np.linspace(scores[0], scores[-1], _TAUS)
    margin = 0.03 * (taus[-1] - taus[0] or abs(taus[0]) or 1.0)
    taus = np.array([taus[0] - margin, *taus, taus[-1] + margin])
    drawn = [Line(name, len(table), taus, performance_profile(table, taus)) for name, table in tables.items()]
    title = f"Performance profiles{': higher is better' * rated}; shaded: {_INTERVAL}"
    return _lines({"": drawn}, f"score τ: {said}", "fraction of runs with score > τ", title, step=True)


def _lines(panels: Mapping[str, Sequence[Line]], xlabel: str, ylabel: str, title: str, step: bool = False) -> Any:
    """Draw a panel for each key, with a legend; of more than six labels each by itself, before the others in grey."""
    every = [line for drawn in panels.values() for line in drawn]
    labels = list(dict.fromkeys(line.label for line in every))
    together, alone = len(labels) <= len(COLOURS), len(panels) == 1
    if together:
        parts = [(name, drawn, []) for name, drawn in panels.items()]
    else:
        parts = [
            (
                f"{'' if alone else name}\n{_legend(line.label, [line])}".strip(),
                [line],
                [o for o in drawn if o is not line],
            )
            for name, drawn in panels.items()
            for line in drawn
        ]
        title = ". ".join([*filter(None, panels if alone else ()), title])
    columns = min(len(parts), 2 if together else 4)
    rows = -(-len(parts) // columns)
    size = (_WIDTH, 4.0 if rows == 1 else 2.8 * rows + 0.8) if together else (10.4, 2.2 * rows + 0.8)
    with house_style():
        figure, axes = _figure(size, rows, columns, sharex=alone, sharey=alone)
        for i, (panel, (name, mine, others)) in enumerate(zip(axes, parts, strict=False)):
            panel.set_title(name)
            panel.tick_params(labelbottom=not alone or i + columns >= len(parts))
            for line in others:
                panel.plot(line.x, line.estimate.value, color="0.8", lw=0.8, drawstyle=_drawstyle(step), zorder=1)
            for line in mine:
                _draw(panel, line, COLOURS[labels.index(line.label) if together else 0], step)
            _axis(panel, xlabel)
        for panel in axes[len(parts) :]:
            panel.set_visible(False)
        if together:
            handles = {line.get_label(): line for panel in axes for line in panel.lines}
            shown, names = [handles[label] for label in labels], [_legend(label, every) for label in labels]
            figure.legend(shown, names, loc="outside right center", fontsize=9)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        figure.supxlabel(xlabel)
        figure.supylabel(ylabel)
    return figure


def _drawstyle(step: bool) -> str:
    return "steps-post" if step else "default"


def _draw(panel: Any, line: Line, colour: str, step: bool) -> None:
    """Draw a line, dashed from where more than half of its runs are carried on; the label goes to what comes before."""
    value, low, high = line.estimate
    if not np.isnan(low).any():
        panel.fill_between(line.x, low, high, color=colour, alpha=0.2, linewidth=0, step="post" if step else None)
    dashed = line.stops[line.runs // 2] if len(line.stops) > line.runs // 2 else np.inf
    known = line.x <= dashed
    marker = "o" if len(line.x) == 1 else None
    style = {"color": colour, "drawstyle": _drawstyle(step), "zorder": 3}
    panel.plot(line.x[known], value[known], label=line.label, marker=marker, **style)
    if not known.all():
        panel.plot(line.x[line.x >= dashed], value[line.x >= dashed], linestyle=(0, (3, 1.2)), **style)
    if len(line.stops):
        at = np.unique(np.maximum(line.stops, line.x[0]))  # some may have ended before the last began
        panel.plot(at, np.interp(at, line.x, value), "o", color=colour, mfc="white", markersize=4.5, zorder=4)


def _axis(panel: Any, xlabel: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    panel.margins(x=0.02)
    panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if xlabel == "environment frames":
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _figure(size: tuple[float, float], rows: int = 1, columns: int = 1, **share: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **share).ravel()


# Figures of intervals


def intervals(
    tables: Mapping[str, np.ndarray], found: Mapping[str, Mapping[str, Estimate]], said: str, target: float
) -> Any:
    """Draw each group's aggregates, a panel for each statistic; with the optimality gap, arrows say what is better."""
    statistics = list(next(iter(found.values())))
    arrows = {name: " ↓" if name == _GAP else " ↑" for name in statistics if _GAP in statistics}
    with house_style():
        from matplotlib.ticker import MaxNLocator

        figure, axes = _figure((_WIDTH, 0.42 * len(found) + 1.5), 1, len(statistics), sharey=True)
        for panel, statistic in zip(axes, statistics, strict=True):
            for row, estimates in enumerate(found.values()):
                _bar(panel, row, estimates[statistic], COLOURS[row % len(COLOURS)])
            panel.set_title(f"{statistic}{arrows.get(statistic, '')}", fontsize=9)
            panel.xaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
            panel.use_sticky_edges = False
            panel.margins(x=0.1)
        names = [f"{textwrap.fill(name, 24)} ({_count(len(tables[name]))})" for name in found]
        axes[0].set_yticks(range(len(found)), names)
        axes[0].invert_yaxis()
        title = f"Interval estimates; bars: {_INTERVAL}"
        title += f"\n{_GAP}: mean shortfall from the best run, {target:.4g}" * (_GAP in statistics)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        figure.supxlabel(f"score: {said}")
    return figure


def _bar(panel: Any, row: int, estimate: Estimate, colour: str) -> None:
    value, low, high = map(float, estimate)
    if not np.isnan(low):
        panel.barh(row, high - low, left=low, height=0.5, color=colour, alpha=0.4)
    panel.vlines(value, row - 0.25, row + 0.25, color=colour, linewidth=2.5)


def improvement(compared: Mapping[tuple[str, str], Estimate], runs: Mapping[str, int]) -> Any:
    """Draw the probability of improvement of pairs (X, Y) of groups."""
    with house_style():
        figure, (panel,) = _figure((_WIDTH, 0.42 * len(compared) + 1.6))
        for row, estimate in enumerate(compared.values()):
            _bar(panel, row, estimate, COLOURS[0])
        panel.axvline(0.5, color="0.4", linestyle=":", linewidth=1.2)
        panel.set_xlim(-0.02, 1.02)
        panel.set_yticks(range(len(compared)), [f"{x} ({_count(runs[x])})" for x, _ in compared])
        other = panel.twinx()
        other.set_ylim(panel.get_ylim())
        other.grid(visible=False)
        other.set_yticks(range(len(compared)), [f"{y} ({_count(runs[y])})" for _, y in compared])
        for each in (panel, other):
            each.invert_yaxis()
        panel.set_title("X", loc="left")
        panel.set_title("Y", loc="right")
        figure.suptitle(f"Probability of improvement; bars: {_INTERVAL}", x=0.01, ha="left", fontsize=9)
        figure.supxlabel("P(X > Y): that a run of X scores higher than one of Y, a tie counting a half")
    return figure
