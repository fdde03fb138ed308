"""Named sets of rows (a recipe and how it differs) over many seeds: what there is to train, and for how long.

A set is a YAML file: what `Set` and `Row` say. The run of a row and a seed lies in ``folder/ROW/seed-N``, so
sets that share a row share its runs. Imports no torch but for `probe`.
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, field_validator

from rlcore import config as configs
from rlcore import plain_yaml, runs
from rlcore.config import Config, Model
from rlcore.errors import UserError, nearest, note
from rlcore.fields import explain

M = TypeVar("M", bound=Model)
_PROBE = 2.0  # seconds that a probe trains, once it learns


class Row(Model):
    """A line of a results table."""

    name: str = Field(default="", description="of the row and its folder")
    recipe: str = Field(default="", description="what is trained [the row's name]")
    overrides: dict[str, Any] = Field(default={}, description="settings that differ, by dotted name")
    seeds: str = Field(default="", description="A-B, where they are not the set's")
    metric: str = Field(default="mean", description="the number of the final evaluation that is the score")
    goal: float | None = Field(default=None, description="what the interquartile mean must reach")
    floor: float | None = Field(default=None, description="what nine of ten seeds must reach [no demand]")
    reference: float | None = Field(default=None, description="a published figure")
    baseline: str = Field(default="", description="the row whose score is the reference")
    peer: str = Field(default="", description="another library's agent instead, such as sb3/dqn")
    options: dict[str, Any] = Field(default={}, description="the peer's hyperparameters")


class Set(Model):
    """A table of results."""

    name: str = Field(default="", description="of the file")
    title: str = Field(description="heading")
    about: str = Field(default="", description="what a reader must know")
    seeds: str = Field(default="0-9", description="A-B")
    rows: list[Row] = Field(description="by name")

    @field_validator("rows", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not (isinstance(value, dict) and value and all(isinstance(row or {}, dict) for row in value.values())):
            raise ValueError("a mapping from each row's name to its options, such as {cartpole_dqn: {goal: 498}}")
        return [{"recipe": str(name), **(row or {}), "name": str(name)} for name, row in value.items()]


@dataclass(frozen=True, eq=False)
class Job:
    """One run: a row and a seed."""

    row: Row
    seed: int
    path: Path

    @property
    def config(self) -> Config[Any]:
        """The settings that the run must have.

        Raises:
            UserError: the recipe is missing or wrong; names the row.
        """
        try:
            raw = configs.override(configs.read(self.row.recipe), {**self.row.overrides, "seed": self.seed})
            return configs.validate(raw)
        except UserError as error:
            raise UserError(f"row '{self.row.name}': {error}") from None

    @property
    def error_file(self) -> Path:
        """Where it is written why the run failed; not in its folder, which may not exist."""
        return self.path.with_suffix(".error")

    def arguments(self) -> list[str]:
        """Return the arguments of train.py that train this run, its folder aside."""
        settings = {**configs.flatten(self.row.overrides), "seed": self.seed}
        return [self.row.recipe, *(f"--{name}={_written(value)}" for name, value in settings.items())]

    def status(self) -> tuple[str, str]:
        """Return ("finished", "differs", "failed", "unfinished", "running" or "not run", why)."""
        error = self.error_file.read_text(encoding="utf-8").strip() if self.error_file.exists() else ""
        if not (self.path / "config.yaml").exists():
            return ("failed", error) if error else ("not run", "")
        if differs := self._difference():
            return "differs", differs
        held = runs.describe(self.path)
        if held["status"] in ("finished", "running"):
            return held["status"], ""
        error = error or str(held.get("problem", ""))
        return ("failed", error) if error else ("unfinished", f"came to frame {held['frames'] or 0}")

    def _difference(self) -> str:
        """Return in what the run in the folder is not the one that is asked for; empty: in nothing."""
        try:
            held = configs.validate(configs.read(self.path), str(self.path / "config.yaml"))
        except UserError as error:
            return str(error)
        was, now = (configs.flatten(c.model_dump(mode="json", exclude={"recipe"})) for c in (held, self.config))
        if self.config.compile == "auto":  # the run itself chose
            now["compile"] = was["compile"]
        if not was["stop.metric"] and not now["stop.metric"]:  # then nothing else of it has any effect
            was, now = ({k: v for k, v in one.items() if not k.startswith("stop.")} for one in (was, now))
        peer = {"peer": self.row.peer, "options": self.row.options} if self.row.peer else {}
        was, now = {**was, **runs.read_json(self.path / "peer.json")}, {**now, **peer}
        for name in sorted({*was, *now}):
            if was.get(name) != now.get(name):
                return f"was trained with {name} {was.get(name)!r} instead of {now.get(name)!r}"
        return ""


def _written(value: Any) -> str:
    return value if isinstance(value, str) and plain_yaml.parse(value, "") == value else json.dumps(value)


def folder() -> Path:
    """Return the folder of the shipped sets: in a checkout beside the packages, in an installation inside."""
    recipes = configs.recipes()
    return recipes.parent / ("results" if recipes.name == "configs" else "sets")


def read(name: str) -> Set:
    """Return a shipped set, one of a YAML file, or the set of one row that a recipe is.

    Raises:
        UserError: there is none of that name, or it is not valid.
    """
    known = {path.stem: path for path in folder().glob("*.yaml")}
    path = known.get(name, Path(name))
    recipes = {recipe.stem for recipe in configs.recipes().glob("*.yaml")}
    if name in recipes and name not in known:
        return Set.model_validate({"name": name, "title": name, "rows": {name: {}}})
    if not path.is_file():
        raise UserError(
            f"set '{name}' is neither a file nor a shipped set or recipe{nearest(name, {*known, *recipes})}"
        )
    raw = plain_yaml.read(path)
    if isinstance(raw, dict) and "rows" not in raw:  # a recipe of the user's own
        return Set.model_validate({"name": path.stem, "title": path.stem, "rows": {path.stem: {"recipe": str(path)}}})
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping with title and rows, got {raw!r}")
    for row, options in raw["rows"].items() if isinstance(raw["rows"], dict) else ():
        _validated(Row, options or {}, f"{path}: row '{row}'")
    found = _validated(Set, {**raw, "name": path.stem}, str(path))
    names = {row.name for row in found.rows}
    for row in found.rows:
        if row.baseline and row.baseline not in names:
            raise UserError(
                f"{path}: row '{row.name}': baseline '{row.baseline}' is no row{nearest(row.baseline, names)}"
            )
    return found


def _validated(model: type[M], raw: Any, where: str) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, model)}") from None


def seeds(text: str) -> list[int]:
    """Return the seeds that "A-B" or "A" names.

    Raises:
        UserError: it names none.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise UserError(f"seeds: got '{text}', expected A-B, such as 0-9")
    return list(range(first, last + 1))


