"""Learning while workers step: nothing but the waiting changes, in an order that is fixed."""

from __future__ import annotations

import copy
import os
import signal
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from test_replay import draw
from test_resume import CASES

import rlcore
from rlcore import build
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.encoding import decode, encode
from rlcore.errors import UserError
from rlcore.make import make_env
from rlcore.sources import OverlappedReplay, OverlappedRollout
from rlcore.testing.agents import first_difference
from rlcore.types import Step
from rlcore.vector import VectorEnv
from rlcore.worker_env import WorkerEnv

TINY = {"env.num_envs": 3, "env.backend": "sync", "agent.network.kwargs.hidden": [8], "threads": 1}
REPLAY = {"learning_starts": 30, "batch_size": 4, "updates_per_frame": 0.5, "capacity": 90}
DQN = {**TINY, "source": {**REPLAY, "frames_per_iteration": 3}}
PPO = {**TINY, "source": {"horizon": 6, "epochs": 2, "minibatches": 3}}


class Held:
    """An environment of this process that has made the step already when it is sent, and tells it when asked."""

    def __init__(self, env: VectorEnv) -> None:
        self.env, self.order, self.sent = env, "fixed", 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def send(self, action: torch.Tensor) -> None:
        self.step, self.sent = self.env.step(action), self.sent + 1

    def receive(self, every: bool = False) -> Step:
        return self.step


def _made(recipe: str, settings: dict[str, Any], workers: int) -> tuple[Any, Any, Any]:
    """Return an overlapped source on its environment, its agent, and an environment to close."""
    config: Any = configs.validate(configs.override(configs.read(recipe), settings))
    env: Any = make_env("CartPole-v1", 3, backend="sync", workers=workers)
    agent = build.agent(config, env.spec)
    stepped: Any = env if workers else Held(env)
    if recipe == "cartpole_dqn":
        return OverlappedReplay(stepped, config.source, 0, agent=agent), agent, env
    return OverlappedRollout(stepped, config.source, 0), agent, env


def _learn(agent: Any) -> None:
    """Move every weight: stands for an update."""
    with torch.no_grad():
        for p in agent.parameters():
            p.copy_(p.flatten().roll(1).view_as(p))


def _batches(source: Any, agent: Any, clock: Clock, iterations: int) -> list[Any]:
    seen = []
    for _ in range(iterations):
        for batch in source.collect(agent, clock):
            _learn(agent)
            seen.append((clock.frames, tuple(batch.data), dict(batch.noise)))
        seen.append(clock.frames)
    return seen


@pytest.mark.parametrize(("recipe", "settings"), [("cartpole_dqn", DQN), ("cartpole_ppo", PPO)])
def test_overlapped_equals_one_after_the_other_and_resumes_anywhere(recipe: str, settings: dict[str, Any]) -> None:
    (one, agent, env), (two, twin, other) = (_made(recipe, settings, workers) for workers in (0, 2))
    if recipe == "cartpole_ppo":
        one._thread = AtOnce()
    clocks = [Clock(10_000, 10_000) for _ in range(3)]
    before = [_batches(s, a, c, 40) for s, a, c in ((one, agent, clocks[0]), (two, twin, clocks[1]))]
    assert first_difference(before[0], before[1]) is None
    assert len(before[0]) > 50
    tensors: dict[str, torch.Tensor] = {}
    tree = encode([two.state_dict(), clocks[1].state_dict()], tensors)
    state = decode(tree, {name: x.clone() for name, x in tensors.items()})
    three, triplet, third = _made(recipe, settings, 1)
    triplet.load_state_dict(agent.state_dict())
    three.load_state_dict(state[0])
    clocks[2].load_state_dict(state[1])
    assert first_difference(three.state_dict(), two.state_dict()) is None  # nothing has happened in between
    todo = zip((one, two, three), (agent, twin, triplet), clocks, strict=True)
    after = [_batches(s, a, c, 25) for s, a, c in todo]
    assert first_difference(after[0], after[1]) is None
    assert first_difference(after[0], after[2]) is None
    for closed in (env, other, third):
        closed.close()


class AtOnce:
    """An executor whose work is done when it is given."""

    def submit(self, work: Any, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args))
        return future


