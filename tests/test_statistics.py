from __future__ import annotations

import random
import subprocess
import sys
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, trim_mean

from rlcore import statistics
from rlcore.errors import Diverged
from rlcore.statistics import (
    Estimate,
    aggregates,
    bootstrap_ci,
    iqm,
    iqm_over_runs,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap_ci,
    summary,
)


def slow_iqm(values) -> float:
    ordered = sorted(np.ravel(values).tolist())
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


def slow_interval(strata: list[list[float]], seed: int, resamples: int) -> tuple[float, float]:
    """Resample every stratum by itself, pool, sort."""
    rng = random.Random(seed)
    means = sorted(slow_iqm([rng.choice(s) for s in strata for _ in s]) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]


def test_iqm_by_hand():
    assert iqm([1, 2, 3, 4]) == 2.5  # 2, 3
    assert iqm([100, 0, 1, 2, 3, 4, 5, -100]) == 2.5  # 1, 2, 3, 4
    assert iqm([5, 1, 3]) == 3.0  # three quarters of a value rounds down: nothing is cut
    assert iqm([0, 10, 20, 30, 1000]) == 20.0  # 10, 20, 30
    assert iqm([[1, 2], [3, 4]]) == 2.5  # over everything, not by column
    assert iqm([7]) == 7.0


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=40))
@settings(deadline=None)
def test_iqm_agrees_with_sorting(values):
    assert iqm(values) == pytest.approx(slow_iqm(values), rel=1e-14, abs=1e-12)


def test_summary_by_hand():
    found = summary([4.0, 2.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert list(found) == ["mean", "std", "iqm", "ci_low", "ci_high", "min", "max"]
    low, high = found.pop("ci_low"), found.pop("ci_high")
    assert found == {"mean": 5.0, "std": 2.0, "iqm": 4.5, "min": 2.0, "max": 9.0}
    assert 2.0 < low < 4.5 < high < 9.0
    assert (low, high) == bootstrap_ci([4.0, 2.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])


def test_interval_of_two_values_by_hand():
    # Resamples: (0, 0), (0, 1), (1, 0), (1, 1), a quarter each; nothing is trimmed: means 0, 1/2, 1.
    assert bootstrap_ci([0.0, 1.0]) == (0.0, 1.0)
    # One stratum each: only (0, 10), pooled mean 5, can be drawn.
    assert stratified_bootstrap_ci([[0.0, 10.0], [0.0, 10.0]]) == (5.0, 5.0)


def test_strata_are_drawn_separately():
    # Tasks of different scale: drawn together, a resample might hold more of one task than of the other.
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(10, 2)) + np.array([0.0, 100.0])
    low, high = stratified_bootstrap_ci(scores)
    together = bootstrap_ci(scores)
    assert high - low < 20 < together[1] - together[0]


def test_intervals_agree_with_a_slow_loop():
    rng = np.random.default_rng(1)
    skewed = rng.exponential(size=12)
    scores = rng.exponential(size=(7, 3)) * [1.0, 2.0, 4.0]
    for found, slow in (
        (bootstrap_ci(skewed), slow_interval([skewed.tolist()], 0, 20_000)),
        (stratified_bootstrap_ci(scores), slow_interval(scores.T.tolist(), 0, 20_000)),
    ):
        # Two Monte-Carlo estimates of the same quantiles: their distance is noise, small beside the width.
        assert np.abs(np.subtract(found, slow)).max() < 0.05 * (slow[1] - slow[0])


@pytest.mark.parametrize("sizes", [[2], [3], [100], [300], [7, 7, 7], [4, 60]])
def test_intervals_are_those_of_scipy(sizes, monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 150_000)  # of a few blocks, where sizes are large
    rng = np.random.default_rng(6)
    strata = [rng.normal(loc=100 * i, size=size) for i, size in enumerate(sizes)]

    def trimmed(*samples, axis):
        return trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)

    expected = bootstrap(
        strata, trimmed, n_resamples=10_000, batch=150_000 // sum(sizes), method="percentile", rng=5
    ).confidence_interval
    for _ in range(2):  # drawn, and as it is kept
        assert statistics._iqm_interval(strata, 5) == pytest.approx(tuple(expected), rel=1e-12, abs=1e-12)


