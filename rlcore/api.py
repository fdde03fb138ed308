"""Training and evaluating runs from Python. The scripts do no more than this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore import build, distributed, recorded, runs
from rlcore.errors import Diverged, UserError
from rlcore.evaluation import evaluate as play_and_score
from rlcore.guards import interruptible
from rlcore.lifecycle import fitting, opened
from rlcore.progress import Progress
from rlcore.run import Look, Run, load
from rlcore.statistics import stratified_bootstrap_ci, summary

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
