"""Search for a recipe's settings: grid, random, tree-structured Parzen estimators, Gaussian processes, through Optuna.

This process checks everything, starts the workers and watches; the workers (`rlcore.search.worker`) share the storage
in the search's folder (`rlcore.search.definition`) and need nobody to tell them what to do. Killed at any time, the
search goes on with ``resume``: trials that ended stay as they are, those in training go on where their runs' last
checkpoints were taken.

Bergstra et al. (2011), "Algorithms for Hyper-Parameter Optimization"; Akiba et al. (2019), "Optuna".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore import config as configs
from rlcore import runs
from rlcore.command import import_plugins
from rlcore.errors import UserError
from rlcore.search import definition, spaces
from rlcore.search.definition import Definition, Search


def tune(
    recipe: str | Path | Mapping[str, Any] | None = None,
    space: str | Path | Mapping[str, Any] | None = None,
    *,
    trials: int | None = None,
    sampler: str | None = None,
    metric: str | None = None,
    direction: str | None = None,
    seeds: str | None = None,
    seed: int | None = None,
    prune: bool | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    plugins: Sequence[str] = (),
    quiet: bool = True,
    **overrides: Any,
) -> dict[str, Any]:
    """Search, and return the folder, the best trial, and all trials, best first.

    Args:
        recipe: bare name of a shipped recipe, a YAML file, a run's folder, or settings; default cartpole_dqn.
        space: bare name of a shipped space, a YAML file, or dimensions by dotted setting (`rlcore.search.spaces`).
        trials: how many; the first is the recipe itself [50].
        sampler: grid, random, tpe or gp [tpe].
        metric: frames_to, seconds_to, final or final/NAME, see `rlcore.search.objective` [final].
        direction: max or min [as the metric implies].
        seeds: A-B, of each trial's runs, from 100 up [1000-1002].
        seed: of the sampler's draws [0].
        prune: end hopeless trials early [True].
        jobs: workers, each a process.
        out: the search's folder [a fresh one under ``runs/``].
        resume: go on with the search in ``out``; only trials and jobs may change.
        plugins: modules that register own parts, for the workers.
        quiet: say nothing.
        overrides: settings by name, as `rlcore.train` takes them.

    Raises:
        UserError: Optuna is not installed, or bad input, before the first trial; or one trial after the other fails.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the runs have taken a checkpoint.
    """
    given = {"trials": trials, "sampler": sampler, "metric": metric, "direction": direction, "seeds": seeds}
    given |= {"seed": seed, "prune": prune, "plugins": list(plugins) or None}
    given = {name: value for name, value in given.items() if value is not None}
    defined = _resumed(out, recipe, space, given, overrides) if resume else _new(recipe, space, given, overrides)
    import_plugins(defined.plugins)
    search = Search(defined)
    search.check()
    crew = _crew(jobs)
    root = runs.make(Path(out)) if out else runs.fresh("tune")
    if not resume and any(path.name != runs.LOCK for path in root.iterdir()):
        raise UserError(
            f"--out {root}: is not empty; add --resume to go on with the search in it, or give another folder"
        )
    with runs.locked(root):
        definition.write(root, search)
        return crew.Crew(root, search, jobs, quiet).run()


def _crew(jobs: int) -> Any:
    """Return the module of the workers, which needs Optuna."""
    try:
        from rlcore.search import crew, storage
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("tune.py needs Optuna: pip install 'rlcore[tune]'") from None
    if jobs > 1 and storage.fcntl is None:
        raise UserError(f"--jobs: got {jobs}, expected 1: this system has no locks that workers could share")
    return crew


def _new(recipe: Any, space: Any, given: dict[str, Any], overrides: Mapping[str, Any]) -> Definition:
    """Return the definition of a search from what was given."""
    if space is None:
        known = ", ".join(sorted(path.stem for path in spaces.folder().glob("*.yaml")))
        raise UserError(f"--space: got none, expected a YAML file or a shipped space: {known}")
    name, dimensions = spaces.read(space)
    raw = configs.override(configs.read(recipe or "cartpole_dqn"), overrides)
    for setting in dimensions:
        if setting in configs.flatten(overrides):
            raise UserError(f"--{setting}: is searched by space {name}; expected no value of its own")
    called = raw.get("recipe") or "given"
    return definition.defined(recipe=called, settings=raw, space_name=name, space=dimensions, **given)


def _resumed(out: Any, recipe: Any, space: Any, given: dict[str, Any], overrides: Mapping[str, Any]) -> Definition:
    """Return the definition of the search in the folder, with more trials if wished; nothing else may differ."""
    if out is None:
        raise UserError("--resume: expected --out DIR, the folder of the search")
    root = Path(out)
    old = definition.read(root)
    values = old.model_dump()
    if recipe is not None or overrides:
        values["settings"] = configs.override(configs.read(recipe or old.settings), overrides)
    if space is not None:
        values["space"] = spaces.read(space)[1]
    new = definition.defined(**{**values, **given})
    before, now = (configs.flatten(one.model_dump(exclude={"trials"})) for one in (old, new))
    for name in dict.fromkeys([*before, *now]):
        was, got = (_said(one.get(name)) for one in (before, now))
        if was != got:
            setting = name.removeprefix("settings.")
            raise UserError(
                f"--{setting}: got {got}, but {root} was begun with {was}; expected only --trials to change"
            )
    if new.trials < old.trials:
        raise UserError(f"--trials: got {new.trials}, but {root} was begun with {old.trials}; expected as many or more")
    return new


def _said(value: Any) -> str:
    return "none" if value is None else json.dumps(value)
