"""Folds: disjoint, covering, stratified; sets of runs that go on where they were killed."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlcore
from envs.images import Images
from envs.splits import folded
from envs.tabular import Line, Tabular
from envs.text_classification import TextClassification
from rlcore import cli, folds, runs
from rlcore.errors import UserError
from rlcore.statistics import mean_interval
from rlcore.testing.agents import first_difference

RECIPE: dict[str, Any] = {
    "recipe": "houses",
    "env": {"id": "tabular", "kwargs": {"features": ["sqft", "beds"], "kind": "classification", "bins": 3}},
    "agent": {"name": "supervised", "network": {"name": "mlp", "kwargs": {"hidden": [8]}}},
    "source": {"name": "dataset", "batch_size": 32},
    "budget": {"frames": 640},
    "log": {"every": 320},
    "checkpoint": {"every": 64},
    "eval": {"every": 0},
}


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=20, max_size=80),
    k=st.integers(2, 7),
    validation=st.sampled_from([0.0, 0.1, 0.25]),
    seed=st.integers(0, 3),
)
def test_folds_are_disjoint_cover_all_and_share_out_the_classes(
    labels: list[int], k: int, validation: float, seed: int
) -> None:
    y = np.array(labels)
    parts = [folded(y, k, i, validation, seed) for i in range(k)]
    assert sorted(np.concatenate([part["test"] for part in parts]).tolist()) == list(range(len(y)))
    for part in parts:
        assert sorted(np.concatenate([*part.values()]).tolist()) == list(range(len(y)))  # none twice, none left out
        assert abs(len(part["test"]) - len(y) / k) < 1
        assert abs(len(part["validation"]) - validation * len(y)) <= 1
        for c in {*labels}:
            n = (y == c).sum()
            assert abs((y[part["test"]] == c).sum() - n / k) < 1
            assert abs((y[part["validation"]] == c).sum() - validation * n) <= 2


def test_folds_depend_on_the_seed_of_the_split_alone() -> None:
    y = np.arange(60) % 3
    assert np.array_equal(folded(y, 3, 1, 0.1, 0)["test"], folded(y, 3, 1, 0.1, 0)["test"])
    assert not np.array_equal(folded(y, 3, 1, 0.1, 0)["test"], folded(y, 3, 1, 0.1, 1)["test"])


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """Return a file of 60 texts, each with one to two of three labels."""
    lines = [f"word{i} and more,{('a', 'b', 'b;c')[i % 3]}" for i in range(60)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines]))
    return str(tmp_path / "texts.csv")


def items(env: Any) -> list[tuple[Any, ...]]:
    """Return what a split shows, with its targets."""
    example = env.task.draw(torch.arange(env.task.size))
    target = example.target
    return [(*x.flatten().tolist(), *y.flatten().tolist()) for x, y in zip(example.obs, target, strict=True)]


@pytest.mark.parametrize("name", ["tabular", "numbers", "line", "images", "text", "labels"])
def test_every_task_over_rows_has_folds(name: str, texts: str) -> None:
    text = {"data": texts, "separator": ";" if name == "labels" else "", "tokens": "words", "length": 8}
    make: Any = {
        "tabular": functools.partial(Tabular, 1, kind="classification", target="type", features=["sqft"]),
        "numbers": functools.partial(Tabular, 1, features=["sqft", "latitude"]),
        "line": functools.partial(Line, 1, n=50),
        "images": functools.partial(Images, 1),
        "text": functools.partial(TextClassification, 1, **text),
        "labels": functools.partial(TextClassification, 1, **text),
    }[name]
    whole = sum(make(split=split).task.size for split in ("train", "validation", "test"))
    held = []
    for fold in range(3):
        parts = {split: make(split=split, folds=3, fold=fold) for split in ("train", "validation", "test")}
        assert sum(env.task.size for env in parts.values()) == whole
        assert abs(parts["test"].task.size - whole / 3) < 1
        if name in ("images", "text", "labels"):  # whose items look alike in every fold, but for unknown words
            column = [row[-1] for row in items(parts["test"])]
            held.append(np.unique(column, return_counts=True)[1])
    assert all(np.abs(counts - held[0]).max() <= 1 for counts in held)


def test_test_parts_of_a_task_cover_its_rows_once() -> None:
    def shown(env: Tabular) -> list[int]:
        return env.prepared.parts["test"].tolist()

    found = [shown(Tabular(1, split="test", folds=4, fold=i, features=["sqft"])) for i in range(4)]
    assert sorted(row for rows in found for row in rows) == list(range(932))
    lines = [Line(1, split="train", n=50, folds=5, fold=i) for i in range(5)]
    for line in lines:  # x is in units of the fold's own training rows
        x = line.task.draw(torch.arange(line.task.size)).obs
        assert abs(float(x.mean())) < 1e-6 and abs(float(x.std(correction=0)) - 1) < 1e-6


def test_the_interval_is_students() -> None:
    mean, low, high = mean_interval([1.0, 2, 3, 6])
    assert (mean, high - mean) == pytest.approx((3, 3.182446 * (14 / 3) ** 0.5 / 2))  # t_{0.975, 3}
    assert mean - low == pytest.approx(high - mean)
    assert np.isnan(mean_interval([1.0, float("nan")])).all()


def test_a_metric_that_is_not_finite_in_one_fold_has_no_mean() -> None:
    found = folds.summarized([{"mean": 1.0, "r2": 0.5}, {"mean": 2.0, "r2": None}])
    assert found["mean"]["mean"] == 1.5
    assert found["r2"]["folds"][0] == 0.5 and np.isnan(found["r2"]["mean"])
    assert " nan " in folds.table({"folds": 2, "runs": ["set/fold-0"], "metrics": found})


def test_a_set_of_folds_is_ordinary_runs_with_their_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = folds.train(RECIPE, 3, out=tmp_path / "set", **{"budget.frames": 320, "checkpoint.every": 0})
    assert found == json.loads((tmp_path / "set" / "folds.json").read_text())
    results = [runs.read_json(Path(run) / "result.json")["evaluation"] for run in found["runs"]]
    assert sum(result["episodes"] for result in results) == 932  # every row is tested once
    accuracy = [result["accuracy"] for result in results]
    assert found["metrics"]["accuracy"]["folds"] == accuracy
    assert found["metrics"]["accuracy"]["mean"] == pytest.approx(sum(accuracy) / 3)
    assert {"mean", "precision", "roc_auc", "cross_entropy"} < found["metrics"].keys()
    assert not {"seed", "std", "returns"} & found["metrics"].keys()
    for i, run in enumerate(found["runs"]):
        loaded = rlcore.load(run)
        assert loaded.config.env.kwargs | {"folds": 3, "fold": i} == loaded.config.env.kwargs
        assert loaded.evaluate() == results[i]
    lines = folds.table(found).splitlines()
    assert lines[0].split() == ["mean", "95", "%", "interval", "fold", "0", "fold", "1", "fold", "2"]
    (line,) = (line for line in lines if line.startswith("accuracy"))
    assert [float(x) for x in line.split()[-3:]] == pytest.approx(accuracy, abs=1e-4)
    with pytest.raises(UserError, match=r"set: holds folds already; add --resume"):
        folds.train(RECIPE, 3, out=tmp_path / "set")
    with pytest.raises(UserError, match=r"--folds: got 4, but .*set holds a set of 3"):
        folds.train(None, 4, out=tmp_path / "set", resume=True)
    with pytest.raises(SystemExit, match="0"):
        cli.train([str(tmp_path / "set"), "--folds", "3", "--resume"])
    assert folds.table(found) in capsys.readouterr().out


def _train(out: Path) -> None:
    folds.train(RECIPE, 2, out=out)


def test_a_killed_set_goes_on_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    straight = folds.train(RECIPE, 2, out=tmp_path / "straight")
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(tmp_path / "killed",))
    process.start()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed" / "fold-0" / "checkpoints").glob("[0-9]*")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "killed" / "fold-0" / "result.json").exists()
    assert not (tmp_path / "killed" / "fold-1").exists()
    resumed = folds.train(None, 2, out=tmp_path / "killed", resume=True)
    assert resumed["metrics"] == straight["metrics"]
    for a, b in zip(straight["runs"], resumed["runs"], strict=True):
        assert first_difference(rlcore.load(a).agent.state_dict(), rlcore.load(b).agent.state_dict()) is None


def test_an_interrupted_set_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt("interrupted")

    monkeypatch.setattr(folds.api, "train", stop)
    with pytest.raises(KeyboardInterrupt, match=r"fold 0 of 3; continue with --folds 3 --resume --out .*set"):
        folds.train(RECIPE, 3, out=tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "count", "message"),
    [
        ({}, 1, r"^--folds: got 1, expected at least 2$"),
        ({}, 1000, r"^env\.kwargs\.folds: got 1000, expected at most 932, the number of rows$"),
        ({"env.kwargs.val_fraction": 0.5}, 2, r"val_fraction \+ 1 / folds below 1"),
        (
            {"env": {"id": "CartPole-v1"}, "agent": {"name": "dqn"}, "source": {"name": "replay"}},
            3,
            "'CartPole-v1' has",
        ),
        (
            {"env.id": "language_model", "env.kwargs": {}},
            3,
            r"^--folds: environment 'language_model' has none; expected",
        ),
    ],
)
def test_what_cannot_be_folded_is_told_in_one_sentence(
    change: dict[str, Any], count: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        folds.train(RECIPE, count, out=tmp_path / "set", **change)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()


def test_bad_folds_and_bad_sets_are_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"fold: got .*expected fold below folds=3|fold below folds=3"):
        Tabular(1, folds=3, fold=3)
    with pytest.raises(UserError, match="folds beside fold"):
        Tabular(1, fold=1)
    with pytest.raises(UserError, match="holds no folds; expected with --resume the folder"):
        folds.train(None, 3, out=tmp_path, resume=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--folds: got several processes"):
        folds.train(RECIPE, 3, out=tmp_path / "set")
