"""runs.py list, show, diff, rank and best: rows of any folder, and figures worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SCRIPTS, Command
from scipy import stats

from rlcore import api, compare, listing, ranking, readable, runs
from rlcore import config as configs
from rlcore.errors import UserError
from rlcore.statistics import iqm, stratified_bootstrap_ci, summary


def make(run: Path, returns: Sequence[float] = (), recipe: str = "cartpole_dqn", status: str = "", **more: Any) -> Path:
    """Write a run's folder as training leaves it; ``more``: settings, with dots as ``__``."""
    settings = {name.replace("__", "."): value for name, value in more.items()}
    config = configs.validate(configs.override(configs.read(recipe), settings))
    run.mkdir(parents=True)
    runs.write(run, config)
    (run / "progress.csv").write_text("frames,updates,eval/return_mean,train/loss\n100,1,5.0,0.5\n200,2,,0.25\n")
    if status or len(returns):
        result: dict[str, Any] = {"status": status or "finished", "frames": 200, "train_seconds": 1.5}
        if len(returns):
            result["evaluation"] = {"episodes": len(returns), "seed": 10_000, **summary(returns), "returns": [*returns]}
        runs.write_json(run / "result.json", result)
    return run


# Listing


def test_list_finds_runs_however_deep_and_nothing_else(tmp_path: Path, command: Command) -> None:
    deep = make(tmp_path / "runs/study/cartpole_dqn/seed-3", [1.0, 2.0], seed=3)
    fold = make(tmp_path / "runs/folds/fold-0", [1.0], recipe="house_prices")
    flat = make(tmp_path / "runs/flat")
    linked = tmp_path / "runs/linked"
    linked.symlink_to(make(tmp_path / "elsewhere/run"))
    (tmp_path / "runs/round").symlink_to(tmp_path / "runs")
    (tmp_path / "runs/empty").mkdir()
    (tmp_path / "runs/killed").mkdir()
    (tmp_path / "runs/killed/.lock").touch()
    (tmp_path / "runs/lost/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/figures").mkdir()
    (tmp_path / "runs/figures/curve.png").touch()
    make(tmp_path / "runs/.hidden/run")
    rows = {row["run"]: row for row in json.loads(command("runs", "list", "--json").out)}
    broken = {f"runs/{name}" for name in ("empty", "killed", "lost")}
    sound = {str(path.relative_to(tmp_path)) for path in (deep, fold, flat, linked)}
    assert set(rows) == broken | sound
    assert {name for name, row in rows.items() if row["status"] == "broken"} == broken
    assert all(rows[name]["problem"] == "there is no config.yaml" for name in broken)
    assert (rows["runs/study/cartpole_dqn/seed-3"]["seed"], rows["runs/flat"]["status"]) == (3, "unfinished")
    assert [row["run"] for row in listing.listing(flat)] == [str(flat)]
    assert not json.loads(command("runs", "list", "runs/figures", "--json").out)


def test_list_names_the_settings_that_differ_from_the_shipped_recipe(tmp_path: Path, command: Command) -> None:
    config = configs.validate(
        configs.override(configs.read("cartpole_dqn"), {"seed": 7, "optim.lr": 0.5, "env.num_envs": 3})
    )
    runs.write(make(tmp_path / "changed"), config.model_copy(update={"compile": "off"}))
    make(tmp_path / "same", seed=9)
    mine = tmp_path / "mine.yaml"
    mine.write_text("optim: {lr: 0.25}\n")
    make(tmp_path / "own", recipe=str(mine))
    make(tmp_path / "other", agent={"name": "c51"}, env__kwargs={"length": 0.25})
    older = make(tmp_path / "older")
    raw = configs.read(older)
    del raw["optim"]["l1"]
    (older / "config.yaml").write_text(json.dumps(raw))
    changed = {Path(row["run"]).name: row["changed"] for row in listing.listing(tmp_path)}
    assert changed["changed"] == {"optim.lr": 0.5, "env.num_envs": 3}
    assert changed["same"] == changed["own"] == changed["older"] == {}
    assert changed["other"]["agent.name"] == "c51"
    assert changed["other"]["env.kwargs.length"] == 0.25
    assert "optim.lr" not in changed["other"]
    read = list(csv.DictReader(io.StringIO(command("runs", "list", ".", "--csv").out)))
    cells = {row["run"]: row for row in read}
    assert json.loads(cells["changed"]["changed"]) == changed["changed"]
    assert list(read[0]) == list(listing.COLUMNS)
    assert "env.num_envs=3 optim.lr=0.5" in command("runs", "list", ".").out


