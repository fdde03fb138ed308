"""A run from its settings to its result: its folder, its parts, what is called while it trains, how it ends."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from rlcore import build, checkpoint, compiling, distributed, runs, trackers
from rlcore import config as configs
from rlcore.callbacks import Checkpoint, Evaluate, Log, Stop, Write
from rlcore.config import Config
from rlcore.errors import Diverged, UserError
from rlcore.evaluation import Episodes, play
from rlcore.guards import memory
from rlcore.logger import Logger
from rlcore.peak_memory import peak_memory
from rlcore.progress import Progress
from rlcore.resuming import resumed, started_from
from rlcore.run import Run, find_checkpoint, load
from rlcore.trainer import Trainer
from rlcore.vector import VectorEnv
from rlcore.video import Film, stage

MISTAKES = 20  # listed at the end of a run


class Begun(NamedTuple):
    """A run whose parts are built and whose folder is held."""

    trainer: Trainer
    config: Config[Any]
    folder: Path
    saved: checkpoint.Checkpoint | None  # where it goes on from


@contextlib.contextmanager
def opened(
    recipe: Any, out: str | Path | None, resume: bool, overrides: Mapping[str, Any], alone: bool = True
) -> Iterator[Begun]:
    """Prepare a run, or find it, and hold its folder; ``alone`` as for `build.trainer`."""
    if resume:
        folder, config, saved = resumed(recipe, out, overrides)
    else:
        folder, saved = None, None
        config = started_from(configs.validate(configs.override(configs.read(recipe or "cartpole_dqn"), overrides)))
        config = compiling.resolved(config)
    trackers.require(config)
    with memory():
        trainer = build.trainer(config, alone)
    try:
        if config.init and saved is None:
            elder = configs.validate(configs.read(config.init), config.init).eval.use
            weights = checkpoint.load(find_checkpoint(Path(config.init), elder)).agent
            trainer.agent.start_from(weights, config.init)
        _require_space(trainer, config, folder or Path(out or "runs"))
        if config.eval.video:  # told before there is a folder
            stage(config, "validation", "eval.video").close()
        folder = distributed.first(lambda: folder or runs.create(out, config))
        with _writer(folder):
            if not distributed.rank():
                runs.write(folder, config)
            yield Begun(trainer, config, folder, saved)
    finally:
        trainer.source.env.close()


def _writer(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the run's folder, in which rank 0 alone writes."""
    return contextlib.nullcontext() if distributed.rank() else runs.locked(folder)


@contextlib.contextmanager
def fitting(begun: Begun, progress: Progress) -> Iterator[Callable[..., Run]]:
    """Prepare a run to be fitted; what is yielded then evaluates it and writes result.json, as an error does, too.

    It may be given what plays the episodes, see `rlcore.evaluation.evaluate`.
    """
    trainer, config, folder, saved = begun
    progress.message(f"run: {folder}")
    if not distributed.rank() and (text := _save_data_reports(trainer, folder)):
        progress.message(text)
    checkpoints = folder / "checkpoints"
    logger = None
    if not distributed.rank():
        following = trackers.Trackers(folder, config)
        logger = Logger(folder, saved.frames if saved else None, following)
        for address in following.addresses:
            progress.message(f"followed at {address}")
    evaluation = build.evaluation_env(config, "validation", config.eval.episodes) if config.eval.every else None
    film = Film(config, logger) if logger is not None and config.eval.video else None
    show = logger and functools.partial(_draw, logger, "eval")
    trainer.callbacks = [
        Log(config.log.every),
        Evaluate(evaluation, config.eval, checkpoints, show, film),
        Stop(config.stop),
        Write(logger, progress),
        Checkpoint(checkpoints, config.checkpoint),
    ]
    if saved is not None:
        trainer.agent.load_state_dict(saved.agent)
        trainer.load_state_dict(saved.state)
        progress.message(f"resumed at frame {saved.frames}")
    if reason := trainer.source.why_inexact():
        progress.message(f"a resume will not be exact: {reason}")
    try:
        with memory():
            yield functools.partial(_finish, trainer, config, folder, logger)
    except (Exception, KeyboardInterrupt) as error:
        _fail(trainer, folder, error, logger)
    finally:
        for used in filter(None, (evaluation, film)):
            used.close()


