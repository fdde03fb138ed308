"""The mathematics of a search: what a trial is worth, and whether it is worth going on with. Pure functions.

A trial trains several seeds, one after another; its value is the interquartile mean of

    frames_to, seconds_to   frames or training seconds until the run's stop rule was met; twice the whole budget
                            (or time) of a run that never met it: penalised average runtime, PAR2
    final/NAME              a number of the final evaluation, such as mean, accuracy or loss

Pruning is the median rule of Golovin et al. (2017), "Google Vizier", section 3.2, on running averages a: at step t a
trial with the intermediate evaluations v ends if

    a_t < median over finished trials of their a_t,    a_t = 1/t sum_{s <= t} v_s      (> where small is better)

A step is one evaluation: run i of a trial has the steps i K + 1 .. i K + K, K = budget / eval.every. A run that ended
early, having reached its threshold, counts with its last evaluation at the steps that it did not need.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlcore.config import Config
from rlcore.errors import UserError, nearest
from rlcore.statistics import iqm, stratified_bootstrap_ci

PRUNED = "pruned"  # how the reason begins why a run of a pruned trial stopped
STARTUP = 5  # trials that finish before any is pruned
WARM_UP = 0.2  # of the first run's budget, in which none is pruned: all that is seen there is noise
_UNTIL = {"frames_to": "frames", "seconds_to": "train_seconds"}


@dataclass(frozen=True)
class Objective:
    """What is sought: a number, and whether its largest value is best."""

    name: str
    maximize: bool

    def of_run(self, result: Mapping[str, Any], budget: int) -> float:
        """Return what one run is worth, by its result.json.

        Raises:
            UserError: the evaluation has no such number, or it is not finite.
        """
        if self.name in _UNTIL:
            spent = float(result[_UNTIL[self.name]])
            if "stopped" in result:
                return spent
            return 2.0 * (budget if self.name == "frames_to" else spent)
        name, evaluation = self.name.removeprefix("final/"), result["evaluation"]
        value = evaluation.get(name)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            known = {k for k, v in evaluation.items() if isinstance(v, (int, float))}
            if name in evaluation and (value is None or isinstance(value, float)):
                raise UserError(f"--metric {self.name}: is not finite in the final evaluation; expected a number")
            raise UserError(f"--metric: '{name}' is not evaluated{nearest(name, known)}")
        return float(value)


def objective(metric: str, config: Config[Any], direction: str = "") -> Objective:
    """Return the objective of a name; ``direction``: max or min, default: as the name implies.

    Raises:
        UserError: it is not known, or needs a threshold that the settings lack.
    """
    metric = "final/mean" if metric == "final" else metric
    if metric not in _UNTIL and not (metric.startswith("final/") and metric != "final/"):
        raise UserError(f"--metric: got '{metric}', expected frames_to, seconds_to, final or final/NAME")
    if metric in _UNTIL and (not config.stop.metric or config.stop.threshold is None):
        raise UserError(
            f"--metric {metric}: the recipe stops at no threshold; expected --stop.metric=NAME --stop.threshold=X"
        )
    implied = "max" if metric.startswith("final/") else "min"
    if metric == f"final/{config.eval.best}":
        implied = config.eval.best_mode
    return Objective(metric, (direction or implied) == "max")


def watched(objective: Objective, config: Config[Any]) -> tuple[str, int]:
    """Return the logged number that pruning looks at, and the sign, 1 or -1, that makes it as good as the objective."""
    stops = objective.name in _UNTIL
    name, mode = (config.stop.metric, config.stop.mode) if stops else ("", config.eval.best_mode)
    return name or f"eval/{config.eval.best}", 1 if (mode == "max") == objective.maximize else -1


def total(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the interquartile mean over seeds and its 95 % bootstrap interval (as wide as nothing for one seed)."""
    low, high = stratified_bootstrap_ci([[value] for value in values]) if len(values) > 1 else (values[0], values[0])
    return iqm(values), low, high


def step_of(frames: int, run: int, every: int, budget: int) -> int:
    """Return the step of an evaluation at ``frames`` of a trial's run number ``run`` (from 0)."""
    per_run = max(1, budget // every)
    return run * per_run + min(max(1, frames // every), per_run)


def running_average(curve: Mapping[int, float], step: int, per_run: int) -> float:
    """Return the mean of a trial's evaluations at steps 1 .. ``step``; NaN: there are none.

    A step without an evaluation counts with the last one before it of the same run.
    """
    values, last = [], math.nan
    for t in range(1, step + 1):
        if (t - 1) % per_run == 0:
            last = math.nan
        last = curve.get(t, last)
        values.append(last)
    seen = [value for value in values if not math.isnan(value)]
    return sum(seen) / len(seen) if seen else math.nan


def hopeless(curve: Mapping[int, float], others: Sequence[Mapping[int, float]], per_run: int, maximize: bool) -> bool:
    """Whether the median rule ends a trial with these evaluations by step, given those of the finished trials."""
    if not curve or len(others) < STARTUP or max(curve) < WARM_UP * per_run:
        return False
    step, sign = max(curve), 1 if maximize else -1
    averages = [sign * running_average(other, step, per_run) for other in others]
    averages = [value for value in averages if not math.isnan(value)]
    return bool(averages) and sign * running_average(curve, step, per_run) < statistics.median(averages)
