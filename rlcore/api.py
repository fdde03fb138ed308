"""Training and evaluating runs from Python. The scripts do no more than this."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlcore import build, checkpoint, runs
from rlcore import config as configs
from rlcore.callbacks import Checkpoint, Evaluate, Log, Stop, Write
from rlcore.config import Config
from rlcore.errors import Diverged, UserError
from rlcore.logger import Logger
from rlcore.progress import Progress
from rlcore.run import Run, find_checkpoint, load, load_weights
from rlcore.statistics import stratified_bootstrap_ci, summary
from rlcore.trainer import Trainer

# What may change when a run goes on: nothing that its training depends on, but how far and how it is watched.
RESUMABLE = ("budget", "eval", "log", "checkpoint", "stop")


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
        resume: continue the run in ``out`` (default: the latest) where its last checkpoint was taken.
        init: a run whose weights (and, for tables, preprocessing) this one starts from.
        quiet: show no progress.
        overrides: settings by name: ``seed=1``, ``optim={"lr": 1e-3}``, ``**{"optim.lr": 1e-3}``.

    Raises:
        UserError: bad input, or a full disk; one clear sentence.
        Diverged: training met NaN or infinity.
    """
    if resume:
        folder = runs.resolve(out or "latest")[0]
        config = _resumed_config(folder, recipe, overrides)
    else:
        config = configs.validate(configs.override(configs.read(recipe or "cartpole_dqn"), overrides))
        folder = Path(out) if out else runs.fresh(config.recipe, config.seed)
    elder = runs.resolve(init)[0] if init is not None and not resume else None
    if elder is not None:
        config = _prepared_as(config, elder)
    trainer = build.trainer(config)
    if elder is not None:
        load_weights(trainer.agent, checkpoint.load(find_checkpoint(elder, "last")).agent, str(elder))
    if resume:
        runs.write(folder, config)
    else:
        runs.create(folder, config)
    with Progress(config.budget.frames, quiet=quiet) as progress:
        progress.message(f"run: {folder}")
        if text := _save_data_reports(trainer, folder):
            progress.message(text)
        return _fit(trainer, config, folder, resume, progress)


def _fit(trainer: Trainer, config: Config[Any], folder: Path, resume: bool, progress: Progress) -> Run:
    """Train to the end of the budget, then evaluate and write result.json."""
    checkpoints = folder / "checkpoints"
    newest = checkpoint.latest(checkpoints, progress.message) if resume else None
    saved = checkpoint.load(newest) if newest else None
    _require_space(trainer, config, folder)
    evaluation = build.evaluation_env(config, "validation", config.eval.episodes) if config.eval.every else None
    logger = Logger(folder, resume_frames=saved.frames if saved else None)
    trainer.callbacks = [
        Log(config.log.every),
        *([Evaluate(evaluation, config.eval, checkpoints)] if evaluation else []),
        Stop(config.stop),
        Write(logger, progress),
        Checkpoint(checkpoints, config.checkpoint),
    ]
    if saved is not None:
        trainer.agent.load_state_dict(saved.agent)
        trainer.load_state_dict(saved.state)
        progress.message(f"resumed at frame {saved.frames}")
    if reason := trainer.source.env.why_not_capturable:
        progress.message(f"a resume will not be exact: {reason}")
    try:
        with interruptible(trainer):
            trainer.fit()
    except UserError as error:
        _write_result(trainer, folder, {"status": "failed", "error": str(error)})
        if not isinstance(error, Diverged):
            raise
        raise Diverged(f"{error}; last good checkpoint: {checkpoint.latest(checkpoints) or 'none'}") from None
    run = Run(folder, config, trainer.agent, trainer.source.env.spec, {})
    if trainer.interrupted:
        progress.message(f"interrupted at frame {trainer.clock.frames}; continue with --resume --out {folder}")
        run.result = _write_result(trainer, folder, {"status": "interrupted"})
        return run
    final = run.evaluate()
    numbers = {f"final/{k}": v for k, v in final.items() if isinstance(v, (int, float))}
    logger.hparams(_flat(config.model_dump(mode="json")), numbers, trainer.clock.frames)
    run.result = _write_result(trainer, folder, {"status": "finished", "evaluation": final})
    return run


