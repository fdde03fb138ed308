from __future__ import annotations

import random
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore import statistics
from rlcore.errors import Diverged
from rlcore.statistics import bootstrap_ci, iqm, stratified_bootstrap_ci, summary


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
