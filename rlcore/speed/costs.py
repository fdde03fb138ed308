"""What is measured of ours alone, or against bare tensors: hosting, memory, start-up, environments, replay."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlcore.frames import FrameBuffer
from rlcore.replay import ReplayBuffer
from rlcore.speed.peer import Job, main

Values = dict[str, float]
_TRAIN = "from rlcore.cli import train; train()"
_STEP = (
    "from rlcore import build, config; "
    "t = build.trainer(config.validate(config.override(config.read('cartpole_dqn'), {'source.learning_starts': 64})))\n"
    "while not t.clock.updates: t.iterate()"
)


def hosting(job: Job) -> Values:
    """Time the Trainer against a bare loop. The job: recipes (name: updates of a repetition), pairs."""
    from rlcore.benchmark import hosting as measured

    rows: Values = {}
    for recipe, updates in job["recipes"].items():
        found = measured(recipe, updates, job["pairs"])
        rows |= {f"`{recipe}`: {label}": found[name] for label, name in _HOSTING.items()}
    return rows


_HOSTING = {
    "bare loop, µs an update": "bare_us",
    "Trainer, µs an update": "hosted_us",
    "difference by pair, µs": "extra_us",
    "Trainer / bare loop": "ratio",
}


def startup(job: Job) -> Values:
    """Time whole processes, from start to exit, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "`train.py --help`, s": _process(_TRAIN, "--help"),
            "a process with the first update of `cartpole_dqn`, s": _process(_STEP),
        }
        if job["whole"]:
            out = os.path.join(folder, "run")
            label = "`make train`, process start to printed evaluation, s"
            rows[label] = _process(_TRAIN, "cartpole_dqn", f"--out={out}", f"--seed={job['seed']}")
    return rows


def _process(code: str, *arguments: str) -> float:
    start = time.perf_counter()
    quiet = subprocess.DEVNULL
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=quiet, stderr=quiet)
    return time.perf_counter() - start


def memory(job: Job) -> Values:
    """Fill replay buffers and measure by how much the process grows (Linux only). The job: transitions, frames.

    Small buffers are filled before: code that is used for the first time takes megabytes, however little is stored.
    """
    transitions, frames = job["transitions"], job["frames"]
    stacks = _Stacks(8)
    _fill(ReplayBuffer(640, 64, _cartpole(64)), lambda _: _cartpole(64))
    flat, _, steps = _grown(lambda: _fill(ReplayBuffer(transitions, 64, _cartpole(64)), lambda _: _cartpole(64)))
    _fill(FrameBuffer(64, 8, stacks(1), stack=4), stacks)
    stacked, kept, _ = _grown(lambda: _fill(FrameBuffer(frames, 8, stacks(1), stack=4), stacks))
    return {
        f"{transitions:,} CartPole transitions: growth of the process, MB": flat / 1e6,
        "the same / the size of the steps stored": flat / steps,
        f"{frames:,} Atari transitions, stacks of 4: growth of the process, GB": stacked / 1e9,
        "of it beside the buffer's arrays, GB": (stacked - kept) / 1e9,
    }


def _grown(fill: Callable[[], tuple[int, int]]) -> tuple[int, int, int]:
    """Return by how many bytes the process's memory grows at its peak, and what ``fill`` returns."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: imports take more than small buffers
    before = _status("VmRSS")
    sizes = fill()
    return _status("VmHWM") - before, *sizes


def _status(name: str) -> int:
    """Return one of Linux's numbers on this process's memory, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _fill(buffer: ReplayBuffer, steps: Callable[[int], Any]) -> tuple[int, int]:
    """Fill a buffer; return the bytes of its arrays, and of the steps stored."""
    for at in range(1, buffer.rows + 1):
        buffer.add(steps(at))
    return buffer.nbytes, buffer.rows * sum(x.nbytes for x in steps(1).values())


def _cartpole(n: int) -> dict[str, Any]:
    no = torch.zeros(n, dtype=torch.bool)
    ends = {"terminated": no, "truncated": no}
    return {"obs": torch.ones(n, 4), "action": torch.ones(n).long(), "reward": torch.ones(n), **ends} | {
        "next_obs": torch.ones(n, 4)
    }


class _Stacks:
    """Steps of n environments that show four frames of 84 x 84 pixels; episodes last 1,000 steps."""

    def __init__(self, n: int) -> None:
        self.n, self.next_obs = n, torch.zeros(n, 4, 84, 84, dtype=torch.uint8)

    def __call__(self, at: int) -> dict[str, Any]:
        obs, n = self.next_obs, self.n
        frame = torch.full((n, 1, 84, 84), at % 255, dtype=torch.uint8)
        self.next_obs = torch.cat([obs[:, 1:], frame], 1)
        ends = {"terminated": torch.full((n,), at % 1000 == 0), "truncated": torch.zeros(n, dtype=torch.bool)}
        return {"obs": obs, "action": torch.ones(n).long(), "reward": torch.ones(n), **ends, "next_obs": self.next_obs}


def measure(job: Job) -> dict[str, Any]:
    """Measure what the job names: one of the above, or a module's own ``measure``, given its keywords."""
    if job["what"] == "rows":
        return {"rows": importlib.import_module(job["module"]).measure(**job["given"])}
    return {"values": {"hosting": hosting, "startup": startup, "memory": memory}[job["what"]](job)}


if __name__ == "__main__":
    main(measure)
