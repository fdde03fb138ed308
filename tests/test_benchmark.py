"""benchmark.py results, end to end: real runs of 600 frames in real processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Called, assert_same_run

from rlcore import benchmark, runs, study, workers
from rlcore import config as configs

SCRIPT = configs.recipes().parent / "benchmark.py"
SET = """
title: Tiny
seeds: 0-1
rows:
  small:
    recipe: cartpole_online_q
    overrides: {budget.frames: 600, eval.every: 0, eval.final_episodes: 5, log.every: 100, checkpoint.every: 100}
    goal: 5
  broken: {recipe: cartpole_online_q, overrides: {agent.network.kwargs.hiden: [8]}, seeds: "0", goal: 5}
"""


def _call(*argv: str | Path) -> Called:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        benchmark.main([str(word) for word in argv])
    return Called(int(left.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Called]:
    """A set whose second row fails, the folder of its runs, and how the command ended."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "tiny.yaml").write_text(SET)
    return (
        root / "tiny.yaml",
        root / "runs",
        _call("results", root / "tiny.yaml", "--folder", root / "runs", "--jobs", 2),
    )


def _wait(until: Callable[[], Any], what: str) -> None:
    for _ in range(6000):
        if until():
            return
        time.sleep(0.01)
    raise AssertionError(f"waited a minute for {what}")


def _job(tiny: tuple[Path, Path, Called], folder: Path, seed: int = 0) -> study.Job:
    return study.jobs(study.read(str(tiny[0])), folder)[seed]


def test_one_command_estimates_trains_and_reports(tiny: tuple[Path, Path, Called]) -> None:
    said = tiny[2].err.splitlines()
    first = next(i for i, line in enumerate(said) if "5 in" in line or "seed" in line)
    estimate = next(i for i, line in enumerate(said) if line.startswith("note: estimate: 3 runs to train (0 finished)"))
    assert estimate < first
    assert "small: 2 runs of about" in said[0]
    assert sum("small seed" in line for line in said) == 2
    assert "| `small` | CartPole-v1 | 600 | 2 |" in tiny[2].out
    assert "**met**" in tiny[2].out
    assert tiny[2].out.strip() in (tiny[1] / "RESULTS.md").read_text()
    assert (tiny[1] / "img" / "tiny.png").stat().st_size > 5000


def test_a_failing_run_is_reported_with_its_sentence_and_harms_no_other(tiny: tuple[Path, Path, Called]) -> None:
    sentence = "network.kwargs.hiden is not an option of network 'mlp'; did you mean 'hidden'?"
    assert "- `broken`: no seed of 1 has finished (failed: " in tiny[2].out
    assert tiny[2].out.count(sentence) == 1
    assert "**incomplete**" in tiny[2].out
    assert tiny[2].code == 2
    assert tiny[2].err.splitlines()[-1].startswith("error: 1 run failed, first broken seed 0: ")


def test_a_report_is_a_function_of_the_run_folders(tiny: tuple[Path, Path, Called]) -> None:
    document, figure = tiny[1] / "RESULTS.md", tiny[1] / "img" / "tiny.png"
    before = document.read_bytes(), figure.read_bytes()
    figure.unlink()
    done = _call("results", tiny[0], "--folder", tiny[1], "--report-only", "--json")
    assert (document.read_bytes(), figure.read_bytes()) == before
    result = json.loads(done.out)
    small, broken = result["rows"]
    assert done.code == 0 and result["set"] == "tiny" and result["figures"] == ["img/tiny.png"]
    scores = [runs.read_json(tiny[1] / "small" / f"seed-{i}" / "result.json")["evaluation"]["mean"] for i in (0, 1)]
    assert [run["score"] for run in small["runs"]] == scores
    assert small["mean"] == pytest.approx(sum(scores) / 2)
    assert (broken["runs"][0]["status"], broken["iqm"]) == ("failed", None)


def test_what_is_finished_is_kept(tiny: tuple[Path, Path, Called]) -> None:
    result = tiny[1] / "small" / "seed-0" / "result.json"
    before = result.stat().st_mtime_ns
    done = _call("results", tiny[0], "--folder", tiny[1], "--only", "small")
    assert done.code == 0 and "0 runs to train (2 finished)" in done.err
    assert result.stat().st_mtime_ns == before
    wrong = _call("results", tiny[0], "--folder", tiny[1], "--only", "smal")
    assert "has no row 'smal'; did you mean 'small'?" in wrong.err


