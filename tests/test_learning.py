"""Tiny problems trained for real: the shipped regression recipes against closed-form answers, DQN against chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import rlcore
from envs.tabular import Tabular
from rlcore import build
from rlcore import config as configs


def test_house_prices_comes_within_a_hundredth_of_least_squares(tmp_path: Path) -> None:
    run = rlcore.train("house_prices", out=tmp_path / "run")
    kwargs = run.config.env.kwargs

    def rows(split: str) -> tuple[np.ndarray, np.ndarray]:
        task = Tabular(1, split=split, **kwargs).task  # type: ignore[arg-type]
        x, y = task.draw(torch.arange(task.size))
        return np.c_[x.double().numpy(), np.ones(len(x))], y.double().numpy()[:, 0]

    (x, y), (x_test, y_test) = rows("train"), rows("test")
    weights, *_ = np.linalg.lstsq(x, y, rcond=None)
    r2 = 1 - ((x_test @ weights - y_test) ** 2).sum() / ((y_test - y_test.mean()) ** 2).sum()
    assert run.result["evaluation"]["r2"] == pytest.approx(r2, abs=0.01)


def test_the_line_has_weight_three(tmp_path: Path) -> None:
    run = rlcore.train("line", out=tmp_path / "run")
    [weight] = [p for name, p in run.agent.named_parameters() if name.endswith("weight")]
    assert weight.item() == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "radam", "adagrad", "sgd"])
@pytest.mark.parametrize("batch_size", [32, 0])
def test_every_optimiser_learns_the_line_by_mini_and_full_batches(name: str, batch_size: int) -> None:
    lr = {"adagrad": 1.0, "sgd": 0.05}.get(name, 0.1)
    epochs = 20 if batch_size else 300
    overrides = {"optim.name": name, "optim.lr": lr, "source.batch_size": batch_size, "budget.frames": 700 * epochs}
    if name != "sgd":
        overrides["optim.momentum"] = 0.0
    trainer = build.trainer(configs.validate(configs.override(configs.read("line"), overrides)))
    trainer.fit()
    [weight] = [p for key, p in trainer.agent.named_parameters() if key.endswith("weight")]
    assert weight.item() == pytest.approx(3, abs=0.1)


def test_dqn_plays_a_classification_task_better_than_chance(tmp_path: Path) -> None:
    run = rlcore.train("price_class_bandit", out=tmp_path / "run", budget={"frames": 15_000})
    assert run.result["evaluation"]["accuracy"] > 0.5
    assert run.result["evaluation"]["mean"] == pytest.approx(run.result["evaluation"]["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_cartpole_recipe_solves_it(seed: int, tmp_path: Path) -> None:
    run = rlcore.train("cartpole_dqn", out=tmp_path / "run", seed=seed)
    assert run.result["evaluation"]["mean"] >= 475


@pytest.mark.parametrize("recipe", ["cartpole_fast_pqn", "cartpole_fast_dqn", "cartpole_many_pqn", "cartpole_many_dqn"])
def test_the_fast_cartpole_recipes_stop_once_they_solve_it(recipe: str, tmp_path: Path) -> None:
    run = rlcore.train(recipe, out=tmp_path / "run", seed=1)
    assert run.result["stopped"].startswith("eval/return_mean reached")
    assert run.result["evaluation"]["mean"] >= 450  # of other episodes than those that ended it
