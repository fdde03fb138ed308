"""Episodes as pictures: an agent plays one, and what it knows is drawn beside it; films of them."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from rlcore import build, names, registry
from rlcore.actor import is_empty
from rlcore.agent import Agent
from rlcore.config import Config
from rlcore.errors import UserError
from rlcore.logger import Logger
from rlcore.panel import Moment, Panel
from rlcore.vector import Split, VectorEnv

Picture = np.ndarray[Any, Any]  # (H, W, 3) uint8
_SLOWEST = 15.0  # pictures a second, where an environment does not say
_SECONDS, _RATE = 20, 25  # a film in TensorBoard is the episode's first seconds, with at most so many pictures each


def stage(config: Config[Any], split: Split, what: str, window: bool = False) -> VectorEnv:
    """Build one environment that gives pictures.

    Args:
        config: the run's.
        split: as `build.env` takes it.
        what: the option that asks for it, for messages.
        window: a window will be opened.

    Raises:
        UserError: it has no picture, or a package for it is missing.
    """
    settings = config.env
    if settings.id in registry.names("envs") and not settings.wrappers:
        found = registry.find("envs", settings.id)
        if not hasattr(found, "render"):
            raise UserError(f"{what}: environment '{settings.id}' has no picture; expected one that renders")
    if settings.backend not in ("auto", "native"):
        settings = settings.model_copy(update={"backend": "sync"})  # one environment, in this process
    if not window:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no display is needed
    try:
        importlib.import_module("PIL")
        env = build.env(settings, config.device, split, 1, autoreset="disabled", render_mode="rgb_array")
        env.reset(0)
        _picture(env)  # what is missing is missed now
    except (ImportError, gym.error.Error, RuntimeError) as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}; rendering needs rlcore[render]") from error
    return env


@torch.no_grad()
def play(agent: Agent, env: VectorEnv, seed: int, max_steps: int) -> Iterator[Moment]:
    """Play the greedy episode of one environment that starts from ``seed``, and yield its moments, the last one too."""
    obs, extras = env.reset(seed)
    state, total, step = agent.initial_state(1), 0.0, 0
    ended = ""
    while not ended:
        mask, picture = extras.get("action_mask"), _picture(env)
        insight = {name: x[0].cpu().numpy() for name, x in agent.insight(obs, state, mask).items()}
        act = agent.act(obs, state, {}, {}, mask, explore=False)
        yield Moment(picture, step, total, act.action[0].cpu().numpy(), insight)
        happened = env.step(act.action)
        step, total = step + 1, total + float(happened.reward)
        obs, extras, state = happened.obs, happened.extras, () if is_empty(act.state) else act.state
        flags = {"terminated": happened.terminated, "truncated": happened.truncated, "cut": step >= max_steps}
        ended = next((name for name, flag in flags.items() if bool(flag)), "")
    yield Moment(_picture(env), step, total, ended=ended)


def _picture(env: Any) -> Picture:
    found = [picture for picture in env.render() or [] if picture is not None]
    if not found:
        raise UserError("the environment gave no pictures; expected one that renders rgb_array")
    picture = np.asarray(found[0])
    return picture if picture.dtype == np.uint8 else (255 * picture).astype(np.uint8)  # some give shares of white


def panel(config: Config[Any], env: VectorEnv) -> Panel:
    """Return what draws the agent's numbers beside the environment's pictures."""
    space = env.spec.action_space
    count = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))
    one: Any = getattr(getattr(env, "env", None), "envs", [None])[0]
    env_id = config.env.id
    return Panel(f"{env_id.rpartition('/')[2]}  ·  {config.agent.name}", space, names.actions(env_id, count, one))


def rate(env: Any) -> float:
    """Return how many pictures a second an environment is to be shown with."""
    drawn_by = getattr(env, "env", None) or getattr(env, "artist", None)
    return float(getattr(drawn_by, "metadata", {}).get("render_fps", _SLOWEST))


def gif(pictures: Iterable[Picture], fps: float) -> bytes:
    """Return a GIF of pictures of one size, repeated for ever."""
    from PIL import Image

    def images() -> Iterator[Any]:
        for picture in pictures:  # a palette of its own for each
            yield Image.fromarray(picture).quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)

    frames, file = images(), io.BytesIO()
    next(frames).save(file, "GIF", save_all=True, append_images=frames, duration=round(1000 / fps), loop=0)
    return file.getvalue()


def mp4(path: Path, pictures: Iterable[Picture], fps: float) -> None:
    """Write an H.264 film of pictures of one size, both sides even.

    Raises:
        ImportError: imageio-ffmpeg is not installed.
        OSError: the file cannot be written.
    """
    import imageio_ffmpeg

    writer = None
    for picture in pictures:
        if writer is None:
            height, width = picture.shape[:2]
            how: Any = {"fps": fps, "macro_block_size": 2}
            writer = imageio_ffmpeg.write_frames(str(path), (width, height), **how)
            writer.send(None)
        writer.send(np.ascontiguousarray(picture))
    if writer is not None:
        writer.close()


class Film:
    """Shows in TensorBoard how the agent plays evaluation's first episode; touches nothing of the training."""

    def __init__(self, config: Config[Any], logger: Logger) -> None:
        self.config, self.logger = config, logger
        self.env = stage(config, "validation", "eval.video")

    def __call__(self, agent: Agent, frames: int) -> None:
        """Play it and log it at ``frames``."""
        was_training, fps = agent.training, rate(self.env)
        agent.eval()
        every = max(1, round(fps / _RATE))
        draw = panel(self.config, self.env)
        with torch.random.fork_rng(devices=[]):
            moments = play(agent, self.env, self.config.eval.seed, self.config.eval.max_steps)
            shown = islice(moments, 0, int(_SECONDS * fps), every)
            data = gif((draw.beside(moment) for moment in shown), fps / every)
        agent.train(was_training)
        self.logger.video("eval/episode", data, frames)

    def close(self) -> None:
        """Release the environment."""
        self.env.close()