def test_what_a_run_starts_from_fitted_is_not_a_change(tmp_path: Path) -> None:
    elder = make(tmp_path / "elder")
    runs.write_json(elder / "fitted.json", {"length": 0.25})
    make(tmp_path / "younger", init=str(elder), env__kwargs={"length": 0.25, "gravity": 9.0})
    younger = runs.describe(tmp_path / "younger")
    assert younger["changed"] == {"init": str(elder), "env.kwargs.gravity": 9.0}


def test_list_shows_the_interquartile_mean_with_its_interval(tmp_path: Path, command: Command) -> None:
    returns = [0.0, 10.0, 10.0, 12.0, 100.0]
    make(tmp_path / "runs/one", returns)
    (row,) = json.loads(command("runs", "list", "--json").out)
    assert (row["mean"], row["iqm"]) == (26.4, pytest.approx(32 / 3))  # without the lowest and the highest
    assert [row["ci_low"], row["ci_high"]] == [summary(returns)[name] for name in ("ci_low", "ci_high")]
    assert f"26.4  10.67 [{row['ci_low']:.4g}, {row['ci_high']:.4g}]" in command("runs", "list").out


def test_where_leaves_the_runs_with_a_column_or_setting(tmp_path: Path, command: Command) -> None:
    for seed in range(3):
        make(tmp_path / f"a{seed}", [1.0], seed=seed)
    make(tmp_path / "b", status="failed", optim__lr=0.5)
    (tmp_path / "broken").mkdir()

    def names(*where: str) -> list[str]:
        words = [word for text in where for word in ("--where", text)]
        return [row["run"] for row in json.loads(command("runs", "list", ".", "--json", *words).out)]

    assert names("status=finished") == ["a0", "a1", "a2"]
    assert names("status=finished", "seed=1") == ["a1"]
    assert names("optim.lr=5e-1") == ["b"]
    assert names("optim.lr=1.5e-3") == ["a0", "a1", "a2"]  # a setting that is the recipe's own
    assert names("status=running") == []
    assert command("runs", "list", ".", "--where", "seed").err == (
        "error: --where: got 'seed', expected NAME=VALUE, such as status=finished or optim.lr=0.001\n"
    )
    assert command("runs", "list", ".", "--where", "optim.lrr=1").err == (
        "error: --where optim.lrr: no run has such a column or setting; did you mean 'optim.lr'?\n"
    )


@pytest.mark.parametrize("form", ["--json", "table"])
def test_list_of_500_different_runs_takes_under_two_seconds(tmp_path: Path, form: str) -> None:
    first = make(tmp_path / "many/row-0/seed-000", np.arange(100.0))
    text = (first / "config.yaml").read_text()
    for number in range(1, 500):
        run = tmp_path / f"many/row-{number // 10}/seed-{number:03d}"
        run.mkdir(parents=True)
        for name in ("manifest.json", "result.json", "progress.csv"):
            shutil.copy(first / name, run)
        (run / "config.yaml").write_text(text.replace("lr: 0.0015", f"lr: 0.{number:04d}1"))
    folders = sorted(tmp_path.glob("many/*/*"))
    (folders[0] / "config.yaml").write_text("seed: [")
    (folders[1] / "config.yaml").unlink()
    (folders[2] / "result.json").write_text('{"status": "fin')
    call = [sys.executable, str(SCRIPTS / "runs.py"), "list", "many", *([form] if form != "table" else [])]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2, f"listing 500 runs takes {seconds:.2f} s of processor time"
    if form == "--json":
        rows = json.loads(done.stdout)
        assert len(rows) == 500
        assert [row["status"] for row in rows[:4]] == ["broken", "broken", "broken", "finished"]
        assert "expected YAML" in rows[0]["problem"]
        assert rows[499]["changed"] == {"optim.lr": float(f"0.{rows[499]['run'][-3:].zfill(4)}1")}
    else:
        assert len(done.stdout.splitlines()) == 501


