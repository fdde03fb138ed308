"""What a search's worker does: take a trial, train its seeds one after another, tell what they are worth, and so on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import Trial, TrialState

from rlcore import config as configs
from rlcore import runs
from rlcore.command import import_plugins
from rlcore.errors import UserError
from rlcore.guards import interruptible
from rlcore.lifecycle import fitting, opened
from rlcore.progress import Progress
from rlcore.search import definition, storage
from rlcore.search.definition import Search, trial_folder
from rlcore.search.objective import PRUNED, step_of, total, watched


def main() -> None:
    """Work on the search in the folder that the command line names, until all its trials are taken.

    Standard input is a pipe that only the searching process holds: when that is gone, this one takes a checkpoint
    and ends.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_watch, daemon=True).start()
    try:
        work(Path(sys.argv[1]), int(sys.argv[2]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _watch() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock the interpreter wants when it ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def work(root: Path, wanted: int) -> None:
    """Train trials until ``wanted`` are taken."""
    defined = definition.read(root)
    import_plugins(defined.plugins)
    search = Search(defined)
    study = storage.open_study(root, search)
    while True:
        with storage.claimed(study, search, root, wanted) as taken:
            if taken is None:
                return
            _finish(study, search, root, *taken)


def _finish(study: Study, search: Search, root: Path, trial: Trial, settings: dict[str, Any]) -> None:
    """Train a trial and tell how it ended; what goes wrong in it is told, too, and harms no other trial."""
    begun = time.monotonic()
    try:
        values = _train(search, trial, trial_folder(root, trial.number), settings)
    except KeyboardInterrupt:
        trial.set_user_attr("begun", [])  # its process did not die of it
        raise
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        trial.set_user_attr("error", " ".join(text.split()))
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_user_attr("seconds", time.monotonic() - begun)
    trial.set_user_attr("values", values)
    if len(values) < len(search.seeds):
        study.tell(trial, state=TrialState.PRUNED)
        return
    value, low, high = total(values)
    trial.set_user_attr("interval", [low, high])
    study.tell(trial, value)


def _train(search: Search, trial: Trial, folder: Path, settings: dict[str, Any]) -> list[float]:
    """Return what each seed's run is worth; fewer than there are seeds where the trial was pruned."""
    values: list[float] = []
    raw = configs.override(search.raw, settings)
    budget = configs.validate(raw).budget.frames
    for run, seed in enumerate(search.seeds):
        watch = _watcher(search, trial, run)
        result = _one(folder / f"seed-{seed}", configs.override(raw, {"seed": seed}), watch)
        if str(result.get("stopped", "")).startswith(PRUNED):
            break
        values.append(search.objective.of_run(result, budget))
    return values


Watcher = Callable[[int, Mapping[str, float]], str]


def _watcher(search: Search, trial: Trial, run: int) -> Watcher:
    """Return what reports evaluations and says why the run shall end; empty: it shall not."""
    name, sign = watched(search.objective, search.config)
    every, budget = search.config.eval.every, search.config.budget.frames
    known = set(trial.storage.get_trial(trial._trial_id).intermediate_values)  # of a run that goes on

    def watch(frames: int, row: Mapping[str, float]) -> str:
        if not every or name not in row:
            return ""
        step = step_of(frames, run, every, budget)
        if step not in known:
            known.add(step)
            trial.report(sign * row[name], step)
        return f"{PRUNED} at frame {frames}: {name} {row[name]:.6g}" if trial.should_prune() else ""

    return watch


class _Watched(Progress):
    """Stands where a run's progress is shown, and shows its rows to a watcher, which may end the run."""

    def __init__(self, watch: Watcher) -> None:
        super().__init__(0, quiet=True)
        self.watch, self.trainer = watch, None

    trainer: Any

    def update(self, frames: int, row: Mapping[str, float]) -> None:
        """Let the watcher see what was logged, between iterations and before a checkpoint may be taken."""
        if row and (reason := self.watch(frames, row)) and not self.trainer.stopping:
            self.trainer.stopping = reason


def _one(run: Path, raw: dict[str, Any], watch: Watcher) -> dict[str, Any]:
    """Train a run, or go on with it, unless it is finished; return its result.json."""
    result = runs.read_json(run / "result.json")
    if result.get("status") == "finished":
        return result
    goes_on = (run / "config.yaml").exists()
    if not goes_on and run.exists():
        for path in run.iterdir():  # all that a run leaves that dies before its settings are written
            path.unlink()
    progress = _Watched(watch)
    with (
        opened(None if goes_on else raw, run, goes_on, {}) as begun,
        fitting(begun, progress) as finish,
    ):
        progress.trainer = begun.trainer
        with interruptible(begun.trainer):
            begun.trainer.fit()
        return finish().result
