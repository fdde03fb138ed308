"""Environments in worker processes: bit for bit those of one process, whatever happens to the processes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlcore import registry
from rlcore.encoding import decode, encode
from rlcore.errors import UserError
from rlcore.make import make_env
from rlcore.testing import check_env
from rlcore.testing.agents import first_difference
from rlcore.tree import tmap
from rlcore.vector import Autoreset, VectorEnv


class Maze(gym.Env[Any, Any]):
    """Dict observations, action masks, successes, episodes of random length; misbehaves as it is told."""

    def __init__(self, fail: str = "") -> None:
        self.observation_space = spaces.Dict(
            {"at": spaces.Box(-9, 9, (2, 3), np.float64), "picture": spaces.Box(0, 255, (4,), np.uint8)}
        )
        self.action_space = spaces.Discrete(3, start=1)
        self.fail = fail

    def _look(self) -> tuple[Any, dict[str, Any]]:
        obs = {
            "at": self.np_random.normal(size=(2, 3)),
            "picture": self.np_random.integers(256, size=4, dtype=np.uint8),
        }
        return obs, {"action_mask": np.array([1, self.t % 2, 0], dtype=np.int8)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._look()

    def step(self, action: Any) -> Any:
        self.t += 1
        if self.fail == "error" and self.t == 3:
            raise ZeroDivisionError("a wall\nin the way")
        if self.fail == "hang" and self.t == 3:
            Path(f"hangs-{os.getpid()}").touch()
            time.sleep(1000)
        end = bool(self.np_random.random() < 0.2)
        obs, info = self._look()
        lucky = bool(self.np_random.random() < 0.5)
        return obs, float(action), end and lucky, end and not lucky, info | {"is_success": lucky}


class Halved(gym.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return float(reward) / 2


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log to the working directory
    gym.register("Maze-v0", cast(Any, Maze))  # known to this process only
    yield
    del gym.registry["Maze-v0"]


def _actions(env: VectorEnv, steps: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    space = env.spec.action_space
    if isinstance(space, spaces.Discrete):
        return torch.as_tensor(rng.integers(space.n, size=(steps, env.num_envs)))
    return torch.as_tensor(rng.normal(0, 2, (steps, env.num_envs, *(space.shape or ()))), dtype=torch.float32)


def _play(env: VectorEnv, actions: torch.Tensor) -> list[Any]:
    told = []
    for action in actions:
        step = env.step(action)
        told.append(tuple(step))
        ended = step.terminated | step.truncated
        if env.autoreset == "disabled" and ended.any():
            told.append(env.reset(mask=ended))
    return told


SAME: list[tuple[str, int, int, Autoreset, dict[str, Any]]] = [
    ("Maze-v0", 5, 2, "same_step", {"extras": ["is_success"]}),
    ("Maze-v0", 3, 3, "next_step", {"extras": ["is_success"]}),
    ("Maze-v0", 4, 3, "disabled", {}),
    ("CartPole-v1", 3, 2, "disabled", {"backend": "sync"}),
    ("LunarLander-v3", 3, 2, "same_step", {"wrappers": [{"name": "TimeLimit", "max_episode_steps": 20}]}),
    ("HalfCheetah-v5", 2, 2, "same_step", {"kwargs": {"forward_reward_weight": 2.0}}),
]


@pytest.mark.parametrize(("env_id", "n", "workers", "mode", "options"), SAME)
def test_workers_change_no_bit(env_id: str, n: int, workers: int, mode: Autoreset, options: dict[str, Any]) -> None:
    pair = [make_env(env_id, n, autoreset=mode, workers=w, **options) for w in (0, workers)]
    actions = _actions(pair[0], 60)
    seeds = [7, 1, 5, 3, 8][:n]
    played = [(env.reset(seeds), _play(env, actions), env.reset(), env.reset(3), _play(env, actions)) for env in pair]
    assert first_difference(played[0], played[1]) is None
    assert pair[0].spec.extras == pair[1].spec.extras
    assert repr(pair[0].spec.obs_space) == repr(pair[1].spec.obs_space)
    ends = sum(int((step[2] | step[3]).sum()) for step in played[0][1] if len(step) > 2)
    assert ends > n or env_id == "HalfCheetah-v5"
    assert pair[0].why_not_capturable is pair[1].why_not_capturable is None
    states = [env.capture() for env in pair]
    assert first_difference(states[0], states[1]) is None
    tensors: dict[str, torch.Tensor] = {}
    saved = decode(encode(states[1], tensors), tensors)
    other = make_env(env_id, n, autoreset=mode, workers=workers - 1, **options)
    other.restore(saved)
    assert first_difference(_play(pair[0], actions), _play(other, actions)) is None
    for env in (*pair, other):
        env.close()


def test_what_is_returned_is_not_written_again() -> None:
    env = make_env("Maze-v0", 2, workers=2)
    kept = [env.reset(0)[0], tuple(env.step(torch.tensor([0, 1])))]
    copies = [tmap(torch.clone, part) for part in kept]
    _play(env, _actions(env, 20))
    assert first_difference(kept, copies) is None
    env.close()


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("CartPole-v1", {"backend": "sync"}),
        ("Pendulum-v1", {"backend": "sync", "kwargs": {"max_episode_steps": 20}}),
        ("rlcore/CartPole-v1", {}),
        pytest.param("LunarLander-v3", {}, marks=pytest.mark.slow),
        pytest.param("Hopper-v5", {}, marks=pytest.mark.slow),
        pytest.param("ALE/Breakout-v5", {"kwargs": {"obs_type": "ram"}}, marks=pytest.mark.slow),
    ],
)
def test_environments_in_workers_conform(env_id: str, options: dict[str, Any]) -> None:
    check_env(env_id, **{"steps": 30, "num_envs": 2, "workers": 1, "modes": ("same_step",)} | options)


def test_goal_environments_judge_goals() -> None:
    pytest.importorskip("gymnasium_robotics")
    one, two = (make_env("PointMaze_UMaze-v3", 2, workers=w) for w in (0, 2))
    goals = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.1], [2.0, 1.0]])
    assert two.has_goals
    assert torch.equal(one.compute_reward(*goals), two.compute_reward(*goals))
    assert torch.equal(one.reset(0)[0]["achieved_goal"], two.reset(0)[0]["achieved_goal"])
    one.close()
    two.close()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workers": 3}, "env.workers: got 3, expected at most the 2 environments"),
        ({"workers": 1, "backend": "async"}, "env.workers: got 1, expected 0 with backend 'async'"),
        ({"workers": 1, "env_id": "CartPole-v1"}, "env.workers: got 1, expected 0: 'CartPole-v1' is native"),
        ({"order": "arrival"}, "env.order: got arrival, expected fixed where env.workers is 0"),
        ({"workers": 1, "kwargs": {"speed": 1}}, "environment 'Maze-v0': unknown keyword 'speed'"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_env(**{"env_id": "Maze-v0", "num_envs": 2, **options})


def test_an_environments_error_is_told_with_its_traceback() -> None:
    env = make_env("Maze-v0", 3, workers=2, kwargs={"fail": "error"})
    with pytest.raises(
        UserError, match=r"worker . \(environments . to .\): ZeroDivisionError: a wall in the w"
    ) as error:
        _play(env, _actions(env, 20))
    assert 'raise ZeroDivisionError("a wall' in str(error.value.__cause__)
    env.reset(0)  # the processes go on
    assert bool(env.step(torch.tensor([0, 1, 0])).valid.all())
    env.close()


def test_a_killed_worker_is_one_clear_sentence() -> None:
    env: Any = make_env("Maze-v0", 4, workers=2)
    os.kill(env._processes[1].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"environment worker 1 \(environments 2 to 3\) was killed by SIGKILL"):
        _play(env, _actions(env, 5))
    env.close()
    assert not any(process.is_alive() for process in env._processes)


def test_signals_to_the_group_do_not_reach_the_environments() -> None:
    env: Any = make_env("Maze-v0", 2, workers=2)
    for process in env._processes:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
    _play(env, _actions(env, 5))
    env.close()


def test_closing_ends_processes_in_mid_step_and_forgetting_closes() -> None:
    env: Any = make_env("Maze-v0", 2, workers=2)
    env.send(torch.tensor([0, 1]))
    processes = env._processes
    env.close()
    env.close()
    assert [process.exitcode for process in processes] == [0, 0]
    with pytest.raises(UserError, match="the environments are closed"):
        env.step(torch.tensor([0, 1]))
    env = make_env("Maze-v0", 2, workers=1)
    processes = env._processes
    del env
    gc.collect()
    assert [process.exitcode for process in processes] == [0]


PROGRAM = """
import sys, time, torch, gymnasium as gym
from rlcore.make import make_env
if __name__ == "__main__":
    sys.path.append({tests!r})
    from test_parallel_acting import Maze
    gym.register("Maze-v0", Maze)
    env = make_env("Maze-v0", 2, workers=2, kwargs={{"fail": {fail!r}}})
    print(*[process.pid for process in env._processes], flush=True)
    if {fail!r}:
        for _ in range(100):
            env.step(torch.tensor([0, 1]))
    if {wait}:
        time.sleep(1000)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize(("how", "fail"), [("killed", "hang"), ("ends", "")])
