"""What happens between iterations, in this order: log, evaluate, stop, write, checkpoint."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlcore import checkpoint, distributed
from rlcore.agent import Agent
from rlcore.config import CheckpointConfig, EvalConfig, StopConfig
from rlcore.errors import Diverged, UserError, nearest
from rlcore.evaluation import Episodes, evaluate, play
from rlcore.logger import Logger
from rlcore.progress import Progress
from rlcore.trainer import Trainer
from rlcore.vector import VectorEnv


def check_finite(trainer: Trainer) -> None:
    """Look through all that was measured, and the weights, so that nothing broken is saved or evaluated.

    Raises:
        Diverged: something is NaN or infinite; says what.
    """
    trainer.check_finite()
    for name, tensor in trainer.agent.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Diverged(f"weights '{name}' became NaN or infinite by update {trainer.clock.updates}")


class Log:
    """Every so many frames, put the means since the last time into the trainer's row."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.last = (0.0, 0, 0)  # train seconds, frames, updates

    def maybe(self, trainer: Trainer) -> None:
        """Log when due."""
        if trainer.clock.due(self.every):
            self.log(trainer)

    def end(self, trainer: Trainer) -> None:
        """Log what came since the last time."""
        if not trainer.interrupted and trainer.clock.frames > self.last[1]:
            self.log(trainer)

    def log(self, trainer: Trainer) -> None:
        """Read the meters: the one place where training waits for its numbers."""
        clock = trainer.clock
        values = distributed.mean(trainer.source.statistics() | trainer.meter.flush())
        values |= {name: schedule(clock.progress) for name, schedule in trainer.agent.schedules().items()}
        groups = list(trainer.optim.groups)
        for group in groups:
            values["learning_rate" + (f"/{group}" if len(groups) > 1 else "")] = trainer.optim.lr(group, clock)
        trainer.row |= {f"train/{name}": value for name, value in values.items()}
        seconds, frames, updates = self.last
        self.last = (trainer.train_seconds, clock.frames, clock.updates)
        elapsed = max(self.last[0] - seconds, 1e-9)
        trainer.row["time/train_seconds"] = trainer.train_seconds
        trainer.row["time/frames_per_second"] = (clock.frames - frames) / elapsed
        trainer.row["time/updates_per_second"] = (clock.updates - updates) / elapsed

    def state_dict(self) -> dict[str, Any]:
        """Return the start of the current interval."""
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the interval."""
        self.last = tuple(state["last"])


Show = Callable[[int, VectorEnv, dict[str, torch.Tensor]], None]
Film = Callable[[Agent, int], None]


class Evaluate:
    """Every so many frames, play seeded episodes in an own environment (None: never); keep the best agent.

    What is best is said by ``eval.best``, the name of one of the logged numbers, and ``eval.best_mode``. ``show`` is
    given the frames so far, the environment and the episodes' outcomes, to draw figures from; ``film`` at every
    ``eval.video``-th evaluation the agent and the frames so far.
    """

    def __init__(
        self,
        env: VectorEnv | None,
        config: EvalConfig,
        checkpoints: Path | None = None,
        show: Show | None = None,
        film: Film | None = None,
    ) -> None:
        self.env, self.config, self.checkpoints, self.show, self.film = env, config, checkpoints, show, film
        self.play: Callable[..., Episodes] = play  # or another way to play the same
        self.by = [config.best, config.best_mode]
        self.sign = 1 if config.best_mode == "max" else -1
        self.best = -self.sign * math.inf

    def maybe(self, trainer: Trainer) -> None:
        """Evaluate when due.

        Raises:
            UserError: evaluations have no number ``eval.best``.
        """
        env, config = self.env, self.config
        if env is None or not trainer.clock.due(config.every):
            return
        check_finite(trainer)
        how = (env.episodes or config.episodes, config.seed, config.max_steps)
        look = self.show and functools.partial(self.show, trainer.clock.frames, env)
        # Other ranks have other statistics of batch normalisation, and would disagree on what is best and when to stop.
        result = distributed.first(lambda: evaluate(trainer.agent, env, *how, look=look, player=self.play))
        names = {"mean": "return_mean", "iqm": "return_iqm", "ci_low": "return_ci_low", "ci_high": "return_ci_high"}
        unlogged = {"episodes", "seed", "returns", "std", "min", "max"}
        values = {names.get(name, name): value for name, value in result.items() if name not in unlogged}
        trainer.row |= {f"eval/{name}": value for name, value in values.items()}
        if self.film is not None and trainer.clock.due(config.every * config.video):
            self.film(trainer.agent, trainer.clock.frames)
        if self.checkpoints:
            self._keep(trainer, self.checkpoints, values)

    def _keep(self, trainer: Trainer, folder: Path, values: dict[str, float]) -> None:
        """Save the agent as the best if it is."""
        if self.config.best not in values:
            raise UserError(f"eval.best: '{self.config.best}' is not evaluated{nearest(self.config.best, values)}")
        value = values[self.config.best]
        # The later of equals has learnt more; NaN is never best.
        if self.sign * value >= self.sign * self.best:
            self.best = value
            state = {"best": self.best, "clock": trainer.clock.state_dict()}
            if not distributed.rank():
                checkpoint.save(folder, trainer.clock.frames, trainer.agent.state_dict(), state, name="best")

    def end(self, trainer: Trainer) -> None:
        """Do nothing: the run's own final evaluation follows."""

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {"best": self.best, "by": self.by}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best score, if it was chosen by the same."""
        if state["by"] == self.by:
            self.best = state["best"]


_EPISODIC = ("train/episode_return", "train/episode_length")  # an interval may see no episode end


class Stop:
    """End the run when a logged number reaches a threshold, or has not improved for a while."""

    def __init__(self, config: StopConfig) -> None:
        self.config = config
        self.sign = 1 if config.mode == "max" else -1
        self.best = -self.sign * math.inf
        self.since = 0  # looks since the best

    def maybe(self, trainer: Trainer) -> None:
        """Look at the row, where the number is fresh or absent.

        Raises:
            UserError: there is no such number among those of its kind.
        """
        metric, patience = self.config.metric, self.config.patience
        value = trainer.row.get(metric)
        if value is None:
            return self._require_known(trainer.row)
        if self.sign * value > self.sign * self.best + self.config.min_delta:  # NaN is no improvement
            self.best, self.since = value, 0
        else:
            self.since += 1
        if self.config.threshold is not None and self.sign * value >= self.sign * self.config.threshold:
            trainer.stopping = f"{metric} reached {value:.6g}"
        elif patience and self.since >= patience:
            trainer.stopping = f"{metric} has not improved on {self.best:.6g} for {self.since} looks"

    def _require_known(self, row: dict[str, float]) -> None:
        metric = self.config.metric
        kind = {name for name in row if metric and name.startswith(metric.split("/")[0] + "/")}
        learnt = any(name.startswith("train/loss") for name in row)  # what updates log is there
        if kind and metric not in _EPISODIC and (learnt or not metric.startswith("train/")):
            known = {*kind, *(name for name in _EPISODIC if metric.startswith("train/"))}
            raise UserError(f"stop.metric: '{metric}' is not logged{nearest(metric, known)}")

    def end(self, trainer: Trainer) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return the best so far and how long ago that was."""
        return {"metric": self.config.metric, "mode": self.config.mode, "best": self.best, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on waiting, if it is for the same."""
        if (state["metric"], state["mode"]) == (self.config.metric, self.config.mode):
            self.best, self.since = state["best"], state["since"]


class Write:
    """Hand the row to the logger (None: another rank's) and the progress bar."""

    def __init__(self, logger: Logger | None, progress: Progress) -> None:
        self.logger, self.progress = logger, progress

    def maybe(self, trainer: Trainer) -> None:
        """Write what the callbacks before this one put down."""
        row, clock = trainer.row, trainer.clock
        if row:
            if self.logger is not None:
                self.logger.write(clock.frames, {"updates": clock.updates, **row})
            trainer.row = {}
        self.progress.update(clock.frames, row)

    def end(self, trainer: Trainer) -> None:
        """Write the last row."""
        self.maybe(trainer)


class Checkpoint:
    """Every so many frames, and at the end, save everything; comes last, when all else is done."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder, self.config = folder, config
        self.last: int | None = None  # frames of the newest checkpoint

    def maybe(self, trainer: Trainer) -> None:
        """Save when due."""
        if trainer.clock.due(self.config.every):
            self.save(trainer)

    def end(self, trainer: Trainer) -> None:
        """Save whatever ended the run."""
        if self.last != trainer.clock.frames or not trainer.interrupted:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save, unless training has met NaN or infinity; drop old checkpoints."""
        check_finite(trainer)
        state = trainer.state_dict()  # gathers that of all ranks
        if not distributed.rank():
            saved = checkpoint.save(self.folder, trainer.clock.frames, trainer.agent.state_dict(), state)
            checkpoint.prune(saved, self.config.keep)
        self.last = trainer.clock.frames
