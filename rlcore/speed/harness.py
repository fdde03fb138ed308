"""Runs what `parts` says: every measurement a fresh process, contenders in turn (A B C A B C ...), each kept as JSON.

What is kept is not measured again, so an interrupted run goes on. A contender whose library or checkout is missing, or
that fails, is left out with the reason.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlcore import runs, study
from rlcore.errors import note
from rlcore.speed.settings import Comparison, Contender

_ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Bench:
    """Where measurements are kept, and what they are made with.

    Args:
        folder: of the JSON files.
        checkouts: by name ("cleanrl", "nanogpt").
        interpreters: by module, where a library has an interpreter of its own.
        text: a file that language models learn from; empty: the shipped one.
        first_seed: of the first repetition; the next have the next ones.
    """

    folder: Path
    checkouts: dict[str, Path] = field(default_factory=dict)
    interpreters: dict[str, Path] = field(default_factory=dict)
    text: str = ""
    first_seed: int = 0

    def place(self, comparison: Comparison, contender: Contender) -> Path:
        """Return the folder of a contender's results."""
        slug = re.sub(r"[^a-z0-9]+", "-", contender.name.lower()).strip("-") or contender.module
        return self.folder / comparison.part / comparison.name / slug

    def job(self, contender: Contender, repeat: int) -> dict[str, Any]:
        """Return the job of a repetition, checkouts left out: where they lie does not matter."""
        job = {**contender.job, "seed": self.first_seed + repeat}
        return job if job.get("text") is None else {**job, "text": self.text}

    def kept(self, comparison: Comparison, contender: Contender, repeat: int) -> dict[str, Any]:
        """Return a result that was measured with this very job; empty: there is none."""
        held = runs.read_json(self.place(comparison, contender) / f"{repeat}.json")
        return held["result"] if held and held["job"] == self.job(contender, repeat) else {}

    def absent(self, comparison: Comparison, contender: Contender) -> str:
        """Return why a contender could not be measured when that was last tried; empty: it could, or was not tried."""
        return runs.read_json(self.place(comparison, contender) / "absent.json").get("problem", "")

    def results(self, comparison: Comparison, contender: Contender) -> dict[int, dict[str, Any]]:
        """Return a contender's results by repetition."""
        found = {i: self.kept(comparison, contender, i) for i in range(comparison.repeats)}
        return {i: result for i, result in found.items() if result}


def run(bench: Bench, comparisons: Sequence[Comparison]) -> None:
    """Measure what is not kept.

    Raises:
        KeyboardInterrupt: what was measured is kept.
    """
    todo = [
        (comparison, contender, repeat)
        for comparison in comparisons
        for repeat in range(comparison.repeats)
        for contender in comparison.contenders
        if not bench.kept(comparison, contender, repeat)
    ]
    out: set[Path] = set()  # what could not be measured this time
    left = sum(_about(bench, comparison, contender) for comparison, contender, _ in todo)
    note(f"estimate: {len(todo)} measurements, about {study.span(left)}")
    for number, (comparison, contender, repeat) in enumerate(todo, 1):
        place = bench.place(comparison, contender)
        if place in out:
            continue
        job = bench.job(contender, repeat)
        result = _measure(bench, contender, job)
        place.mkdir(parents=True, exist_ok=True)
        name = f"{comparison.part} {contender.name or contender.module}"
        if "problem" in result:
            out.add(place)
            runs.write_json(place / "absent.json", result)
            note(f"{name}: left out, {result['problem']}")
            continue
        (place / "absent.json").unlink(missing_ok=True)
        runs.write_json(place / f"{repeat}.json", {"job": job, "result": result})
        note(f"{number}/{len(todo)} {name} {repeat}: {study.span(result['process_seconds'])}")


def _about(bench: Bench, comparison: Comparison, contender: Contender) -> float:
    """Return the seconds that a measurement is likely to take: as those that are kept, else as elsewhere."""
    if _problem(bench, contender):
        return 0.0
    took = [result["process_seconds"] for result in bench.results(comparison, contender).values()]
    return statistics.median(took) if took else contender.about


def _problem(bench: Bench, contender: Contender) -> str:
    """Return why a contender cannot be measured here; empty: nothing is known to be in its way."""
    if contender.needs and contender.needs not in bench.checkouts:
        return f"no checkout given (--{contender.needs} DIR)"
    return "there is no GPU with CUDA" if contender.gpu and not torch.cuda.is_available() else ""


def _measure(bench: Bench, contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in a process of its own; return its result, or its problem."""
    if problem := _problem(bench, contender):
        return {"problem": problem}
    if contender.needs:
        job = {**job, "checkout": str(bench.checkouts[contender.needs])}
    python = bench.interpreters.get(contender.module)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    if python:  # rlcore is not installed there
        environment["PYTHONPATH"] = str(_ROOT)
    words = [str(python or sys.executable), "-m", f"rlcore.speed.{contender.module}", json.dumps(job)]
    begun = time.perf_counter()
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        return {"problem": f"{python}: {error.strerror}"}
    seconds = time.perf_counter() - begun
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not found:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"problem": f"it failed: {said[-1].strip() if said else f'exit code {done.returncode}'}"}
    result = json.loads(found[-1].removeprefix("RESULT "))
    if missing := result.get("missing"):
        return {"problem": f"{missing} is not installed"}
    return {**result, "process_seconds": seconds}
