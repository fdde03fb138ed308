"""The settings of how weights change, how that is watched, and when it ends. Imports no torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rlcore.fields import Model, flatten
from rlcore.schedules import Schedule

Fraction = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0)]


class OptimConfig(Model):
    """The optimiser; one instance per parameter group of the agent."""

    name: Literal["sgd", "adam", "adamw", "rmsprop", "radam", "adagrad"] = Field(
        default="adam", description="optimiser"
    )
    lr: float = Field(default=1e-3, gt=0, description="learning rate")
    schedule: Schedule = Field(default=Schedule(), description="factor on the learning rate over the run")
    scale: dict[str, Factor] = Field(
        default={}, description="factors on the learning rate by patterns of parameter names, {network.head.*: 10}"
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="factor on the learning rate per layer below the topmost '.layers.N.'"
    )
    freeze: list[str] = Field(default=[], description="patterns of the names of parameters that do not learn")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of sgd and rmsprop")
    betas: tuple[Fraction, Fraction] = Field(
        default=(0.9, 0.999), description="decay of the moments of adam, adamw and radam"
    )
    eps: float = Field(default=1e-8, gt=0, description="added to denominators (not used by sgd)")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay (decoupled for adamw)")
    l1: float = Field(default=0.0, ge=0, description="adds l1 * sum(|w|) to the mean loss, before clipping")
    l2: float = Field(default=0.0, ge=0, description="adds l2 / 2 * sum(w^2) to the mean loss, before clipping")
    decay: Literal["matrices", "all"] = Field(
        default="matrices", description="what weight_decay, l1 and l2 act on; matrices: neither biases nor vectors"
    )
    clip: float = Field(default=0.0, ge=0, description="largest gradient norm of a group; 0: no clipping")
    clip_value: float = Field(default=0.0, ge=0, description="largest gradient of any weight; 0: no clipping")
    accumulate: int = Field(
        default=1, ge=1, description="batches summed into one update; updates_per_frame counts batches"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the loss's matrix products; bf16: autocast, weights stay fp32"
    )
    groups: dict[str, dict[str, Any]] = Field(
        default={}, description="own values of one parameter group, as optim.groups.NAME.lr"
    )

    @field_validator("schedule")
    @classmethod
    def _descends(cls, value: Schedule) -> Schedule:
        if min(value.start, 0 if value.kind == "constant" else value.end) < 0:
            raise ValueError("factors of 0 or more")
        return value

    @field_validator("scale", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        return flatten(value) if isinstance(value, dict) else value  # overrides nest names at their dots

    @field_validator("betas", mode="before")
    @classmethod
    def _two(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError("two numbers, such as [0.9, 0.999]")
        return value

    def model_post_init(self, _: Any) -> None:
        """Check what single fields cannot."""
        if self.clip and self.clip_value:
            raise ValueError("either clip or clip_value, not both")


class EvalConfig(Model):
    """Evaluation during training (its best checkpoint is kept) and at the end."""

    every: int = Field(default=10_000, ge=0, description="frames between evaluations; 0: never")
    episodes: int = Field(default=20, ge=1, description="episodes per evaluation during training")
    seed: int = Field(default=1_000_000, ge=0, description="base seed of evaluations that choose the best checkpoint")
    max_steps: int = Field(default=30_000, ge=1, description="steps after which an episode counts as it stands")
    best: str = Field(default="return_mean", min_length=1, description="metric that the best checkpoint is chosen by")
    best_mode: Literal["max", "min"] = Field(default="max", description="whether its largest or smallest is best")
    use: Literal["last", "best"] = Field(default="last", description="checkpoint evaluated at the end, and by default")
    video: int = Field(default=0, ge=0, description="evaluations between films of an episode in TensorBoard; 0: none")
    final_episodes: int = Field(default=100, ge=1, description="episodes of the evaluation at the end")
    final_seed: int = Field(default=10_000, ge=0, description="base seed of the evaluation at the end")

    def model_post_init(self, _: Any) -> None:
        """Check what single fields cannot."""
        if self.video and not self.every:
            raise ValueError("every above 0 beside video: it is evaluations that are filmed")


class StopConfig(Model):
    """Stop before the budget is spent: at a threshold, or when patience runs out."""

    metric: str = Field(default="", description="a logged name, for example eval/return_mean; empty: never")
    mode: Literal["max", "min"] = Field(default="max", description="whether larger (max) or smaller (min) is better")
    threshold: float | None = Field(default=None, description="stop when the metric reaches this value")
    patience: int = Field(default=0, ge=0, description="stop after so many looks without improvement; 0: never")
    min_delta: float = Field(default=0.0, ge=0, description="an improvement is by more than this")

    @field_validator("metric", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return "" if value is None else value  # what --stop.metric= says

    @field_validator("metric")
    @classmethod
    def _logged(cls, value: str) -> str:
        if not re.match(r"$|(train|eval|time)/.", value):
            raise ValueError("a logged name, such as eval/return_mean or train/episode_return")
        return value

    def model_post_init(self, _: Any) -> None:
        """Check what single fields cannot."""
        if self.metric and self.threshold is None and not self.patience:
            raise ValueError("threshold or patience beside metric")
        if self.patience and not self.metric:
            raise ValueError("metric beside patience, such as eval/return_mean")
