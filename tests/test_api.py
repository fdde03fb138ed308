"""Whole runs from Python: the same every time, interrupted or not; and what a trained run can do."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, assert_same_run, options, rows, scalars
from gymnasium import spaces

import rlcore
import rlcore.cli
from envs.cartpole import CartPole
from rlcore import api, build, checkpoint, registry
from rlcore import config as configs
from rlcore.errors import UserError
from rlcore.run import Run
from rlcore.testing.agents import first_difference
from rlcore.types import Spec

SCRIPTS = configs.recipes().parent


class Alarmed(CartPole):
    """CartPole that does something just before the step of a given number."""

    at: int = 0
    steps = itertools.count(1)
    happen: Callable[[], Any] = staticmethod(lambda: None)

    def step(self, action: torch.Tensor) -> Any:
        if next(Alarmed.steps) == Alarmed.at:
            Alarmed.happen()
        return super().step(action)


if "Alarmed" not in registry.names("envs"):
    registry.register("envs", "Alarmed", Alarmed)
ALARMED = {**SMALL, "env.id": "Alarmed"}


def set_alarm(at: int, happen: Callable[[], Any] = lambda: None) -> None:
    Alarmed.at, Alarmed.happen, Alarmed.steps = at, staticmethod(happen), itertools.count(1)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run of Alarmed that nothing interrupted."""
    set_alarm(0)
    return rlcore.train("cartpole_dqn", out=tmp_path / "whole", **ALARMED).path


# Determinism


