"""Annealed numbers: pure functions of progress in [0, 1]. Imports no torch, so that ``--help`` is instant."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Schedule(BaseModel):
    """A number that changes from ``start`` to ``end`` over the first ``fraction`` of the run, then stays.

    At progress p, with x = min(1, (p - warmup) / (fraction - warmup)):

        p < warmup      start * p / warmup
        constant        start
        linear          start + (end - start) * x
        cosine          end + (start - end) * (1 + cos(pi * x)) / 2
        exponential     start * (end / start) ** x
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["constant", "linear", "cosine", "exponential"] = Field(
        default="constant", description="shape of the change; exponential needs start and end above 0"
    )
    start: float = Field(default=1.0, description="value at the beginning (after the warm-up)")
    end: float = Field(default=0.0, description="value at the end; unused by constant")
    fraction: float = Field(
        default=1.0, gt=0, le=1, description="fraction of the run by which end is reached; unused by constant"
    )
    warmup: float = Field(
        default=0.0, ge=0, lt=1, description="fraction of the run spent rising linearly from 0 to start"
    )

    def __call__(self, progress: float) -> float:
        """Return the value at ``progress`` in [0, 1]; beyond the last point it holds."""
        if progress < self.warmup:
            return self.start * progress / self.warmup
        if self.kind == "constant":
            return self.start
        x = min(1.0, (progress - self.warmup) / (self.fraction - self.warmup))
        if self.kind == "linear":
            return self.start + (self.end - self.start) * x
        if self.kind == "cosine":
            return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * x))
        return self.start * (self.end / self.start) ** x

    def model_post_init(self, _: Any) -> None:
        """Check what single fields cannot."""
        if self.kind == "exponential" and min(self.start, self.end) <= 0:
            raise ValueError("start and end above 0 for an exponential schedule")
        if self.kind != "constant" and self.warmup >= self.fraction:
            raise ValueError("a warmup below fraction, by which end is reached")


def _from_number(value: Any) -> Any:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return {"kind": "constant", "start": value}
    return value


Annealed = Annotated[Schedule, BeforeValidator(_from_number)]  # a schedule, or a number that never changes
