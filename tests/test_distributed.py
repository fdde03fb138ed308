"""Ranks under torchrun: the same weights as one process on the same batches, clean ends, resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rlcore import build, checkpoint, distributed
from rlcore.errors import UserError
from rlcore.testing.agents import first_difference

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "train.py"
PLAIN: dict[str, Any] = {"eval.every": 0, "eval.final_episodes": 2, "stop.metric": "", "log.every": 50}
# Batches of 7 and, at an epoch's end, of fewer: they never split evenly over two ranks.
SUPERVISED = {
    "line": ("line", {"source.batch_size": 7, "budget.frames": 350, "env.kwargs.n": 51}),
    "digits": ("digits_cnn", {"source.batch_size": 7, "budget.frames": 350, "env.kwargs.augment": []}),
    "shakespeare": (
        "shakespeare",
        {
            "source.batch_size": 3,
            "budget.frames": 150,
            "agent.network.kwargs": {"layers": 1, "heads": 2, "width": 16},
            "env.kwargs.context": 16,
        },
    ),
}
DQN: dict[str, Any] = {
    "agent.network.kwargs.hidden": [16],
    "env.num_envs": 5,
    "source": {"learning_starts": 64, "batch_size": 15, "updates_per_frame": 0.2, "capacity": 400},
}
PPO: dict[str, Any] = {
    "agent.network.kwargs.hidden": [16],
    "agent.target_kl": 0.02,
    "env.num_envs": 4,
    "source.horizon": 16,
    "source.epochs": 2,
    "source.minibatches": 2,
}


def command(ranks: int, recipe: str, out: Path, overrides: dict[str, Any], *more: str) -> list[str]:
    settings = [f"--{name}={json.dumps(value)}" for name, value in overrides.items()]
    own_port = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # tests run side by side
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *own_port] if ranks > 1 else []
    return [sys.executable, *launch, str(SCRIPT), recipe, "--out", str(out), "--quiet", *settings, *more]


def train(ranks: int, recipe: str, out: Path, overrides: dict[str, Any], *more: str) -> None:
    done = subprocess.run(command(ranks, recipe, out, overrides, *more), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def final(run: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(run / "checkpoints")


def untimed(state: Any) -> Any:
    """Return a trainer's state without what a clock on the wall says."""
    parts = [state, *state["others"]]
    return [{k: v for k, v in part.items() if k not in ("train_seconds", "callbacks", "others")} for part in parts]


@pytest.mark.parametrize("case", SUPERVISED)
def test_two_ranks_learn_what_one_process_learns(case: str, tmp_path: Path) -> None:
    recipe, overrides = SUPERVISED[case]
    for ranks in (1, 2):
        train(ranks, recipe, tmp_path / str(ranks), {**PLAIN, "checkpoint.every": 0, **overrides})
    one, two = final(tmp_path / "1"), final(tmp_path / "2")
    assert one.state["clock"] == two.state["clock"]
    assert one.state["clock"]["updates"] >= 50
    for name, tensor in one.agent.items():
        torch.testing.assert_close(two.agent[name], tensor, rtol=0, atol=1e-5, msg=name)


