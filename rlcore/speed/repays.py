"""After how many updates compiling them has repaid itself.

A recipe is trained uncompiled, compiled with nothing kept of a run before, and compiled again with what that one kept,
each in a process of its own, in turn:

    repaid after = seconds of compiling / (seconds an update uncompiled - seconds an update compiled)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from rlcore.speed.page import written

Result = dict[str, Any]


def measure(*, name: str, config: Any, frames: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row: medians of so many repetitions and, in brackets, the smallest and the largest.

    Args:
        name: in the row.
        config: a recipe's name, or settings.
        frames: of every training.
        repeats: of the three trainings.
    """
    return [row(name, [_turn(config, frames, seed) for seed in range(repeats)])]


def row(name: str, turns: list[tuple[Result, Result, Result]]) -> dict[str, Any]:
    """Return the row of repetitions: results of training uncompiled, with nothing kept, and with what was kept."""
    plain = [_micros(turn[0]) for turn in turns]
    compiled = [_micros(turn[2]) for turn in turns]
    seconds = [[turn[i]["compile_seconds"] for turn in turns] for i in (1, 2)]
    saved = [before - after for before, after in zip(plain, compiled, strict=True)]
    names = "nothing kept", "kept"
    return {
        "training": name,
        "uncompiled, us an update": written(plain),
        "compiled, us an update": written(compiled),
        **{f"compiling, {what}, s": written(took) for what, took in zip(names, seconds, strict=True)},
        **{f"repaid after updates, {what}": _repaid(took, saved) for what, took in zip(names, seconds, strict=True)},
    }


def _micros(result: Result) -> float:
    return 1e6 * result["seconds"] / result["updates"]


def _repaid(seconds: list[float], saved: list[float]) -> str:
    if min(saved) <= 0:
        return "not in every turn"
    return written([1e6 * took / gain for took, gain in zip(seconds, saved, strict=True)])


def _turn(config: Any, frames: int, seed: int) -> tuple[Result, Result, Result]:
    """Train three times; compiled code is kept in a folder that is empty before."""
    job = {"config": config, "frames": frames, "seed": seed}
    compiled = {**job, "overrides": {"compile": "on"}, "apart": True}
    with tempfile.TemporaryDirectory() as kept:
        plain = _trained({**job, "overrides": {"compile": "off"}}, kept)
        return plain, _trained(compiled, kept), _trained(compiled, kept)


def _trained(job: dict[str, Any], kept: str) -> Result:
    words = [sys.executable, "-m", "rlcore.speed.ours", json.dumps(job)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": kept}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip().rpartition("\n")[2])
    return json.loads(done.stdout.rpartition("RESULT ")[2])