def _finish(
    trainer: Trainer,
    config: Config[Any],
    folder: Path,
    logger: Logger | None,
    player: Callable[..., Episodes] = play,
) -> Run:
    """Evaluate what was saved last (or best, as eval.use says), as anyone may later, and write the result."""
    if trainer.interrupted:
        raise KeyboardInterrupt
    if logger is not None:
        look = functools.partial(_show, logger, trainer.clock.frames)
        final = load(folder).evaluate(look=look, player=player)
        numbers = {f"final/{k}": v for k, v in final.items() if isinstance(v, (int, float))}
        logger.hparams(configs.flatten(config.model_dump(mode="json")), numbers, trainer.clock.frames)
        _write_result(trainer, folder, {"status": "finished", "evaluation": final})
        logger.end("finished")
    distributed.together()
    return load(folder)


def _draw(logger: Logger, when: str, frames: int, env: VectorEnv, outcomes: dict[str, torch.Tensor]) -> None:
    """Show the task's figures in TensorBoard."""
    for name, figure in env.figures(outcomes).items():
        logger.figure(f"{when}/{name}", figure, frames)


def _show(logger: Logger, frames: int, env: VectorEnv, outcomes: dict[str, torch.Tensor]) -> None:
    """Show the task's figures and worst mistakes in TensorBoard."""
    _draw(logger, "final", frames, env, outcomes)
    if text := env.mistakes(outcomes, MISTAKES):
        logger.text("final/mistakes", text, frames)


def _fail(trainer: Trainer, folder: Path, error: BaseException, logger: Logger | None) -> NoReturn:
    """Write how the run ended, where there is room, and raise the error with what to do next."""
    # A signal to the whole group may take an environment's process, and a step fails.
    interrupted = isinstance(error, KeyboardInterrupt) or (trainer.interrupted and not isinstance(error, UserError))
    how = {"status": "interrupted"} if interrupted else {"status": "failed", "error": str(error) or repr(error)}
    if logger is not None:
        with contextlib.suppress(UserError):
            _write_result(trainer, folder, how)
        logger.end(how["status"])
    last = checkpoint.latest(folder / "checkpoints")
    if interrupted:
        frames = int(last.name) if last else 0
        raise KeyboardInterrupt(f"interrupted; continue from frame {frames} with --resume --out {folder}") from None
    if isinstance(error, Diverged):
        raise Diverged(f"{error}; last good checkpoint: {last or 'none'}") from None
    raise error


def _write_result(trainer: Trainer, folder: Path, result: dict[str, Any]) -> None:
    clock = trainer.clock
    result = {**result, "frames": clock.frames, "updates": clock.updates, "train_seconds": trainer.train_seconds}
    result |= peak_memory(trainer.source.env.device)
    groups = trainer.optim.groups.values()
    result["parameters"] = sum(p.numel() for p in trainer.agent.parameters())
    result["trained_parameters"] = sum(p.numel() for group in groups for p in group.parameters)
    if trainer.stopping:
        result["stopped"] = trainer.stopping
    runs.write_json(folder / "result.json", result)


def _require_space(trainer: Trainer, config: Config[Any], folder: Path) -> None:
    one = checkpoint.nbytes(trainer.agent.state_dict(), trainer.state_dict()) + trainer.source.nbytes()
    best = checkpoint.nbytes(trainer.agent.state_dict(), {})
    rows = config.budget.frames // config.log.every + 1
    there = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    # The newest are kept while one more is written, and so for the best; a row costs about 2 kB in both logs.
    checkpoint.require_space(folder, one * (config.checkpoint.keep + 1) + 2 * best + 2_000 * rows - there)


def _save_data_reports(trainer: Trainer, folder: Path) -> str:
    """Save what the environment fitted to its data and its report on them; return the report's text."""
    if fitted := trainer.source.env.fitted():
        runs.write_json(folder / "fitted.json", fitted)
    report = trainer.source.env.report()
    if report is None:
        return ""
    values, text = report
    runs.write_json(folder / "data_report.json", values)
    return text