@pytest.mark.parametrize(
    "text", ["recipe: [1]", "recipe: {a: 1}", "init: [1]\nrecipe: cartpole_dqn", "agent: 3", "1: 2"]
)
def test_list_never_fails_on_settings_that_are_odd(tmp_path: Path, command: Command, text: str) -> None:
    (tmp_path / "runs/odd").mkdir(parents=True)
    (tmp_path / "runs/odd/config.yaml").write_text(text)
    assert command("runs", "list").code == command("runs", "list", "--csv").code == 0


# What is not finite


def strictly(text: str) -> Any:
    """Return the value of a JSON text as a reader does that keeps to the standard."""

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refused)


def test_what_is_not_finite_is_null_for_every_reader(tmp_path: Path, command: Command) -> None:
    for seed, r2 in enumerate((0.5, float("nan"), float("-inf"))):
        result = runs.read_json(make(tmp_path / f"runs/{seed}", [1.0, 2.0], seed=seed) / "result.json")
        result["evaluation"]["r2"] = r2
        (tmp_path / f"runs/{seed}/result.json").write_text(json.dumps(result))  # as others write it
        if seed == 2:
            runs.write_json(tmp_path / "runs/2/result.json", result)
            assert strictly((tmp_path / "runs/2/result.json").read_text())["evaluation"]["r2"] is None
    assert strictly(command("runs", "show", "runs/1", "--json").out)["result"]["evaluation"]["r2"] is None
    assert len(strictly(command("runs", "list", "--json").out)) == 3
    assert strictly(command("runs", "diff", "runs/0", "runs/1", "--json").out)["result"]["r2"] == [0.5, None]
    (row,) = strictly(command("runs", "rank", "runs/*", "--metric", "r2", "--json").out)
    assert (row["values"], list(row["uncounted"].values())) == ([0.5], ["without the number"] * 2)
    for mode in ("max", "min"):
        best = strictly(command("runs", "best", "--metric", "r2", "--mode", mode, "--json").out)
        assert (best["run"], best["value"]) == ("runs/0", 0.5)
    told = command("runs", "best", "--where", "seed=1", "--metric", "r2").err
    assert told.startswith("error: --metric r2: no finished run has such a number")


def test_evaluations_with_such_a_number_are_printed_and_averaged(tmp_path: Path) -> None:
    rest = {"episodes": 2, "seed": 0, **summary([1.0, 3.0])}
    results = [{**rest, "r2": 0.5, "loss": 1.0}, {**rest, "r2": None, "loss": 2.0}]
    assert readable.report("run", results[1]).endswith("  r2 nan   loss 2")
    over = api.over_runs([tmp_path, tmp_path], results)
    assert over["loss"] == 1.5 and "r2" not in over
    assert api.over_runs([tmp_path], results[:1]) == results[0], "one run has no interval over runs"


def test_returns_that_are_not_finite_have_no_difference(tmp_path: Path) -> None:
    one, other = (make(tmp_path / name, [1.0, 2.0]) for name in ("one", "other"))
    result = runs.read_json(other / "result.json")
    result["evaluation"]["returns"][1] = float("nan")
    runs.write_json(other / "result.json", result)
    assert compare.difference(one, other)["difference"]["over"] == "nothing: no final evaluation"


# One run


