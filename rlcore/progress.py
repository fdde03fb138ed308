"""How far a run is: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, TextIO

_REDRAW = 0.1  # seconds between redraws of the bar
_LINE = 5.0  # seconds between the first plain lines; later ones come each time the run is a tenth older
_WINDOW = 30.0  # seconds over which the speed is measured


class Progress:
    """Shows frames, speed, time left, latest return and best evaluation of a run; a context manager.

    ``update`` may be called at every step: it looks at the wall clock and mostly returns. Nothing runs
    in a thread, no signal is touched, and a terminal that goes away silences it instead of ending the run.

    Args:
        total_frames: the run's budget.
        quiet: show nothing, messages neither.
        stream: default: standard error, which leaves standard output to results.
    """

    def __init__(self, total_frames: int, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.total = total_frames
        self.quiet = quiet
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._frames = self._shown = 0
        self._return: float | None = None
        self._best: float | None = None
        self._start = time.monotonic()
        self._next = 0.0 if self._stream.isatty() else self._start + _LINE
        self._marks: deque[tuple[float, int]] = deque()  # (time, frames) of the last while

    def __enter__(self) -> Progress:
        if not self.quiet and self._stream.isatty():
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task("", total=self.total)
            self._bar.start()
            self._bar.console.show_cursor(True)  # a killed run must not leave a terminal without one
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._frames != self._shown:
            self._show()
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()

    def update(self, frames: int, row: Mapping[str, float]) -> None:
        """Note how far the run is and what it has logged (keys as in progress.csv), and show it when it is time."""
        self._frames = frames
        if row:
            self._return = row.get("train/episode_return", self._return)
            if (mean := row.get("eval/return_mean")) is not None:
                self._best = mean if self._best is None else max(self._best, mean)
        now = time.monotonic()
        if not self._marks:
            self._marks.append((now, frames))  # a resumed run starts with many frames
        if now >= self._next:
            self._show()

    def message(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.quiet:
            return
        with self._silenced_by_a_lost_terminal():
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=self._stream, flush=True)

    def _show(self) -> None:
        now = time.monotonic()
        self._next = now + (_REDRAW if self._bar is not None else max(_LINE, (now - self._start) / 10))
        line = self._line(now)
        self._shown = self._frames
        if self._bar is None:
            self.message(line)
            return
        with self._silenced_by_a_lost_terminal():
            self._bar.update(self._task, completed=self._frames, description=line, refresh=True)

    def _line(self, now: float) -> str:
        """Return what there is to say in one line."""
        self._marks.append((now, self._frames))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW:
            self._marks.popleft()
        then, frames = self._marks[0]
        speed = (self._frames - frames) / max(now - then, 1e-9)
        parts = [f"{self._frames:,}/{self.total:,} frames"]
        if speed > 0:
            left = timedelta(seconds=round(max(0, self.total - self._frames) / speed))
            parts += [f"{speed:,.0f}/s", f"{left} left"]
        if self._return is not None:
            parts.append(f"return {self._return:.4g}")
        if self._best is not None:
            parts.append(f"best {self._best:.4g}")
        return "  ".join(parts)

    @contextlib.contextmanager
    def _silenced_by_a_lost_terminal(self) -> Any:
        try:
            yield
        except OSError:
            self.quiet = True


def _bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    return Progress(
        BarColumn(bar_width=12),
        text,
        console=Console(file=stream),
        auto_refresh=False,
        redirect_stdout=sys.stdout.isatty(),  # above the bar on a terminal; a pipe gets what is printed to it
    )