def test_deterministic_and_seeded():
    x = np.random.default_rng(2).normal(size=30)
    np.random.seed(0)  # noqa: NPY002 - to see that nothing draws from it
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert bootstrap_ci(x, seed=3) == bootstrap_ci(x, seed=3) != bootstrap_ci(x, seed=4)
    assert summary(x, seed=3)["ci_low"] == bootstrap_ci(x, seed=3)[0]
    assert stratified_bootstrap_ci(x[:, None], seed=3) == bootstrap_ci(x, seed=3)  # one task: the same thing
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_many_values_take_little_time_and_memory():
    rng = np.random.default_rng(3)
    tracemalloc.start()
    start = time.process_time()
    low, high = bootstrap_ci(rng.normal(size=20_000))
    assert time.process_time() - start < 5  # 0.6 s; ten thousand resamples took ten times that
    assert tracemalloc.get_traced_memory()[1] < 200e6  # all resamples at once would be 320 MB and more
    tracemalloc.stop()
    assert -0.05 < low < high < 0.05


@pytest.mark.parametrize("strata", [1, 4])
def test_coverage(strata, monkeypatch):
    """The 95 % interval covers the true value in about 95 % of draws."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rng = np.random.default_rng(4)
    draws, covered = 400, 0
    for seed in range(draws):
        scores = rng.normal(5.0, 2.0, size=(40, strata))  # symmetric: the true interquartile mean is 5
        low, high = stratified_bootstrap_ci(scores, seed) if strata > 1 else bootstrap_ci(scores[:, 0], seed)
        covered += low <= 5.0 <= high
    # Binomial: 0.95 +- 3 standard deviations of 0.011, and a bootstrap of 40 values is a percent short.
    assert 0.91 < covered / draws < 0.985


@pytest.mark.parametrize("x", [[3.0], [0.1] * 7, [0.1] * 100, [-1e100, -1e100]])
def test_no_spread_gives_no_width(x):
    found = summary(x)
    assert found["ci_low"] == found["ci_high"] == pytest.approx(found["iqm"], rel=1e-15)
    assert found["min"] == found["max"] == x[0]


@pytest.mark.parametrize("function", [iqm, bootstrap_ci, summary, lambda x: stratified_bootstrap_ci([x, x])])
def test_what_has_no_statistics_is_refused(function):
    with pytest.raises(ValueError, match="no values"):
        function([])
    for bad in (np.nan, np.inf):
        with pytest.raises(Diverged, match=rf"value 1 of \d is {bad}"):
            function([1.0, bad])


def test_one_run_has_no_interval_over_runs():
    with pytest.raises(ValueError, match=r"\(1, 3\); expected \(runs, tasks\) with at least two runs"):
        stratified_bootstrap_ci([[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match=r"\(3,\); expected \(runs, tasks\)"):
        stratified_bootstrap_ci([1.0, 2.0, 3.0])


def test_importing_is_quick():
    code = "import sys, rlcore.statistics; assert 'scipy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What compares agents


def column(*values: float) -> np.ndarray:
    """Return scores (runs, 1)."""
    return np.array(values, dtype=float)[:, None]


def slow_profile(scores: np.ndarray, tau: float) -> float:
    every = [score for run in scores for score in run]
    return sum(score > tau for score in every) / len(every)


def slow_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Count pairs, task by task."""
    tasks = []
    for a, b in zip(x.T, y.T, strict=True):
        wins = [1.0 if i > j else 0.5 if i == j else 0.0 for i in a for j in b]
        tasks.append(sum(wins) / len(wins))
    return sum(tasks) / len(tasks)


def slow_ends(statistic, tables: list[np.ndarray], resamples: int = 4000) -> tuple[float, float]:
    """Draw every column of every table by itself."""
    rng = random.Random(0)
    drawn = [
        np.array([[rng.choice(c) for _ in c] for c in table.T.tolist()]).T for _ in range(resamples) for table in tables
    ]
    values = sorted(statistic(*drawn[i : i + len(tables)]) for i in range(0, len(drawn), len(tables)))
    return values[int(0.025 * resamples)], values[int(0.975 * resamples) - 1]


