"""What commands print and read besides their arguments: evaluations as lines, predictions, files of lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlcore.errors import UserError


def report(name: str, result: dict[str, Any]) -> str:
    """Return an evaluation as readable lines."""
    runs_of = f"{len(result['runs'])} runs, each " if "runs" in result else ""
    episodes = f"{runs_of}{result['episodes']} episodes, seed {result['seed']}"
    rows = [
        f"evaluation of {name} ({episodes})",
        f"  mean {result['mean']:.6g}   std {result['std']:.4g}   min {result['min']:.6g}   max {result['max']:.6g}",
        f"  iqm  {result['iqm']:.6g}   95 % interval [{result['ci_low']:.6g}, {result['ci_high']:.6g}]",
    ]
    usual = {"episodes", "seed", "mean", "std", "iqm", "ci_low", "ci_high", "min", "max", "returns", "runs"}
    own = [f"{key} {math.nan if value is None else value:.6g}" for key, value in result.items() if key not in usual]
    return "\n".join([*rows, *(["  " + "   ".join(own)] if own else [])])


def readable(value: Any) -> str:
    """Return a prediction as text."""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def lines(file: str) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--file {file}: expected a readable text file, got: {why}") from None
    return [line for line in text.splitlines() if line]