def jobs(results: Set, root: Path, given: str = "") -> list[Job]:
    """Return all runs of a set; ``given`` seeds instead of the set's and the rows' own."""
    return [
        Job(row, seed, root / row.name / f"seed-{seed}")
        for row in results.rows
        for seed in seeds(given or row.seeds or results.seeds)
    ]


def command(job: Job) -> str:
    """Return what trains a run, as one types it."""
    if job.row.peer:
        return f"{job.row.peer} {json.dumps(job.row.options)}"
    return shlex.join(["python", "scripts/train.py", *job.arguments()])


# How long it takes


def wall_seconds(path: Path) -> float:
    """Return about how long a finished run took, evaluations included (a resumed one: since then, at least)."""
    begun, ended = (path / name for name in ("manifest.json", "result.json"))
    return max(ended.stat().st_mtime - begun.stat().st_mtime, runs.read_json(ended)["train_seconds"])


def estimate(todo: Sequence[Job], every: Sequence[Job]) -> dict[str, float]:
    """Return seconds a run by row, from the row's finished runs or else from a probe, saying so for each row.

    A row that cannot be probed is left out: its run will say why.
    """
    known: dict[str, float] = {}
    for row in {job.row.name: job.row for job in todo}.values():
        mine = [job for job in todo if job.row == row]
        done = [wall_seconds(job.path) for job in every if job.row == row and job.status()[0] == "finished"]
        try:
            known[row.name] = statistics.median(done) if done else probe(mine[0])
        except UserError as error:
            note(f"{row.name}: no estimate: {error}")
            continue
        origin = f"from {len(done)} finished" if done else "from a probe; evaluations add to it"
        note(f"{row.name}: {count(mine)} of about {span(known[row.name])} each ({origin})")
    return known


def probe(job: Job) -> float:
    """Train for a few seconds, keep nothing, and return how many the whole run would take.

    Raises:
        UserError: the run cannot be built, or is another library's.
    """
    if job.row.peer:
        raise UserError("other libraries are not probed")
    from rlcore import build

    trainer = build.trainer(job.config)
    clock, begun = trainer.clock, time.perf_counter()
    marks = [(0.0, 0)]  # train seconds and frames: at the start, when learning began, now
    try:
        with trainer.training():
            while not clock.done and time.perf_counter() - begun < 5 * _PROBE:
                trainer.iterate()
                if clock.updates and len(marks) == 1:
                    marks.append((trainer.train_seconds, clock.frames))  # the first update warms up
                if len(marks) == 2 and trainer.train_seconds - marks[1][0] > _PROBE:
                    break
    finally:
        trainer.source.env.close()
    then, frames = marks[-1] if clock.frames > marks[-1][1] else marks[0]
    speed = (clock.frames - frames) / (trainer.train_seconds - then)
    return then + (clock.budget - frames) / speed


def count(some: Collection[Job]) -> str:
    """Return how many runs these are."""
    return f"{len(some)} run{'s' * (len(some) != 1)}"


def span(seconds: float) -> str:
    """Return a time as people say it: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