def test_a_curve_of_interquartile_means_by_hand():
    values = np.array([[0.0, 5, 1], [1, 5, 2], [2, 5, 9], [50, 5, 3]])
    found = iqm_over_runs(values)
    assert found.value.tolist() == [1.5, 5.0, 2.5]  # without the lowest and the highest run of each point
    assert (found.low[1], found.high[1]) == (5.0, 5.0)
    for point in range(3):  # whole runs are drawn: each point has the interval that it has by itself
        assert (found.low[point], found.high[point]) == bootstrap_ci(values[:, point])


def test_a_performance_profile_by_hand():
    found = performance_profile(column(1, 2, 2, 4), [0.5, 1, 2, 3, 4])
    assert found.value.tolist() == [1.0, 0.75, 0.25, 0.25, 0.0]  # what equals tau is not above it
    assert (found.low[0], found.high[0], found.low[-1], found.high[-1]) == (1.0, 1.0, 0.0, 0.0)
    two = performance_profile(column(0, 1), [0.5])  # resamples: none above in a quarter, both in a quarter
    assert [float(part[0]) for part in two] == [0.5, 0.0, 1.0]
    tasks = performance_profile([[0.0, 10.0], [0.0, 10.0]], [5.0])  # strata: one of two tasks is always above
    assert [float(part[0]) for part in tasks] == [0.5, 0.5, 0.5]


def test_a_probability_of_improvement_by_hand():
    # Pairs: 3 > 2, 3 > 1, 1 < 2, 1 = 1.
    assert probability_of_improvement(column(3, 1), column(2, 1)).value == 2.5 / 4
    # Of two tasks the mean of 2.5 / 4 and, 0 < 7 everywhere, 0.
    assert probability_of_improvement([[3, 0], [1, 0]], [[2, 7], [1, 7]]).value == 2.5 / 8
    assert [*map(float, probability_of_improvement(column(5, 6, 7), column(1, 2)))] == [1.0, 1.0, 1.0]
    # x is 0, 0 in a quarter of the resamples, 2, 2 in another: of y = 1 that is P = 0, 1 / 2 or 1.
    assert [*map(float, probability_of_improvement(column(0, 2), column(1, 1)))] == [0.5, 0.0, 1.0]


def test_aggregates_by_hand():
    scores = np.array([[0.0, 1, 8], [2, 3, 8], [4, 2, 8], [6, 2, 8]])
    found = {name: float(estimate.value) for name, estimate in aggregates(scores, target=5).items()}
    # Means of the tasks: 3, 2, 8. Shortfalls from 5: 5, 3, 1, 0; 4, 2, 3, 3; none.
    assert found == {
        "IQM": pytest.approx(slow_iqm(scores)),
        "median": 3.0,
        "mean": pytest.approx(13 / 3),
        "optimality gap": pytest.approx(21 / 12),
    }
    one = aggregates(column(1, 2, 3, 10), target=10)
    assert (one["median"].value, one["mean"].value, one["optimality gap"].value) == (2.5, 4.0, 6.0)
    gap, mean = one["optimality gap"], one["mean"]  # nothing exceeds the target: the one mirrors the other
    assert (gap.low, gap.high) == pytest.approx((10 - mean.high, 10 - mean.low))
    assert (one["IQM"].low, one["IQM"].high) == stratified_bootstrap_ci(column(1, 2, 3, 10))


@pytest.mark.parametrize(
    "estimate",
    [
        iqm_over_runs([[1.0, 2.0]]),
        aggregates([[1.0, 2.0]], 3)["IQM"],
        performance_profile([[1.0, 2.0]], [0.0, 1.5]),
        probability_of_improvement([[1.0], [2.0]], [[1.0]]),
    ],
)
def test_of_one_run_there_is_a_value_and_no_interval(estimate: Estimate):
    assert np.isfinite(estimate.value).all()
    assert np.isnan(estimate.low).all() and np.isnan(estimate.high).all()


