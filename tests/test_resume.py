"""Bit-exact resume: killed at a random moment and resumed, a run ends like one never interrupted.

Every agent, on every kind of source and environment state, is held to it by one test.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlcore
from rlcore import checkpoint
from rlcore.testing.agents import first_difference

# Once for all tests of a session: environment workers come from the same server.
multiprocessing.set_forkserver_preload(
    ["rlcore.api", "agents.dqn", "agents.supervised", "envs.tabular", "ale_py", "Box2D"]
)
TINY = {"network": {"name": "mlp", "kwargs": {"hidden": [16]}}}
REPLAY: dict[str, Any] = {
    "source": {"learning_starts": 64, "batch_size": 16, "updates_per_frame": 0.5, "capacity": 300},
    "env.num_envs": 4,
    "agent": TINY,
}
FAST: dict[str, Any] = {
    "eval.every": 0,
    "stop.metric": "",
    "log.every": 50,
    "checkpoint.every": 100,
    "eval.final_episodes": 2,
}
TINY_POLICY: dict[str, Any] = {"agent.network.kwargs.hidden": [16], "env.num_envs": 4}
POLICY = {**TINY_POLICY, "source.horizon": 16, "source.epochs": 2, "source.minibatches": 2}
MEMORY = {"agent.network.kwargs": {"features": 8}, "env.num_envs": 4, "source.horizon": 16, "source.epochs": 2}
TINY_TEXT = {"env.kwargs.n": 500, "agent.network.kwargs": {"layers": 1, "heads": 1, "width": 8}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dqn-native": ("cartpole_dqn", {**REPLAY, "budget.frames": 3000, "eval.every": 500, "eval.episodes": 3}),
    "dqn-sync": ("cartpole_dqn", {**REPLAY, "budget.frames": 2000, "env.backend": "sync"}),
    "dqn-vector": ("cartpole_dqn", {**REPLAY, "budget.frames": 2000, "env.backend": "vector"}),
    "dqn-n-step": ("cartpole_dqn", {**REPLAY, "budget.frames": 2000, "agent.n_step": 3, "agent.target": "polyak"}),
    "dqn-frames": (
        "cartpole_dqn",
        {
            **REPLAY,
            "budget.frames": 1500,
            "env.backend": "sync",
            "env.wrappers": [{"name": "FrameStackObservation", "stack_size": 4}],
            "source.frame_stack": 4,
        },
    ),
    "dqn-lunar-lander": ("cartpole_dqn", {**REPLAY, "budget.frames": 1500, "env.id": "LunarLander-v3"}),
    "dqn-atari": (
        "cartpole_dqn",
        {
            **REPLAY,
            "budget.frames": 500,
            "env.id": "ALE/Breakout-v5",
            "env.kwargs": {"obs_type": "ram"},
            "env.num_envs": 2,
            "eval.max_steps": 50,
        },
    ),
    "pqn": (
        "cartpole_pqn",
        {
            "budget.frames": 4000,
            "env.num_envs": 8,
            "source.epochs": 2,
            "agent.normalize_obs": True,
            "agent.network": TINY["network"],
        },
    ),
    "pqn-minatar": (
        "minatar_breakout_pqn",
        {"budget.frames": 3000, "env.num_envs": 4, "source.horizon": 8, "source.minibatches": 2, "eval.max_steps": 50},
    ),
    "pqn-pixels": (
        "pixel_breakout_pqn",
        {"budget.frames": 800, "env.num_envs": 4, "source.horizon": 8, "source.minibatches": 2, "eval.max_steps": 50},
    ),
    "dqn-rollout": ("cartpole_online_q", {"budget.frames": 1500}),
    "dqn-accumulate": ("cartpole_dqn", {**REPLAY, "budget.frames": 1500, "optim.accumulate": 3}),
    "dqn-prioritized": (
        "cartpole_dqn",
        {**REPLAY, "budget.frames": 2000, "source.prioritized": True, "optim.accumulate": 2},
    ),
    "dqn-segments": (
        "cartpole_dqn",
        {
            **REPLAY,
            "budget.frames": 1500,
            "optim": {"name": "adamw", "weight_decay": 0.01, "l1": 1e-4, "accumulate": 3, "precision": "bf16"},
            "optim.scale": {"*.advantage.*": 2.0},
            "optim.schedule": {"kind": "cosine", "warmup": 0.2},
        },
    ),
    "c51": ("cartpole_c51", {**REPLAY, "budget.frames": 1500}),
    "qr_dqn": ("cartpole_qr_dqn", {**REPLAY, "budget.frames": 1500}),
    "iqn": ("cartpole_iqn", {**REPLAY, "budget.frames": 1000, "agent.noisy": True}),
    "rainbow": ("cartpole_rainbow", {**REPLAY, "budget.frames": 1200}),
    "dqn-hindsight": ("bit_flip_her", {**REPLAY, "budget.frames": 2000, "env.kwargs.bits": 6}),
    "dqn-bandit": ("price_class_bandit", {**REPLAY, "budget.frames": 3000}),
    "sac-pendulum": ("pendulum_sac", {**REPLAY, "budget.frames": 800, "agent.normalize_obs": True}),
    "td3-pendulum": ("pendulum_td3", {**REPLAY, "budget.frames": 800}),
    "ddpg-pendulum": ("pendulum_ddpg", {**REPLAY, "budget.frames": 800, "source.reward": "normalize"}),
    "sac-hopper": ("hopper_sac", {**REPLAY, "budget.frames": 800, "agent.hidden": [16]}),
    "supervised-mini-batches": ("house_prices", {"budget.frames": 30000, "checkpoint.every": 1000, "log.every": 500}),
    "images-augmented": (
        "digits_cnn",
        {
            "agent.network.kwargs": {"width": 2, "stages": 1, "features": 4},
            "budget.frames": 12000,
            "checkpoint.every": 1000,
            "log.every": 500,
        },
    ),
    "supervised-frozen": (
        "house_prices",
        {
            "agent.network.kwargs.hidden": [16],
            "optim.freeze": ["network.trunk.*"],
            "budget.frames": 30000,
            "checkpoint.every": 1000,
        },
    ),
    "supervised-full-batch": ("line", {"budget.frames": 60000, "source.batch_size": 0, "checkpoint.every": 2000}),
    "ppo-native": ("cartpole_ppo", {**POLICY, "budget.frames": 4000, "agent.target_kl": 0.02}),
    "ppo-overlap": (
        "cartpole_ppo",
        {**POLICY, "budget.frames": 4000, "env.backend": "sync", "env.workers": 2, "source.overlap": True},
    ),
    "dqn-overlap": (
        "cartpole_dqn",
        {**REPLAY, "budget.frames": 2000, "env.backend": "sync", "env.workers": 2, "source.overlap": True},
    ),
    "ppo-mujoco": (
        "pendulum_ppo",
        {**POLICY, "budget.frames": 3000, "env.id": "InvertedPendulum-v5", "env.num_envs": 2},
    ),
    "ppo-memory": ("cartpole_memory_ppo", {**MEMORY, "budget.frames": 2500}),
    "a2c": ("cartpole_a2c", {**TINY_POLICY, "budget.frames": 4000, "agent.normalize_obs": True}),
    "reinforce": ("cartpole_reinforce", {**TINY_POLICY, "source.horizon": 32, "budget.frames": 5000}),
    "seq2seq": (
        "arithmetic_sft",
        {**TINY_TEXT, "budget.frames": 8000, "eval.every": 3000, "checkpoint.every": 500, "log.every": 500},
    ),
    "grpo": (
        "arithmetic_grpo",
        {**TINY_TEXT, "budget.frames": 1600, "env.num_envs": 16, "env.kwargs.group": 4, "agent.kl_coef": 0.1},
    ),
    "r2d2": (
        "cartpole_memory_r2d2",
        {
            "env.num_envs": 4,
            "agent.network.kwargs": {"features": 8, "encoder": {"name": "mlp", "kwargs": {"hidden": [8]}}},
            "agent.length": 6,
            "source": {"capacity": 300, "batch_size": 8, "learning_starts": 64, "prioritized": True},
            "source.updates_per_frame": 0.2,
            "source.frames_per_iteration": 4,
            "budget.frames": 1500,
        },
    ),
}


def _train(recipe: str, overrides: dict[str, Any], out: Path, resume: bool) -> None:
    rlcore.train(None if resume else recipe, out=out, resume=resume, **({} if resume else overrides))


def _killed(recipe: str, overrides: dict[str, Any], out: Path, rng: random.Random) -> None:
    """Train in a child process and kill it at a random moment after its first checkpoint."""
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=_train, args=(recipe, overrides, out, False))
    child.start()
    assert child.pid is not None
    deadline = time.monotonic() + 60
    while not list((out / "checkpoints").glob("0*")):
        assert child.is_alive() and time.monotonic() < deadline, "the run ended or hung before its first checkpoint"
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.15))
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "progress.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def _events(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def _final(run: Path) -> tuple[Any, Any]:
    saved = checkpoint.load(run / "checkpoints")
    state = {k: v for k, v in saved.state.items() if k not in ("train_seconds", "callbacks")}
    return saved.agent, state


@pytest.mark.parametrize("case", sorted(CASES))
def test_killed_and_resumed_equals_never_interrupted(case: str, tmp_path: Path) -> None:
    recipe, overrides = CASES[case]
    overrides = {**FAST, **overrides}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _train(recipe, overrides, whole, resume=False)
    _killed(recipe, overrides, killed, random.Random(case))
    assert not (killed / "result.json").exists(), "the run ended before it was killed: make it longer"
    _train(recipe, overrides, killed, resume=True)
    (agent, state), (other_agent, other_state) = _final(whole), _final(killed)
    assert first_difference(agent, other_agent) is None
    assert first_difference(state, other_state) is None
    assert _rows(whole) == _rows(killed)
    assert _events(whole) == _events(killed)
    for tag, points in _events(killed).items():
        steps = [step for step, _ in points]
        assert len(steps) == len(set(steps)), f"{tag} has a step twice"
