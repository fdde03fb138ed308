"""The benchmark of environment steps."""

from __future__ import annotations

import pytest

from rlcore.benchmark import main
from rlcore.speed import envs


def test_every_contender_is_measured_against_ours() -> None:
    rows = envs.measure(ids=("CartPole-v1", "PixelBreakout-v0"), num_envs=(2,), repeats=3, turn=0.001)
    names = [(row["env"], row["by"]) for row in rows if row["by"] != "EnvPool"]
    assert names == [
        ("CartPole-v1", "ours"),
        ("CartPole-v1", "gymnasium, batched"),
        ("CartPole-v1", "gymnasium, one by one"),
        ("PixelBreakout-v0", "ours"),
        ("PixelBreakout-v0", "MinAtar, as hosted"),
    ]
    for row in rows:
        assert 0 < row["from"] <= row["us"] <= row["to"]
        assert row["steps_per_second"] == pytest.approx(2e6 / row["us"])
        assert row["by"] != "ours" or row["ratio"] == 1


def test_times_are_of_a_step_and_compared_turn_by_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def step(seconds: float) -> None:
        nonlocal now
        now += seconds

    def contenders(*_: object) -> dict[str, object]:
        return {"ours": (step, [1e-4] * 32), "slow": (step, [4e-4] * 32)}

    monkeypatch.setattr(envs, "_contenders", contenders)
    monkeypatch.setattr(envs.time, "perf_counter", lambda: now)
    ours, slow = envs.measure(ids=("CartPole-v1",), num_envs=(64,), repeats=5)
    assert [ours["us"], slow["us"], slow["ratio"]] == pytest.approx([100, 400, 4])
    assert slow["steps_per_second"] == pytest.approx(64 / 4e-4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["envs", "--ids", "CartPol-v1"], "--ids: 'CartPol-v1' is no native environment; did you mean 'CartPole-v1'"),
        (["envs", "--num-envs", "8,none"], "--num-envs: 'none' is not a whole number above 0"),
    ],
)
def test_bad_options_are_named(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert sentence in capsys.readouterr().err
