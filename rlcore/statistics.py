"""Numbers to trust: interquartile means and what compares agents, with bootstrap intervals.

Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
https://arxiv.org/abs/2108.13264. With the score x_{mn} of run n of N on task m of M:

    performance profile          F(tau) = 1 / (M N) sum_{m, n} 1[x_{mn} > tau]
    probability of improvement   P(X > Y) = 1 / M sum_m 1 / (N K) sum_{n, k} S(x_{mn}, y_{mk}),
                                 S(x, y) = 1 for x > y, 1 / 2 for x = y, 0 for x < y
    optimality gap               gamma - 1 / (M N) sum_{m, n} min(x_{mn}, gamma)

An interval is the 2.5th to the 97.5th percentile of the statistic over resamples that draw runs with replacement
within each task (the strata). For the interquartile mean of n values x_(1) <= ... <= x_(n) no resample need be sorted:
with c_j of its draws up to x_(j), and k = floor(n / 4),

    IQM = x_(1) + 1 / (n - 2k) sum_j (x_(j) - x_(1)) (clip(c_j, k, n - k) - clip(c_{j-1}, k, n - k))

scipy.stats takes most of a second to import, so the functions import it when they run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rlcore.errors import Diverged

RESAMPLES = 10_000  # fewer, but at least a tenth, beyond a thousand values
BLOCK = 1_000_000  # numbers of resamples made at once, which bounds the memory


class Estimate(NamedTuple):
    """A statistic and the ends of its 95 % interval, of one shape; the ends are NaN where a task has one run."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def iqm(x: ArrayLike) -> float:
    """Return the interquartile mean of all of ``x``: the mean without the floor(n / 4) lowest and highest values.

    Raises:
        ValueError: ``x`` is empty.
        Diverged: a value is not finite.
    """
    return float(_pooled_iqm(_finite(x).ravel(), axis=0))


