"""Keywords of the tasks over tables, validated. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from rlcore.config import Model
from rlcore.errors import UserError
from rlcore.fields import explain

M = TypeVar("M", bound=Model)


class Preparation(Model):
    """What to learn from which columns, and what is done to their cells. Every policy is fitted on training rows."""

    target: str = Field(default="price", description="column to predict")
    features: list[str] | None = Field(default=None, description="columns to predict from; default: all others")
    kind: Literal["regression", "classification"] = Field(default="regression", description="numbers or classes")
    bins: int | None = Field(
        default=None, ge=2, description="classification of a number: classes of equal training mass"
    )
    missing: Literal["drop", "mean", "median", "error"] = Field(
        default="mean",
        description="cells without a value. drop: leave their rows out; mean, median: fill numbers, while categories "
        "become a category of their own if the training rows lack some, else the most frequent; error: refuse them",
    )
    outliers: Literal["keep", "clip", "drop"] = Field(
        default="keep",
        description="numbers beyond the fences. clip: move features to the fence, everywhere; "
        "drop: leave out training rows whose features or target are beyond",
    )
    fences: Literal["iqr", "zscore"] = Field(
        default="iqr", description="iqr: quartiles -+ 1.5 interquartile ranges; zscore: mean -+ 3 standard deviations"
    )
    standardize_target: bool = Field(
        default=False, description="regression: learn (y - mean) / std; metrics keep y's units"
    )


class Folds(Model):
    """Keywords of every task that can be cross-validated."""

    folds: int | None = Field(
        default=None, ge=2, description="hold out one of so many parts to report, instead of test_fraction"
    )
    fold: int = Field(default=0, ge=0, description="which of the folds is held out, from 0")

    @model_validator(mode="after")
    def _names_a_fold(self) -> Folds:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold below folds={self.folds}" if self.folds else "folds beside fold")
        return self

    def held(self, test_fraction: float) -> float:
        """Return the fraction of rows held out to report."""
        return 1 / self.folds if self.folds else test_fraction


class TaskConfig(Folds):
    """Keywords of every task over rows."""

    val_fraction: float = Field(default=0.1, ge=0, lt=1, description="fraction of rows held out to choose models")
    test_fraction: float = Field(default=0.2, ge=0, lt=1, description="fraction of rows held out to report")
    split_seed: int = Field(
        default=0, ge=0, description="seed of the split; runs with other seeds hold out the same rows"
    )

    loss: str | None = Field(default=None, description="a loss of torch.nn; default: MSELoss or CrossEntropyLoss")
    encoding: dict[str, Any] | None = Field(
        default=None, description="a saved run's preprocessing, used as it is instead of fitting a new one"
    )

    @model_validator(mode="after")
    def _leaves_some(self) -> TaskConfig:
        if self.val_fraction + self.held(self.test_fraction) >= 1:
            raise ValueError(f"val_fraction + {'1 / folds' if self.folds else 'test_fraction'} below 1")
        return self


class TabularConfig(Preparation, TaskConfig):
    """Keywords of `Tabular`."""

    path: str = Field(
        default="sacramento", description="a CSV or TSV file, gzipped or not, or the shipped table 'sacramento'"
    )
    bandit: bool = Field(
        default=False, description="classification by choosing a class: Discrete actions, reward 1 if right"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TabularConfig:
        if self.kind == "regression" and (self.bandit or self.bins is not None):
            raise ValueError("kind='classification' beside bandit or bins")
        if self.kind == "classification" and self.standardize_target:
            raise ValueError("kind='regression' beside standardize_target")
        if self.bandit and self.loss is not None:
            raise ValueError("no loss beside bandit, whose reward is 1 or 0")
        return self


class LineConfig(TaskConfig):
    """Keywords of `Line`."""

    n: int = Field(default=1_000, ge=10, description="points")
    slope: float = Field(default=3.0, description="of y over one standard deviation of the training inputs")
    intercept: float = Field(default=0.0, description="y at the mean of the training inputs")
    noise: float = Field(default=0.1, ge=0, description="standard deviation of the Gaussian noise on y")
    data_seed: int = Field(default=0, ge=0, description="seed of the points")


def validated(model: type[M], kwargs: Mapping[str, Any]) -> M:
    """Return the keywords as settings.

    Raises:
        UserError: one sentence naming the keyword, the value and what was expected.
    """
    try:
        return model.model_validate(kwargs)
    except ValidationError as error:
        raise UserError(explain(error, model, "env.kwargs.")) from None