def test_a_look_at_a_run_does_not_keep_another_process_from_it(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    looking, stop = threading.Event(), threading.Event()

    def look() -> None:
        with runs.locked(run):  # as `describe` does, for an instant
            looking.set()
            stop.wait(0.03)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    with runs.locked(run):
        assert runs.describe(run)["status"] == "running"
    thread.join()


def test_show_in_every_form(command: Command, finished: Path) -> None:
    shown = json.loads(command("runs", "show", finished, "--json").out)
    assert shown["changed"]["budget.frames"] == 600
    cells = dict(csv.reader(io.StringIO(command("runs", "show", finished, "--csv").out)))
    assert cells["config.optim.lr"] == str(shown["config"]["optim"]["lr"])
    assert float(cells["result.evaluation.mean"]) == shown["result"]["evaluation"]["mean"]


# Ranking


def test_rank_groups_seeds_by_recipe_and_changes_with_the_interval_over_them(tmp_path: Path, command: Command) -> None:
    slow, fast = [1.0, 2.0, 3.0, 4.0, 100.0], [5.0, 6.0]
    for seed, mean in enumerate(slow):
        make(tmp_path / f"slow-{seed}", [mean, mean], seed=seed)
    for seed, mean in enumerate(fast):
        make(tmp_path / f"fast-{seed}", [mean - 1, mean + 1], optim__lr=0.5, seed=seed)
    make(tmp_path / "fast-failed", status="failed", optim__lr=0.5, seed=2)
    make(tmp_path / "fast-begun", optim__lr=0.5, seed=3)
    make(tmp_path / "hopeless", status="failed", recipe="cartpole_ppo")
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    first, second, third = ranking.rank(folders)
    assert (first["recipe"], first["changed"], first["seeds"]) == ("cartpole_dqn", {"optim.lr": 0.5}, ["0", "1"])
    assert (first["iqm"], first["values"]) == (5.5, fast)
    assert (first["ci_low"], first["ci_high"]) == stratified_bootstrap_ci([[value] for value in fast])
    assert list(first["uncounted"].values()) == ["unfinished", "failed"]
    assert (second["iqm"], second["changed"], second["uncounted"]) == (3.0, {}, {})  # 100 and 1 are trimmed
    assert (second["ci_low"], second["ci_high"]) == stratified_bootstrap_ci([[value] for value in slow])
    assert (third["iqm"], third["ci_low"], list(third["uncounted"].values())) == (None, None, ["failed"])
    assert [row["iqm"] for row in ranking.rank(folders, mode="min")] == [3.0, 5.5, None]
    table = command("runs", "rank", *folders).out.splitlines()
    assert "1 unfinished, 1 failed" in table[1] and "2: 0, 1" in table[1] and "5.5 [" in table[1]
    assert table[3].split()[:3] == ["3", "cartpole_ppo", "0"]
    ranked = json.loads(command("runs", "rank", "*", "--json").out)
    assert [row["values"] for row in ranked] == [fast, slow, []]
    read = list(csv.DictReader(io.StringIO(command("runs", "rank", "*", "--csv").out)))
    assert [float(row["iqm"]) for row in read[:2]] == [5.5, 3.0]


def test_rank_by_any_number_of_the_evaluation_the_result_or_the_progress(tmp_path: Path) -> None:
    folders = [make(tmp_path / name, [1.0, 2.0, 3.0], recipe=name) for name in ("cartpole_dqn", "cartpole_ppo")]
    (folders[1] / "progress.csv").write_text(
        "frames,updates,train/loss,eval/return_mean\n100,1,0.5,8.0\n200,2,0.125,\n"
    )
    assert [row["values"] for row in ranking.rank(folders, "train/loss", "min")] == [[0.125], [0.25]]
    assert [row["values"] for row in ranking.rank(folders, "eval/return_mean")] == [[8.0], [5.0]]  # the last logged
    assert [row["values"] for row in ranking.rank(folders, "frames")] == [[200], [200]]
    assert [row["values"] for row in ranking.rank(folders, "std")] == [[np.std([1, 2, 3])]] * 2
    with pytest.raises(UserError, match=r"--metric meen: no finished run has such a number; did you mean 'mean'\?"):
        ranking.rank(folders, "meen")


def test_rank_counts_a_seed_once_and_nothing_that_is_not_finite(tmp_path: Path) -> None:
    for name, mean in (("early", 1.0), ("later", 2.0)):
        make(tmp_path / name, [mean, mean])
    broken = make(tmp_path / "broken", [9.0], seed=1)
    (broken / "progress.csv").write_text("frames,updates,train/loss\n100,1,nan\n")
    folders = sorted(tmp_path.iterdir())
    (row,) = ranking.rank(folders)
    assert sorted(row["values"]) == [2.0, 9.0]
    assert row["uncounted"] == {str(tmp_path / "early"): "repeated"}
    (row,) = ranking.rank(folders, "train/loss")
    assert row["values"] == [0.25]
    assert row["uncounted"] == {str(broken): "without the number", str(tmp_path / "early"): "repeated"}


def test_rank_takes_folds_as_replicates(tmp_path: Path) -> None:
    for fold in range(3):
        make(tmp_path / f"fold-{fold}", [float(fold)] * 2, "house_prices", env__kwargs={"folds": 3, "fold": fold})
    (row,) = ranking.rank(sorted(tmp_path.iterdir()))
    assert row["changed"] == {"env.kwargs.folds": 3}
    assert row["values"] == [0.0, 1.0, 2.0]


def test_rank_tells_runs_of_an_own_recipe_apart_by_what_varies(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("optim: {lr: 0.25}\n")
    folders = [
        make(tmp_path / f"{lr}-{seed}", [100 * lr] * 2, recipe=str(own), optim__lr=lr, seed=seed)
        for lr in (0.25, 0.5)
        for seed in (0, 1)
    ]
    rows = ranking.rank(folders)
    assert [(row["changed"], row["values"]) for row in rows] == [
        ({"optim.lr": 0.5}, [50.0] * 2),
        ({"optim.lr": 0.25}, [25.0] * 2),
    ]
    (alone,) = ranking.rank(folders[:2])
    assert alone["changed"] == {}


def test_runs_of_different_environments_are_not_ranked(tmp_path: Path, command: Command) -> None:
    make(tmp_path / "a", [1.0])
    make(tmp_path / "b", [1.0], recipe="pendulum_sac")
    assert command("runs", "rank", "a", "b").err == (
        "error: --metric mean: a plays CartPole-v1, but b plays Pendulum-v1; expected runs of one environment "
        "(of a folder: --where env.id=CartPole-v1)\n"
    )
    assert command("runs", "best", ".", "--where", "env.id=Pendulum-v1").out == "b\n"


# The best


def test_best_prints_a_folder_that_another_command_takes(tmp_path: Path, command: Command, finished: Path) -> None:
    make(tmp_path / "runs/deep/poor", [-1.0, -1.0])
    make(tmp_path / "runs/deep/unfinished")
    shutil.copytree(finished, tmp_path / "runs/deep/good")
    assert command("runs", "best").out == "runs/deep/good\n"
    row = json.loads(command("runs", "best", "runs", "--json").out)
    assert (row["run"], row["metric"], row["value"]) == ("runs/deep/good", "mean", row["mean"])
    assert command("runs", "best", "--mode", "min").out == "runs/deep/poor\n"
    assert command("runs", "best", "--metric", "train/loss", "--mode", "min").code == 0
    (cells,) = csv.DictReader(io.StringIO(command("runs", "best", "--csv").out))
    assert (cells["run"], float(cells["value"])) == ("runs/deep/good", row["value"])
    evaluated = command("evaluate", command("runs", "best").out.strip(), "--episodes", "2", "--json")
    assert json.loads(evaluated.out)["episodes"] == 2


def test_best_of_nothing_says_so(tmp_path: Path, command: Command) -> None:
    make(tmp_path / "runs/begun")
    assert command("runs", "best").err == "error: --metric mean: none of 1 runs has finished with such a number\n"
    done = command("runs", "best", "--mode", "most")
    assert (done.code, "invalid choice: 'most'" in done.err) == (2, True)
    assert "not allowed with argument" in command("runs", "list", "--csv", "--json").err


# Differences


def test_the_difference_of_paired_episodes_is_worked_out_by_hand(tmp_path: Path) -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 3.0, 7.0]
    made = compare.difference(make(tmp_path / "a", a), make(tmp_path / "b", b, optim__lr=0.5, seed=1))
    # d = 1, 2, 0, 3: mean 1.5, s^2 = 5 / 3, t_{0.975, 3} = 3.182446
    reach = 3.182446 * (5 / 3 / 4) ** 0.5
    assert made["difference"]["over"] == "4 episodes, paired"
    assert made["difference"]["mean"] == 1.5
    assert made["difference"]["ci_low"] == pytest.approx(1.5 - reach, abs=1e-5)
    assert made["difference"]["ci_high"] == pytest.approx(1.5 + reach, abs=1e-5)
    assert made["settings"] == {"seed": [0, 1], "optim.lr": [0.0015, 0.5]}
    assert made["result"]["mean"] == [2.5, 4.0]
    assert made["origin"] == {}


def test_episodes_are_paired_only_if_they_are_the_same(tmp_path: Path) -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 3.0, 7.0, 9.0]
    first = make(tmp_path / "a", a)
    longer = compare.difference(first, make(tmp_path / "longer", b))["difference"]
    welch = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert longer["over"] == "4 and 5 episodes"
    assert (longer["ci_low"], longer["ci_high"]) == pytest.approx((welch.low, welch.high))
    other = make(tmp_path / "other", b[:4], env__kwargs={"length": 0.25})
    assert compare.difference(first, other)["difference"]["over"] == "4 and 4 episodes"
    seeded = make(tmp_path / "seeded", b[:4])
    result = runs.read_json(seeded / "result.json")
    result["evaluation"]["seed"] = 20_000
    runs.write_json(seeded / "result.json", result)
    assert compare.difference(first, seeded)["difference"]["over"] == "4 and 4 episodes"