def test_intervals_of_comparisons_agree_with_slow_loops():
    rng = np.random.default_rng(5)
    x, y = rng.exponential(size=(9, 2)).round(1), (rng.exponential(size=(7, 2)) + 0.3).round(1)
    gap = aggregates(x, 1.0)["optimality gap"]
    for found, statistic, tables in (
        (performance_profile(x, [1.0]), lambda a: slow_profile(a, 1.0), [x]),
        (probability_of_improvement(x, y), slow_improvement, [x, y]),
        (gap, lambda a: float(np.mean([max(0.0, 1 - v) for v in a.ravel()])), [x]),
        (aggregates(x, 1.0)["median"], lambda a: float(np.median(a.mean(0))), [x]),
    ):
        value, low, high = (float(np.squeeze(part)) for part in found)
        assert value == pytest.approx(statistic(*tables))
        slow = slow_ends(statistic, tables)
        assert np.abs(np.subtract((low, high), slow)).max() < 0.06 * (slow[1] - slow[0])


tables = st.integers(1, 3).flatmap(
    lambda tasks: st.lists(st.lists(st.integers(-4, 4), min_size=tasks, max_size=tasks), min_size=1, max_size=6)
)


@given(tables, st.data())
@settings(deadline=None, max_examples=60)
def test_properties_of_comparisons(x, data):
    y = data.draw(
        st.lists(st.lists(st.integers(-4, 4), min_size=len(x[0]), max_size=len(x[0])), min_size=1, max_size=6)
    )
    first, second = np.array(x, float), np.array(y, float)
    forth, back = (float(probability_of_improvement(*pair).value) for pair in ((first, second), (second, first)))
    assert forth == pytest.approx(slow_improvement(first, second)) and forth + back == pytest.approx(1)
    assert float(probability_of_improvement(first**3 + 1, second**3 + 1).value) == pytest.approx(forth)  # ranks only
    taus = np.arange(-5.0, 6.0)
    profile = performance_profile(first, taus)
    assert profile.value.tolist() == pytest.approx([slow_profile(first, tau) for tau in taus])
    assert (np.diff(profile.value) <= 0).all() and profile.value[0] == 1 and profile.value[-1] == 0
    if len(x) > 1:  # the ends are profiles too
        for end in (profile.low, profile.high):
            assert (np.diff(end) <= 1e-12).all() and (end >= 0).all() and (end <= 1).all()
    # The mean score is the area under the profile: here of steps of one, from -5 on.
    assert first.mean() == pytest.approx(-5 + profile.value.sum())


def test_tables_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\); expected \(runs, tasks\)"):
        performance_profile([1.0, 2.0, 3.0], [0.0])
    with pytest.raises(ValueError, match="of 2 and 1 tasks; expected the same tasks"):
        probability_of_improvement([[1.0, 2.0]], [[1.0]])
    with pytest.raises(Diverged, match="value 1 of 2 is nan"):
        aggregates([[1.0], [np.nan]], 0)


# rliable, the code of the paper


@pytest.fixture(scope="module")
def rliable() -> SimpleNamespace:
    from pandas.util import _decorators

    with pytest.MonkeyPatch.context() as patch:
        # The newest arch that rliable takes marks an argument of a plot, not used here, as pandas 2 had it.
        patch.setattr(_decorators, "deprecate_kwarg", lambda *_, **__: lambda function: function)
        from rliable import library, metrics
    return SimpleNamespace(intervals=library, metrics=metrics)


NAMES = ("IQM", "median", "mean", "optimality gap")


def their_aggregates(metrics):
    return lambda x: np.array(
        [
            metrics.aggregate_iqm(x),
            metrics.aggregate_median(x),
            metrics.aggregate_mean(x),
            metrics.aggregate_optimality_gap(x, 0.9),
        ]
    )


