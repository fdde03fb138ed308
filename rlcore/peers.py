"""Stable-Baselines3's agents on our environments (extra ``peers``), for rows of a results table beside ours.

The peer plays the environment of the row's recipe for as many frames and is scored by the same seeded episodes.
What differs: its own loop and defaults (`Row.options` changes them; ``num_envs`` is 1 unless given), float32
observations and rewards as it stores them, no checkpoints (a run that ends early begins anew). Images of few
pixels, MinAtar's, are given channel-first as uint8 to the small network of the MinAtar paper (one convolution of
16 channels, 128 units: https://arxiv.org/abs/1903.03176), for its own CNNs need at least 36 by 36 pixels.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlcore import build, runs
from rlcore.command import guarded
from rlcore.errors import UserError, nearest
from rlcore.evaluation import evaluate
from rlcore.logger import Logger
from rlcore.make import _Builder
from rlcore.peak_memory import peak_memory
from rlcore.study import Job, Row
from rlcore.types import Act

try:
    import stable_baselines3 as sb3  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise UserError("peers need stable-baselines3: pip install 'rlcore[peers]'") from error

_AGENTS: dict[str, Any] = {"sb3/dqn": sb3.DQN, "sb3/ppo": sb3.PPO, "sb3/sac": sb3.SAC}


def channels_first(images: Any) -> np.ndarray:
    """Return images (..., height, width, channels) as (..., channels, height, width) of uint8."""
    return np.moveaxis(np.asarray(images), -1, -3).astype(np.uint8)


def _with_channels_first(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Let (height, width, channels) of 0 and 1 become (channels, height, width) of uint8."""
    space = env.observation_space
    assert isinstance(space, spaces.Box)
    low, high = channels_first(space.low), channels_first(space.high)
    return gym.wrappers.TransformObservation(env, channels_first, spaces.Box(low, high, dtype=np.uint8))


class SmallCNN(BaseFeaturesExtractor):
    """The MinAtar paper's network up to its last layer."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 128)
        channels, height, width = observation_space.shape
        flat = 16 * (height - 2) * (width - 2)
        body = [nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(flat, 128), nn.ReLU()]
        self.body = nn.Sequential(*body)

    def forward(self, observations: Tensor) -> Tensor:
        """Return features (B, 128)."""
        return self.body(observations)


class _Player(nn.Module):
    """The peer as `evaluate` knows agents."""

    def __init__(self, model: Any, images: bool) -> None:
        super().__init__()
        self.model, self.images = model, images

    def initial_state(self, n: int) -> tuple[()]:
        return ()

    def act(self, obs: Tensor, *given: Any, explore: bool) -> Act:
        array = obs.cpu().numpy()
        actions, _ = self.model.predict(channels_first(array) if self.images else array, deterministic=not explore)
        return Act(torch.as_tensor(actions))


class _Curve(BaseCallback):
    """Logs the mean return of the episodes that ended, as our runs do."""

    def __init__(self, logger: Logger, every: int) -> None:
        super().__init__()
        self.rows, self.every, self.returns, self.last = logger, every, list[float](), 0

    def _on_step(self) -> bool:
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if self.num_timesteps // self.every > self.last // self.every and self.returns:
            self.rows.write(self.num_timesteps, {"train/episode_return": float(np.mean(self.returns))})
            self.returns.clear()
        self.last = self.num_timesteps
        return True


def train(job: Job) -> None:
    """Train and evaluate a peer; leave behind what a run of ours does, but for weights.

    Raises:
        UserError: there is no such peer or option.
    """
    config, options = job.config, dict(job.row.options)
    if job.row.peer not in _AGENTS:
        raise UserError(f"row '{job.row.name}': peer '{job.row.peer}' is unknown{nearest(job.row.peer, _AGENTS)}")
    runs.create(job.path, config)
    with runs.locked(job.path):
        runs.write(job.path, config)
        runs.write_json(job.path / "peer.json", {"peer": job.row.peer, "options": job.row.options})
        torch.set_num_threads(config.threads)
        build_one = _Builder(config.env.id, config.env.kwargs, config.env.wrappers)
        probe = build_one()
        shape = probe.observation_space.shape or ()
        images = len(shape) == 3
        probe.close()
        if images and not shape[2] < min(shape[:2]) < 36:
            raise UserError(f"row '{job.row.name}': images of {shape} have no peer; expected (10, 10, channels)")

        def make() -> gym.Env[Any, Any]:
            return _with_channels_first(build_one()) if images else build_one()

        env = make_vec_env(make, n_envs=options.pop("num_envs", 1), seed=job.seed)
        network = {"features_extractor_class": SmallCNN, "net_arch": []} if images else {}
        try:
            model = _AGENTS[job.row.peer](
                "MlpPolicy", env, policy_kwargs=network, seed=job.seed, device="cpu", **options
            )
        except TypeError as error:
            raise UserError(f"row '{job.row.name}': options of {job.row.peer}: {error}") from None
        begun = time.perf_counter()
        model.learn(config.budget.frames, callback=_Curve(Logger(job.path), config.log.every))
        seconds = time.perf_counter() - begun
        test = build.evaluation_env(config, "test", config.eval.final_episodes)
        player: Any = _Player(model, images)
        final = evaluate(player, test, config.eval.final_episodes, config.eval.final_seed, config.eval.max_steps)
        numbers = {"frames": model.num_timesteps, "updates": model._n_updates, "train_seconds": seconds}
        numbers |= peak_memory("cpu")
        about = {"status": "finished", "library": f"stable-baselines3 {version('stable-baselines3')}"}
        runs.write_json(job.path / "result.json", {**about, **numbers, "evaluation": final})


@guarded
def main(arguments: list[str]) -> None:
    """Train the run that `rlcore.workers` asks for: a row in JSON, a seed, a folder."""
    row, seed, path = arguments
    train(Job(Row.model_validate_json(row), int(seed), Path(path)))