def test_the_difference_of_groups_is_over_their_seeds(tmp_path: Path, command: Command) -> None:
    ours, theirs = [1.0, 2.0, 6.0], [10.0, 10.0, 13.0, 15.0]
    for seed, mean in enumerate(ours):
        make(tmp_path / f"a-{seed}", [mean - 1, mean + 1], seed=seed)
    for seed, mean in enumerate(theirs):
        make(tmp_path / f"b-{seed}", [mean - 1, mean + 1], seed=seed, optim__lr=0.5)
    make(tmp_path / "b-9", status="failed", seed=9, optim__lr=0.5)
    found = json.loads(command("runs", "diff", "a-*", "b-*", "--json").out)
    welch = stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval(0.95)
    assert found["difference"]["over"] == "3 and 4 seeds"
    assert (found["difference"]["ci_low"], found["difference"]["ci_high"]) == pytest.approx((welch.low, welch.high))
    assert found["settings"] == {"seed": [[0, 1, 2], [0, 1, 2, 3, 9]], "optim.lr": [0.0015, 0.5]}
    assert found["result"]["status"] == ["3 finished", "4 finished, 1 failed"]
    assert found["result"]["iqm"] == [iqm(ours), iqm(theirs)]
    assert found["result"]["ci_low"][0] == stratified_bootstrap_ci([[mean] for mean in ours])[0]
    assert "std" not in found["result"]
    text = command("runs", "diff", "a-*", "b-*").out
    assert f"difference of mean returns: 9 [{welch.low:.4g}, {welch.high:.4g}]" in text
    cells = list(csv.DictReader(io.StringIO(command("runs", "diff", "a-*", "b-*", "--csv").out)))
    assert {"part": "settings", "name": "optim.lr", "a": "0.0015", "b": "0.5"} in cells


