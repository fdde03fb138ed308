"""Ending early, and which checkpoint counts: thresholds, patience, the best by any metric, resumed in the middle."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import rlcore
from rlcore import build, checkpoint
from rlcore import config as configs
from rlcore.callbacks import Stop
from rlcore.config import StopConfig
from rlcore.errors import UserError
from rlcore.run import Run
from rlcore.testing.agents import first_difference
from rlcore.trainer import Trainer

# Learns nothing that shows; an evaluation every 500 examples.
STILL: dict[str, Any] = {"optim.lr": 1e-30, "optim.momentum": 0.0, "eval.every": 500, "log.every": 250}


@pytest.fixture
def trainer() -> Trainer:
    return build.trainer(configs.validate(configs.read("line")))


def looks(trainer: Trainer, stop: Stop, values: list[float]) -> int:
    """Show a Stop these numbers, one a time; return at which, from 1, it ended the run, or 0."""
    for i, value in enumerate(values, 1):
        trainer.row = {"eval/loss": value}
        stop.maybe(trainer)
        trainer.row = {"train/loss": 0.0}  # rows in between do not hold the number
        if stop.config.metric.startswith("train/"):
            stop.maybe(trainer)
        if trainer.stopping:
            return i
    return 0


@pytest.mark.parametrize(
    ("options", "values", "ended", "why"),
    [
        ({"patience": 2}, [3, 2, 2, 2], 4, "has not improved on 2 for 2 looks"),
        ({"patience": 2}, [3, 2, 2, 1, 1, 0, 0], 0, ""),
        ({"patience": 1}, [1, 2], 2, "has not improved on 1 for 1 looks"),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.5, 9], 3, "has not improved on 3 for 2 looks"),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.4, 2.3, 1.8], 0, ""),
        ({"patience": 2, "mode": "max"}, [1, 2, 2, 3, 2, 3], 6, "has not improved on 3 for 2 looks"),
        ({"threshold": 1.0}, [3, 1.1, 1.0, 0.5], 3, "reached 1"),
        ({"threshold": 1.0, "mode": "max"}, [0.0, 0.9, 1.5], 3, "reached 1.5"),
        ({"threshold": 0.0, "patience": 1}, [3, 2, 2], 3, "has not improved on 2 for 1 looks"),
        ({"threshold": 0.0, "patience": 1}, [3, 0], 2, "reached 0"),
        ({"patience": 2}, [float("nan"), 2, 1, 1, float("nan")], 5, "has not improved on 1 for 2 looks"),
    ],
)
def test_when_it_ends_by_hand(
    trainer: Trainer, options: dict[str, Any], values: list[float], ended: int, why: str
) -> None:
    stop = Stop(StopConfig(**{"metric": "eval/loss", "mode": "min", **options}))
    assert looks(trainer, stop, values) == ended
    assert trainer.stopping == (f"eval/loss {why}" if why else None)


def test_patience_is_remembered_for_the_same_metric_only(trainer: Trainer) -> None:
    config = StopConfig(metric="eval/loss", mode="min", patience=2)
    before, same, other = Stop(config), Stop(config), Stop(StopConfig(metric="eval/loss", mode="max", patience=2))
    assert looks(trainer, before, [3, 3]) == 0
    for stop in (same, other):
        stop.load_state_dict(before.state_dict())
    assert looks(trainer, other, [2]) == 0
    assert looks(trainer, same, [3]) == 1


def rows(run: Run) -> list[dict[str, str]]:
    with (run.path / "progress.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_ends_when_its_loss_is_low_enough(tmp_path: Path) -> None:
    goal: Any = {"stop.metric": "train/loss", "stop.mode": "min", "stop.threshold": 0.05}
    run = rlcore.train("line", out=tmp_path / "run", **goal)
    losses = [float(row["train/loss"]) for row in rows(run)]
    assert losses[-1] <= 0.05 < min(losses[:-1])
    assert run.result["stopped"] == f"train/loss reached {losses[-1]:.6g}"
    assert run.result["frames"] < run.config.budget.frames


def test_a_loss_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    small: Any = {
        "agent.network.kwargs.hidden": [8],
        "source.learning_starts": 300,
        "source.batch_size": 8,
        "log.every": 50,
    }
    goal: Any = {
        "stop": {"metric": "train/loss", "mode": "min", "threshold": 1e9},
        "eval": {"every": 0, "final_episodes": 1},
    }
    run = rlcore.train("cartpole_dqn", out=tmp_path / "run", **small, **goal, budget={"frames": 2000})
    assert 300 <= run.result["frames"] < 2000
    with pytest.raises(UserError, match=r"^stop\.metric: 'train/los' is not logged; did you mean 'train/loss'\?$"):
        rlcore.train("line", out=tmp_path / "wrong", stop={"metric": "train/los", "threshold": 0})


def test_a_run_that_no_longer_improves_ends_and_keeps_its_best(tmp_path: Path) -> None:
    goal: Any = {"stop.metric": "eval/rmse", "stop.mode": "min", "stop.patience": 3, "stop.min_delta": 1e-3}
    best: Any = {"eval.best": "rmse", "eval.best_mode": "min"}
    lr: Any = {"optim.lr": 0.2, "optim.momentum": 0.0, "optim.schedule": {"kind": "constant"}, "eval.every": 500}
    run = rlcore.train("line", out=tmp_path / "run", **lr, **goal, **best)
    scores = [float(row["eval/rmse"]) for row in rows(run) if row["eval/rmse"]]
    low = [min(scores[: i + 1]) for i in range(len(scores))]
    assert "has not improved" in run.result["stopped"]
    assert len(scores) < 35000 / 500
    assert all(score > low[-4] - 1e-3 for score in scores[-3:]), "no improvement in the last three"
    saved = checkpoint.load(tmp_path / "run" / "checkpoints" / "best")
    assert saved.state["best"] == min(scores)
    assert min(scores) < scores[-1], "for the next assertions, the last is not the best"
    assert run.result["evaluation"]["rmse"] == rlcore.evaluate(run.path)["rmse"] == run.evaluate()["rmse"]
    assert rlcore.evaluate(run.path, which="best")["rmse"] != run.result["evaluation"]["rmse"]

    chosen = rlcore.train("line", out=tmp_path / "chosen", **lr, **goal, **best, eval={"use": "best"})
    assert [float(row["eval/rmse"]) for row in rows(chosen) if row["eval/rmse"]] == scores
    best_score = rlcore.evaluate(run.path, which="best")["rmse"]
    assert chosen.result["evaluation"]["rmse"] == rlcore.evaluate(chosen.path)["rmse"] == best_score
    assert rlcore.evaluate(chosen.path, which="last")["rmse"] == run.result["evaluation"]["rmse"]
    assert first_difference(dict(chosen.agent.state_dict()), saved.agent) is None


def test_a_resume_goes_on_waiting_and_accumulating(tmp_path: Path) -> None:
    goal: Any = {"stop.metric": "eval/rmse", "stop.mode": "min", "stop.patience": 4, "stop.min_delta": 0.5}
    settings: Any = {**goal, "eval.every": 500, "log.every": 250, "checkpoint.every": 0, "optim.accumulate": 4}
    settings |= {"optim.weight_decay": 0.01, "budget.horizon": 35000}
    whole = rlcore.train("line", out=tmp_path / "whole", **settings)
    end = whole.result["frames"]
    part = rlcore.train("line", out=tmp_path / "part", **settings, budget={"frames": end - 900})
    state = checkpoint.load(tmp_path / "part" / "checkpoints").state
    assert state["optim"]["main"]["batches"] % 4 != 0, "in the middle of an accumulation"
    assert [0 < callback["since"] < 4 for callback in state["callbacks"] if "since" in callback] == [True]
    assert "stopped" not in part.result
    rest = rlcore.train(out=tmp_path / "part", resume=True, budget={"frames": 35000})
    assert (rest.result["frames"], rest.result["stopped"]) == (end, whole.result["stopped"])
    ends = [checkpoint.load(tmp_path / name / "checkpoints") for name in ("whole", "part")]
    assert first_difference(ends[0].agent, ends[1].agent) is None
    for saved in ends:
        saved.state["callbacks"][0] = saved.state["train_seconds"] = None  # wall-clock times
    assert first_difference(ends[0].state, ends[1].state) is None


def test_another_metric_begins_its_best_anew(tmp_path: Path) -> None:
    run = rlcore.train("line", out=tmp_path / "run", **STILL, budget={"frames": 1000})
    assert checkpoint.load(run.path / "checkpoints" / "best").state["best"] < 0
    rlcore.train(out=run.path, resume=True, budget={"frames": 2000}, eval={"best": "rmse", "best_mode": "min"})
    assert checkpoint.load(run.path / "checkpoints" / "best").state["best"] > 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stop.metric": "eval/rmse"}, "expected threshold or patience beside metric"),
        ({"stop.patience": 3}, "expected metric beside patience, such as eval/return_mean"),
        (
            {"stop.metric": "eval/rmse", "stop.patience": -1},
            "stop.patience: got -1, expected greater than or equal to 0",
        ),
        ({"stop.metric": "eval/rmse", "stop.patience": 2, "stop.min_delta": -1}, "stop.min_delta: got -1, expected"),
        ({"eval.best_mode": "most"}, "eval.best_mode: got 'most', expected 'max' or 'min'"),
        ({"eval.use": "first"}, "eval.use: got 'first', expected 'last' or 'best'"),
        ({"eval.use": "best", "eval.every": 0}, "eval.use: 'best' needs evaluations; expected eval.every from 1 to"),
        ({"eval.use": "best", "budget.frames": 100}, "eval.use: 'best' needs evaluations; expected eval.every from 1"),
    ],
)
def test_bad_values_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        configs.validate(configs.override(configs.read("line"), changes))
    assert told in str(error.value)


def test_a_best_that_is_not_evaluated_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^eval\.best: 'rsme' is not evaluated; did you mean 'rmse'\?$"):
        rlcore.train("line", out=tmp_path / "run", **STILL, eval={"best": "rsme"})
