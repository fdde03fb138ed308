"""Runs trained by parallel processes, with a table of how far they are. One that fails or is killed harms no other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rlcore import runs
from rlcore.errors import note
from rlcore.study import Job, count, span

_TRAIN = "import sys; sys.argv[0] = 'scripts/train.py'; from rlcore.cli import train; train()"
_PEER = "from rlcore.peers import main; main()"
_POLL = 0.1  # seconds between looks at the processes
_LINE = 60.0  # seconds between plain lines where no run ends


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    begun: float
    fresh: bool  # and so trains a whole run


def train(todo: Sequence[Job], every: Sequence[Job], processes: int, seconds: Mapping[str, float]) -> dict[Job, str]:
    """Train runs, ``processes`` at a time, one torch thread each; return why each that failed did.

    Args:
        todo: what to train; a run that has begun goes on where its last checkpoint was taken.
        every: all runs of the set, for the table.
        processes: how many at once.
        seconds: estimates by row, for the time left.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the runs were told to take a checkpoint and have ended.
    """
    waiting, active, failed = deque(todo), dict[Job, _Worker](), dict[Job, str]()
    board = Board(every, todo, processes, seconds)
    with board:
        try:
            while waiting or active:
                while waiting and len(active) < processes:
                    active[waiting[0]] = _start(waiting[0])
                    waiting.popleft()
                for job in [job for job, worker in active.items() if worker.process.poll() is not None]:
                    worker = active.pop(job)
                    if error := _ended(job, worker):
                        failed[job] = error
                        runs.write_text(job.error_file, error + "\n")
                    board.ended(job, error, time.monotonic() - worker.begun, worker.fresh)
                board.show({job: worker.begun for job, worker in active.items()})
                time.sleep(_POLL)
        except KeyboardInterrupt:
            _stop(list(active.values()))
            raise
    return failed


def _start(job: Job) -> _Worker:
    job.path.parent.mkdir(parents=True, exist_ok=True)
    job.error_file.unlink(missing_ok=True)
    fresh = not (job.path / "config.yaml").exists() or bool(job.row.peer)
    if job.row.peer:  # has no checkpoints: begins anew
        shutil.rmtree(job.path, ignore_errors=True)
        words = [_PEER, job.row.model_dump_json(), str(job.seed), str(job.path)]
    elif fresh:
        words = [_TRAIN, "--quiet", *job.arguments(), "--out", str(job.path)]
    else:
        words = [_TRAIN, "--quiet", "--resume", "--out", str(job.path)]
    errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed where the process has ended)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    nothing = subprocess.DEVNULL
    whole = [sys.executable, "-c", *words]
    process = subprocess.Popen(whole, stdin=nothing, stdout=nothing, stderr=errors, env=environment)
    return _Worker(process, errors, time.monotonic(), fresh)


def _ended(job: Job, worker: _Worker) -> str:
    """Return why the run failed, in one sentence; empty: it did not."""
    worker.errors.seek(0)
    said = [line for line in worker.errors.read().decode(errors="replace").splitlines() if line.strip()]
    worker.errors.close()
    code = worker.process.returncode
    if not code:
        return ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; the same command goes on from its last checkpoint"
    return (
        said[-1].removeprefix("rlcore.errors.UserError: ").removeprefix("error: ")
        if said
        else f"ended with exit code {code}"
    )


def _stop(workers: Sequence[_Worker]) -> None:
    """Let runs end their iteration and take a checkpoint; a terminal's Ctrl-C has told them already."""
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            worker.process.terminate()
    try:
        for worker in workers:
            worker.process.wait()
    except KeyboardInterrupt:  # again: at once
        for worker in workers:
            worker.process.kill()
        raise


class Board:
    """How far each row is: a live table on a terminal, elsewhere a line for every run that ends, and now and then."""

    def __init__(self, every: Sequence[Job], todo: Sequence[Job], processes: int, seconds: Mapping[str, float]) -> None:
        self.every, self.left, self.processes = every, list(todo), processes
        self.seconds, self.took = dict(seconds), dict[str, list[float]]()
        self.results: dict[str, list[str]] = {}
        self.live: Any = None
        self.next = time.monotonic() + _LINE

    def __enter__(self) -> Board:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(file=sys.stderr), auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()

    def ended(self, job: Job, error: str, seconds: float, fresh: bool) -> None:
        """Note the end of a run; what a whole one took betters the estimate."""
        self.left.remove(job)
        name = job.row.name
        score = runs.read_json(job.path / "result.json").get("evaluation", {}).get(job.row.metric)
        result = "failed" if error or score is None else f"{score:.6g}"
        self.results.setdefault(name, []).append(result)
        if fresh and not error:
            self.took.setdefault(name, []).append(seconds)
            self.seconds[name] = statistics.median(self.took[name])
        if self.live is None:
            done, total = self._count(name)
            why = f" ({error})" if error else ""
            left = f"; {self._left({})} left" if self.left else ""
            note(f"{name} seed {job.seed}: {result}{why} in {span(seconds)}; {done}/{total} seeds{left}")
            self.next = time.monotonic() + _LINE

    def show(self, begun: Mapping[Job, float]) -> None:
        """Show what is running; on a terminal always, elsewhere when nothing was said for a while."""
        if self.live is not None:
            self.live.update(self.table(begun), refresh=True)
        elif time.monotonic() > self.next:
            running = ", ".join(f"{job.row.name} seed {job.seed}" for job in begun)
            note(f"training {running}; {count(self.left)}, {self._left(begun)} left")
            self.next = time.monotonic() + _LINE

    def _count(self, name: str) -> tuple[int, int]:
        mine = [job for job in self.every if job.row.name == name]
        return sum(job not in self.left for job in mine), len(mine)

    def _left(self, begun: Mapping[Job, float], name: str = "") -> str:
        """Return the time left for a row, or for all."""
        now = time.monotonic()
        mine = [job for job in self.left if name in ("", job.row.name)]
        if any(job.row.name not in self.seconds for job in mine):
            return "unknown"
        each = [max(0.0, self.seconds[job.row.name] - (now - begun.get(job, now))) for job in mine]
        return span(max([sum(each) / self.processes, *each], default=0.0))

    def table(self, begun: Mapping[Job, float]) -> Any:
        """Return a row for each row of the set: seeds done, seeds in training, latest results, time left."""
        from rich.table import Table

        table = Table("recipe", "seeds", "training", "latest results", "time left", box=None)
        for name in dict.fromkeys(job.row.name for job in self.every):
            done, total = self._count(name)
            running = " ".join(str(job.seed) for job in begun if job.row.name == name)
            latest = " ".join(self.results.get(name, [])[-4:])
            table.add_row(name, f"{done}/{total}", running, latest, self._left(begun, name) if done < total else "")
        table.add_row("all", f"{len(self.every) - len(self.left)}/{len(self.every)}", "", "", self._left(begun))
        return table


def clear(job: Job) -> None:
    """Remove a run, so that it is trained anew.

    Raises:
        UserError: another process trains it.
    """
    with runs.locked(job.path):
        shutil.rmtree(job.path)