def test_where_there_is_no_difference_it_says_why(tmp_path: Path, command: Command) -> None:
    make(tmp_path / "a", [1.0, 2.0])
    make(tmp_path / "begun")
    make(tmp_path / "swing", [1.0, 2.0], recipe="pendulum_sac")
    make(tmp_path / "one", [3.0])
    assert command("runs", "diff", "a", "begun").out.endswith("none, over nothing: no final evaluation\n")
    assert command("runs", "diff", "a", "swing").out.endswith("none, over nothing: different environments\n")
    assert command("runs", "diff", "a", "one").out.endswith("1.5 (no interval, over 2 and 1 episodes)\n")
    assert "settings: no difference" in command("runs", "diff", "a", "a").out
    assert command("runs", "diff", "a", "nope").err.startswith("error: run 'nope': there is no such folder")


def test_diff_names_other_versions_and_commands(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one", [1.0, 2.0]), make(tmp_path / "other", [1.0, 2.0])
    manifest = runs.read_json(other / "manifest.json")
    manifest["packages"]["torch"] = "1.0"
    manifest["command"] = "scripts/train.py again"
    runs.write_json(other / "manifest.json", manifest)
    found = compare.difference(one, other)["origin"]
    assert set(found) == {"packages.torch", "command"}
    assert found["packages.torch"][1] == "1.0"


def test_a_glob_of_seeds_passes_over_files(tmp_path: Path, command: Command) -> None:
    make(tmp_path / "seed-0", [1.0, 2.0])
    (tmp_path / "seed-1.error").write_text("why")
    assert json.loads(command("runs", "rank", "seed-*", "--json").out)[0]["seeds"] == ["0"]
