"""Weights & Biases offline and MLflow over SQLite, both for real: what they hold is read back and compared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL, Command, assert_same_run, rows

import rlcore
from rlcore import config as configs
from rlcore import runs, trackers
from rlcore.errors import UserError
from rlcore.logger import Logger

wandb_records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
mlflow = pytest.importorskip("mlflow")

BOTH: dict[str, Any] = {"log.trackers": ["wandb", "mlflow"]}
TASK: dict[str, Any] = {"budget.frames": 4000, "eval.every": 2000, "log.every": 1000}

# Dies once a row is written, and beyond the last checkpoint.
KILLED = """
import json, os, signal, sys
import rlcore
from rlcore.logger import Logger
write = Logger.write
def killed(self, frames, row):
    write(self, frames, row)
    if frames >= 500:
        os.kill(os.getpid(), signal.SIGKILL)
Logger.write = killed
rlcore.train("cartpole_dqn", out="run", **json.loads(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store of MLflow, which takes seconds to make."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(autouse=True)
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    """Trackers write here."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(store, tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def records(file: Path) -> Iterator[Any]:
    """Yield what a .wandb file holds: after a header of 7 bytes, LevelDB's log format over blocks of 32 kB."""
    data, at, whole = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_records.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def held_by_wandb(run: Path) -> dict[str, Any]:
    """Return the rows, ids, settings, final metrics and exit codes of all sessions of a run, as W&B would sync them."""
    held: dict[str, Any] = {"rows": [], "ids": [], "config": {}, "summary": {}, "exits": []}
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                held["rows"].append(
                    {"/".join([item.key, *item.nested_key]).strip("/"): item for item in record.history.item}
                )
                held["rows"][-1] = {name: json.loads(item.value_json) for name, item in held["rows"][-1].items()}
            elif kind == "run":
                held["ids"].append(record.run.run_id)
                held["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "summary":
                held["summary"] |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
            elif kind == "exit":
                held["exits"].append(record.exit.exit_code)
    return held


def mlflow_run(run: Path) -> Any:
    return mlflow.MlflowClient().get_run(runs.read_json(run / "trackers.json")["mlflow"]["id"])


def mlflow_rows(run: Path) -> list[dict[str, float]]:
    """Return the points of all metrics but the final ones by step; a metric has no step twice."""
    client, tracked = mlflow.MlflowClient(), mlflow_run(run)
    found: dict[int, dict[str, float]] = {}
    for name in tracked.data.metrics:
        points = client.get_metric_history(tracked.info.run_id, name) if not name.startswith("final/") else []
        assert len({point.step for point in points}) == len(points), f"{name} has a step twice"
        for point in points:
            found.setdefault(point.step, {})[name] = point.value
    return [found[step] for step in sorted(found)]


def logged(run: Path) -> list[dict[str, float]]:
    """Return the rows of progress.csv but for times."""
    return [{name: float(text) for name, text in row.items() if text} for row in rows(run)]


def untimed(held: list[dict[str, float]], known: set[str]) -> list[dict[str, float]]:
    return [{name: row[name] for name in row if name in known} for row in held]


def assert_held_once(run: Path) -> None:
    """Both trackers hold exactly the rows of progress.csv, each once."""
    written = logged(run)
    known = {name for row in written for name in row}
    assert untimed(mlflow_rows(run), known) == written
    held = held_by_wandb(run)
    assert untimed(held["rows"], known) == written
    assert [row["_step"] for row in held["rows"]] == [row["frames"] for row in written]
    assert len(set(held["ids"])) == 1


def test_both_trackers_hold_rows_settings_final_metrics_and_figures(tmp_path: Path) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    result = rlcore.train("house_prices", out=run, **TASK, **BOTH).result
    assert_held_once(run)
    held, kept = held_by_wandb(run), mlflow_run(run)
    settings = configs.read(run)
    assert {name: held["config"][name] for name in settings} == settings
    flat = configs.flatten(settings)
    assert kept.data.params == {name: str(value) for name, value in flat.items()}
    assert yaml.safe_load(mlflow.artifacts.load_text(f"{kept.info.artifact_uri}/config.yaml")) == yaml.safe_load(
        (run / "config.yaml").read_text()
    )
    final = {f"final/{k}": v for k, v in result["evaluation"].items() if isinstance(v, (int, float))}
    assert {name: held["summary"][name] for name in final} == pytest.approx(final)
    assert {name: kept.data.metrics[name] for name in final} == pytest.approx(final)
    assert (held["exits"], kept.info.status) == ([0], "FINISHED")
    shown = [name for row in held["rows"] for name in row if name.endswith("/path")]
    assert len(shown) >= 2 and all(name.startswith(("eval/", "final/")) for name in shown)
    pictures = list((run / "wandb").glob("offline-run-*/files/media/images/**/*.png"))
    artifacts = mlflow.MlflowClient().list_artifacts(kept.info.run_id, "images")
    stored = [artifact.path for artifact in artifacts if artifact.path.endswith(".png")]
    assert len(stored) >= len(shown) and len(pictures) == len(shown)
    # And training was the same as without them.
    rlcore.train("house_prices", out=plain, **TASK)
    assert_same_run(run, plain)
    assert not (plain / "trackers.json").exists()


def test_a_killed_run_goes_on_in_the_same_tracker_runs_and_repeats_no_row(tmp_path: Path) -> None:
    settings = {**SMALL, **BOTH}
    alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not this process's server
    call = [sys.executable, "-c", KILLED, json.dumps(settings)]
    done = subprocess.run(call, check=False, capture_output=True, env=alone)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    run = tmp_path / "run"
    before = runs.read_json(run / "trackers.json")
    assert len(mlflow_rows(run)) == 5  # up to frame 500; the last checkpoint is of 400
    rlcore.train(resume=True, out=run)
    after = runs.read_json(run / "trackers.json")
    assert {name: after[name]["id"] for name in after} == {name: before[name]["id"] for name in before}
    assert not (
        run / "wandb" / before["wandb"]["begun"]
    ).exists()  # what is left of the killed session would come twice
    assert_held_once(run)
    assert mlflow_run(run).info.status == "FINISHED"
    # A finished run that is extended: another session, the same runs.
    rlcore.train(resume=True, out=run, **{"budget.frames": 800})
    assert_held_once(run)
    assert len(held_by_wandb(run)["exits"]) == 2
    assert mlflow_run(run).data.params["budget.frames"] == "600"  # MLflow's cannot change
    stored = mlflow.artifacts.load_text(f"{mlflow_run(run).info.artifact_uri}/config.yaml")
    assert yaml.safe_load(stored)["budget"]["frames"] == 800


def test_a_tracker_that_comes_later_is_sent_the_rows_it_lacks(tmp_path: Path) -> None:
    run = tmp_path / "run"
    rlcore.train("cartpole_dqn", out=run, **SMALL)
    rlcore.train(resume=True, out=run, **{"budget.frames": 800, "log.trackers": "mlflow"})
    written = logged(run)
    assert untimed(mlflow_rows(run), {name for row in written for name in row}) == written


def test_evaluation_tells_no_tracker(
    tmp_path: Path, command: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    rlcore.train("cartpole_dqn", out=run, **SMALL, **{"log.trackers": ["mlflow"]})
    before = mlflow_rows(run), (run / "trackers.json").read_text(), (tmp_path / "mlflow.db").stat().st_mtime_ns
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    done = command("evaluate", run, "--episodes", "2")
    assert (done.code, done.err) == (0, "")
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert (tmp_path / "mlflow.db").stat().st_mtime_ns == before[2]
    assert (mlflow_rows(run), (run / "trackers.json").read_text()) == before[:2]


class Fails:
    """A tracker that is never of use; ``where`` says from when."""

    where, calls = "", 0
    held, address = -1, "somewhere"

    def __init__(self, folder: Path, config: Any) -> None:
        self._do("init")

    def _do(self, what: str) -> None:
        Fails.calls += 1
        if self.where == what:
            raise ConnectionError("no answer\nfrom the server")

    def row(self, frames: int, row: Any) -> None:
        self._do("row")

    def figure(self, tag: str, png: bytes, frames: int) -> None:
        self._do("figure")

    def final(self, metrics: Any, frames: int) -> None:
        self._do("final")

    def end(self, status: str) -> None:
        self._do("end")


@pytest.mark.parametrize(("where", "calls"), [("init", 1), ("row", 2), ("final", 8), ("end", 9)])
def test_a_tracker_that_fails_is_told_of_once_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str, calls: int
) -> None:
    monkeypatch.setattr(Fails, "where", where)
    monkeypatch.setattr(Fails, "calls", 0)
    monkeypatch.setitem(trackers.KINDS, "mlflow", Fails)
    run = rlcore.train("cartpole_dqn", out=tmp_path / "run", **SMALL, **{"log.trackers": ["mlflow"]})
    assert run.result["status"] == "finished"
    assert len(logged(run.path)) == 6
    told = capsys.readouterr().err
    assert told == "note: mlflow no longer follows this run: ConnectionError: no answer from the server\n"
    assert Fails.calls == calls


def test_what_a_tracker_holds_is_not_sent_again_but_what_comes_after_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.KINDS, "mlflow", Fails)
    monkeypatch.setattr(Fails, "held", 600)
    config = configs.validate(configs.override(configs.read("cartpole_dqn"), {"log.trackers": ["mlflow"]}))
    following = trackers.Trackers(tmp_path, config)
    monkeypatch.setattr(Fails, "calls", 0)
    for frames in (500, 600):
        following.row(frames, {"loss": 1.0})
        following.figure("eval/curve", b"", frames)  # before its row
    assert Fails.calls == 0
    following.figure("final/curve", b"", 600)  # after the last row: a kill came between
    following.final({"final/mean": 1.0}, 600)
    assert Fails.calls == 2
    following.figure("eval/curve", b"", 700)
    following.row(700, {"loss": 1.0})
    assert Fails.calls == 4


def test_mlflow_out_of_reach_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = rlcore.train("cartpole_dqn", out=tmp_path / "run", **SMALL, **{"log.trackers": ["mlflow"]})
    assert run.result["status"] == "finished"
    assert capsys.readouterr().err.count("note: mlflow no longer follows this run: ") == 1


@pytest.mark.parametrize("interrupted", [True, False])
def test_trackers_are_told_how_a_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool) -> None:
    def broken(self: Logger, frames: int, row: Any) -> None:
        raise KeyboardInterrupt if interrupted else RuntimeError("broken")

    monkeypatch.setattr(Logger, "write", broken)
    with pytest.raises(KeyboardInterrupt if interrupted else RuntimeError):
        rlcore.train("cartpole_dqn", out=tmp_path / "run", **SMALL, **BOTH)
    assert mlflow_run(tmp_path / "run").info.status == ("KILLED" if interrupted else "FAILED")
    assert held_by_wandb(tmp_path / "run")["exits"] == [1]


def test_mlflow_is_given_names_and_values_that_it_takes(tmp_path: Path) -> None:
    config = configs.validate(configs.override(configs.read("cartpole_dqn"), {"env.kwargs.names": ["x" * 50] * 300}))
    folder = tmp_path / "run"
    folder.mkdir()
    tracker = trackers.MLflow(folder, config)
    tracker.row(3, {"eval/recall (cat, dog)": 0.5, "eval/nothing": float("nan")})
    (row,) = mlflow_rows(folder)
    assert row["eval/recall _cat_ dog_"] == 0.5
    assert row["eval/nothing"] != row["eval/nothing"]
    assert len(mlflow_run(folder).data.params["env.kwargs.names"]) == 6000


def test_a_tracker_that_is_not_installed_or_known_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log.trackers: wandb is not installed: pip install 'rlcore\[track\]'"):
        rlcore.train("cartpole_dqn", out=tmp_path / "run", **SMALL, **{"log.trackers": "wandb"})
    assert not (tmp_path / "run").exists()
    done = command("train", "cartpole_dqn", "--log.trackers=comet")
    assert (done.code, done.err) == (2, "error: log.trackers.0: got 'comet', expected 'wandb' or 'mlflow'\n")
