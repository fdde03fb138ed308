"""Training and evaluating runs from Python. The scripts do no more than this."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from rlcore import build, checkpoint, compiling, distributed, recorded, runs, trackers
from rlcore import config as configs
from rlcore.callbacks import Checkpoint, Evaluate, Log, Stop, Write
from rlcore.config import Config
from rlcore.errors import Diverged, UserError
from rlcore.evaluation import Episodes, play
from rlcore.evaluation import evaluate as play_and_score
from rlcore.guards import interruptible, memory
from rlcore.logger import Logger
from rlcore.peak_memory import peak_memory
from rlcore.progress import Progress
from rlcore.resuming import resumed, started_from
from rlcore.run import Look, Run, find_checkpoint, load
from rlcore.statistics import stratified_bootstrap_ci, summary
from rlcore.trainer import Trainer
from rlcore.vector import VectorEnv
from rlcore.video import Film, stage

MISTAKES = 20  # listed at the end of a run
RECORD_SEED = 2_000_000  # so that by default nobody learns from the very episodes that evaluations play


def train(
    recipe: str | Path | Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    quiet: bool = True,
    **overrides: Any,
) -> Run:
    """Train a recipe and return its run.

    Args:
        recipe: bare name of a shipped recipe, a YAML file, a run's folder, or settings; default cartpole_dqn.
        out: the run's folder; default: a fresh one under ``runs/``.
        resume: continue the run in ``out`` (default: ``recipe`` if that is a run, else the latest) where its
            last checkpoint was taken.
        init: a run whose weights, of the checkpoint that its eval.use names, and preprocessing this one starts from.
        quiet: show no progress.
        overrides: settings by name: ``seed=1``, ``optim={"lr": 1e-3}``, ``**{"optim.lr": 1e-3}``.

    Raises:
        UserError: bad input, or a full disk; one clear sentence.
        Diverged: training met NaN or infinity.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the iteration was ended and a checkpoint taken, unless it came
            twice. The message says how to go on.
    """
    if init is not None:
        overrides["init"] = str(init)
    with distributed.joined():
        return _train(recipe, out, resume, quiet, overrides)


def _train(recipe: Any, out: str | Path | None, resume: bool, quiet: bool, overrides: Mapping[str, Any]) -> Run:
    """Prepare a run's folder, or find it, and train in it."""
    quiet = quiet or distributed.rank() > 0
    with (
        opened(recipe, out, resume, overrides) as begun,
        Progress(begun.config.budget.frames, quiet) as progress,
        fitting(begun, progress) as finish,
    ):
        with interruptible(begun.trainer):
            begun.trainer.fit()
        return finish()


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


def evaluate(
    paths: Sequence[str | Path] | str | Path,
    episodes: int | None = None,
    seed: int | None = None,
    which: str | None = None,
    mistakes: int = 0,
    beam: int | None = None,
) -> dict[str, Any]:
    """Evaluate one run, or several as a study.

    Args:
        paths: run folders, globs, or ``latest``.
        episodes: per run; default: the run's eval.final_episodes (tasks: the held-out split).
        seed: episode i starts from seed + i; default: the run's eval.final_seed.
        which: the checkpoint: last, best or a frame; default: the run's eval.use.
        mistakes: of one run of a task, list so many of the worst, as Markdown under "mistakes".
        beam: of runs that write completions: the width of their search, 0 for none; default: the run's agent.beam.

    Returns:
        One run: as `rlcore.evaluation.evaluate`. Several: the statistics over the runs' mean returns,
        ci_low and ci_high a stratified bootstrap interval of their interquartile mean, the means of the
        task's metrics, and ``runs``.

    Raises:
        UserError: there is no such run or checkpoint, the runs are not evaluated alike, or there are no mistakes to
            list: the environment is no task that does, or there are several runs.
    """
    folders = runs.resolve_all([paths] if isinstance(paths, (str, Path)) else paths)
    loaded = [load(folder, which, beam) for folder in folders]
    if mistakes:
        if len(loaded) > 1:
            raise UserError(f"--mistakes: expected one run, got {len(loaded)}")
        return _with_mistakes(loaded[0], episodes, seed, mistakes)
    _require_alike(loaded, episodes, seed)
    results = [_evaluated(run, episodes, seed) for run in loaded]
    return over_runs([run.path for run in loaded], results)


