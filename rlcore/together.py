"""Many seeds of a recipe in one process: K ordinary runs in lockstep, whose updates are one batched computation.

Every seed has its own environments, buffer, generators, clock, callbacks and folder; `Trainer.run` is asked for the
batches that it wants to learn from, and all K losses and gradients are computed at once (`rlcore.stacked`). A seed that
ends early, or meets NaN, leaves; the others go on. What a seed learns is what it learns alone, up to rounding.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rlcore import build, runs
from rlcore import config as configs
from rlcore.callbacks import Evaluate
from rlcore.errors import Diverged, UserError
from rlcore.guards import interruptible
from rlcore.lifecycle import Begun, fitting, opened
from rlcore.overheads import unswept
from rlcore.progress import Progress
from rlcore.run import Run, load
from rlcore.stacked import Compiled, Stack
from rlcore.stacked_play import Evaluations
from rlcore.trainer import Trainer, sent
from rlcore.types import Batch, Loss


def seeds(text: str) -> list[int]:
    """Return the seeds that "10" (0 to 9) or "5-9" names.

    Raises:
        UserError: the text is neither.
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if found:
        first, last = (int(found[1]), int(found[2])) if found[2] else (0, int(found[1]) - 1)
        if first <= last:
            return list(range(first, last + 1))
    raise UserError(f"--seeds: got '{text}', expected a number of seeds or A-B, such as 10 or 0-9")


def train(
    recipe: str | Path | Mapping[str, Any] | None,
    seeds: Sequence[int],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = True,
    **overrides: Any,
) -> list[Run]:
    """Train a recipe with several seeds at once and return the runs that finished, in ``OUT/seed-N``.

    Args:
        recipe: as `api.train` takes it; with ``resume`` also a study's folder.
        seeds: one run each.
        out: the study's folder; default: a fresh one under ``runs/``.
        resume: continue the study in ``out`` (default: ``recipe``): finished runs stay, the others go on or begin.
        quiet: show no progress.
        overrides: settings by name, of all runs.

    Raises:
        UserError: as `api.train`; or the agent or its settings can only be trained alone.
        Diverged: some seeds met NaN or infinity; the others have finished.
        KeyboardInterrupt: as `api.train`; all seeds took a checkpoint. The message says how to go on.
    """
    if "seed" in overrides:
        raise UserError("--seeds: got --seed beside it, expected either")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--seeds: got several processes, expected one; with torchrun train each --seed by itself")
    folder, recipe = _folder(recipe, seeds, out, resume, overrides)
    paths = {seed: folder / f"seed-{seed}" for seed in seeds}
    kept = [seed for seed in seeds if resume and runs.describe(paths[seed])["status"] == "finished"]
    todo = [seed for seed in seeds if seed not in kept]
    finished: dict[int, Run] = {}
    failed: dict[int, BaseException] = {}
    with ExitStack() as stack:
        begun: dict[int, Begun] = {}
        for seed in todo:
            there = (paths[seed] / "config.yaml").exists()
            begun[seed] = stack.enter_context(
                opened(recipe, paths[seed], there, {**overrides, "seed": seed}, alone=False)
            )
        if begun:
            frames = sum(one.config.budget.frames for one in begun.values())
            with Progress(frames, quiet=quiet) as progress:
                finished, failed = _fit(begun, progress, len(seeds))
    if any(isinstance(error, KeyboardInterrupt) for error in failed.values()):
        count = f"{min(seeds)}-{max(seeds)}"
        raise KeyboardInterrupt(f"interrupted; continue with --seeds {count} --resume --out {folder}")
    if failed:
        seed, error = next(iter(failed.items()))
        raise Diverged(f"{len(failed)} of {len(seeds)} seeds failed, first seed {seed}: {error}")
    return [finished.get(seed) or load(paths[seed]) for seed in seeds]


def _folder(
    recipe: Any, seeds: Sequence[int], out: str | Path | None, resume: bool, overrides: Mapping[str, Any]
) -> tuple[Path, Any]:
    """Return the study's folder, and the recipe where one is needed."""
    if not resume:
        settings = configs.override(configs.read(recipe or "cartpole_dqn"), {**overrides, "seed": seeds[0]})
        config = configs.validate(settings)
        if out is not None and list(Path(out).glob("seed-*")):
            raise UserError(f"--out {out}: holds seeds already; add --resume to continue them, or give another folder")
        return runs.create(out, config), recipe or "cartpole_dqn"
    if out is None and isinstance(recipe, (str, Path)):
        out, recipe = recipe, None
    held = sorted(Path(out or "").glob("seed-*/config.yaml"))
    if out is None or not held:
        raise UserError(f"--seeds: '{out or ''}' holds no seeds; expected with --resume the folder of such a study")
    return Path(out), configs.read(held[0].parent) if recipe is None else recipe


