"""What a run writes down: the same rows in ``progress.csv`` and TensorBoard."""

from __future__ import annotations

import csv
import io
import os
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.summary.writer.record_writer import RecordWriter

from rlcore import curves
from rlcore.checkpoint import writing
from rlcore.errors import UserError
from rlcore.trackers import Trackers

_EVENTS = "events.out.tfevents."
_HPARAMS = "_hparams_/"  # the plugin's tags


class Logger:
    """Rows of numbers over environment frames, as ``folder/progress.csv``, as TensorBoard scalars, and to trackers.

    Columns come in a fixed order (frames, updates, the others by name, ``time/...`` last), so that the
    files of identical runs are identical but for the time columns. Nothing stays open or buffered
    between rows: a kill loses at most the row being written. A checkpoint is to be taken after the row of
    its frame is written.

    Args:
        folder: the run's folder, made if missing.
        resume_frames: the frames of the checkpoint the run goes on from; all that was logged after it is
            cut. None: the run starts, and all that a killed attempt left is cut.
        trackers: who else is told; first of the rows that are there and that they lack.

    Raises:
        UserError: the folder cannot be written (this holds for every method), or progress.csv is damaged.
    """

    def __init__(self, folder: Path, resume_frames: int | None = None, trackers: Trackers | None = None) -> None:
        self.folder = folder
        self._trackers = trackers
        self._csv = folder / "progress.csv"
        last = -1 if resume_frames is None else resume_frames
        if resume_frames is not None:
            curves.read(folder)  # a damaged file is told of before anything of it is cut
        with writing(folder, folder / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
            rows = [row for row in self._read() if float(row["frames"]) <= last] if last >= 0 else []
            self._columns = _ordered({"frames"}.union(*rows))
            self._rewrite(rows)
            files = sorted(folder.glob(_EVENTS + "[0-9]" * 10))
            for file in files:
                _cut_events(file, last)
            sessions = [int(file.name.removeprefix(_EVENTS)) for file in files]
            self._events = folder / f"{_EVENTS}{max(sessions, default=0) + 1:010d}"  # TensorBoard reads in name order
        self._append(self._events, _record(Event(wall_time=time.time(), file_version="brain.Event:2")))
        if trackers:
            for row in rows:
                numbers = {name: float(text) for name, text in row.items() if text}
                trackers.row(int(numbers.pop("frames")), numbers)

    def write(self, frames: int, row: Mapping[str, float]) -> None:
        """Add a row at ``frames``; columns may appear at any time (NaN and infinity are kept).

        Raises:
            UserError: a name is empty, unprintable or "frames", or a value is no number.
        """
        text = {name: _number(name, value) for name, value in row.items()}
        if not row.keys() <= set(self._columns):
            self._columns = _ordered({*self._columns, *row})
            with writing(self.folder, self.folder / "checkpoints"):
                self._rewrite(self._read())  # at most once a column: later rows are appended
        line = io.StringIO()
        csv.DictWriter(line, self._columns, restval="", lineterminator="\n").writerow({"frames": frames, **text})
        self._append(self._csv, line.getvalue().encode())
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in row.items()]
        self._event(Summary(value=values), frames)
        if self._trackers:
            self._trackers.row(frames, row)

    def text(self, tag: str, text: str, frames: int = 0) -> None:
        """Show ``text`` (Markdown) in TensorBoard."""
        from torch.utils.tensorboard.summary import text as summary

        self._event(summary(tag, text), frames)

    def figure(self, tag: str, figure: Any, frames: int) -> None:
        """Show a matplotlib figure in TensorBoard."""
        png = io.BytesIO()
        figure.savefig(png, format="png")
        width, height = struct.unpack(">II", png.getvalue()[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png.getvalue())
        self._event(Summary(value=[Summary.Value(tag=tag, image=image)]), frames)
        if self._trackers:
            self._trackers.figure(tag, png.getvalue(), frames)

    def video(self, tag: str, gif: bytes, frames: int) -> None:
        """Show an animated GIF in TensorBoard."""
        width, height = struct.unpack("<HH", gif[6:10])
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=gif)
        self._event(Summary(value=[Summary.Value(tag=tag, image=image)]), frames)

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float], frames: int) -> None:
        """Give TensorBoard's HPARAMS page the run's options and final metrics, once, at the end of the run.

        Args:
            config: options by dotted name; what is neither number nor string is shown as text.
            metrics: final metrics by tag; the tags must not be columns of the rows.
            frames: environment frames of the run.
        """
        from torch.utils.tensorboard.summary import hparams

        known = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in config.items()}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()])
        for part in hparams(known, dict(metrics)):
            summary.MergeFrom(part)
        self._event(summary, frames)  # one event: a run that is extended cuts it as a whole
        if self._trackers:
            self._trackers.final(metrics, frames)

    def end(self, status: str) -> None:
        """Tell the trackers how training ended: "finished", "failed" or "interrupted"."""
        if self._trackers:
            self._trackers.end(status)

    def _event(self, summary: Summary, frames: int) -> None:
        self._append(self._events, _record(Event(wall_time=time.time(), step=frames, summary=summary)))

    def _append(self, path: Path, data: bytes) -> None:
        with writing(self.folder, self.folder / "checkpoints"), path.open("ab") as file:
            file.write(data)

    def _read(self) -> list[dict[str, str]]:
        """Return the rows of progress.csv; one that a kill left half-written is dropped."""
        if not self._csv.exists():
            return []
        whole, _, _ = self._csv.read_text(encoding="utf-8", errors="replace").rpartition("\n")
        return list(csv.DictReader(io.StringIO(whole)))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        temporary = self.folder / ".progress.tmp"
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self._csv)


def _ordered(columns: Iterable[str]) -> list[str]:
    first = ("frames", "updates")
    return sorted(columns, key=lambda c: (first.index(c) if c in first else 2 + c.startswith("time/"), c))


def _number(name: str, value: Any) -> str:
    """Return the shortest text that reads back as exactly this number."""
    if not (name.isprintable() and name.strip() == name != "frames" and name):
        raise UserError(f"metric {name!r} cannot be logged; expected a printable name other than 'frames'")
    if isinstance(value, (str, bytes)):
        raise UserError(f"metric '{name}' is {value!r}; expected a number")
    try:
        return repr(int(value) if isinstance(value, (int, np.integer)) else float(value))
    except (TypeError, ValueError):
        raise UserError(f"metric '{name}' is {value!r}; expected a number") from None


def _record(event: Event) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def _cut_events(path: Path, last: int) -> None:
    """Leave only events of at most ``last`` frames; a record that a kill left half-written goes too."""
    reader = PyRecordReader_New(str(path))
    kept: list[Event] = []
    try:
        while True:
            reader.GetNext()
            kept.append(Event.FromString(reader.record() or b""))
    except (errors.OutOfRangeError, errors.DataLossError):
        reader.file_handle.close()
    kept = [event for event in kept if event.HasField("file_version") or (event.step <= last and not _final(event))]
    if all(event.HasField("file_version") for event in kept):
        path.unlink()
        return
    temporary = path.parent / ".events.tmp"  # a name that TensorBoard does not read
    temporary.write_bytes(b"".join(map(_record, kept)))
    os.replace(temporary, path)


def _final(event: Event) -> bool:
    return any(value.tag.startswith((_HPARAMS, "final/")) for value in event.summary.value)
