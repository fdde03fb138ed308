from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlcore import progress
from rlcore.progress import Progress


class FakeTime:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(progress, "time", fake)
    return fake


def test_plain_lines_by_hand(clock):
    stream = io.StringIO()
    with Progress(10_000, stream=stream) as shown:
        shown.message("run: runs/a [b]")
        for frames in range(2000, 10_001, 10):  # resumed at 2,000; 100 frames a second
            clock.now += 0.1
            row = {"train/episode_return": frames / 7} if frames % 500 == 0 else {}
            shown.update(
                frames, row | ({"eval/return_mean": {4000: 80.0, 5000: 60.0}[frames]} if frames in (4000, 5000) else {})
            )
    first, second, *rest = stream.getvalue().splitlines()
    assert first == "run: runs/a [b]"
    assert second == "2,490/10,000 frames  100/s  0:01:15 left  return 285.7"
    assert rest[-1] == "10,000/10,000 frames  100/s  0:00:00 left  return 1429  best 80"
    # At 5, 10, ..., 50, then each a tenth of the run's age later (55, 60.5, 66.6, 73.3), and once more at the end.
    assert len(rest) == 9 + 4 + 1


def test_quiet_shows_nothing(clock):
    stream = io.StringIO()
    with Progress(10, quiet=True, stream=stream) as shown:
        shown.message("hello")
        clock.now += 100
        shown.update(5, {"eval/return_mean": 1.0})
    assert stream.getvalue() == ""


def test_speed_is_recent(clock):
    stream = io.StringIO()
    with Progress(10**6, stream=stream) as shown:
        for frames in [*range(0, 100_000, 1000), *range(100_000, 110_000, 10)]:  # fast until learning starts
            clock.now += 0.1
            shown.update(frames, {})
    speeds = [int(speed.replace(",", "")) for speed in re.findall(r"([\d,]+)/s", stream.getvalue())]
    assert speeds[0] == 10_000
    assert speeds[-1] == 100


def test_updates_cost_next_to_nothing():
    shown = Progress(10**9, stream=io.StringIO())
    start = time.process_time()
    for frames in range(100_000):
        shown.update(frames, {})
    assert time.process_time() - start < 0.3  # 3 us each; measured 0.3


def test_a_lost_terminal_does_not_end_the_run(clock):
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    with Progress(10, stream=stream) as shown:
        shown.message("nobody listens")
        clock.now += 100
        shown.update(5, {})
    assert shown.quiet
    with pytest.raises(BrokenPipeError):  # it really was lost
        stream.close()


RUN = """
import signal, sys, time
from rlcore.progress import Progress
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
with Progress(1000) as progress:
    progress.message("run: [a] folder")
    for frames in range(1, 1001):
        progress.update(frames, {"train/episode_return": 12.0})
        time.sleep(0.01)
        if frames == 20:
            print("READY", flush=True)
        if stopped:
            progress.message("stopped by hand")
            break
print("after the bar", file=sys.stderr)
"""


def test_bar_on_a_real_terminal_and_ctrl_c():
    master, slave = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(master, 4096):
                shown.extend(data)
        except OSError:  # the other end closed
            pass

    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", RUN], stderr=slave, stdout=subprocess.PIPE, env=environment
    ) as process:
        os.close(slave)
        reader = threading.Thread(target=read)
        reader.start()
        assert process.stdout is not None
        assert process.stdout.readline() == b"READY\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 0
    reader.join()
    os.close(master)
    text = shown.decode()
    assert "run: [a] folder" in text
    assert "stopped by hand" in text
    assert re.search(r"\d+/1,000 frames  [\d,]+/s  0:00:\d\d left  return 12", text)
    assert re.search(r"\n(\x1b\[\?25h)?after the bar\r\n$", text)
    assert text.count("\x1b[?25l") == 1
    assert text.index("\x1b[?25h") < text.index("run: [a]")  # visible all along, whatever kills the run
