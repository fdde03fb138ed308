"""Atari and MinAtar: what agents see, what they are paid, exact resume where it can be had, whole runs."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import rlcore
from rlcore.errors import UserError
from rlcore.make import make_env
from rlcore.testing import check_agent, check_env

PONG: dict[str, Any] = {
    "kwargs": {"frameskip": 1},
    "wrappers": [{"name": "AtariPreprocessing", "frame_skip": 4}, {"name": "FrameStackObservation", "stack_size": 4}],
}
QUICK: dict[str, Any] = {
    "budget.frames": 160,
    "env.num_envs": 2,
    "eval.every": 0,
    "eval.final_episodes": 1,
    "eval.max_steps": 5,
    "log.every": 50,
    "checkpoint.every": 100,
}


@pytest.mark.parametrize("options", [{"backend": "sync", **PONG}, {"backend": "vector"}])
def test_agents_see_four_grey_frames_of_84_by_84_the_newest_last(options: dict[str, Any]) -> None:
    env = make_env("ALE/Pong-v5", 2, **options)
    obs, _ = env.reset(0)
    seen = [obs]
    for _ in range(60):
        step = env.step(torch.tensor([2, 3]))
        seen.append(step.obs)
        assert not (step.terminated | step.truncated).any()
    assert obs.shape == (2, 4, 84, 84)
    assert obs.dtype == torch.uint8
    assert all(torch.equal(after[:, :3], before[:, 1:]) for before, after in itertools.pairwise(seen))
    assert (seen[-1][:, 3] != seen[0][:, 3]).any()
    env.close()


@pytest.mark.parametrize("backend", ["sync", "vector"])
def test_actions_stick(backend: str) -> None:
    env = make_env("ALE/Pong-v5", 1, backend=backend)  # type: ignore[arg-type]
    assert isinstance(env.env, gym.vector.VectorEnv)  # type: ignore[attr-defined]
    spec = gym.spec("ALE/Pong-v5")
    assert spec.kwargs["repeat_action_probability"] == 0.25
    endings = set()
    for seed in range(4):
        env.reset(0 if backend == "sync" else seed)
        for t in range(30):
            obs = env.step(torch.tensor([2 + t % 2])).obs
        endings.add(obs.numpy().tobytes())
    assert len(endings) == (1 if backend == "sync" else 4), "chance comes from the seed"
    env.close()


def test_batched_games_pay_what_the_game_pays() -> None:
    env = make_env("ALE/MsPacman-v5", 2, backend="vector")  # dots are worth 10
    env.reset(0)
    rewards = torch.stack([env.step(torch.full((2,), 3)).reward for _ in range(120)])
    assert rewards.max() >= 10
    clipped = make_env("ALE/MsPacman-v5", 2, backend="vector", kwargs={"reward_clipping": True})
    clipped.reset(0)
    assert max(clipped.step(torch.full((2,), 3)).reward.max().item() for _ in range(120)) == 1
    assert env.why_not_capturable is not None
    assert "keeps its state to itself" in env.why_not_capturable


def test_unknown_keywords_of_batched_games_are_named() -> None:
    with pytest.raises(UserError, match="unknown keyword 'frame_skip'; did you mean 'frameskip'"):
        make_env("ALE/Pong-v5", 1, backend="vector", kwargs={"frame_skip": 4})
    with pytest.raises(UserError, match="takes no wrappers"):
        make_env("ALE/Pong-v5", 1, backend="vector", wrappers=PONG["wrappers"])


@pytest.mark.parametrize("recipe", ["pong_pqn", "pong_dqn"])
def test_pong_runs_from_end_to_end(recipe: str, tmp_path: Path) -> None:
    overrides = dict(QUICK)
    if recipe == "pong_pqn":
        overrides |= {"source.horizon": 8, "source.minibatches": 2, "source.epochs": 1}
    else:
        overrides |= {"source.learning_starts": 50, "source.capacity": 500, "env.backend": "sync"}
        overrides |= {"source.updates_per_frame": 0.05}
    rlcore.train(recipe, out=tmp_path / "run", **overrides)
    rows = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    assert "train/q_value" in rows[0]
    assert len(rows) > 2


@pytest.mark.parametrize("game", ["Breakout", "Freeway"])
def test_minatar_conforms(game: str) -> None:
    check_env(f"MinAtar/{game}-v1", steps=25, num_envs=2, modes=("same_step", "next_step"))


def test_minatars_planes_are_the_games_and_its_episodes_follow_their_seeds() -> None:
    env = make_env("MinAtar/Breakout-v1", 3)
    obs, _ = env.reset([5, 5, 6])
    assert obs.shape == (3, 10, 10, 4)
    assert set(obs.unique().tolist()) == {0.0, 1.0}
    rng, same = np.random.default_rng(0), []
    for _ in range(300):
        obs = env.step(torch.from_numpy(np.repeat(rng.integers(0, 3, 1), 3))).obs
        same.append((torch.equal(obs[0], obs[1]), torch.equal(obs[0], obs[2])))
    assert all(first for first, _ in same), "also after their first episodes"
    assert not all(second for _, second in same)
    assert env.spec.action_space.n == 3  # type: ignore[attr-defined]


def test_pqn_conforms_on_minatar() -> None:
    check_agent(
        {
            "env": {"id": "MinAtar/Breakout-v1", "num_envs": 4},
            "agent": {"name": "pqn", "network": {"name": "minatar_cnn", "kwargs": {"features": 16}}},
            "source": {"horizon": 8, "epochs": 4, "minibatches": 2},
            "optim": {"name": "radam", "lr": 5e-3},
        }
    )


@pytest.mark.parametrize(
    ("env_id", "module", "sentence"),
    [
        ("MinAtar/Breakout-v1", "minatar.gym", r"needs MinAtar: pip install 'rlcore\[minatar\]'"),
        ("ALE/Pong-v5", "ale_py", r"needs ale_py: pip install 'rlcore\[atari\]'"),
    ],
)
def test_a_missing_package_is_named(env_id: str, module: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"environment '{env_id}' {sentence}"):
        make_env(env_id, 1)


def test_a_misspelt_game_is_named() -> None:
    with pytest.raises(UserError, match="'MinAtar/Brekout-v1' is unknown; did you mean 'MinAtar/Breakout-v1'"):
        make_env("MinAtar/Brekout-v1", 1)
