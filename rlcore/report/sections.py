"""What the page says of one run: what its folder knows, what its agent shows, and what is missing, and why."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlcore import config as configs
from rlcore import curves, runs
from rlcore.errors import UserError
from rlcore.report import drawing, known
from rlcore.report.drawing import Picture
from rlcore.report.known import NOTHING, Table, interval, number
from rlcore.report.logged import logged
from rlcore.report.seen import Seen, see

WORST = 5  # episodes
_SPREAD = {"mean": "mean", "iqm": "interquartile mean", "std": "standard deviation", "min": "worst", "max": "best"}


@dataclass
class Section:
    """One run on the page; the template reads it, and shows nothing for what is empty."""

    run: Path
    id: str  # of its elements on the page
    title: str
    status: str
    problem: str = ""
    environment: str = ""
    agent: str = ""
    recipe: str = ""
    task: bool = False  # its episodes are examples
    checkpoint: str | None = None  # that was played; None: as eval.use says
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    scores: dict[str, str] = field(default_factory=dict)  # by name, for comparison
    tiles: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    curves: list[Picture] = field(default_factory=list)
    evaluations: Table | None = None
    evaluated: str = ""
    statistics: Table | None = None
    histogram: Picture | None = None
    worst: Table | None = None
    replay: str = ""
    episode: Picture | None = None
    figures: list[Picture] = field(default_factory=list)
    samples: Table | None = None
    mistakes: Table | None = None
    pictures: list[Picture] = field(default_factory=list)
    diagnostics: list[Picture] = field(default_factory=list)
    changed: Table = NOTHING
    settings: Table = NOTHING
    facts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def headline(self) -> tuple[str, float] | None:
        """The number by which the run is judged, and its name."""
        if not self.evaluation:
            return None
        own = known.metrics(self.evaluation)
        name, value = next(iter(own.items())) if self.task and own else ("mean return", self.evaluation["mean"])
        return (name, value) if known.finite([value]) else None


def section(run: Path, name: str, which: str | None, episodes: int | None) -> Section:
    """Return what is known of a run and what its agent shows; what cannot be had is told in its notes.

    Args:
        run: its folder.
        name: sets its elements apart from other runs'.
        which: the checkpoint; None: as the run's eval.use says.
        episodes: of the evaluation; None: as the run's settings say.
    """
    described, about = runs.describe(run), runs.read_json(run / "manifest.json")
    called = f"{about['recipe']}, seed {about['seed']}" if about.get("recipe") else run.name
    made = Section(run, name, called, str(described["status"]), described.get("problem") or "", facts=known.facts(run))
    try:
        made.changed, made.settings = known.settings(run)
        settings = configs.validate(configs.read(run))
    except UserError as error:  # nothing more can be read
        made.problem = made.problem or str(error)
        return made
    made.environment = curves.environment(settings.model_dump(mode="json"))
    made.agent, made.recipe = settings.agent.name, settings.recipe
    seen = Seen(runs.read_json(run / "result.json").get("evaluation") or {}, settings.eval.use)
    try:
        seen = see(run, name, which, episodes)
    except UserError as error:
        made.notes.append(f"The agent was not played: {error}.")
    made.task = seen.task or (run / "fitted.json").exists()
    made.evaluation, made.figures, made.mistakes = seen.evaluation, seen.figures, seen.mistakes
    made.samples, made.pictures, made.checkpoint = seen.samples, seen.pictures, which
    if made.evaluation:
        _judge(made, seen, which)
    made.tiles += known.size(run, "examples" if made.task else "frames")
    try:
        metrics = [settings.eval.best, *known.metrics(made.evaluation)]
        made.curves, made.diagnostics, made.evaluations = logged(run, name, made.task, metrics)
    except UserError as error:
        made.notes.append(f"There are no curves: {error}.")
    return made


def _judge(made: Section, seen: Seen, which: str | None) -> None:
    """Say how the agent does: numbers with intervals, how they spread, and where it does worst."""
    found, own = made.evaluation, known.metrics(made.evaluation)
    first, count, returns = found["seed"], found["episodes"], found["returns"]
    of, over = ("reward of an example", "examples") if made.task else ("return of an episode", "episodes")
    ends = interval(found["ci_low"], found["ci_high"])
    rows = [(name, number(value), interval(*seen.intervals.get(name, ()))) for name, value in own.items()]
    before = "reward, " if made.task else ""
    spread = list(_SPREAD.items())[: 2 if made.task else None]  # of examples the picture says the rest
    rows += [(f"{before}{said}", number(found[k]), ends if k == "iqm" else "") for k, said in spread]
    head = ("metric" if made.task else of, "value", "95 % interval")
    made.statistics = Table("", head, rows, head[1:])
    played = f"{count:,} held-out examples"
    if not made.task:
        played = f"{count:,} greedy {over} on seeds {first} to {first + count - 1}"
    made.evaluated = f"{played}, played by the checkpoint '{seen.checkpoint}'. Intervals: bootstrap over {over}."
    if made.task:
        made.scores = {name: f"{value} ({ends})" if ends else value for name, value, ends in rows[: len(own)]}
        made.tiles = [known.tile(name, value, ends and f"95 % interval {ends}") for name, value, ends in rows[:3]]
    else:
        made.scores = {
            "mean return": number(found["mean"]),
            "IQM (95 % interval)": f"{number(found['iqm'])} ({ends or '-'})",
        }
        made.tiles = [
            known.tile("mean return", number(found["mean"]), f"{count:,} greedy episodes"),
            known.tile("interquartile mean", number(found["iqm"]), f"95 % interval {ends}"),
            known.tile("worst episode", number(found["min"]), f"best {number(found['max'])}"),
        ]
        _worst(made, returns, which)
    finite = known.finite(returns)
    if strange := len(returns) - len(finite):
        made.notes.append(f"Not finite: the {of.split()[0]}s of {strange} of {count:,} {over}.")
    elif len(set(returns)) > 2:
        marks = {"mean": found["mean"], "interquartile mean": found["iqm"]}
        made.histogram = drawing.histogram(finite, marks, f"{made.id}-returns", of, over)


def _worst(made: Section, returns: Sequence[float], which: str | None) -> None:
    """List the episodes with the lowest returns, and say how to see the worst again."""
    first = made.evaluation["seed"]
    best = max(known.finite(returns), default=0.0)
    below = [i for i, value in enumerate(returns) if known.finite([value]) and value < best]
    order = sorted(below, key=lambda i: returns[i])[:WORST]
    if not order:
        return
    rows = [(str(first + i), number(returns[i])) for i in order]
    made.worst = Table("The worst episodes", ("seed", "return"), rows, ("seed", "return"))
    chosen = ["--checkpoint", which] if which else []
    words = [str(made.run), *chosen, "--episodes", "1", "--seed", rows[0][0], "--render", "worst.gif"]
    made.replay = f"python scripts/evaluate.py {shlex.join(words)}"
