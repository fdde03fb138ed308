"""Streamed tasks: fetched ahead by processes, they teach bit for bit what examples in memory teach."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_resume
import torch
from PIL import Image
from torch import Tensor, nn

import rlcore
from agents.networks.encode import Flatten, Network
from envs.images import Images
from rlcore import build
from rlcore import config as configs
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import DatasetConfig
from rlcore.errors import UserError
from rlcore.sources import Dataset
from rlcore.testing.agents import first_difference
from rlcore.trainer import Trainer
from rlcore.tree import leaves
from rlcore.types import Act, Batch, Example, Loss, Spec
from rlcore.vector import Task

AUGMENT = [{"name": "crop", "padding": 1}, {"name": "noise", "std": 0.1}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (root / name).mkdir()
        for i in range(30):
            Image.fromarray(rng.integers(100 * k, 100 * k + 120, (6, 5), dtype=np.uint8)).save(
                root / name / f"{i:02}.png"
            )
    return root


def recipe(folder: Path, memory: str, workers: int, **more: Any) -> configs.Config[Any]:
    raw = {
        "env": {"id": "images", "kwargs": {"path": str(folder), "memory": memory, "augment": AUGMENT}},
        "agent": {"name": "supervised", "network": {"name": "dropout_of_test"}},
        "source": {"batch_size": 8, "workers": workers},
    }
    return configs.validate(configs.override(raw, more))


class Dropping(Network):
    """Draws from torch's global stream, which nothing but the network may move."""

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(Flatten(space), nn.Linear(30, 6), nn.ReLU(), nn.Dropout(0.3))
        self.out_features = 6

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs)


@pytest.fixture(autouse=True)
def _dropping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlcore.registry, "_own", {**rlcore.registry._own, ("networks", "dropout_of_test"): Dropping})


def trained(config: configs.Config[Any], updates: int, trainer: Trainer | None = None) -> Trainer:
    trainer = trainer or build.trainer(config)
    with trainer.training():
        for _ in range(updates):
            trainer.iterate()
    return trainer


def state(trainer: Trainer) -> dict[str, Any]:
    return {"agent": trainer.agent.state_dict(), **trainer.state_dict(), "train_seconds": 0}


def test_streamed_from_any_number_of_workers_equals_in_memory(folder: Path) -> None:
    """Over two epochs and a half, of 5 whole batches and a short one each."""
    memory = trained(recipe(folder, "always", 0), 15)
    assert not memory.source.task.streamed  # type: ignore[attr-defined]
    for workers in (0, 1, 2):
        streamed = trained(recipe(folder, "never", workers), 15)
        assert streamed.source.task.streamed  # type: ignore[attr-defined]
        assert first_difference(state(memory), state(streamed)) is None, f"{workers} workers"
    assert first_difference(state(memory), state(trained(recipe(folder, "always", 0, seed=1), 15))) is not None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to processors")
def test_there_may_be_more_workers_than_processors(folder: Path) -> None:
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        assert trained(recipe(folder, "never", 2), 1).clock.updates == 1
    finally:
        os.sched_setaffinity(0, everywhere)


@pytest.mark.parametrize("memory", ["always", "never"])
def test_a_resume_in_the_middle_of_an_epoch_is_exact(folder: Path, memory: str) -> None:
    config = recipe(folder, memory, 2)
    for before in (1, 6, 8):  # the first batch; an epoch's last; one of the second
        whole = trained(config, before)
        fresh = build.trainer(config)
        fresh.agent.load_state_dict(whole.agent.state_dict())
        fresh.load_state_dict(whole.state_dict())
        used = trained(config, 3)  # fetches ahead what it will not need
        used.agent.load_state_dict(whole.agent.state_dict())
        used.load_state_dict(whole.state_dict())
        trained(config, 7, whole)
        for other in (fresh, used):
            trained(config, 7, other)
            assert first_difference(state(whole), state(other)) is None


