"""Numbers to trust: interquartile means with bootstrap intervals, after Agarwal et al. (2021).

"Deep Reinforcement Learning at the Edge of the Statistical Precipice", https://arxiv.org/abs/2108.13264.
scipy.stats takes most of a second to import, so the functions import it when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlcore.errors import Diverged

RESAMPLES = 10_000  # fewer, but at least a tenth, beyond a thousand values


def iqm(x: ArrayLike) -> float:
    """Return the interquartile mean of all of ``x``: the mean without the floor(n / 4) lowest and highest values.

    Raises:
        ValueError: ``x`` is empty.
        Diverged: a value is not finite.
    """
    from scipy.stats import trim_mean

    return float(trim_mean(_finite(x).ravel(), 0.25))


def bootstrap_ci(x: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the interquartile mean of ``x`` (episodes,).

    It says how far another sample of episodes of this one agent might lie, nothing about other training
    seeds. One value gives an interval of zero width.

    Raises:
        ValueError, Diverged: as `iqm`.
    """
    values = _finite(x).ravel()
    return _interval([values], seed) if len(values) > 1 else (float(values[0]), float(values[0]))


def stratified_bootstrap_ci(scores: Sequence[ArrayLike] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the interquartile mean over runs and tasks, for `iqm` of the same scores.

    Runs are drawn with replacement within each task (the stratum), independently of the other tasks, so
    the interval speaks of training again with other seeds on these tasks.

    Args:
        scores: (runs, tasks): one score for each run on each task, its mean evaluation return.
        seed: of the resampling.

    Raises:
        ValueError: fewer than two runs (they have no spread: `bootstrap_ci` gives the interval over
            episodes), or runs of different tasks.
        Diverged: as `iqm`.
    """
    table = _finite(scores)
    if table.ndim != 2 or len(table) < 2:
        raise ValueError(f"scores have the shape {table.shape}; expected (runs, tasks) with at least two runs")
    return _interval(list(table.T), seed)


def mean_interval(x: ArrayLike) -> tuple[float, float, float]:
    """Return the mean of ``x`` (n,) and Student's 95 % interval of it, mean -+ t_{0.975, n - 1} s / sqrt(n).

    NaN where a value is NaN, infinite or the only one.
    """
    from scipy.stats import t

    values = np.asarray(x, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    if n < 2 or not np.isfinite(values).all():
        return mean, float("nan"), float("nan")
    reach = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)
    return mean, mean - reach, mean + reach


def summary(returns: ArrayLike, seed: int = 0) -> dict[str, float]:
    """Return mean, std (of the population), iqm, ci_low, ci_high (of `bootstrap_ci`), min and max of ``returns``.

    Raises:
        ValueError, Diverged: as `iqm`.
    """
    values = _finite(returns).ravel()
    low, high = bootstrap_ci(values, seed)
    numbers = {"mean": values.mean(), "std": values.std(), "iqm": iqm(values), "ci_low": low, "ci_high": high}
    return {name: float(value) for name, value in {**numbers, "min": values.min(), "max": values.max()}.items()}


def _finite(x: Any) -> np.ndarray:
    values = np.asarray(x, dtype=np.float64)
    if not values.size:
        raise ValueError("there are no values to average; expected at least one")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise Diverged(f"value {bad[0]} of {values.size} is {values.ravel()[bad[0]]}; expected finite returns")
    return values


def _interval(strata: list[np.ndarray], seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the interquartile mean of all strata together."""
    from scipy.stats import bootstrap, trim_mean

    def pooled(*samples: np.ndarray, axis: int) -> np.ndarray:
        return trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)

    size = sum(map(len, strata))
    interval = bootstrap(
        strata,
        pooled,
        n_resamples=max(RESAMPLES // 10, min(RESAMPLES, RESAMPLES * 1000 // size)),  # bounds the time
        batch=max(1, 1_000_000 // size),  # bounds the memory
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
