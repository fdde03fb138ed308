"""Search for a recipe's settings: grid, random, tree-structured Parzen estimators, Gaussian processes, through Optuna.

This process checks everything, starts the workers and watches; the workers (`rlcore.search_worker`) share the storage in
the search's folder (`rlcore.search_study`) and need nobody to tell them what to do. Killed at any time, the search goes on with
``resume``: trials that ended stay as they are, those in training go on where their runs' last checkpoints were taken.

Bergstra et al. (2011), "Algorithms for Hyper-Parameter Optimization"; Akiba et al. (2019), "Optuna".
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlcore import config as configs
from rlcore import plain_yaml, runs, search_space
from rlcore.command import import_plugins
from rlcore.errors import UserError, note
from rlcore.study import Job, Row, probe, span

_WORK = "from rlcore.search_worker import main; main()"
_POLL = 0.2  # seconds between looks at the storage
_ALIKE = 5  # trials in a row that fail alike end the search


def tune(
    recipe: str | Path | Mapping[str, Any] | None = None,
    space: str | Path | Mapping[str, Any] | None = None,
    *,
    trials: int | None = None,
    sampler: str | None = None,
    metric: str | None = None,
    direction: str | None = None,
    seeds: str | None = None,
    seed: int | None = None,
    prune: bool | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    plugins: Sequence[str] = (),
    quiet: bool = True,
    **overrides: Any,
) -> dict[str, Any]:
    """Search, and return the folder, the best trial, and all trials, best first.

    Args:
        recipe: bare name of a shipped recipe, a YAML file, a run's folder, or settings; default cartpole_dqn.
        space: bare name of a shipped space, a YAML file, or dimensions by dotted setting (`rlcore.search_space`).
        trials: how many; the first is the recipe itself [50].
        sampler: grid, random, tpe or gp [tpe].
        metric: frames_to, seconds_to, final or final/NAME, see `rlcore.search_objective` [final].
        direction: max or min [as the metric implies].
        seeds: A-B, of each trial's runs, from 100 up [1000-1002].
        seed: of the sampler's draws [0].
        prune: end hopeless trials early [True].
        jobs: workers, each a process.
        out: the search's folder [a fresh one under ``runs/``].
        resume: go on with the search in ``out``; only trials and jobs may change.
        plugins: modules that register own parts, for the workers.
        quiet: say nothing.
        overrides: settings by name, as `rlcore.train` takes them.

    Raises:
        UserError: Optuna is not installed, or bad input, before the first trial; or one trial after the other fails.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the runs have taken a checkpoint.
    """
    study = _optuna()
    given = {"trials": trials, "sampler": sampler, "metric": metric, "direction": direction, "seeds": seeds}
    given |= {"seed": seed, "prune": prune, "plugins": list(plugins) or None}
    given = {name: value for name, value in given.items() if value is not None}
    root = Path(out or f"runs/tune-{time.strftime('%Y%m%d-%H%M%S')}")
    definition = _resumed(root, recipe, space, given, overrides) if resume else _new(recipe, space, given, overrides)
    import_plugins(definition.plugins)
    search = study.Search(definition)
    search.space.check()
    if jobs > 1 and study.fcntl is None:
        raise UserError(f"--jobs: got {jobs}, expected 1: this system has no locks that workers could share")
    if not resume and root.exists() and any(root.iterdir()):
        raise UserError(
            f"--out {root}: is not empty; add --resume to go on with the search in it, or give another folder"
        )
    root.mkdir(parents=True, exist_ok=True)
    with runs.locked(root):
        study.write(root, definition)
        runs.write_text(root / "recipe.yaml", plain_yaml.dump(search.raw))  # what trials vary
        return _Searching(root, search, jobs, quiet).run()


def _optuna() -> Any:
    try:
        from rlcore import search_study
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("tune: Optuna is not installed; expected the extra tune: pip install 'rlcore[tune]'") from None
    return search_study


def _new(recipe: Any, space: Any, given: dict[str, Any], overrides: Mapping[str, Any]) -> Any:
    """Return the definition of a search from what was given."""
    if space is None:
        known = ", ".join(sorted(path.stem for path in search_space.folder().glob("*.yaml")))
        raise UserError(f"--space: got none, expected a YAML file or a shipped space: {known}")
    name, dimensions = search_space.read(space)
    raw = configs.override(configs.read(recipe or "cartpole_dqn"), overrides)
    for setting in dimensions:
        if setting in configs.flatten(overrides):
            raise UserError(f"--{setting}: is searched by space {name}; expected no value of its own")
    called = raw.get("recipe") or "given"
    return _optuna().defined(recipe=called, settings=raw, space_name=name, space=dimensions, **given)


def _resumed(root: Path, recipe: Any, space: Any, given: dict[str, Any], overrides: Mapping[str, Any]) -> Any:
    """Return the definition of the search in the folder, with more trials if wished; nothing else may differ."""
    old = _optuna().read(root)
    values = old.model_dump()
    if recipe is not None or overrides:
        values["settings"] = configs.override(configs.read(recipe or old.settings), overrides)
    if space is not None:
        values["space"] = search_space.read(space)[1]
    new = _optuna().defined(**{**values, **given})
    for name, before in old.model_dump().items():
        now = getattr(new, name)
        if name != "trials" and now != before:
            raise UserError(
                f"{name}: got {now!r}, but {root} was begun with {before!r}; expected only --trials to change"
            )
    if new.trials < old.trials:
        raise UserError(f"--trials: got {new.trials}, but {root} was begun with {old.trials}; expected as many or more")
    return new


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    errors: IO[bytes]


class _Searching:
    """A search with its workers: says how far it is, and replaces a worker that dies."""

    def __init__(self, root: Path, search: Any, jobs: int, quiet: bool) -> None:
        from rlcore import search_report, search_study

        self.root, self.search, self.jobs, self.report = root, search, jobs, search_report
        self.say = (lambda text: None) if quiet else note
        self.study = search_study.open_study(root, search)
        self.wanted = search_study.plan(self.study, search)
        self.ended = {row["trial"] for row in self._rows() if _over(row)}
        self.workers: list[_Worker] = []
        self.deaths = 0  # of workers, since a trial last ended
        self.recent: list[str] = []  # why the latest trials failed, empty for those that did not
        self.quiet = quiet

    def run(self) -> dict[str, Any]:
        """Search until all trials have ended; return what `tune` does."""
        self._begin()
        try:
            self.workers = [self._start() for _ in range(min(self.jobs, self.wanted - len(self.ended)))]
            while self.workers:
                time.sleep(_POLL)
                self._look()
                self._bury()
        finally:
            self._stop()
            self.report.write(self.study, self.search, self.root)
        return self._result()

    def _rows(self) -> list[dict[str, Any]]:
        return self.report.rows(self.study, self.search, self.root)

    def _begin(self) -> None:
        """Say where the search lies and about how long it will take, from a probe of the recipe."""
        self.say(f"search: {self.root}")
        if not self.search.space.is_held():
            self.say("the recipe itself is no point of the space, and is not tried")
        if self.ended:
            self.say(f"{len(self.ended)} of {self.wanted} trials have ended already")
        if self.quiet or len(self.ended) >= self.wanted:
            return
        job = Job(Row(name="probe", recipe=str(self.root / "recipe.yaml")), self.search.seeds[0], self.root)
        runs_left = (self.wanted - len(self.ended)) * len(self.search.seeds)
        each = probe(job)
        most = span(runs_left * each / self.jobs)
        self.say(f"{runs_left} runs of about {span(each)} or less each (from a probe; evaluations add to it): {most}")

    def _start(self) -> _Worker:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed where the process has ended)
        words = [sys.executable, "-c", _WORK, str(self.root), str(self.wanted)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, env=environment
        )
        return _Worker(process, errors)

    def _look(self) -> None:
        """Note the trials that ended since the last look.

        Raises:
            UserError: the last few failed for one reason.
        """
        found = self._rows()
        fresh = [row for row in found if _over(row) and row["trial"] not in self.ended]
        if not fresh:
            return
        self.deaths = 0
        for row in fresh:
            self.ended.add(row["trial"])
            self.recent = [*self.recent, row["problem"]][-_ALIKE:]
            self.say(self._line(row, found))
        self.report.write(self.study, self.search, self.root)
        if len(self.recent) == _ALIKE and self.recent[0] and len(set(self.recent)) == 1:
            raise UserError(f"{_ALIKE} trials in a row failed: {self.recent[0]}")

    def _line(self, row: dict[str, Any], found: list[dict[str, Any]]) -> str:
        """Return how a trial ended, and how far the search is."""
        how = self.report.worth(row) if row["state"] == "finished" else row["state"]
        why = f" ({row['problem']})" if row["problem"] else ""
        best = self.report.ranked(found, self.search)[:1]
        so_far = f"; best: trial {best[0]['trial']}, {best[0]['value']:.6g}" if best else ""
        took = [other["seconds"] for other in found if other["seconds"]]
        left = self.wanted - len(self.ended)
        rest = f"; {span(left * sum(took) / len(took) / self.jobs)} left" if took and left else ""
        return f"trial {row['trial']}: {how}{why}{so_far}; {len(self.ended)}/{self.wanted} trials{rest}"

    def _bury(self) -> None:
        """Replace workers that died; those that found nothing to do have ended in peace.

        Raises:
            UserError: one after the other dies, and no trial ends.
        """
        for worker in [worker for worker in self.workers if worker.process.poll() is not None]:
            self.workers.remove(worker)
            code, said = worker.process.returncode, _said(worker)
            if not code:
                continue
            self.deaths += 1
            why = said or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
            if self.deaths > 3 * self.jobs:
                raise UserError(f"workers die one after the other: {why}")
            self.say(f"a worker died ({why}); another takes its place")
            self.workers.append(self._start())

    def _stop(self) -> None:
        """Let the workers that are left take a checkpoint and end; wait for them."""
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.terminate()
        try:
            for worker in self.workers:
                worker.process.wait()
        except KeyboardInterrupt:  # again: at once
            for worker in self.workers:
                worker.process.kill()
            raise

    def _result(self) -> dict[str, Any]:
        found = self._rows()
        best = self.report.ranked(found, self.search)
        if not best:
            raise UserError(f"search {self.root}: no trial finished; see {self.root / 'trials.csv'}")
        names = ("metric", "seeds", "sampler")
        about = {name: getattr(self.search.definition, name) for name in names}
        return {"folder": str(self.root), **about, "best": best[0], "trials": found}


def _over(row: dict[str, Any]) -> bool:
    return row["state"] in ("finished", "pruned", "failed")


def _said(worker: _Worker) -> str:
    """Return the last line of what a process wrote to standard error."""
    worker.errors.seek(0)
    lines = [line for line in worker.errors.read().decode(errors="replace").splitlines() if line.strip()]
    worker.errors.close()
    return lines[-1] if lines else ""