def test_each_epoch_shows_every_example_once_in_a_new_order(folder: Path) -> None:
    source = Dataset(Images(1, path=str(folder), memory="never"), DatasetConfig(batch_size=8, workers=2), seed=3)
    clock, agent = Clock(10**6, 10**6), build.trainer(recipe(folder, "always", 0)).agent
    everything = source.task.draw(torch.arange(42)).obs.flatten(1)
    orders = []
    for _ in range(3):
        seen = torch.cat([batch.data.obs for _ in range(6) for batch in source.collect(agent, clock)]).flatten(1)
        rows = (seen[:, None] == everything).all(-1).int().argmax(1).tolist()
        assert sorted(rows) == list(range(42)) and rows == source.order.tolist()
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2]
    assert clock.frames == 3 * 42


class Vanishing(Task):
    """Example i is the number i and wants it; from the 30th on they cannot be read."""

    size, streamed = 40, True

    def draw(self, index: Tensor) -> Example:
        if (index >= 30).any():
            raise UserError("30.png: expected an image that can be read")
        return Example(index.float()[:, None], index)


class Watching(Agent):
    """Remembers what it was given to observe."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.seen: list[Tensor] = []

    def observe(self, obs: Any, valid: Tensor | None = None) -> None:
        self.seen.append(obs)

    def act(self, *_: Any, **__: Any) -> Act:
        raise NotImplementedError

    def loss(self, batch: Batch) -> Loss:
        raise NotImplementedError


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_complains_about_is_one_sentence(folder: Path, workers: int) -> None:
    env = Images(1, path=str(folder))
    source = Dataset(env, DatasetConfig(batch_size=10, workers=workers, shuffle=False), 0, Vanishing())
    agent, clock = build.trainer(recipe(folder, "always", 0)).agent, Clock(100, 100)
    for at in range(3):
        (batch,) = source.collect(agent, clock)
        assert batch.data.target.tolist() == list(range(10 * at, 10 * at + 10))
    with pytest.raises(UserError, match=r"^30\.png: expected an image that can be read$"):
        list(source.collect(agent, clock))


def test_agents_that_look_at_all_data_first_see_streamed_ones_too(folder: Path) -> None:
    env = Images(1, path=str(folder), memory="never")
    source = Dataset(env, DatasetConfig(batch_size=9, workers=1), 0)
    agent = Watching()
    agent.spec = Spec(env.spec.obs_space, env.spec.action_space)
    clock = Clock(100, 100)
    batches = [batch for _ in range(3) for batch in source.collect(agent, clock)]
    assert torch.equal(torch.cat(agent.seen), env.task.draw(torch.arange(42)).obs)
    assert [len(next(leaves(batch.data))) for batch in batches] == [9, 9, 9]


def test_workers_leave_ctrl_c_to_the_run_and_end_with_it(folder: Path) -> None:
    trainer = trained(recipe(folder, "never", 2), 2)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.2)
    trained(recipe(folder, "never", 2), 8, trainer)
    assert all(worker.is_alive() for worker in workers)
    del trainer
    for worker in workers:
        worker.join(10)
    assert not multiprocessing.active_children()


def test_killed_and_resumed_equals_never_interrupted(folder: Path, tmp_path: Path) -> None:
    overrides = {
        **test_resume.FAST, "env.kwargs.path": str(folder), "env.kwargs.memory": "never", "agent.network": {
            "name": "small_cnn", "kwargs": {"width": 2, "stages": 1, "features": 4}},
        "source.batch_size": 8, "source.workers": 1,
        "env.kwargs.augment": AUGMENT, "budget.frames": 3000, "checkpoint.every": 300, "log.every": 100,
    }  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    test_resume._train("digits_cnn", overrides, whole, resume=False)
    test_resume._killed("digits_cnn", overrides, killed, random.Random("streamed"))
    assert not (killed / "result.json").exists(), "the run ended before it was killed: make it longer"
    test_resume._train("digits_cnn", overrides, killed, resume=True)
    for one, other in zip(test_resume._final(whole), test_resume._final(killed), strict=True):
        assert first_difference(one, other) is None
    assert test_resume._rows(whole) == test_resume._rows(killed)
    assert test_resume._events(whole) == test_resume._events(killed)
