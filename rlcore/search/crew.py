"""The workers of a search: started, watched, replaced when they die, and what they have found said and written."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlcore.errors import UserError, note
from rlcore.search import plots, report, storage
from rlcore.search.definition import Search
from rlcore.study import Job, Row, probe, span

_WORK = "from rlcore.search.worker import main; main()"
_POLL = 0.2  # seconds between looks at the storage
_ALIKE = 5  # trials in a row that fail alike end the search


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def close(self) -> str:
        """Return the last line that the process, which has ended, wrote to standard error."""
        self.errors.seek(0)
        lines = [line for line in self.errors.read().decode(errors="replace").splitlines() if line.strip()]
        self.errors.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        return lines[-1] if lines else ""


class Crew:
    """A search with its workers: says how far it is, and replaces a worker that dies."""

    def __init__(self, root: Path, search: Search, jobs: int, quiet: bool) -> None:
        self.root, self.search, self.jobs, self.quiet = root, search, jobs, quiet
        self.say = (lambda text: None) if quiet else note
        self.study = storage.open_study(root, search)
        self.wanted = storage.plan(self.study, search)
        self.ended = {row["trial"] for row in self._rows() if _over(row)}
        self.workers: list[_Worker] = []
        self.deaths = 0  # of workers, since a trial last ended
        self.recent: list[str] = []  # why the latest trials failed, empty for those that did not

    def run(self) -> dict[str, Any]:
        """Search until all trials have ended; return what `tune` does."""
        self._begin()
        try:
            self.workers = [self._start() for _ in range(min(self.jobs, self.wanted - len(self.ended)))]
            while self.workers:
                time.sleep(_POLL)
                self._bury()
                self._look()  # after: what a worker told before it ended is seen
        finally:
            self._stop()
            report.write(self.study, self.search, self.root)
        return self._result()

    def _rows(self) -> list[dict[str, Any]]:
        return report.rows(self.study, self.search, self.root)

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
        report.write(self.study, self.search, self.root)
        if len(self.recent) == _ALIKE and self.recent[0] and len(set(self.recent)) == 1:
            raise UserError(f"{_ALIKE} trials in a row failed: {self.recent[0]}")

    def _line(self, row: dict[str, Any], found: list[dict[str, Any]]) -> str:
        """Return how a trial ended, and how far the search is."""
        how = report.worth(row) if row["state"] == "finished" else row["state"]
        why = f" ({row['problem']})" if row["problem"] else ""
        best = report.ranked(found, self.search)[:1]
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
            code, said = worker.process.returncode, worker.close()
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
                worker.close()
        except KeyboardInterrupt:  # again: at once
            for worker in self.workers:
                worker.process.kill()
            raise

    def _result(self) -> dict[str, Any]:
        found = self._rows()
        best = report.ranked(found, self.search)
        if not best:
            raise UserError(f"search {self.root}: no trial finished; see {self.root / 'trials.csv'}")
        try:
            plots.draw(self.study, self.search, found, self.root)
        except UserError as error:
            self.say(f"figures are left out: {error}")
        names = ("metric", "seeds", "sampler")
        about = {name: getattr(self.search.definition, name) for name in names}
        return {"folder": str(self.root), **about, "best": best[0], "trials": found}


def _over(row: dict[str, Any]) -> bool:
    return row["state"] in ("finished", "pruned", "failed")