def children(pid: int) -> dict[str, int]:
    """Return the processes of the ranks that a launcher started, by rank."""
    found: dict[str, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (entry / "environ").read_bytes().split(b"\0") if parent == pid else []
        except OSError:  # it ended meanwhile
            continue
        found |= {v[5:].decode(): int(entry.name) for v in variables if v.startswith(b"RANK=")}
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks' processes in /proc")
@pytest.mark.parametrize("case", ["dqn", "ppo", "supervised"])
def test_killing_a_rank_ends_all_and_the_run_goes_on(case: str, tmp_path: Path) -> None:
    recipe, overrides = {
        "dqn": ("cartpole_dqn", {**DQN, "budget.frames": 6000}),
        "ppo": ("cartpole_ppo", {**PPO, "budget.frames": 8000, "agent.normalize_obs": True}),
        "supervised": ("house_prices", {"budget.frames": 60000}),
    }[case]
    settings = {**PLAIN, "checkpoint.every": 500, **overrides}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(2, recipe, whole, settings)
    started = subprocess.Popen(
        command(2, recipe, killed, settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 120
        while not list((killed / "checkpoints").glob("0*")):
            assert started.poll() is None and time.monotonic() < deadline, "no checkpoint came"
            time.sleep(0.005)
        ranks = children(started.pid)
        os.kill(ranks["1"], signal.SIGKILL)
        assert started.wait(timeout=90) != 0  # torchrun kills what does not end by itself after 30 s
        assert not (killed / "result.json").exists() or "evaluation" not in (killed / "result.json").read_text()
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    finally:
        started.kill()
    train(2, str(killed), killed, {}, "--resume")
    a, b = final(whole), final(killed)
    assert first_difference(a.agent, b.agent) is None
    assert first_difference(untimed(a.state), untimed(b.state)) is None


def test_another_number_of_ranks_loses_and_repeats_no_example(tmp_path: Path) -> None:
    recipe, overrides = SUPERVISED["line"]
    # The shorter runs end within an accumulation.
    settings = {**PLAIN, "checkpoint.every": 100, "optim.accumulate": 3, **overrides}
    for name in ("one", "more", "fewer"):
        budget = 350 if name == "one" else 175
        horizon = {"budget.frames": budget, "budget.horizon": 350}
        train(2 if name == "fewer" else 1, recipe, tmp_path / name, {**settings, **horizon})
    longer = {"budget.frames": 350}
    train(2, str(tmp_path / "more"), tmp_path / "more", longer, "--resume")
    train(1, str(tmp_path / "fewer"), tmp_path / "fewer", longer, "--resume")
    one = final(tmp_path / "one")
    for name in ("more", "fewer"):
        other = final(tmp_path / name)
        assert other.state["clock"] == one.state["clock"]
        for parameter, tensor in one.agent.items():
            torch.testing.assert_close(other.agent[parameter], tensor, rtol=0, atol=1e-5)


def test_ranks_agree_on_evaluations_and_on_going_on_after_a_stop(tmp_path: Path) -> None:
    network = {
        "name": "resnet",
        "kwargs": {"width": 4, "blocks": 1, "stages": 2},
    }  # each rank has statistics of its own
    settings = {
        "agent.network": network,
        "source.batch_size": 32,
        "budget.frames": 320,
        "log.every": 64,
        "eval.every": 64,
        "stop.metric": "eval/return_mean",
        "stop.threshold": -1e9,
        "checkpoint.every": 0,
    }
    train(2, "digits_resnet", tmp_path / "run", settings)
    state = final(tmp_path / "run").state
    assert state["clock"]["frames"] == 64
    (other,) = state["others"]
    assert any("best" in callback for callback in state["callbacks"])
    for mine, its in zip(state["callbacks"], other["callbacks"], strict=True):
        assert mine.get("best") == its.get("best")
    train(2, str(tmp_path / "run"), tmp_path / "run", {"stop.metric": "", "stop.threshold": None}, "--resume")
    assert final(tmp_path / "run").state["clock"]["frames"] == 320


def test_buffers_of_other_ranks_are_refused(tmp_path: Path) -> None:
    settings = {**PLAIN, **DQN, "budget.frames": 300, "checkpoint.every": 0}
    train(1, "cartpole_dqn", tmp_path / "run", settings)
    words = command(2, str(tmp_path / "run"), tmp_path / "run", {"budget.frames": 600}, "--resume")
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "ranks: got 2, expected 1, those that the checkpoint was saved by" in done.stderr


@pytest.mark.parametrize(
    ("ranks", "seen", "name", "served"),
    [(2, 2, "cuda", True), (1, 1, "cuda:0", True), (2, 1, "cuda", False), (2, 2, "cuda:1", False)],
)
def test_every_rank_needs_a_gpu(
    ranks: int, seen: int, name: str, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(distributed, "size", lambda: ranks)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    if served:
        assert build.device(name) == torch.device(name)
    else:
        with pytest.raises(UserError, match=f"device: got '{name}', expected cpu, or cuda with a GPU for each rank"):
            build.device(name)


def test_every_rank_needs_an_environment(tmp_path: Path) -> None:
    words = command(2, "cartpole_dqn", tmp_path / "run", {**PLAIN, **DQN, "env.num_envs": 1})
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "env.num_envs: got 1, expected at least 2, one for each rank" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cartpole_dqn", "cartpole_ppo"])
def test_two_ranks_learn_cartpole(recipe: str, tmp_path: Path) -> None:
    train(2, recipe, tmp_path / "run", {})
    assert json.loads((tmp_path / "run" / "result.json").read_text())["evaluation"]["mean"] >= 475
