"""Searches: the space, the objective, the median rule, the storage under SIGKILL, what is left behind, the command."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import SMALL, Command, options
from hypothesis import given, settings
from hypothesis import strategies as st

import rlcore
from rlcore import config as configs
from rlcore import runs
from rlcore.config import Config
from rlcore.errors import UserError
from rlcore.search import definition, objective, report, spaces, storage, worker
from rlcore.search.objective import Objective, hopeless, running_average, step_of
from rlcore.search.spaces import Space
from rlcore.search.tune import tune

LR = {"low": 1e-4, "high": 1e-2, "log": True}
TINY = {**SMALL, "eval.every": 200, "eval.episodes": 2, "stop.metric": "eval/return_mean", "stop.threshold": 400}


def base(recipe: str = "cartpole_dqn", **changes: Any) -> Config[Any]:
    return configs.validate(configs.override(configs.read(recipe), changes))


def space(dimensions: dict[str, Any], **changes: Any) -> Space:
    return spaces.build("S", dimensions, base(**changes).model_dump(mode="json"))


# The space


def test_own_values_are_the_recipes_and_hidden_dimensions_follow_their_condition() -> None:
    dimensions = {
        "agent.tau": {**LR, "high": 0.5, "when": {"agent.target": "polyak"}},
        "agent.target_every": {"low": 100, "high": 900, "when": {"agent.target": ["hard"]}},
        "agent.target": {"choices": ["hard", "polyak"]},
        "agent.network.kwargs.hidden": {"choices": [[64, 64], [8]]},
    }
    found = space(dimensions)
    assert found.own() == {"agent.target": "polyak", "agent.tau": 0.01, "agent.network.kwargs.hidden": [64, 64]}
    assert found.is_held()
    assert not space({"agent.gamma": {"choices": [0.5]}}).is_held()
    assert not space({"agent.n_step": {"low": 2, "high": 6, "step": 2}}).is_held(), "5 is between two steps"
    assert not space({"agent.network.kwargs.nothing": {"choices": [1]}}).is_held()


def test_a_grid_has_every_point_once_and_no_value_of_what_does_not_vary() -> None:
    dimensions = {
        "agent.target": {"choices": ["hard", "polyak"]},
        "agent.tau": {"low": 0.1, "high": 0.3, "step": 0.1, "when": {"agent.target": "polyak"}},
        "agent.n_step": {"low": 1, "high": 4, "step": 2},
    }
    points = space(dimensions).grid()
    hard = [{"agent.target": "hard", "agent.n_step": n} for n in (1, 3)]
    assert [point for point in points if point["agent.target"] == "hard"] == hard
    taus = sorted((point["agent.n_step"], round(point["agent.tau"], 9)) for point in points if "agent.tau" in point)
    assert taus == [(n, tau) for n in (1, 3) for tau in (0.1, 0.2, 0.3)]
    with pytest.raises(UserError, match=r"space S: optim.lr has no step; expected a step or choices"):
        space({"optim.lr": LR}).grid()


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [
        ({"optim.lrr": LR}, "space S: optim.lrr is not a setting; did you mean 'lr'?"),
        ({"agent.gamma": {"low": 0.9, "high": 1.5}}, "agent.gamma: got 1.5, expected less than or equal to 1"),
        ({"agent.n_step": {"choices": [1, 0]}}, "agent.n_step: got 0, expected greater than or equal to 1"),
        ({"agent.munchausen": {"choices": [True]}}, "n_step 1 with munchausen"),
        ({"optim.lr": {"low": 1e-3}}, "space S: optim.lr: got .*expected either low and high, or choices"),
        ({"optim.lr": {"low": 0.0, "high": 1.0, "log": True}}, "low below high, and above 0 with log"),
        ({"optim.lr": {"low": 2, "high": 1}}, "low below high"),
        ({"optim.lr": {"choices": [1, 2], "log": True}}, "neither log nor step beside choices"),
        ({"optim.lr": {"choices": [[1], [1]]}}, "choices that differ"),
        ({"optim.lr": {"lo": 1, "high": 2}}, "optim.lr.lo is not a setting; did you mean 'low'?"),
        ({"optim.lr": 3}, r"optim.lr: got 3, expected \{low: A, high: B\}"),
        ({"eval.every": {"low": 1, "high": 9}}, "eval.every says how a run is measured"),
        ({"seed": {"low": 1, "high": 9}}, "seed says how a run is measured"),
        ({"optim.lr": {**LR, "when": {"agent.tagret": 1}}}, "optim.lr.when: agent.tagret is not a setting here"),
        (
            {"optim.lr": {**LR, "when": {"agent.tau": 1}}, "agent.tau": {**LR, "when": {"optim.lr": 1}}},
            "the conditions of optim.lr, agent.tau go in a circle",
        ),
    ],
)
def test_a_wrong_space_is_told_in_one_sentence(dimensions: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as told:
        space(dimensions).check()
    assert "\n" not in str(told.value)


def test_of_many_corners_a_sample_has_every_end() -> None:
    names = ["agent.tau", "agent.gamma", "optim.lr", "optim.weight_decay", "optim.l1", "optim.l2", "optim.eps"]
    names += ["agent.epsilon.start", "agent.epsilon.end", "agent.epsilon.fraction"]
    found = space({name: {"low": 0.1, "high": 0.9} for name in names}).corners()
    assert 512 <= len(found) < 1024
    assert all({point[name] for point in found} == {0.1, 0.9} for name in names)


SHIPPED = [("dqn", "cartpole_dqn"), ("ppo", "cartpole_ppo"), ("sac", "pendulum_sac"), ("transformer", "shakespeare")]


@pytest.mark.parametrize(("name", "recipe"), SHIPPED)
def test_a_shipped_space_holds_its_recipe_and_is_valid(name: str, recipe: str) -> None:
    found = spaces.build(*spaces.read(name), base(recipe).model_dump(mode="json"))
    found.check()
    assert found.is_held()


def test_every_shipped_space_is_tested() -> None:
    assert {path.stem for path in spaces.folder().glob("*.yaml")} == {name for name, _ in SHIPPED}


# What a trial is worth


def test_what_one_run_is_worth() -> None:
    ended = {"frames": 300, "train_seconds": 2.5, "stopped": "eval/return_mean reached 480"}
    spent = {"frames": 504, "train_seconds": 4.0, "evaluation": {"mean": 7, "loss": math.nan, "returns": [7.0]}}
    assert Objective("frames_to", False).of_run(ended, 500) == 300
    assert Objective("frames_to", False).of_run(spent, 500) == 1000, "twice the budget, not the frames it came to"
    assert Objective("seconds_to", False).of_run(ended, 500) == 2.5
    assert Objective("seconds_to", False).of_run(spent, 500) == 8.0
    assert Objective("final/mean", True).of_run(spent, 500) == 7.0
    with pytest.raises(UserError, match="'mena' is not evaluated; did you mean 'mean'"):
        Objective("final/mena", True).of_run(spent, 500)
    for value in (math.nan, None):  # of a result that was read, it is None
        with pytest.raises(UserError, match="--metric final/loss: is not finite in the final evaluation"):
            Objective("final/loss", False).of_run({"evaluation": {"loss": value}}, 500)


def test_directions_follow_the_metric() -> None:
    small = base(**TINY)
    assert objective.objective("final", small) == Objective("final/mean", True)
    assert objective.objective("frames_to", small) == Objective("frames_to", False)
    assert objective.objective("final/loss", base("shakespeare")) == Objective("final/loss", False)
    assert objective.objective("final/length", small, "min") == Objective("final/length", False)
    assert objective.watched(Objective("frames_to", False), small) == ("eval/return_mean", -1)
    assert objective.watched(Objective("final/mean", True), small) == ("eval/return_mean", 1)
    assert objective.watched(Objective("final/loss", False), base("shakespeare")) == ("eval/loss", 1)


def test_a_value_is_the_interquartile_mean_over_seeds() -> None:
    value, low, high = objective.total([1.0, 2.0, 3.0, 100.0])
    assert value == 2.5
    assert 1.0 <= low < value < high <= 100.0
    assert objective.total([3.0]) == (3.0, 3.0, 3.0)


# The median rule


def test_running_averages_by_hand() -> None:
    curve = {1: 10.0, 2: 20.0, 4: 60.0}  # three steps a run: the first run ended after step 2, and is held at 20
    assert running_average(curve, 2, 3) == 15.0
    assert running_average(curve, 3, 3) == pytest.approx(50 / 3)
    assert running_average(curve, 4, 3) == pytest.approx(110 / 4)
    assert running_average({4: 60.0}, 4, 3) == 60.0, "a run that was not evaluated says nothing of the next"
    assert running_average({1: 10.0, 2: 40.0}, 4, 3) == 30.0, "nor is it carried on into the next"
    assert math.isnan(running_average({}, 4, 3))
    assert [step_of(frames, 1, 200, 600) for frames in (200, 399, 604, 800)] == [4, 4, 6, 6]


curves = st.dictionaries(st.integers(1, 12), st.floats(-5, 5), min_size=1)


@settings(deadline=None)
@given(curves, st.lists(curves, max_size=9), st.sampled_from([3, 4, 6]), st.booleans())
def test_the_median_rule_is_the_slow_reference(
    curve: dict[int, float], others: list[dict[int, float]], per_run: int, maximize: bool
) -> None:
    now = max(curve)

    def slow(one: dict[int, float]) -> float | None:
        rows: list[float] = []
        for t in range(1, now + 1):
            first = t - (t - 1) % per_run
            back = [one[s] for s in range(t, first - 1, -1) if s in one]
            rows += back[:1]
        return statistics.fmean(rows) if rows else None

    seen = [average for average in map(slow, others) if average is not None]
    mine = slow(curve)
    fast = running_average(curve, now, per_run)
    assert fast == pytest.approx(mine) if mine is not None else math.isnan(fast)
    early = len(others) < 5 or now < 0.2 * per_run
    if early or mine is None or not seen:
        expected = False
    else:
        middle = statistics.median(seen)
        if math.isclose(mine, middle, abs_tol=1e-9):
            return
        expected = mine < middle if maximize else mine > middle
    assert hopeless(curve, others, per_run, maximize) is expected


# The storage


def define(root: Path, space: dict[str, Any], trials: int, **more: Any) -> definition.Search:
    given = {"seeds": "1000-1001", "settings": configs.override(configs.read("cartpole_dqn"), TINY), **more}
    search = definition.Search(
        definition.defined(recipe="cartpole_dqn", space_name="S", space=space, trials=trials, **given)
    )
    root.mkdir(exist_ok=True)
    definition.write(root, search)
    return search


def asked(root: Path, search: definition.Search, value: float = 1.0) -> tuple[int, dict[str, Any]]:
    """Take one trial, as a process of its own would, and end it."""
    study = storage.open_study(root, search)
    with storage.claimed(study, search, root, storage.plan(study, search)) as taken:
        assert taken is not None
        study.tell(taken[0], value)
        return taken[0].number, taken[1]


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_a_search_that_goes_on_draws_what_it_would_have_drawn(tmp_path: Path, sampler: str) -> None:
    dimensions = {"optim.lr": LR, "agent.n_step": {"low": 1, "high": 9}}
    once = define(tmp_path / "once", dimensions, 14, sampler=sampler)
    study = storage.open_study(tmp_path / "once", once)
    wanted = storage.plan(study, once)
    drawn = []
    for i in range(14):
        with storage.claimed(study, once, tmp_path / "once", wanted) as taken:
            assert taken is not None
            drawn.append(taken[1])
            study.tell(taken[0], abs(math.log(taken[1]["optim.lr"] / 1e-3)) + i % 2)
    again = define(tmp_path / "again", dimensions, 14, sampler=sampler)
    found = [asked(tmp_path / "again", again, abs(math.log(d["optim.lr"] / 1e-3)) + i % 2) for i, d in enumerate(drawn)]
    assert found == list(enumerate(drawn))
    assert drawn[0] == {"optim.lr": 1.5e-3, "agent.n_step": 5}, "the recipe itself comes first"
    assert len({d["optim.lr"] for d in drawn[:10]}) == 10, "before a sampler learns, all draws differ"


def test_a_grid_is_tried_point_by_point_after_the_recipe(tmp_path: Path) -> None:
    search = define(
        tmp_path, {"agent.n_step": {"low": 4, "high": 6}, "agent.double": {"choices": [True, False]}}, 5, sampler="grid"
    )
    points = [asked(tmp_path, search)[1] for _ in range(5)]
    assert points[0] == {"agent.n_step": 5, "agent.double": True}
    assert len({json.dumps(point) for point in points}) == 5
    assert {point["agent.n_step"] for point in points} <= {4, 5, 6}
    study = storage.open_study(tmp_path, search)
    with storage.claimed(study, search, tmp_path, 5) as taken:
        assert taken is None


def test_half_a_line_that_a_killed_process_left_harms_nothing(tmp_path: Path) -> None:
    search = define(tmp_path, {"optim.lr": LR}, 4)
    first = asked(tmp_path, search)
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b'{"op_code":6,"worker_id":"x","tri')
    assert asked(tmp_path, search)[0] == 1
    trials = storage.open_study(tmp_path, search).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert trials[0].params == first[1]


def test_a_trial_that_is_held_is_left_alone_and_one_that_is_not_is_taken_over(tmp_path: Path) -> None:
    search = define(tmp_path, {"optim.lr": LR}, 9)
    study, other = (storage.open_study(tmp_path, search) for _ in range(2))
    storage.plan(study, search)
    with (
        storage.claimed(study, search, tmp_path, 9) as mine,
        storage.claimed(other, search, tmp_path, 9) as its,
    ):
        assert mine is not None
        assert its is not None
        assert [mine[0].number, its[0].number] == [0, 1]
    for _ in range(2):  # nobody told how they ended
        with storage.claimed(study, search, tmp_path, 9) as taken:
            assert taken is not None
            assert taken[0].number == 0
            assert taken[1] == mine[1]
    with storage.claimed(study, search, tmp_path, 9) as taken:  # a third time in one place: failed
        assert taken is not None
        assert taken[0].number == 1
    failed = study.get_trials()[0]
    assert failed.state.name == "FAIL"
    assert failed.user_attrs["error"] == "its process ended 3 times without a word at frame 0"


def test_the_recipe_itself_is_never_pruned_and_another_first_point_is(tmp_path: Path) -> None:
    for name, choices, ends in (("held", [5, 6], False), ("other", [6, 7], True)):
        search = define(tmp_path / name, {"agent.n_step": {"choices": choices}}, 2, sampler="grid")
        study = storage.open_study(tmp_path / name, search)
        storage.plan(study, search)
        good = dict.fromkeys(range(1, 7), 9.0)
        for _ in range(5):
            study.add_trial(optuna.trial.create_trial(value=9.0, intermediate_values=good))
        first = study.get_trials()[0]
        assert search.space.is_held() is not ends
        first.intermediate_values = dict.fromkeys(good, 1.0)
        assert storage.MedianOfAverages(search).prune(study, first) is ends


def test_a_trial_that_is_interrupted_again_and_again_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    search = define(tmp_path, {"optim.lr": LR}, 1)
    storage.plan(storage.open_study(tmp_path, search), search)
    monkeypatch.setattr(worker, "_train", interrupted)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            worker.work(tmp_path, 1)
    assert [row["state"] for row in states(tmp_path)] == ["running"]


# Whole searches


def states(root: Path) -> list[dict[str, Any]]:
    search = definition.Search(definition.read(root))
    return report.rows(storage.open_study(root, search), search, root)


def worked(root: Path, search: definition.Search) -> list[dict[str, Any]]:
    """Search in this process."""
    wanted = storage.plan(storage.open_study(root, search), search)
    worker.work(root, wanted)
    return states(root)


def test_a_trial_that_diverges_fails_and_the_search_goes_on(tmp_path: Path) -> None:
    dimensions = {"optim.lr": {"choices": [1e-3, 1e30]}}
    found = worked(tmp_path, define(tmp_path, dimensions, 2, sampler="grid", metric="final/mean"))
    assert [row["state"] for row in found] == ["finished", "failed"]
    assert found[1]["problem"].startswith("'loss' became NaN at update ")
    assert runs.describe(tmp_path / "trial-0001" / "seed-1000")["status"] == "failed"


def test_a_hopeless_trial_ends_soon_and_its_run_says_why(tmp_path: Path) -> None:
    search = define(tmp_path, {"optim.lr": LR}, 7)
    study = storage.open_study(tmp_path, search)
    storage.plan(study, search)
    for _ in range(6):
        with storage.claimed(study, search, tmp_path, 7) as taken:
            assert taken is not None
            for step in range(1, 7):
                taken[0].report(1000.0, step)
            study.tell(taken[0], 1000.0)
    last = worked(tmp_path, search)[6]
    assert last["state"] == "pruned"
    assert last["values"] == []
    result = runs.read_json(tmp_path / "trial-0006" / "seed-1000" / "result.json")
    assert result["frames"] == 200
    assert result["stopped"].startswith("pruned at frame 200: eval/return_mean ")
    assert not (tmp_path / "trial-0006" / "seed-1001").exists()


def spawn(root: Path, jobs: int, *more: str) -> subprocess.Popen[bytes]:
    words = [
        "cartpole_dqn",
        "--space",
        str(root.parent / "space.yaml"),
        "--metric",
        "frames_to",
        "--seeds",
        "1000-1001",
    ]
    words += ["--jobs", str(jobs), "--out", str(root), "--quiet", "--trials", "4", *options(LONGER), *more]
    code = "from rlcore.cli_tune import tune; tune()"
    return subprocess.Popen([sys.executable, "-c", code, *words], start_new_session=True, stderr=subprocess.PIPE)


def said_by(process: subprocess.Popen[bytes]) -> str:
    return process.stderr.read().decode() if process.stderr else ""


LONGER = {**TINY, "budget.frames": 1200, "checkpoint.every": 400}
SPACE = {"optim.lr": LR, "agent.n_step": {"low": 1, "high": 9}}


def finished_runs(found: list[dict[str, Any]]) -> dict[str, str]:
    over = [row for row in found if row["state"] in ("finished", "pruned")]
    folders = [run for row in over for run in Path(row["folder"]).glob("seed-*")]
    return {str(run): (run / "manifest.json").read_text() + (run / "progress.csv").read_text() for run in folders}


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_in_the_middle_it_goes_on_and_no_trial_is_lost_or_repeated(tmp_path: Path, jobs: int) -> None:
    (tmp_path / "space.yaml").write_text(json.dumps(SPACE))
    root = tmp_path / "search"
    first = spawn(root, jobs)
    while not (root / "trial-0002" / "seed-1000" / "checkpoints").exists():
        assert first.poll() is None, said_by(first)
        time.sleep(0.01)
    if jobs == 1:
        os.killpg(first.pid, signal.SIGKILL)  # the worker is of its group
    else:
        first.kill()  # workers that lose their parent take a checkpoint and end
    first.communicate()
    await_end_of_group(first.pid)
    before = states(root)
    kept, files = {row["trial"]: row for row in before if row["state"] == "finished"}, finished_runs(before)
    assert 1 <= len(kept) < 4
    assert any(row["state"] == "running" for row in before)
    second = spawn(root, jobs, "--resume")
    _, said = second.communicate(timeout=300)
    assert second.returncode == 0, said.decode()
    after = states(root)
    assert [row["trial"] for row in after] == list(range(4))
    assert {row["state"] for row in after} == {"finished"}
    assert {number: after[number] for number in kept} == kept
    assert {path: finished_runs(after)[path] for path in files} == files, "a finished run was touched"
    begun = [row["settings"] for row in before]
    assert [row["settings"] for row in after][: len(begun)] == begun
    if jobs == 1:  # with two, which trials a draw learns from depends on who is first
        settings = configs.override(configs.read("cartpole_dqn"), LONGER)
        once = worked(tmp_path / "once", define(tmp_path / "once", SPACE, 4, settings=settings, metric="frames_to"))
        assert [(row["settings"], row["values"]) for row in after] == [(row["settings"], row["values"]) for row in once]


def await_end_of_group(number: int) -> None:
    deadline = time.monotonic() + 60
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(number, 0)
            assert time.monotonic() < deadline, "workers go on without their parent"
            time.sleep(0.02)


# What is left behind, and the command


def test_a_search_leaves_a_recipe_a_table_and_figures(tmp_path: Path, command: Command) -> None:
    dimensions = {"optim.lr": {"choices": [1.5e-3, 1e-30]}, "agent.network.kwargs.hidden": {"choices": [[16], [8, 8]]}}
    (tmp_path / "own.yaml").write_text(json.dumps(dimensions))
    given = ["--space", "own.yaml", "--sampler", "grid", "--metric", "final", "--seeds", "1000", "--out", "found"]
    small = options(TINY | {"budget.frames": 400})
    small = [word for word in small if "hidden" not in word] + ["--seed=3"]
    called = command("tune", "cartpole_dqn", *given, *small)
    assert called.code == 0, called.err
    assert "trial 3: " in called.err
    assert "4/4 trials" in called.err
    assert "4 trials (4 finished) in cartpole_dqn over own.yaml; final/mean, higher is better" in called.out
    with Path("found/trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    best = max(rows, key=lambda row: float(row["value"]))
    recipe = Path("found/best.yaml").read_text()
    assert recipe.startswith(
        f"# The best of 4 trials (4 finished) of a search over cartpole_dqn: trial {best['trial']}, "
    )
    run = rlcore.train("found/best.yaml", out="again", seed=1000, **{"eval.final_seed": definition.FINAL_SEED})
    assert run.config.agent.network.kwargs["hidden"] == json.loads(best["agent.network.kwargs.hidden"])
    assert run.result["evaluation"]["mean"] == float(best["value"]), "the recipe is the trial, bit for bit"
    assert all(Path("found", f"history.{end}").stat().st_size > 5000 for end in ("png", "svg"))
    assert command("runs", "list", "found/trial-0000").code == 0
    called = command("tune", "--out", "found", "--resume", "--json", *small)
    assert called.code == 0, called.err
    assert json.loads(called.out)["best"]["trial"] == int(best["trial"])
    for more, expected in (
        (["--sampler", "gp"], '--sampler: got "gp", but found was begun with "grid"; expected only --trials to change'),
        (["--trials", "3"], "--trials: got 3, but found was begun with 50; expected as many or more"),
        (["--optim.clip=3"], "--optim.clip: got 3, but found was begun with 10.0"),
        (["cartpole_dqn"], ", but found was begun with "),  # without the settings that it was begun with
    ):
        refused = command("tune", "--out", "found", "--resume", *more)
        assert refused.code == 2
        assert expected in refused.err
    assert "is not empty; add --resume" in command("tune", "cartpole_dqn", *given).err
    given[-1] = "own.yaml"
    assert "error: cannot write to 'own.yaml': File exists" in command("tune", "cartpole_dqn", *given).err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "--space: got none, expected a YAML file or a shipped space: dqn, ppo, sac, transformer"),
        (["--space", "dqnn"], "'dqnn' is neither a file nor a shipped space; did you mean 'dqn'?"),
        (["cartpole_dnq", "--space", "dqn"], "did you mean 'cartpole_dqn'?"),
        (["--space", "dqn", "--metric", "speed"], "--metric: got 'speed', expected frames_to, seconds_to, final"),
        (["cartpole_ppo", "--space", "ppo", "--metric", "frames_to"], "the recipe stops at no threshold"),
        (["--space", "dqn", "--seeds", "0-2"], "--seeds: got 0-2, expected seeds from 100 up"),
        (["--space", "dqn", "--seeds", "x"], "seeds: got 'x', expected A-B"),
        (["--space", "dqn", "--sampler", "tpee"], "--sampler: got 'tpee', expected 'grid', 'random', 'tpe' or 'gp'"),
        (["--space", "dqn", "--optim.lr=1"], "--optim.lr: is searched by space dqn; expected no value of its own"),
        (["--space", "ppo"], "space ppo: agent.lam is not a setting"),
        (["--space", "dqn", "--trails", "3"], "argument '--trails' is not known; did you mean 'trials'?"),
        (["--space", "dqn", "--sampler", "grid"], "space dqn: optim.lr has no step"),
        (["--resume"], "--resume: expected --out DIR"),
        (["--resume", "--out", "nowhere"], "--out nowhere: holds no search"),
    ],
)
def test_mistakes_are_told_before_the_first_trial(command: Command, argv: list[str], expected: str) -> None:
    called = command("tune", *argv)
    assert called.code == 2
    assert expected in called.err
    assert called.err.count("\n") == 1, called.err
    assert not list(Path().rglob("journal.log"))


def test_one_reason_for_all_failures_ends_a_search(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 trials in a row failed: --metric: 'meann' is not evaluated; did you mean"):
        tune("cartpole_dqn", SPACE, trials=9, seeds="1000", out=tmp_path / "bad", metric="final/meann", **TINY)
    assert len([row for row in states(tmp_path / "bad") if row["state"] == "failed"]) < 9
