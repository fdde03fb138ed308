"""A study of K seeds as users run it, whole processes: one command with ``--seeds`` beside a command for each seed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from rlcore.benchmark_together import FIRST

_TRAIN = [sys.executable, "-c", "from rlcore.cli import train; train()"]


def measure(*, recipe: str, seeds: int = 10, settings: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return a row for each way; ratios are to a command for each seed. ``settings`` are of all."""
    given = [f"--{name}={value}" for name, value in (settings or {}).items()]
    together, compiled = [f"--seeds={FIRST}-{FIRST + seeds - 1}"], "--compile=on"
    with tempfile.TemporaryDirectory() as kept:
        took = {
            "a command for each seed": sum(_seconds(kept, recipe, *given, f"--seed={FIRST + k}") for k in range(seeds)),
            "together": _seconds(kept, recipe, *given, *together),
            "together, compiled, nothing kept of an earlier run": _seconds(kept, recipe, *given, *together, compiled),
            "together, compiled": _seconds(kept, recipe, *given, *together, compiled),
        }
    first = next(iter(took.values()))
    return [
        {"recipe": recipe, f"{seeds} seeds": way, "s": seconds, "ratio": seconds / first}
        for way, seconds in took.items()
    ]


def _seconds(kept: str, *words: str) -> float:
    """Return what a command takes; what it compiles is ``kept``."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": kept}
        start = time.perf_counter()
        done = subprocess.run(
            [*_TRAIN, *words, f"--out={folder}/run"], env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr.strip().rpartition("\n")[2])
    return seconds