def test_replay_acts_by_the_newest_policy_and_updates_lack_one_step() -> None:
    source, agent, env = _made("cartpole_dqn", {**DQN, "agent.epsilon": 0.0}, 0)
    clock = Clock(10_000, 10_000)
    updates = moved = 0
    for i in range(1, 61):
        newest = copy.deepcopy(agent)
        for _ in source.collect(agent, clock):
            assert source.env.sent == i + 1  # of which i are stored
            updates += 1
            _learn(agent)
        assert clock.frames == 3 * i
        if clock.frames >= 30:
            noise = agent.noise("act", 3, torch.Generator().manual_seed(0))
            newer, older = (a.act(source.actor.obs, (), source.knobs, noise).action for a in (newest, agent))
            assert torch.equal(source._sent.action, newer)
            moved += int((newer != older).sum())
    assert updates == int(0.5 * (180 - 30))
    assert moved > 0
    env.close()


def test_a_rollout_is_by_the_policy_that_its_predecessor_was_learnt_from_with() -> None:
    source, agent, env = _made("cartpole_ppo", PPO, 2)
    clock, policies = Clock(10_000, 10_000), []
    for i in range(5):
        policies.append({name: x.clone() for name, x in agent.state_dict().items()})
        for batch in source.collect(agent, clock):
            _learn(agent)
            assert batch.data.log_prob.numel() == 6
        assert clock.frames == 18 * (i + 1)
        rollout = source._next[0]  # made while iteration i learnt
        told = {}
        for j, weights in enumerate([*policies, agent.state_dict()]):
            source._policy.load_state_dict(weights)
            with torch.inference_mode():
                noise = agent.noise("act", 18, torch.Generator().manual_seed(0))
                value = source._policy.act(rollout.obs.flatten(0, 1), (), source.knobs, noise).extras["value"]
            told[j] = torch.allclose(value, rollout.act["value"].flatten(), atol=1e-6)
        assert [j for j, same in told.items() if same] == [i]
        source._policy.load_state_dict(policies[i])
    env.close()


def test_arrival_stores_what_was_done_and_nothing_else() -> None:
    config: Any = configs.validate(configs.override(configs.read("cartpole_dqn"), {**DQN, "agent.epsilon": 1.0}))
    env: Any = make_env("CartPole-v1", 4, backend="sync", workers=2, order="arrival")
    agent = build.agent(config, env.spec)
    source: Any = OverlappedReplay(env, config.source, 0, agent=agent)
    assert "arrival" in source.why_inexact()
    clock = Clock(10_000, 10_000)
    while clock.frames < 60:
        list(source.collect(agent, clock))
    # What is stored tells which way the cart was pushed: actions that were never carried out would show.
    kept = source.buffer.gather(draw(source.buffer, 400, source.rng, 1), agent.gamma, 1)
    x, v = kept.obs[:, 0], kept.obs[:, 1]
    assert torch.allclose(kept.next_obs[:, 0], x + 0.02 * v, atol=1e-5)
    pushed = kept.next_obs[:, 1] > v  # a push to the right speeds the cart up
    assert torch.equal(pushed, kept.action == 1)
    state = source.state_dict()
    assert state["under_way"] is not None
    source.load_state_dict(state)
    while clock.frames < 120:
        list(source.collect(agent, clock))
    env.close()


@pytest.mark.parametrize(
    ("recipe", "settings", "sentence"),
    [
        ("cartpole_dqn", {"source.overlap": True}, "source.overlap: got true, expected false where env.workers is 0"),
        ("cartpole_ppo", {"source.overlap": True}, "source.overlap: got true, expected false where env.workers is 0"),
        ("lunarlander_ppo", {"env.workers": 2, "env.order": "arrival"}, "env.order: got arrival, expected fixed but"),
        ("cartpole_dqn", {"env.workers": 2}, "env.workers: got 2, expected 0: 'CartPole-v1' is native"),
    ],
)
def test_what_does_not_go_together(recipe: str, settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        rlcore.train(recipe, out=tmp_path / "run", **settings)


def test_a_worker_lost_in_mid_run_ends_it_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**CASES["ppo-overlap"][1], "budget.frames": 100_000, "log.every": 100, "eval.every": 0}
    receive, left = WorkerEnv.receive, iter(range(100, -1, -1))

    def lose(env: Any, every: bool = False) -> Step:
        if next(left, None) == 0:  # its answer may be there already: then the next step misses it
            os.kill(env._processes[0].pid, signal.SIGKILL)
        return receive(env, every)

    monkeypatch.setattr(WorkerEnv, "receive", lose)
    with pytest.raises(UserError, match=r"environment worker 0 \(environments 0 to 1\) was killed by SIGKILL"):
        rlcore.train("cartpole_ppo", out=tmp_path / "run", **settings)