def bootstrap_ci(x: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the interquartile mean of ``x`` (episodes,).

    It says how far another sample of episodes of this one agent might lie, nothing about other training
    seeds. One value gives an interval of zero width.

    Raises:
        ValueError, Diverged: as `iqm`.
    """
    values = _finite(x).ravel()
    if len(values) == 1:
        return float(values[0]), float(values[0])
    return _iqm_interval([values], seed)


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
    return _iqm_interval(list(table.T), seed)


def iqm_over_runs(values: ArrayLike, seed: int = 0) -> Estimate:
    """Return the interquartile mean over runs of ``values`` (runs, T) at each of T points, such as a curve's.

    A resample draws whole runs, the same at every point.

    Raises:
        ValueError, Diverged: as `iqm`.
    """
    return _estimate([_table(values).T], _pooled_iqm, seed)


def aggregates(scores: ArrayLike, target: float, seed: int = 0) -> dict[str, Estimate]:
    """Return "IQM", "median", "mean" and "optimality gap" of ``scores`` (runs, tasks).

    The median is over tasks, of the mean over runs; of one task, where that would be the mean, over runs.

    Args:
        target: gamma, the score that is wished for; what exceeds it counts as no more.

    Raises:
        ValueError, Diverged: as `iqm`.
    """
    strata = list(_table(scores).T)

    def mean(*samples: np.ndarray, axis: int) -> np.ndarray:
        return np.concatenate(samples, axis=axis).mean(axis)

    def median(*samples: np.ndarray, axis: int) -> np.ndarray:
        if len(samples) == 1:
            return np.median(samples[0], axis=axis)
        return np.median([sample.mean(axis) for sample in samples], axis=0)

    def gap(*samples: np.ndarray, axis: int) -> np.ndarray:
        return target - np.minimum(np.concatenate(samples, axis=axis), target).mean(axis)

    statistics = {"IQM": _pooled_iqm, "median": median, "mean": mean, "optimality gap": gap}
    return {name: _estimate(strata, statistic, seed) for name, statistic in statistics.items()}


def performance_profile(scores: ArrayLike, taus: ArrayLike, seed: int = 0) -> Estimate:
    """Return the fraction F(tau) of the ``scores`` (runs, tasks) above each of ``taus`` (T,).

    Raises:
        ValueError, Diverged: as `iqm`.
    """
    above = _table(scores)[..., None] > np.asarray(taus, dtype=np.float64)  # (N, M, T)

    def fraction(*samples: np.ndarray, axis: int) -> np.ndarray:
        return np.concatenate(samples, axis=axis).mean(axis)

    return _estimate(list(above.astype(np.float64).transpose(1, 2, 0)), fraction, seed)


def probability_of_improvement(x: ArrayLike, y: ArrayLike, seed: int = 0) -> Estimate:
    """Return P(X > Y), that a run of X outdoes one of Y on a task, for ``x`` (N, M) and ``y`` (K, M) on M tasks.

    This is the statistic of Mann and Whitney over N K; runs of X and of Y are drawn independently.

    Raises:
        ValueError, Diverged: as `iqm`, or there are different tasks.
    """
    first, second = _table(x), _table(y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"scores are of {first.shape[1]} and {second.shape[1]} tasks; expected the same tasks")
    tasks = first.shape[1]

    def superiority(*samples: np.ndarray, axis: int) -> np.ndarray:
        pairs = [(a[..., :, None], b[..., None, :]) for a, b in zip(samples[:tasks], samples[tasks:], strict=True)]
        return np.mean([((a > b) + 0.5 * (a == b)).mean((-2, -1)) for a, b in pairs], axis=0)

    return _estimate([*first.T, *second.T], superiority, seed, size=len(first) * len(second) * tasks)


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


def _table(scores: Any) -> np.ndarray:
    table = _finite(scores)
    if table.ndim != 2:
        raise ValueError(f"scores have the shape {table.shape}; expected (runs, tasks)")
    return table


def _pooled_iqm(*samples: np.ndarray, axis: int) -> np.ndarray:
    values = np.concatenate(samples, axis=axis)
    n = values.shape[axis]
    cut = n // 4
    return np.partition(values, (cut, n - cut - 1), axis=axis).take(range(cut, n - cut), axis=axis).mean(axis)


def _iqm_interval(strata: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    """Return what `_interval` does of the interquartile mean of strata (runs,), pooled, at a fortieth of its time."""
    values = np.concatenate(strata)
    sizes, n = tuple(map(len, strata)), len(values)
    order, cut, resamples = np.argsort(values), n // 4, _resamples(n)
    lowest = values[order[0]]
    few = n * resamples <= BLOCK  # as evaluations have, which draw the same each time
    iqms = []
    for drawn in (_kept if few else _drawn)(sizes, resamples, seed):
        upto = drawn[order]  # (n, b), becomes c_j
        for j in range(1, n):
            upto[j] += upto[j - 1]
        inner = upto.clip(cut, n - cut)
        inner[1:] -= inner[:-1].copy()
        inner[0] -= cut
        iqms.append(lowest + np.einsum("n,nb->b", values[order] - lowest, inner) / (n - 2 * cut))
    low, high = np.percentile(np.concatenate(iqms), [2.5, 97.5])
    return float(low), float(high)


def _drawn(sizes: tuple[int, ...], resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each run of strata of these sizes is in each resample, (runs, b) a block."""
    rng, runs = np.random.default_rng(seed), sum(sizes)
    block = max(1, BLOCK // runs)
    for start in range(0, resamples, block):
        b = min(block, resamples - start)
        counts = []
        for size in sizes:  # the order in which scipy.stats.bootstrap draws
            index = rng.integers(0, size, (b, size)) + size * np.arange(b)[:, None]
            counts.append(np.bincount(index.ravel(), minlength=b * size).reshape(b, size).T)
        yield np.ascontiguousarray(np.concatenate(counts), np.min_scalar_type(runs))


@functools.lru_cache(maxsize=8)
def _kept(sizes: tuple[int, ...], resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    return tuple(_drawn(sizes, resamples, seed))


def _resamples(size: int) -> int:
    """Return how many resamples of so many numbers are drawn, which bounds the time."""
    return max(RESAMPLES // 10, min(RESAMPLES, RESAMPLES * 1000 // size))


def _estimate(strata: list[np.ndarray], statistic: Callable[..., Any], seed: int, size: int | None = None) -> Estimate:
    """Return a statistic of strata (..., runs) and its interval."""
    value = np.asarray(statistic(*strata, axis=-1))
    if min(stratum.shape[-1] for stratum in strata) < 2:
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    return Estimate(value, *_interval(strata, statistic, seed, size))


def _interval(
    strata: list[np.ndarray], statistic: Callable[..., Any], seed: int, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile bootstrap interval of a statistic of strata (..., runs) that gives (...).

    ``size``: how many numbers one resample makes, by default those of the strata.
    """
    from scipy.stats import bootstrap

    size = size or sum(stratum.size for stratum in strata)
    interval = bootstrap(
        strata,
        statistic,
        n_resamples=_resamples(size),
        batch=max(1, BLOCK // size),
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)
