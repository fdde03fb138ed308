"""Training by several processes that add up their gradients (`docs/DISTRIBUTED.md`) beside training by one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rlcore import runs

_TRAIN = [sys.executable, "-c", "from rlcore.cli import train; train()"]
_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node"]


def measure(*, recipe: str, frames: int, ranks: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """Return a row: frames a second, and the final loss or IQM of returns, by one process and by so many ranks."""
    row: dict[str, Any] = {"recipe": recipe, "frames": frames}
    for name, before in (("one process", []), (f"{ranks} ranks", [*_RANKS, str(ranks)])):
        with tempfile.TemporaryDirectory() as folder:
            words = [*before, *_TRAIN, recipe, f"--out={folder}/run", f"--seed={seed}", f"--budget.frames={frames}"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                said = done.stderr.strip().splitlines()  # torchrun says much after the error
                sys.exit(f"{name}: {next((line for line in said if line.startswith('error: ')), said[-1])}")
            result = runs.read_json(Path(folder) / "run" / "result.json")
        evaluation = result["evaluation"]
        row[f"{name}: frames/s"] = result["frames"] / result["train_seconds"]
        row[f"{name}: score"] = evaluation.get("loss", evaluation.get("iqm"))
    return [row]
