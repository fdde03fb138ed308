"""Stable-Baselines3's agents beside ours; without the extra ``peers`` there is nothing to test."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlcore import runs, study
from rlcore.errors import UserError

pytest.importorskip("stable_baselines3")

from rlcore import peers


def _job(root: Path, **row: Any) -> study.Job:
    wanted = study.Set.model_validate({"title": "Peers", "seeds": "0", "rows": {"peer": row}})
    return study.jobs(wanted, root)[0]


def _short(**more: Any) -> dict[str, Any]:
    return {"budget.frames": 600, "log.every": 200, "eval.final_episodes": 3, "eval.max_steps": 200, **more}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "peer", "options"),
    [
        ("cartpole_dqn", "sb3/dqn", {"learning_starts": 400}),
        ("cartpole_dqn", "sb3/ppo", {"num_envs": 2, "n_steps": 100, "batch_size": 50, "n_epochs": 1}),
        ("pendulum_sac", "sb3/sac", {"learning_starts": 550}),
        ("minatar_breakout_pqn", "sb3/dqn", {"learning_starts": 500, "buffer_size": 600}),
    ],
)
def test_a_peer_leaves_what_a_run_leaves(tmp_path: Path, recipe: str, peer: str, options: dict[str, Any]) -> None:
    job = _job(tmp_path, recipe=recipe, peer=peer, options=options, overrides=_short())
    peers.train(job)
    assert job.status() == ("finished", "")
    result = runs.read_json(job.path / "result.json")
    assert result["frames"] == 600 and result["updates"] > 0 and result["train_seconds"] > 0
    assert result["peak_memory_mib"] > 100
    assert result["evaluation"]["seed"] == 10_000 and len(result["evaluation"]["returns"]) == 3
    with (job.path / "progress.csv").open() as file:
        frames = [int(row["frames"]) for row in csv.DictReader(file)]
    assert set(frames) <= {200, 400, 600} and (frames or recipe == "cartpole_dqn")
    changed = _job(tmp_path, recipe=recipe, peer=peer, options={**options, "gamma": 0.5}, overrides=_short())
    assert changed.status()[0] == "differs"
    ours = _job(tmp_path, recipe=recipe, overrides=_short())
    assert ours.status()[0] == "differs"


def test_a_peers_unknown_name_or_option_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 'peer': peer 'sb3/dpn' is unknown; did you mean 'sb3/dqn'"):
        peers.train(_job(tmp_path, recipe="cartpole_dqn", peer="sb3/dpn"))
    with pytest.raises(UserError, match=r"row 'peer': options of sb3/dqn: .*'gama'"):
        peers.train(_job(tmp_path, recipe="cartpole_dqn", peer="sb3/dqn", options={"gama": 1}))


def test_pixels_keep_their_places_when_channels_come_first() -> None:
    image = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    moved = peers.channels_first(image)
    assert moved.shape == (4, 2, 3) and moved.dtype == np.uint8
    assert all(moved[c, y, x] == image[y, x, c] for y in range(2) for x in range(3) for c in range(4))
    assert np.array_equal(peers.channels_first(np.stack([image, image]))[1], moved)