@pytest.mark.parametrize("backend", ["auto", "sync"])
def test_one_seed_is_one_run_and_another_is_another(tmp_path: Path, backend: str) -> None:
    settings = {**SMALL, "env.backend": backend, "budget.frames": 400}
    runs = [rlcore.train("cartpole_dqn", out=tmp_path / str(i), seed=i // 2, **settings).path for i in range(3)]
    assert_same_run(runs[0], runs[1])
    assert rows(runs[0]) != rows(runs[2])


@pytest.mark.parametrize("recipe", ["cartpole_dqn", "house_prices"])
def test_evaluating_more_often_changes_nothing_in_training(tmp_path: Path, recipe: str) -> None:
    settings = SMALL if recipe == "cartpole_dqn" else {"budget.frames": 1500, "log.every": 250}
    runs = []
    for every in (0, 100, 333):
        more = {"eval.every": every, "eval.episodes": 3}
        runs.append(rlcore.train(recipe, out=tmp_path / str(every), **{**settings, **more}).path)
    trained = [[row for row in rows(run, "eval/") if row["train/loss"] or "train/epsilon" in row] for run in runs]
    logged = [[row for row in one if row["train/learning_rate"]] for one in trained]
    assert logged[0] == logged[1] == logged[2]
    first, *others = (checkpoint.load(run / "checkpoints") for run in runs)
    for other in others:
        assert first_difference(first.agent, other.agent) is None
        assert first_difference(first.state["source"], other.state["source"]) is None
        assert first_difference(first.state["torch_rng"], other.state["torch_rng"]) is None
    assert len([row for row in rows(runs[1]) if row["eval/return_mean"]]) >= 6


def test_processes_change_nothing_and_ctrl_c_reaches_only_the_trainer(tmp_path: Path) -> None:
    small = {**SMALL, "env.num_envs": 2, "log.every": 20, "budget.frames": 1200}
    rlcore.train("cartpole_dqn", out=tmp_path / "sync", **small, **{"env.backend": "sync"})
    script = [sys.executable, "-W", "error", str(SCRIPTS / "train.py")]
    command = [*script, *options({**small, "env.backend": "async"}), "--out", str(tmp_path / "async")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        progress = tmp_path / "async" / "progress.csv"
        while not (progress.exists() and progress.read_text().count("\n") > 2):
            assert run.poll() is None, run.communicate()
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("interrupted; continue from frame ")
    assert err.splitlines()[-1].endswith(f" with --resume --out {tmp_path / 'async'}")
    assert "Traceback" not in err
    assert "Error" not in err
    interrupted = json.loads((tmp_path / "async" / "result.json").read_text())
    assert interrupted["status"] == "interrupted"
    assert 40 <= interrupted["frames"] < 1200
    resumed = subprocess.run([*script, "--resume", str(tmp_path / "async"), "--quiet"], check=False, timeout=120)
    assert resumed.returncode == 0
    assert_same_run(tmp_path / "sync", tmp_path / "async")


# Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [30, 137])
def test_an_interrupted_run_saves_and_goes_on_as_if_nothing_had_been(
    tmp_path: Path, whole: Path, number: signal.Signals, step: int
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    set_alarm(step, lambda: signal.raise_signal(number))
    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt) as stopped:
        rlcore.train("cartpole_dqn", out=out, **ALARMED)
    assert str(stopped.value) == f"interrupted; continue from frame {4 * step} with --resume --out {out}"
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert checkpoint.load(out / "checkpoints").frames == 4 * step, "the iteration ends, then comes a checkpoint"
    result = json.loads((out / "result.json").read_text())
    assert (result["status"], result["frames"]) == ("interrupted", 4 * step)
    set_alarm(0)
    run = rlcore.train(out=out, resume=True)
    assert run.result["status"] == "finished"
    assert_same_run(whole, out)


def test_a_second_ctrl_c_stops_at_once_and_loses_only_what_came_after_the_checkpoint(
    tmp_path: Path, whole: Path
) -> None:
    set_alarm(130, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt, match="continue from frame 400 with"):
        rlcore.train("cartpole_dqn", out=out, **ALARMED)
    assert checkpoint.load(out / "checkpoints").frames == 400
    set_alarm(0)
    rlcore.train(out, resume=True)
    assert_same_run(whole, out)


def test_ctrl_c_in_the_final_evaluation_repeats_only_that(tmp_path: Path, whole: Path) -> None:
    set_alarm(155, lambda: signal.raise_signal(signal.SIGINT))  # training takes 150 steps
    out = tmp_path / "interrupted"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes of a test runner may ignore it
    try:
        with pytest.raises(KeyboardInterrupt, match="continue from frame 600 with"):
            rlcore.train("cartpole_dqn", out=out, **ALARMED)
    finally:
        signal.signal(signal.SIGINT, before)
    set_alarm(0)
    run = rlcore.train(out=out, resume=True)
    assert_same_run(whole, out)
    assert run.result["evaluation"] == json.loads((whole / "result.json").read_text())["evaluation"]


def test_the_command_line_tells_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_alarm(60, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as left:
        rlcore.cli.train(["--out", str(tmp_path / "run"), "--quiet", *options(ALARMED)])
    assert left.value.code == 130
    assert capsys.readouterr() == ("", f"interrupted; continue from frame 240 with --resume --out {tmp_path / 'run'}\n")


# Resuming


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "killed"
    code = (
        "import os, signal, test_api\n"
        "test_api.set_alarm(45, lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
        f"test_api.rlcore.train('cartpole_dqn', out={str(out)!r}, **test_api.ALARMED)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert rows(out), "the run was killed before it logged"
    assert not list(out.glob("checkpoints/*"))
    set_alarm(0)
    rlcore.train(out=out, resume=True)
    assert_same_run(whole, out)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, finished: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    run = rlcore.train(out=out, resume=True)
    assert_same_run(finished, out)
    assert run.result["evaluation"] == rlcore.load(finished).result["evaluation"]
    assert (out / "config.yaml").read_text() == (finished / "config.yaml").read_text()


def test_an_extended_run_holds_the_last_values_of_its_schedules(tmp_path: Path) -> None:
    schedules = {
        "agent.epsilon": {"kind": "linear", "start": 1.0, "end": 0.25, "fraction": 0.5},
        "optim.schedule": {"kind": "cosine", "start": 1.0, "end": 0.125},
        "optim.lr": 0.008,
    }
    out = rlcore.train("cartpole_dqn", out=tmp_path / "run", **{**SMALL, **schedules}).path
    first = rows(out)
    for frames in (900, 1200):
        run = rlcore.train(out=out, resume=True, budget={"frames": frames})
        assert run.result["frames"] == frames
        assert run.config.budget.horizon == 600
    extended = rows(out)
    assert extended[: len(first)] == first
    assert [row["frames"] for row in extended] == [str(frame) for frame in range(100, 1300, 100)]
    assert len({row["train/learning_rate"] for row in first}) == 6
    for row in extended[6:]:  # an iteration's learning rate is that of its start
        assert float(row["train/learning_rate"]) == pytest.approx(0.001)
        assert float(row["train/epsilon"]) == pytest.approx(0.25)
    assert [step for step, _ in scalars(out)["train/epsilon"]] == list(range(100, 1300, 100))
    longer = rlcore.train(
        "cartpole_dqn", out=tmp_path / "at_once", **{**SMALL, **schedules, "budget.horizon": 600, "budget.frames": 1200}
    )
    assert rows(longer.path) == extended, "extending twice is training at once with the same horizon"


def test_a_resume_may_watch_otherwise(tmp_path: Path, finished: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    watch = {"eval.every": 0, "log.every": 50, "checkpoint.keep": 3, "checkpoint.buffer": False}
    rlcore.train(out=out, resume=True, **{"budget.frames": 700}, **watch)
    assert [row["frames"] for row in rows(out)][-2:] == ["652", "700"]
    rlcore.train(out=out, resume=True, **{"budget.frames": 800, "eval.every": 100})
    assert rows(out)[-1]["eval/return_mean"]


def test_a_run_that_stopped_early_stays_stopped_until_its_goal_moves(tmp_path: Path) -> None:
    goal = {"eval.every": 100, "eval.episodes": 2, "stop.metric": "eval/return_mean", "stop.threshold": 1}
    run = rlcore.train("cartpole_dqn", out=tmp_path / "run", **{**SMALL, **goal})
    assert run.result["frames"] == 100
    assert run.result["stopped"].startswith("eval/return_mean reached ")
    assert rlcore.train(out=run.path, resume=True).result["frames"] == 100
    moved = rlcore.train(out=run.path, resume=True, stop={"threshold": 1000})
    assert moved.result["frames"] == 600
    assert "stopped" not in moved.result


def test_runs_that_begin_in_one_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form, *_: "now")
    runs = [rlcore.train("cartpole_dqn", **{**SMALL, "budget.frames": 8}).path for _ in range(3)]
    assert [run.name for run in runs] == [f"cartpole_dqn-s0-now{end}" for end in ("", "-2", "-3")]


# Starting from another run


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path, finished: Path) -> None:
    idle = {**SMALL, "budget.frames": 40, "seed": 5}  # ends before learning starts
    run = rlcore.train("cartpole_dqn", out=tmp_path / "young", init=finished, **idle)
    old = checkpoint.load(finished / "checkpoints").agent
    assert first_difference(checkpoint.load(run.path / "checkpoints").agent, old) is None
    assert run.config.init == str(finished)
    again = rlcore.train(run.path / "config.yaml", out=tmp_path / "again")
    assert_same_run(run.path, again.path)


def test_a_run_starts_from_the_checkpoint_that_the_other_is_used_by(tmp_path: Path) -> None:
    best = {**SMALL, "eval.every": 400, "eval.episodes": 2, "eval.use": "best"}  # of 600 frames
    elder = rlcore.train("cartpole_dqn", out=tmp_path / "elder", **best).path
    kept, last = (checkpoint.load(elder / "checkpoints" / name).agent for name in ("best", "000000000600"))
    run = rlcore.train("cartpole_dqn", out=tmp_path / "young", init=elder, **{**SMALL, "budget.frames": 40})
    assert first_difference(checkpoint.load(run.path / "checkpoints").agent, kept) is None
    assert first_difference(kept, last) is not None


def test_fine_tuning_keeps_the_preprocessing(tmp_path: Path, regression: Path) -> None:
    lines = (SCRIPTS.parent / "envs" / "data" / "sacramento.csv").read_text().splitlines()
    (tmp_path / "new.csv").write_text("\n".join(lines[:80]))
    new = {"env.kwargs.path": str(tmp_path / "new.csv"), "budget.frames": 300, "eval.every": 0}
    old, row = rlcore.load(regression), {"sqft": "1500", "beds": "3"}
    tuned = rlcore.train("house_prices", out=tmp_path / "tuned", init=regression, **new)
    assert json.loads((tuned.path / "fitted.json").read_text()) == json.loads((regression / "fitted.json").read_text())
    still = rlcore.train("house_prices", out=tmp_path / "still", init=regression, **new, **{"optim.lr": 1e-30})
    assert still.predict([row])[0] == pytest.approx(old.predict([row])[0])
    assert tuned.predict([row])[0] != pytest.approx(old.predict([row])[0], rel=1e-3)
    (tmp_path / "new.csv").unlink()
    assert rlcore.load(tuned.path).predict([row]) == tuned.predict([row]), "predicting needs no data"


# A trained run in use


def test_load_acts_on_one_observation_or_a_batch(finished: Path) -> None:
    run = rlcore.load(finished)
    observations = np.random.default_rng(0).uniform(-2, 2, (20, 4))
    batch = run.act(observations)
    assert batch.shape == (20,)
    assert [int(run.act(obs)) for obs in observations] == batch.tolist()
    assert [int(run.act(obs.tolist())) for obs in observations] == batch.tolist()
    assert len(set(batch.tolist())) == 2, "choose other observations: the agent always does the same"
    with torch.no_grad():
        q = run.agent.act(torch.as_tensor(observations, dtype=torch.float32), (), {}, {}, explore=False).extras["q"]
    assert batch.tolist() == q.argmax(-1).tolist()
    only = np.eye(2, dtype=bool)[1 - batch]
    assert (run.act(observations, mask=only) == 1 - batch).all(), "masked actions are never chosen"
    assert not run.agent.training


@pytest.mark.parametrize(
    ("obs", "expected"),
    [
        (np.zeros(3), r"got shape \(3,\), expected \(4,\) or a batch of these"),
        (np.zeros((2, 3)), r"got shape \(2, 3\), expected \(4,\)"),
        (np.zeros((2, 2, 4)), r"got shape \(2, 2, 4\), expected \(4,\)"),
        (0.5, r"got shape \(\), expected \(4,\)"),
        (["a", "b"], "expected an observation of Box"),
        ({"x": [0, 0, 0, 0]}, "expected an observation of Box"),
        ([[1, 2], [3]], "expected an observation of Box"),
    ],
)
def test_observations_that_do_not_fit_are_told(finished: Path, obs: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        rlcore.load(finished).act(obs)
    assert "\n" not in str(error.value)


def test_act_takes_trees_of_observations(finished: Path) -> None:
    space = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), "room": spaces.Discrete(3)})
    config = configs.validate({"agent": {"network": {"kwargs": {"hidden": [4]}}}})
    spec = Spec(space, spaces.Discrete(5))
    run = Run(finished, config, build.agent(config, spec), spec)
    single = [{"position": [0.1 * i, -0.5], "room": i % 3} for i in range(4)]
    together = {"position": [obs["position"] for obs in single], "room": [obs["room"] for obs in single]}
    assert run.act(together).tolist() == [int(run.act(obs)) for obs in single]
    with pytest.raises(UserError, match=r"got shape \(2,\), \(3,\), expected \(2,\), \(\) or a batch"):
        run.act({"position": [0.1, 0.2], "room": [1, 2, 0]})


@pytest.mark.parametrize(
    ("space", "known", "unknown"),
    [
        (spaces.Discrete(3, start=5), [5, 7], [4, 8]),
        (spaces.MultiDiscrete([2, 3]), [[0, 0], [1, 2]], [[2, 0], [0, 3], [-1, 0]]),
        (spaces.MultiBinary(2), [[0, 1]], [[0, 2]]),
        (spaces.Box(-1, 1, (2,)), [[0, 1], [3, -3]], [[0, float("nan")], [float("inf"), 0]]),
        (spaces.Dict(a=spaces.Tuple([spaces.Discrete(2)])), [{"a": (1,)}], [{"a": (2,)}]),
    ],
)
def test_act_tells_what_its_space_does_not_know(finished: Path, space: Any, known: Any, unknown: Any) -> None:
    config = configs.validate({"agent": {"network": {"kwargs": {"hidden": [4]}}}})
    spec = Spec(space, spaces.Discrete(2))
    run = Run(finished, config, build.agent(config, spec), spec)
    for obs in known:
        assert int(run.act(obs)) in (0, 1)
    for obs in unknown:
        with pytest.raises(UserError, match="expected finite numbers of"):
            run.act(obs)


def test_loading_evaluating_and_training_agree(finished: Path) -> None:
    run = rlcore.load(finished)
    assert run.evaluate() == run.result["evaluation"] == rlcore.evaluate([finished]) == rlcore.evaluate(finished)
    assert rlcore.load(finished, "best").evaluate(3, seed=1)["episodes"] == 3


def test_settings_may_be_given_as_python_has_them(tmp_path: Path) -> None:
    config = configs.validate(configs.override(configs.read("cartpole_dqn"), SMALL)).model_dump()
    run = rlcore.train(config, out=tmp_path / "a", seed=1, optim={"schedule": {"end": 0.5}}, budget={"frames": 80})
    assert run.config.seed == 1
    assert run.config.optim.schedule.end == 0.5
    assert run.config.optim.lr == config["optim"]["lr"]
    assert run.config.budget.frames == 80


def test_threads_other_than_the_main_one_may_train(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(api.train, "cartpole_dqn", out=tmp_path / "run", **{**SMALL, "budget.frames": 40}).result()
    assert run.result["status"] == "finished"