def test_no_process_outlives_the_main_one(how: str, fail: str, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(PROGRAM.format(tests=str(Path(__file__).parent), fail=fail, wait=how == "killed"))
    group = {"start_new_session": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], **group) as main:  # type: ignore[call-overload]
        assert main.stdout is not None
        pids = [int(pid) for pid in main.stdout.readline().split()]
        assert len(pids) == 2, main.communicate()
        if how == "killed":
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob("hangs-*")):
                assert time.monotonic() < deadline, "no environment comes to hang"
                time.sleep(0.05)
            main.kill()
        said = main.communicate(timeout=60)[1]  # ends when nobody holds the pipes any more
    assert said == ""
    deadline = time.monotonic() + 30
    while left := [p.name for p in Path("/proc").glob("[0-9]*") if _lives(p, session=main.pid)]:
        assert time.monotonic() < deadline, f"processes {left} outlive the main one"
        time.sleep(0.05)


def _lives(process: Path, session: int) -> bool:
    """Whether a process of a session is there and no zombie, which nobody has asked for its exit code yet."""
    try:
        state = (process / "stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(state[3]) == session and state[0] != "Z"


def test_wrappers_that_only_this_process_knows() -> None:
    registry.register("wrappers", "Halved", Halved)
    try:
        one, two = (make_env("Maze-v0", 2, workers=w, wrappers=[{"name": "Halved"}]) for w in (0, 1))
        actions = _actions(one, 10)
        played = [(env.reset(1), _play(env, actions)) for env in (one, two)]
        assert first_difference(played[0], played[1]) is None
        two.close()
    finally:
        del registry._own["wrappers", "Halved"]
