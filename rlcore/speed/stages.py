"""Where the time of training goes: wall-clock time by stage, and what of it is products of matrices.

A stage within another counts for itself alone. Acting that is compiled with the environment's step into one graph is
one stage with it.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rlcore import build
from rlcore import config as configs
from rlcore.callbacks import Log
from rlcore.trainer import Trainer

WARM = 30  # updates before anything is timed: by then all is compiled
ROUNDS = 3
TOGETHER = "acting and stepping, one graph"
COUNTING = "counting episodes, watching for NaN"
ORDER = (TOGETHER, "acting", "stepping", COUNTING, "storing", "making targets", "drawing batches", "updating", "other")
PRODUCTS = {
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_addmm_activation",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    "mkl::_mkl_linear",
    "mkldnn::_linear_pointwise",
}
Row = dict[str, Any]


class Stages:
    """Seconds by stage; what is in none is "other"."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within = ["other"]
        self._since = time.perf_counter()

    def look(self) -> None:
        """Count the time since the last look for the innermost stage."""
        now = time.perf_counter()
        self.seconds[self._within[-1]] += now - self._since
        self._since = now

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Return a function whose time is counted for a stage."""

        def timed(*given: Any, **more: Any) -> Any:
            self.look()
            self._within.append(stage)
            try:
                return function(*given, **more)
            finally:
                self.look()
                self._within.pop()

        return timed

    def watch(self, trainer: Trainer) -> None:
        """Count a trainer's stages, those that it has."""
        source, agent = trainer.source, trainer.agent
        drawing = source.collect

        def collect(*given: Any) -> Iterator[Any]:
            take = self.timed(iter(drawing(*given)).__next__, "drawing batches")
            while True:
                try:
                    batch = take()
                except StopIteration:
                    return
                yield batch

        setattr(source, "collect", collect)  # noqa: B010 - a method of this object alone
        for owner, method, stage in (
            (source, "act", "acting"),
            (source, "counted", COUNTING),
            (source, "_store", "storing"),
            (source.env, "step", "stepping"),
            (agent, "prepare", "making targets"),
            (trainer, "update", "updating"),
        ):
            if hasattr(owner, method):
                setattr(owner, method, self.timed(getattr(owner, method), stage))


def measure(*, name: str, config: Any, overrides: dict[str, Any], frames: int) -> list[Row]:
    """Return one row: microseconds a frame, and what share of them each stage has.

    Args:
        name: in the row.
        config: a recipe's name, or settings.
        overrides: of these.
        frames: that are timed, in rounds. Between them torch's profiler, which slows calls down but hardly what
            products take, looks at a few.
    """
    raw = configs.override(configs.read(config), {**overrides, "seed": 0, "threads": 1, "budget.frames": 10**9})
    trainer = build.trainer(configs.validate(raw))
    stages, log, clock = Stages(), Log(1000), trainer.clock

    def advance(least: int, updates: int = 0) -> int:
        start = clock.frames
        while clock.frames - start < least or clock.updates < updates:
            trainer.iterate()
            log.maybe(trainer)
            trainer.row.clear()
        return clock.frames - start

    rounds: list[dict[str, float]] = []  # microseconds a frame
    products: list[float] = []
    with trainer.training():
        advance(0, WARM)
        stages.watch(trainer)
        for _ in range(ROUNDS):
            stages.look()
            stages.seconds.clear()
            count = advance(frames // ROUNDS)
            stages.look()
            rounds.append({stage: 1e6 * seconds / count for stage, seconds in stages.seconds.items()})
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
                count = advance(frames // ROUNDS // 5)
            times = [event.self_cpu_time_total for event in seen.key_averages() if event.key in PRODUCTS]
            products.append(sum(times) / count)
    actor: Any = getattr(trainer.source, "actor", None)
    if actor is not None and actor.plays and actor.plays[1]:
        rounds = [{TOGETHER if stage == "acting" else stage: us for stage, us in one.items()} for one in rounds]
    return [row(name, rounds, products)]


def row(name: str, rounds: list[dict[str, float]], products: list[float]) -> Row:
    """Return the row of rounds: microseconds a frame by stage, and those of products, a part of the stages."""
    whole = [sum(one.values()) for one in rounds]
    stages = {stage for one in rounds for stage in one}
    shares = {stage: sum(one.get(stage, 0.0) for one in rounds) / sum(whole) for stage in stages}
    arithmetic = statistics.median(us / of for us, of in zip(products, whole, strict=True))
    shown = {stage: f"{shares[stage]:.1%}" if stage in shares else "" for stage in ORDER}
    return {"training": name, "us a frame": statistics.median(whole), **shown, "of it products": f"{arithmetic:.0%}"}
