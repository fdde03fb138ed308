"""What a run goes on from: its own last checkpoint, or another run's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcore import checkpoint, compiling, runs
from rlcore import config as configs
from rlcore.config import Config
from rlcore.errors import UserError, note

# What may change when a run goes on: nothing that its training depends on (but for rounding, where updates are compiled
# or no longer are), but how far and how it is watched.
RESUMABLE = ("budget.frames", "eval", "log", "checkpoint", "stop", "compile", "env.workers")


def resumed(
    recipe: str | Path | Mapping[str, Any] | None, out: str | Path | None, overrides: Mapping[str, Any]
) -> tuple[Path, Config[Any], checkpoint.Checkpoint | None]:
    """Return the folder of the run that goes on, its settings, and where it had come to."""
    if out is None and isinstance(recipe, (str, Path)) and (Path(recipe) / "config.yaml").is_file():
        out, recipe = recipe, None
    folder = runs.resolve_one(out or "latest")
    newest = checkpoint.latest(folder / "checkpoints", note)
    saved = checkpoint.load(newest) if newest else None
    old = configs.validate(configs.read(folder), str(folder / "config.yaml"))
    if old.compile == "auto":  # from before runs kept what was chosen
        old = old.model_copy(update={"compile": "off"})
    config = _resumed_config(folder, old, recipe, overrides, saved.frames if saved else 0)
    if saved is not None and (old.stop, old.budget.frames) != (config.stop, config.budget.frames):
        saved.state["stopping"] = None  # what ended it no longer holds
    return folder, config, saved


def _resumed_config(
    folder: Path, old: Config[Any], recipe: Any, overrides: Mapping[str, Any], frames: int
) -> Config[Any]:
    """Return the settings of a run that goes on from ``frames``, with what may change changed."""
    new = configs.validate(configs.override(configs.read(folder if recipe is None else recipe), overrides))
    if recipe is not None:
        new = started_from(new)
    new = compiling.chosen(new, old.compile)
    was, now = (configs.flatten(config.model_dump(mode="json")) for config in (old, new))
    for name in sorted({*was, *now}):
        before, after = was.get(name), now.get(name)
        free = name == "recipe" or any(f"{name}.".startswith(f"{part}.") for part in RESUMABLE)
        inherited = name == "budget.horizon" and after is None
        if before != after and not free and not inherited and before != {} and after != {}:
            got, had = ("nothing" if value in (None, "") else repr(value) for value in (after, before))
            raise UserError(
                f"{name}: got {got}, but {folder} was trained with {had}; a resumed run may change only "
                f"{', '.join(RESUMABLE)} (to start from its weights use --init)"
            )
    if new.budget.frames < min(frames, old.budget.frames):
        raise UserError(f"budget.frames: got {new.budget.frames}, but {folder} has come to frame {frames} already")
    # Schedules keep running over what they ran over: an extended run holds their last values.
    same = new.budget.frames == old.budget.frames
    horizon = old.budget.horizon if same else old.budget.horizon or old.budget.frames
    budget = new.budget.model_copy(update={"horizon": horizon})
    return new.model_copy(update={"budget": budget, "recipe": old.recipe})


def started_from(config: Config[Any]) -> Config[Any]:
    """Return the settings with the preprocessing of the run that the weights come from, if there is one."""
    if not config.init:
        return config
    elder = runs.resolve_one(config.init)
    env = config.env
    if configs.read(elder).get("env", {}).get("id") == env.id:
        env = env.model_copy(update={"kwargs": {**env.kwargs, **runs.read_json(elder / "fitted.json")}})
    return config.model_copy(update={"env": env, "init": str(elder)})
