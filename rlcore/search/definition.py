"""What a search is: its definition, kept in study.yaml, and what follows from it. Imports neither torch nor Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from rlcore import config as configs
from rlcore import plain_yaml, runs
from rlcore.config import Config
from rlcore.errors import UserError
from rlcore.fields import Model, explain
from rlcore.search import spaces
from rlcore.search.objective import Objective, objective
from rlcore.search.spaces import Space
from rlcore.study import seeds
from rlcore.training_config import EvalConfig

FINAL_SEED = 2_000_000  # of final evaluations: neither those that choose checkpoints nor those of reports
_JUDGED = 100  # the first seeds are for reports


class Definition(Model):
    """All that a search depends on; study.yaml."""

    recipe: str = Field(description="what the settings came from")
    settings: dict[str, Any] = Field(description="the recipe's, overrides included")
    space_name: str = Field(description="what the space came from")
    space: dict[str, Any] = Field(description="dimensions by dotted setting")
    metric: str = Field(default="final", description="objective")
    direction: Literal["", "max", "min"] = Field(default="", description="of the objective; empty: as it implies")
    sampler: Literal["grid", "random", "tpe", "gp"] = Field(default="tpe", description="who chooses what is tried")
    seed: int = Field(default=0, ge=0, description="of the sampler")
    seeds: str = Field(default="1000-1002", description="of each trial's runs, A-B")
    prune: bool = Field(default=True, description="end trials that the median rule gives up")
    plugins: list[str] = Field(default=[], description="modules that register own parts")
    trials: int = Field(default=50, ge=1, description="how many")


def defined(**values: Any) -> Definition:
    """Return a validated definition.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    try:
        return Definition.model_validate(values)
    except ValidationError as error:
        raise UserError(f"--{explain(error, Definition)}") from None


class Search:
    """A definition with all that follows from it.

    Raises:
        UserError: the recipe, the space, the metric or the seeds are wrong; one sentence.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        config = configs.validate(definition.settings, definition.recipe)
        raw = definition.settings
        if config.eval.final_seed == EvalConfig().final_seed:
            raw = configs.override(raw, {"eval.final_seed": FINAL_SEED})
        if definition.metric.endswith("_to"):  # one way only to end a run: its threshold
            raw = configs.override(raw, {"stop.patience": 0})
        self.raw: dict[str, Any] = raw
        self.config: Config[Any] = configs.validate(raw, definition.recipe)
        self.objective: Objective = objective(definition.metric, config, definition.direction)
        self.space: Space = spaces.build(definition.space_name, definition.space, self.config.model_dump(mode="json"))
        self.seeds = seeds(definition.seeds)
        if self.seeds[0] < _JUDGED:
            raise UserError(
                f"--seeds: got {definition.seeds}, expected seeds from {_JUDGED} up: those below are for reports"
            )

    def points(self) -> list[dict[str, Any]]:
        """Return the points that are known beforehand.

        The first is the recipe itself, if it is a point of the space, so that it is compared like all others. A grid's
        points follow.

        Raises:
            UserError: a grid's range has no steps.
        """
        points = [self.space.own()] if self.space.is_held() else []
        if self.definition.sampler == "grid":
            points += [point for point in self.space.grid() if point not in points]
        return points

    def check(self) -> None:
        """Try the space before anything is trained or written.

        Raises:
            UserError: a corner of the space is refused, or as `points`.
        """
        self.space.check()
        self.points()

    @property
    def per_run(self) -> int:
        """Evaluations in a run's whole budget, which are the steps of pruning."""
        return max(1, self.config.budget.frames // self.config.eval.every) if self.config.eval.every else 0


def trial_folder(root: Path, number: int) -> Path:
    """Return where a trial's runs lie."""
    return root / f"trial-{number:04d}"


def write(root: Path, search: Search) -> None:
    """Write study.yaml, and recipe.yaml: what trials vary, measured as they are."""
    runs.write_text(root / "study.yaml", plain_yaml.dump(search.definition.model_dump(mode="json")))
    runs.write_text(root / "recipe.yaml", plain_yaml.dump(search.raw))


def read(root: Path) -> Definition:
    """Return what a folder's search is.

    Raises:
        UserError: the folder holds none.
    """
    path = root / "study.yaml"
    if not path.is_file():
        raise UserError(f"--out {root}: holds no search (there is no study.yaml); expected the folder of one")
    raw = plain_yaml.read(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected the mapping that a search begins with, got {type(raw).__name__}")
    return defined(**raw)
