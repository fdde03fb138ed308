"""What a comparison of `benchmark.py speed` is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlcore.speed.peer import Job

Size = Literal["quick", "standard", "full"]


@dataclass(frozen=True)
class Contender:
    """One way to do what a comparison compares."""

    name: str
    module: str  # of rlcore.speed
    job: Job
    about: float  # seconds of a measurement at the standard size, whole process, on one quiet core
    needs: str = ""  # the option that gives the path to a checkout
    gpu: bool = False  # whether it needs one, with CUDA


@dataclass(frozen=True)
class Comparison:
    """A table of the page. Ratios are of the contenders in ``ours`` to all others, pair by pair."""

    part: str
    name: str
    title: str
    kind: Literal["race", "solve", "loss", "values", "rows"]
    contenders: list[Contender]
    repeats: int = 2
    unit: str = "frames/s"
    ours: list[str] = field(default_factory=list)
    about: str = ""
