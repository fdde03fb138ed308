"""A search on disk: Optuna's storage, samplers and pruner, and who works on which trial. All of it survives SIGKILL.

A search's folder holds study.yaml (`rlcore.search.definition`), journal.log (Optuna's storage, a line an operation) and
for each trial a folder with a run for each seed. Nobody keeps a heartbeat: whoever works on a trial holds the lock of
its folder, which the system takes from a process that dies, and whoever finds an unfinished trial with a free lock goes
on with it. Draws depend on the search's seed and the trial's number alone (and, for samplers that learn, on the trials
finished by then), so a search that was stopped draws what it would have drawn.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from rlcore import runs
from rlcore.errors import UserError
from rlcore.search import spaces
from rlcore.search.definition import Definition, Search, trial_folder
from rlcore.search.objective import hopeless

try:
    import fcntl
except ImportError:  # no POSIX: one worker only
    fcntl = None

optuna.logging.set_verbosity(optuna.logging.WARNING)
_TRIES = 3  # times that a trial is begun at one place before it counts as failed


class _Flock:
    """The system's lock on a file: a process that dies lets go of it, and half a line that it left is cut off."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.path = journal, journal.with_name(".journal.lock")

    def acquire(self) -> bool:
        """Wait for the lock."""
        self.file = self.path.open("w")
        fcntl.flock(self.file, fcntl.LOCK_EX)  # type: ignore[union-attr]
        with self.journal.open("rb+") as file:
            if (size := file.seek(0, os.SEEK_END)) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read(size).rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let go of the lock."""
        self.file.close()


@contextlib.contextmanager
def claiming(root: Path) -> Iterator[None]:
    """Wait until no other worker looks for a trial."""
    with (root / ".claim.lock").open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_study(root: Path, search: Search) -> Study:
    """Return the study in a search's folder, a new one if there is none."""
    path = root / "journal.log"
    lock = _Flock(path) if fcntl is not None else None
    direction = "maximize" if search.objective.maximize else "minimize"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path), lock)),  # type: ignore[arg-type]
            sampler=Repeatable(search.definition),
            pruner=MedianOfAverages(search),
            study_name="search",
            direction=direction,
            load_if_exists=True,
        )


def plan(study: Study, search: Search) -> int:
    """Queue the trials that are known beforehand; return how many trials there will be.

    Killed meanwhile, the next call queues the rest.
    """
    points, trials = search.points(), search.definition.trials
    wanted = min(trials, len(points)) if search.definition.sampler == "grid" else trials
    for point in points[len(study.get_trials(deepcopy=False)) : wanted]:
        study.enqueue_trial({name: spaces.label(value) for name, value in point.items()})
    return wanted


# Who chooses, who gives up


class Repeatable(BaseSampler):
    """An Optuna sampler made anew for every trial, its draws seeded by the search's seed and the trial's number."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.inner: BaseSampler = RandomSampler(0)

    def _make(self, number: int) -> BaseSampler:
        from rlcore.seeding import derive  # torch, which only workers need

        seed = derive(self.definition.seed, f"trial {number}") % 2**31
        if self.definition.sampler == "tpe":
            return TPESampler(seed=seed)
        if self.definition.sampler == "gp":
            return GPSampler(seed=seed, warn_independent_sampling=False)
        return RandomSampler(seed=seed)  # of a grid all is queued

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Begin the trial's own stream."""
        self.inner = self._make(trial.number)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """Ask the inner sampler."""
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        """Ask the inner sampler."""
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """Ask the inner sampler."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)


class MedianOfAverages(BasePruner):
    """The median rule, see `rlcore.search.objective`; never for the recipe itself, which all is compared with."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is hopeless."""
        if not self.search.definition.prune or (trial.number == 0 and self.search.space.is_held()):
            return False
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [other.intermediate_values for other in done]
        return hopeless(trial.intermediate_values, others, self.search.per_run, self.search.objective.maximize)


# Trials


@contextlib.contextmanager
def claimed(study: Study, search: Search, root: Path, wanted: int) -> Iterator[tuple[Trial, dict[str, Any]] | None]:
    """Hold a trial and its settings: one whose worker has died, else a queued or new one; None: all are taken."""
    with contextlib.ExitStack() as held:
        with claiming(root):
            trials = study.get_trials(deepcopy=False)
            trial = _orphan(study, trials, root, held)
            if trial is None and sum(other.state != TrialState.WAITING for other in trials) < wanted:
                trial = study.ask()
                _hold(trial_folder(root, trial.number), held)
            found = None if trial is None else (trial, search.space.suggest(trial))
        yield found


def _orphan(study: Study, trials: list[FrozenTrial], root: Path, held: contextlib.ExitStack) -> Trial | None:
    """Take over a trial that nobody works on; one that died three times without coming further has failed."""
    for other in trials:
        if other.state != TrialState.RUNNING or not _hold(folder := trial_folder(root, other.number), held):
            continue
        trial = Trial(study, other._trial_id)  # the storage's own number of it, which nothing public gives
        begun = [*other.user_attrs.get("begun", []), _frames(folder)]
        if len(begun) >= _TRIES and len(set(begun[-_TRIES:])) == 1:
            trial.set_user_attr("error", f"its process ended {_TRIES} times without a word at frame {begun[-1]}")
            study.tell(trial, state=TrialState.FAIL)
            continue
        trial.set_user_attr("begun", begun)
        return trial
    return None


def _hold(folder: Path, held: contextlib.ExitStack) -> bool:
    """Take the lock of a trial's folder; whether no other worker has it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(runs.locked(folder))
    except UserError:
        return False
    return True


def _frames(folder: Path) -> int:
    """Return how many frames the checkpoints of a trial's runs have come to."""
    return sum(runs.describe(run)["frames"] or 0 for run in folder.glob("seed-*"))