def over_runs(paths: Sequence[Path], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the statistics over the evaluations of several runs, as `evaluate` does; of one run its evaluation."""
    if len(results) == 1:
        return results[0]
    first, means = results[0], [result["mean"] for result in results]
    low, high = stratified_bootstrap_ci([[mean] for mean in means])
    statistics = summary(means) | {"ci_low": low, "ci_high": high}
    single = [{"run": str(path), **result} for path, result in zip(paths, results, strict=True)]
    result = {"episodes": first["episodes"], "seed": first["seed"], **statistics}
    known = [{k for k, value in one.items() if value is not None} for one in results]  # None: was not finite
    shared = set.intersection(*known) - {*result, "returns"}
    metrics = {k: sum(r[k] for r in results) / len(results) for k in first if k in shared}
    return {**result, **metrics, "returns": means, "runs": single}


def record(
    run: str | Path,
    to: str | Path,
    episodes: int | None = None,
    seed: int | None = None,
    which: str | None = None,
    explore: bool = False,
) -> dict[str, Any]:
    """Play a run's episodes as `evaluate` does, and write their steps to a file or a Minari data set.

    Args:
        run: a run's folder, or ``latest``.
        to: ``FILE.npz`` or ``minari:ID``, not there yet; see `rlcore.recorded` for what it will hold.
        episodes: as `evaluate` takes them.
        seed: likewise, but the default is 2_000_000.
        which: as `evaluate` takes it.
        explore: act as at the end of training instead of greedily.

    Returns:
        As `rlcore.evaluation.evaluate`, of the recorded episodes.

    Raises:
        UserError: there is no such run or checkpoint, or ``to`` is no such name, is taken or cannot be written.
    """
    recorded.check_new(str(to))
    player = load(run, which)
    settings, count = player.config.eval, episodes or player.config.eval.final_episodes
    env = build.evaluation_env(player.config, "test", count)

    def write(steps: recorded.Steps) -> None:
        recorded.write(str(to), steps, env.spec, player.config.env, player.config.agent.name)

    try:
        start = RECORD_SEED if seed is None else seed
        return play_and_score(player.agent, env, env.episodes or count, start, settings.max_steps, explore, write)
    finally:
        env.close()


def _require_alike(loaded: Sequence[Run], episodes: int | None, seed: int | None) -> None:
    """Check that the runs play one environment, equally often and from one seed."""
    compared = ["env.id", "env.kwargs", "env.wrappers"]
    compared += ["eval.final_episodes"] * (episodes is None) + ["eval.final_seed"] * (seed is None)
    first, *others = [run.config.model_dump(mode="json") for run in loaded]
    for run, other in zip(loaded[1:], others, strict=True):
        for section, field in (name.split(".") for name in compared):
            ours, theirs = first[section][field], other[section][field]
            if ours != theirs:
                both = f"{loaded[0].path} has {ours!r} and {run.path} has {theirs!r}"
                raise UserError(f"{section}.{field}: {both}; expected runs of one environment, evaluated alike")


def _with_mistakes(run: Run, episodes: int | None, seed: int | None, n: int) -> dict[str, Any]:
    found: list[str] = []
    result = _evaluated(run, episodes, seed, lambda env, outcomes: found.append(env.mistakes(outcomes, n)))
    if not found[0]:
        raise UserError(f"--mistakes: environment '{run.config.env.id}' lists none; expected a task that does")
    return result | {"mistakes": found[0]}


def _evaluated(run: Run, episodes: int | None, seed: int | None, look: Look | None = None) -> dict[str, Any]:
    try:
        return run.evaluate(episodes, seed, look)
    except Diverged as error:
        raise Diverged(f"evaluation of {run.path}: {error}") from None
