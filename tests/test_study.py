"""Sets, what of them there is, and the report: run folders written by hand, numbers worked out by hand."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from rlcore import config as configs
from rlcore import results, runs, study
from rlcore.errors import UserError
from rlcore.study import Job, Set


def _set(**rows: dict[str, Any]) -> Set:
    filled = {name: {"recipe": "cartpole_online_q", **row} for name, row in rows.items()}
    return Set.model_validate({"name": "own", "title": "Own", "seeds": "0-3", "rows": filled})


def _finish(job: Job, score: float, **evaluation: float) -> None:
    """Write what a finished run leaves behind."""
    job.path.mkdir(parents=True)
    runs.write_text(job.path / "config.yaml", configs.dump(job.config))
    runs.write_json(job.path / "manifest.json", {})
    curve = "".join(f"{frames},{score * frames / 1000}\n" for frames in (0, 500, 1000))
    (job.path / "progress.csv").write_text("frames,train/episode_return\n" + curve)
    result = {"status": "finished", "frames": 1000 + 10 * job.seed, "train_seconds": 2.0 + job.seed}
    numbers = {"mean": score, "episodes": 100, **evaluation}
    runs.write_json(job.path / "result.json", {**result, "evaluation": numbers})


def _finished(wanted: Set, root: Path, **scores: list[float]) -> list[Job]:
    every = study.jobs(wanted, root)
    for name, values in scores.items():
        for job, value in zip([job for job in every if job.row.name == name], values, strict=False):
            _finish(job, value)
    return every


# Sets


@pytest.mark.parametrize("path", sorted(study.folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sets_are_valid(path: Path) -> None:
    wanted = study.read(path.stem)
    assert wanted.name == path.stem
    assert all(len(study.seeds(row.seeds or wanted.seeds)) >= 3 for row in wanted.rows)


def test_a_recipe_is_a_set_of_one_row_and_so_is_a_file(tmp_path: Path) -> None:
    (row,) = study.read("cartpole_dqn").rows
    assert (row.name, row.recipe) == ("cartpole_dqn", "cartpole_dqn")
    own = tmp_path / "mine.yaml"
    own.write_text("env: {id: CartPole-v1}\n")
    wanted = study.read(str(own))
    assert (wanted.name, wanted.rows[0].name, wanted.rows[0].recipe) == ("mine", "mine", str(own))
    assert study.jobs(wanted, tmp_path, "3-4")[1].config.seed == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title: A\nrows: [cartpole_dqn]", r"rows: .*mapping from each row's name"),
        ("title: A\nrows: {a: {gaol: 3}}", r"gaol is not a setting; did you mean 'goal'"),
        ("title: A\nrows: {aa: {baseline: bb}, cc: {}}", "row 'aa': baseline 'bb' is no row"),
        ("rows: {a: {}}", "title"),
        ("[1]", "expected a mapping with title and rows"),
    ],
)
def test_a_wrong_set_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        study.read(str(tmp_path / "s.yaml"))
    assert "\n" not in str(caught.value)


def test_an_unknown_set_and_a_missing_recipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set 'cartpol' is neither .*; did you mean 'cartpole'"):
        study.read("cartpol")
    job = study.jobs(_set(a={"recipe": "cartpole_dqm"}), tmp_path)[0]
    with pytest.raises(UserError, match=r"row 'a': recipe 'cartpole_dqm' is neither.*did you mean 'cartpole_dqn'"):
        _ = job.config


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "1-2-3"])
def test_wrong_seeds_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected A-B"):
        study.seeds(text)


def test_seeds_of_the_command_come_before_the_rows_and_the_sets(tmp_path: Path) -> None:
    wanted = _set(a={"seeds": "7"}, b={})
    assert [job.seed for job in study.jobs(wanted, tmp_path)] == [7, 0, 1, 2, 3]
    assert [job.seed for job in study.jobs(wanted, tmp_path, "5-6")] == [5, 6, 5, 6]
    assert study.jobs(wanted, tmp_path)[1].path == tmp_path / "b" / "seed-0"


def test_the_command_trains_exactly_the_configuration(tmp_path: Path) -> None:
    from rlcore import command

    odd = {"agent.gamma": 1e-05, "agent.network": {"kwargs": {"hidden": [8]}}, "env.wrappers": [], "stop.metric": ""}
    job = study.jobs(_set(a={"overrides": odd}), tmp_path)[2]
    settings, (recipe,) = command.settings_of(job.arguments())
    assert configs.validate(configs.override(configs.read(recipe), settings)) == job.config
    assert study.command(job).startswith("python scripts/train.py cartpole_online_q --agent.gamma=1e-05 ")


# What there is


def test_each_status_is_told_from_the_others(tmp_path: Path) -> None:
    every = study.jobs(_set(a={}), tmp_path)
    _finish(every[0], 9.0)
    _finish(every[1], 9.0)
    config = every[1].path / "config.yaml"
    config.write_text(re.sub(r"lr: 0.001", "lr: 0.002", config.read_text()))
    _finish(every[2], 9.0)
    (every[2].path / "result.json").unlink()
    every[3].error_file.write_text("there was no memory\n")
    statuses = [job.status() for job in every]
    assert statuses[0] == ("finished", "")
    assert statuses[1] == ("differs", "was trained with optim.lr 0.002 instead of 0.001")
    assert statuses[2] == ("unfinished", "came to frame 0")
    assert statuses[3] == ("failed", "there was no memory")


def test_a_threshold_that_nothing_is_measured_by_makes_no_difference(tmp_path: Path) -> None:
    without, with_metric = {"stop.metric": ""}, {"stop.metric": "eval/return_mean", "stop.threshold": 5.0}
    for overrides, expected in ((without, "finished"), (with_metric, "differs")):
        job = study.jobs(_set(a={"overrides": overrides}), tmp_path / expected)[0]
        _finish(job, 9.0)
        config = job.path / "config.yaml"
        config.write_text(re.sub(r"threshold: \S+", "threshold: 7.0", config.read_text()))
        assert job.status()[0] == expected


def test_an_estimate_comes_from_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = _finished(_set(a={}), tmp_path, a=[9.0, 9.0])
    assert study.estimate(every[2:], every) == {"a": pytest.approx(2.5, abs=0.5)}
    assert "a: 2 runs of about 2 s each (from 2 finished)" in capsys.readouterr().err


def test_a_probe_says_about_how_long_a_run_takes(tmp_path: Path) -> None:
    small, large = (study.jobs(_set(a={"overrides": {"budget.frames": n}}), tmp_path)[0] for n in (200, 10_000_000))
    assert 0 < study.probe(small) < 10
    assert 1000 < study.probe(large) < 1_000_000
    assert not list(tmp_path.iterdir())


# The report


def test_numbers_are_the_hand_worked_ones(tmp_path: Path) -> None:
    wanted = _set(a={"goal": 200, "reference": 190})
    every = _finished(wanted, tmp_path, a=[100.0, 200.0, 300.0, 500.0])
    (row,) = results.summarise(wanted, every)
    assert (row["mean"], row["iqm"], row["worst"]) == (275.0, 250.0, 100.0)
    assert 100 <= row["ci_low"] < 250 < row["ci_high"] <= 500
    assert (row["reached"], row["train_seconds"], row["frames"], row["environment"]) == (
        3,
        3.5,
        [1000, 1030],
        "CartPole-v1",
    )
    assert row["while_learning"] == pytest.approx(125.0)  # each curve rises linearly from 0 to the score
    text = results.section(wanted, [row], "own")
    assert "| `a` | CartPole-v1 | 1,000 to 1,030 | 4 | 275 | 250 (" in text
    assert "| 100 | 3 ≥ 200 | 125 | 3.5 s | 190 | 200 | **beaten** |" in text
    assert "| `a` | 100 | 200 | 300 | 500 | `python scripts/train.py cartpole_online_q --seed=N` |" in text


@pytest.mark.parametrize(
    ("row", "scores", "mark"),
    [
        ({"goal": 498, "reference": 500}, [500.0] * 4, "met"),
        ({"goal": 450, "reference": 470}, [480.0] * 4, "beaten"),
        ({"goal": 498}, [497.0] * 4, "below"),
        ({"goal": 300, "floor": 475}, [500.0, 500.0, 500.0, 474.0], "below"),
        ({"goal": 300, "floor": 474}, [500.0, 500.0, 500.0, 474.0], "met"),
        ({"reference": -76.6}, [-75.0] * 4, "beaten"),
        ({"reference": -76.6}, [-76.6] * 4, "met"),
        ({"goal": -75, "reference": -76.6}, [-76.0] * 4, "below"),
        ({"goal": 1}, [500.0] * 3, "incomplete"),
        ({}, [500.0] * 4, ""),
        ({"baseline": "b"}, [10.5] * 4, "beaten"),
        ({"baseline": "b"}, [9.5] * 4, "below"),
    ],
)
def test_marks(tmp_path: Path, row: dict[str, Any], scores: list[float], mark: str) -> None:
    wanted = _set(a=row, b={})
    summary = results.summarise(wanted, _finished(wanted, tmp_path, a=scores, b=[10.0] * 4))[0]
    assert summary["mark"] == mark
    assert summary["reference"] == (10.0 if row.get("baseline") else row.get("reference"))


def test_no_seed_is_hidden(tmp_path: Path) -> None:
    wanted = _set(a={"goal": 1}, b={})
    every = _finished(wanted, tmp_path, a=[5.0, 6.0])
    every[2].error_file.write_text("'loss' became NaN at update 7\n")
    rows = results.summarise(wanted, every)
    text = results.section(wanted, rows, "own")
    assert "| 2 of 4 | 5.5 |" in text
    assert "- `a` seed 2: failed: 'loss' became NaN at update 7\n- `a` seed 3: not run\n" in text
    assert "- `b`: no seed of 4 has finished (not run)" in text
    assert "| `a` | 5 | 6 | failed | not run |" in text


def test_another_metric_is_the_score_and_a_missing_one_is_named(tmp_path: Path) -> None:
    wanted = _set(a={"metric": "success_rate"})
    every = study.jobs(wanted, tmp_path)
    for job in every:
        _finish(job, -10.0, success_rate=0.25)
    assert results.summarise(wanted, every)[0]["iqm"] == 0.25
    wanted = _set(a={"metric": "sucess_rate"})
    with pytest.raises(UserError, match=r"row 'a': metric 'sucess_rate' .*did you mean 'success_rate'"):
        results.summarise(wanted, study.jobs(wanted, tmp_path))
    wanted = _set(a={"metric": "success_rate"})
    every = study.jobs(wanted, tmp_path / "other")
    _finish(every[0], -10.0, success_rate=float("nan"))
    with pytest.raises(UserError, match=r"row 'a': metric 'success_rate' of .* is not finite"):
        results.summarise(wanted, every)


def test_sections_live_between_their_markers(tmp_path: Path) -> None:
    document = tmp_path / "docs" / "RESULTS.md"
    results.insert(document, "one", "first\n")
    document.write_text("Before.\n\n" + document.read_text() + "\nAfter.\n")
    results.insert(document, "two", "second\n")
    before = document.read_text()
    results.insert(document, "one", "changed\n")
    assert document.read_text() == before.replace("first", "changed")
    assert [line for line in before.splitlines() if line and line[0] in "BAfs"] == [
        "Before.",
        "first",
        "After.",
        "second",
    ]
    document.write_text(before.replace("<!-- end of results one -->\n", ""))
    with pytest.raises(UserError, match="expected '<!-- results one -->' once and '<!-- end of results one -->' once"):
        results.insert(document, "one", "lost\n")
    assert "lost" not in document.read_text()


@pytest.mark.parametrize("many", [2, 7])
def test_one_figure_an_environment(tmp_path: Path, many: int) -> None:
    rows: dict[str, Any] = {f"r{i}": {} for i in range(many)}
    rows |= {"r0": {"seeds": "0-9"}, "other": {"overrides": {"env.id": "Acrobot-v1"}}}
    wanted = _set(**rows)
    every = _finished(wanted, tmp_path / "runs", **{name: [1.7**i for i in range(10)] for name in rows})
    summary = results.summarise(wanted, every)
    drawn = results.figures(wanted, summary, tmp_path / "img")
    assert [path.name for path in drawn] == ["own_cartpole.png", "own_acrobot.png"]
    first = [path.read_bytes() for path in drawn]
    width, height = struct.unpack(">II", first[0][16:24])
    assert (width > 1200) == (many > 5) and height > 300
    assert [path.read_bytes() for path in results.figures(wanted, summary, tmp_path / "img")] == first
    assert json.loads(json.dumps(summary)) == summary