def _fit(begun: Mapping[int, Begun], progress: Progress, total: int) -> tuple[dict[int, Run], dict[int, BaseException]]:
    """Train all to their ends, write every result, and return the finished runs and what ended the others badly."""
    finished: dict[int, Run] = {}
    failed: dict[int, BaseException] = {}
    frames: dict[int, int] = {}
    with ExitStack() as rest:
        contexts = {seed: rest.enter_context(ExitStack()) for seed in begun}
        finish = {
            seed: contexts[seed].enter_context(fitting(one, _Share(progress, seed, frames)))
            for seed, one in begun.items()
        }

        def ended(seed: int, error: BaseException | None) -> None:
            try:
                with contexts[seed]:
                    if error is not None:
                        raise error
                    finished[seed] = finish[seed](evaluations.play)
            except (Diverged, KeyboardInterrupt) as why:
                failed[seed] = why
                progress.message(f"seed {seed}: {why}")

        config = next(iter(begun.values())).config
        evaluations = Evaluations(lambda n: build.env(config.env, config.device, "validation", n))
        rest.callback(evaluations.close)
        with interruptible(*(one.trainer for one in begun.values())), unswept():
            trainers = {seed: one.trainer for seed, one in begun.items()}
            fit(trainers, ended, evaluations, config.compile == "on", total)
    return finished, failed


def fit(
    trainers: Mapping[int, Trainer],
    ended: Callable[[int, Diverged | None], None],
    evaluations: Evaluations,
    compiled: bool = False,
    total: int = 0,
) -> None:
    """Train several trainers of one recipe, by seed, to their ends; ``ended`` is told of each, and what it met.

    Of the time, each counts as its own what it spends itself, and its share of the common updates. Of ``total`` seeds
    some may have ended before: what is ``compiled`` is so for a number of rows that depends on that, see `rows`.

    Raises:
        UserError: something of the agent or its settings can only be trained alone.
    """
    asking = {seed: trainer.run() for seed, trainer in trainers.items()}
    asked: dict[int, Batch] = {}
    since: dict[int, float] = {}  # when
    stack: Stack | None = None
    made: Compiled | None = {} if compiled else None

    def advance(seed: int, out: Loss | None) -> None:
        error = None
        try:
            batch = next(asking[seed], None) if out is None else sent(asking[seed], out)
        except Diverged as met:
            batch, error = None, met
        if batch is None:
            asked.pop(seed, None)
            ended(seed, error)
        else:
            asked[seed], since[seed] = batch, time.perf_counter()

    for seed, trainer in trainers.items():
        for callback in trainer.callbacks:
            if isinstance(callback, Evaluate):
                callback.play = evaluations.play
        trainer.agent.train()
        advance(seed, None)
    while asked:
        if stack is None or len(stack.trainers) != len(asked):
            size = rows(len(asked), max(total, len(trainers))) if compiled else len(asked)
            evaluations.stack = stack = Stack([trainers[seed] for seed in asked], size, made)
        start = time.perf_counter()
        outs = stack.update(list(asked.values()))
        share = (time.perf_counter() - start) / len(outs)
        for seed, out in zip(list(asked), outs, strict=True):
            trainers[seed].train_seconds += share - (time.perf_counter() - since[seed])
            advance(seed, out)


def rows(left: int, total: int) -> int:
    """Return for how many rows to compile where so many of all seeds are left: all, a quarter, a quarter of that, ...

    Compiling takes as long as thousands of updates of rows too many. The number depends on nothing else, so that a
    study that is resumed computes as it would have, if its seeds learnt in step.
    """
    while (fewer := -(-total // 4)) >= left and fewer < total:
        total = fewer
    return total


class _Share(Progress):
    """One seed's part in the progress of all."""

    def __init__(self, whole: Progress, seed: int, frames: dict[int, int]) -> None:
        self.whole, self.seed, self.frames = whole, seed, frames

    def update(self, frames: int, row: Mapping[str, float]) -> None:
        """Note how far the seed is."""
        self.frames[self.seed] = frames
        self.whole.update(sum(self.frames.values()), row)

    def message(self, text: str) -> None:
        """Print a line of this seed."""
        self.whole.message(f"seed {self.seed}: {text}")