def _write_result(trainer: Trainer, folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    clock = trainer.clock
    result = {
        **result,
        "frames": clock.frames,
        "updates": clock.updates,
        "train_seconds": trainer.train_seconds,
    }
    if trainer.stopping:
        result["stopped"] = trainer.stopping
    runs.write_json(folder / "result.json", result)
    return result


def _require_space(trainer: Trainer, config: Config[Any], folder: Path) -> None:
    one = checkpoint.nbytes(trainer.agent.state_dict(), trainer.state_dict()) + trainer.source.nbytes()
    best = checkpoint.nbytes(trainer.agent.state_dict(), {})
    rows = config.budget.frames // config.log.every + 1
    # The newest are kept while one more is written, and so for the best; a row costs about 2 kB in both logs.
    checkpoint.require_space(folder, one * (config.checkpoint.keep + 1) + 2 * best + 2_000 * rows)


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C (and SIGTERM) end the iteration instead of tearing it; a second Ctrl-C stops at once."""

    def stop(signum: int, frame: Any) -> None:
        trainer.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever started it interrupts it some other way
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resumed_config(folder: Path, recipe: Any, overrides: Mapping[str, Any]) -> Config[Any]:
    """Return the run's settings with what may change on a resume changed."""
    old = configs.validate(configs.read(folder), str(folder / "config.yaml"))
    raw = configs.read(recipe) if recipe is not None else configs.read(folder)
    new = configs.validate(configs.override(raw, overrides))
    was, now = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    for name in sorted({*was, *now}):
        if name.split(".")[0] not in (*RESUMABLE, "recipe") and was.get(name) != now.get(name):
            raise UserError(
                f"{name}: got {now.get(name)!r}, but {folder} was trained with {was.get(name)!r}; a resumed run may "
                f"change only {', '.join(RESUMABLE)} (to start from its weights use --init)"
            )
    # Schedules keep running over what they ran over: an extended run holds their last values.
    horizon = old.budget.horizon or old.budget.frames
    budget = new.budget.model_copy(update={"horizon": horizon if new.budget.frames != old.budget.frames else old.budget.horizon})
    return new.model_copy(update={"budget": budget, "recipe": old.recipe})


def _prepared_as(config: Config[Any], elder: Path) -> Config[Any]:
    """Return the settings with the preprocessing of the run that the weights come from."""
    fitted = runs.read_json(elder / "fitted.json") or {}
    env = config.env.model_copy(update={"kwargs": {**config.env.kwargs, **fitted}})
    return config.model_copy(update={"env": env})


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


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def evaluate(
    paths: Sequence[str | Path] | str | Path,
    episodes: int | None = None,
    seed: int | None = None,
    which: str = "last",
) -> dict[str, Any]:
    """Evaluate one run, or several as a study.

    Args:
        paths: run folders, globs, or ``latest``.
        episodes: per run; default: the run's eval.final_episodes (tasks: the held-out split).
        seed: episode i starts from seed + i; default: the run's eval.final_seed.
        which: the checkpoint: last, best or a frame.

    Returns:
        One run: as `rlcore.evaluation.evaluate`. Several: the statistics over the runs' mean returns,
        ci_low and ci_high a stratified bootstrap interval of their interquartile mean, and ``runs``.
    """
    patterns = [paths] if isinstance(paths, (str, Path)) else paths
    folders = [folder for pattern in patterns for folder in runs.resolve(pattern)]
    results = [load(folder, which).evaluate(episodes, seed) for folder in folders]
    if len(results) == 1:
        return results[0]
    first, means = results[0], [result["mean"] for result in results]
    low, high = stratified_bootstrap_ci([[mean] for mean in means])
    over_runs = summary(means) | {"ci_low": low, "ci_high": high}
    single = [{"run": str(f), **{k: v for k, v in r.items() if k != "returns"}} for f, r in zip(folders, results, strict=True)]
    return {"episodes": first["episodes"], "seed": first["seed"], **over_runs, "returns": means, "runs": single}