def test_aggregates_and_intervals_agree_with_rliable_to_three_digits(rliable, monkeypatch):
    """Both draw for themselves. The 2.5th percentile of B draws of standard deviation s has an error of

    sqrt(0.025 * 0.975 / B) / 0.058 s: 2e-4 for both together where s < 0.01, with B of 20,000 and 50,000.
    """
    monkeypatch.setattr(statistics, "RESAMPLES", 50_000)
    scores = np.linspace(0.2, 1.3, 26) + 0.05 * np.random.default_rng(6).normal(size=(10, 26))
    state = np.random.get_state()  # noqa: NPY002 - rliable draws from it
    np.random.seed(0)  # noqa: NPY002
    values, ends = rliable.intervals.get_interval_estimates(
        {"x": scores}, their_aggregates(rliable.metrics), reps=20_000
    )
    np.random.set_state(state)  # noqa: NPY002
    ours = aggregates(scores, target=0.9)
    for i, name in enumerate(NAMES):
        assert float(ours[name].value) == pytest.approx(values["x"][i], abs=1e-12)
        assert (ours[name].low, ours[name].high) == pytest.approx(tuple(ends["x"][:, i]), abs=5e-4)
        assert ours[name].high - ours[name].low > 0.009  # or three digits would say nothing
    both = float(ours["IQM"].low), float(ours["IQM"].high)
    assert stratified_bootstrap_ci(scores) == pytest.approx(both, rel=1e-12)


def drawn_runs(samples, strata) -> np.ndarray:
    """Return which runs (resamples, runs, tasks) of strata of distinct scores were drawn."""
    found = []
    for sample, stratum in zip(samples, strata, strict=True):
        order = np.argsort(stratum)
        found.append(order[np.searchsorted(stratum[order], sample)])
    return np.stack(found, axis=-1)


def test_every_interval_is_rliables_of_the_same_resamples(rliable, monkeypatch):
    """Ours draws, rliable is handed the same runs: what is left to differ is the statistics and the percentiles."""
    import scipy.stats

    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng, bootstrap = np.random.default_rng(7), scipy.stats.bootstrap
    x, y = rng.normal(0.7, 0.2, size=(8, 3)), rng.normal(0.6, 0.3, size=(6, 3))
    taus = np.linspace(0.2, 1.2, 5)
    drawn: list[tuple[np.ndarray, ...]] = []

    def recorded(strata, statistic, **options):
        def tell(*samples, axis):
            drawn.append(samples)
            return statistic(*samples, axis=axis)

        return bootstrap(strata, tell, **options)

    def theirs(function, *tables):
        """Return rliable's estimate and interval (3, ...) over the runs that were drawn last."""
        columns = [column for table in tables for column in table.T]
        runs = [drawn_runs(drawn[-1][i : i + 3], columns[i : i + 3]) for i in range(0, len(columns), 3)]
        handed = iter([index for resample in zip(*runs, strict=True) for index in resample])
        scores = tables[0] if len(tables) == 1 else list(tables)
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "choice", lambda *_, **__: next(handed))
            value, ends = rliable.intervals.get_interval_estimates({"x": scores}, function, reps=400)
        assert next(handed, None) is None
        return pytest.approx(np.vstack([value["x"], ends["x"]]), abs=1e-12)

    monkeypatch.setattr(scipy.stats, "bootstrap", recorded)
    profile, ours = performance_profile(x, taus), aggregates(x, 0.9)  # one seed, so of the same runs
    assert np.array([ours[name] for name in NAMES]).T.tolist() == theirs(their_aggregates(rliable.metrics), x)
    assert np.array(profile).tolist() == theirs(lambda scores: rliable.intervals.score_distributions(scores, taus), x)
    found = np.array(probability_of_improvement(x, y))[:, None]
    their = rliable.metrics.probability_of_improvement
    assert found.tolist() == theirs(lambda a, b: np.array([their(a, b)]), x, y)


def test_ties_count_a_half_as_in_rliable(rliable):
    rng = np.random.default_rng(8)
    for _ in range(20):
        x, y = rng.integers(0, 4, size=(5, 2)).astype(float), rng.integers(0, 4, size=(7, 2)).astype(float)
        theirs = rliable.metrics.probability_of_improvement(x, y)
        assert float(probability_of_improvement(x, y).value) == pytest.approx(theirs)