def test_a_run_of_other_settings_is_named_and_trained_anew_only_when_asked(
    tiny: tuple[Path, Path, Called], tmp_path: Path
) -> None:
    shutil.copytree(tiny[1] / "small", tmp_path / "runs" / "small")
    (tmp_path / "tiny.yaml").write_text(SET.replace("frames: 600", "frames: 300"))
    call = ["results", tmp_path / "tiny.yaml", "--folder", tmp_path / "runs", "--only", "small", "--seeds", "1"]
    kept = _call(*call)
    assert "small/seed-1 was trained with budget.frames 600 instead of 300; it is left out (--again" in kept.err
    assert "differs: was trained with budget.frames 600" in kept.out and "**met**" not in kept.out
    assert runs.describe(tmp_path / "runs" / "small" / "seed-1")["frames"] == 600
    assert _call(*call, "--again").code == 0
    assert runs.describe(tmp_path / "runs" / "small" / "seed-1")["frames"] == 300
    assert runs.describe(tmp_path / "runs" / "small" / "seed-0")["frames"] == 600


def test_a_killed_run_is_told_and_goes_on_where_it_was(tiny: tuple[Path, Path, Called], tmp_path: Path) -> None:
    job = _job(tiny, tmp_path)
    failed: dict[study.Job, str] = {}
    thread = threading.Thread(target=lambda: failed.update(workers.train([job], [job], 1, {})))
    thread.start()
    _wait(lambda: list(job.path.glob("checkpoints/[0-9]*")), "a checkpoint")
    (child,) = Path(f"/proc/self/task/{thread.native_id}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    thread.join()
    assert failed == {job: "killed by SIGKILL; the same command goes on from its last checkpoint"}
    assert job.status() == ("failed", failed[job])
    assert workers.train([job], [job], 1, {}) == {}
    assert job.status() == ("finished", "")
    assert_same_run(job.path, _job(tiny, tiny[1]).path)


def test_ctrl_c_ends_the_runs_and_says_how_to_go_on(tiny: tuple[Path, Path, Called], tmp_path: Path) -> None:
    shutil.copytree(tiny[1] / "small" / "seed-1", tmp_path / "small" / "seed-1")  # the estimate comes from it
    job = _job(tiny, tmp_path)
    words = [sys.executable, SCRIPT, "results", tiny[0], "--folder", tmp_path, "--only", "small"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes of a test runner may ignore it
    process = subprocess.Popen([str(w) for w in words], stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    _wait(lambda: list(job.path.glob("checkpoints/[0-9]*")), "a checkpoint")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; 1 run left: the same command goes on"
    assert "Traceback" not in err
    assert job.status()[0] == "unfinished"


def test_two_commands_do_not_train_one_run(tiny: tuple[Path, Path, Called], tmp_path: Path) -> None:
    shutil.copytree(tiny[1] / "small", tmp_path / "small")
    (tmp_path / "small" / "seed-0" / "result.json").unlink()
    with runs.locked(tmp_path / "small" / "seed-0"):
        done = _call("results", tiny[0], "--folder", tmp_path, "--only", "small")
    assert (done.code, done.out) == (2, "")
    assert "is being trained by another process" in done.err


def test_the_table_on_a_terminal_says_how_far_each_row_is(
    tiny: tuple[Path, Path, Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    every = study.jobs(study.read(str(tiny[0])), tiny[1])
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with workers.Board(every, every[1:], 2, {"small": 100.0, "broken": 20.0}) as board:
        board.show({every[1]: time.monotonic() - 40})
        board.ended(every[1], "", 80.0, True)
        board.show({every[2]: time.monotonic()})
    text = Console(file=io.StringIO(), width=80)
    with text.capture() as captured:
        text.print(board.table({every[2]: time.monotonic()}))
    lines = [line.split() for line in captured.get().splitlines()]
    score = runs.read_json(every[1].path / "result.json")["evaluation"]["mean"]
    assert lines[1] == ["small", "2/2", f"{score:.6g}"]
    assert lines[2] == ["broken", "0/1", "0", "20", "s"]
    assert lines[3] == ["all", "2/3", "20", "s"]
    assert "60 s" in terminal.getvalue()
