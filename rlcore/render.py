"""Watch a trained agent: one greedy episode in a window or a GIF."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym

from rlcore import build, registry
from rlcore.errors import UserError
from rlcore.run import Run
from rlcore.vector import VectorEnv


def render(run: Run, target: str, seed: int | None = None) -> float:
    """Play the episode that starts from ``seed``, evaluation's first, and return its return.

    Args:
        run: the trained agent.
        target: "window", or a path that ends in .gif.
        seed: default: the run's eval.final_seed.

    Raises:
        UserError: the environment does not render, a package for it is missing, or the path is no .gif.
    """
    path = Path(target)
    if target != "window" and (path.suffix != ".gif" or not path.absolute().parent.is_dir()):
        raise UserError(f"--render: got '{target}', expected window, or FILE.gif in a folder that exists")
    settings = run.config.env
    native = settings.id in registry.names("envs") and not settings.wrappers
    if native and not hasattr(registry.find("envs", settings.id), "render"):
        raise UserError(f"--render {target}: environment '{settings.id}' has no picture; expected one that renders")
    if settings.backend not in ("auto", "native"):
        settings = settings.model_copy(update={"backend": "sync"})  # one environment, in this process
    if target != "window":
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no display is needed
    mode = "human" if target == "window" else "rgb_array"
    env = build.env(settings, run.config.device, "test", 1, autoreset="disabled", render_mode=mode)
    try:
        frames, total = _play(run, env, run.config.eval.final_seed if seed is None else seed)
        if target != "window":
            _write_gif(path, frames, getattr(getattr(env, "env", None), "metadata", {}).get("render_fps", 50))
    except (ImportError, gym.error.Error, RuntimeError) as error:  # packages, modes, and pygame's missing display
        raise UserError(f"--render {target}: {' '.join(str(error).split())}") from error
    finally:
        env.close()
    return total


def _play(run: Run, env: VectorEnv, seed: int) -> tuple[list[Any], float]:
    frames, total = [], 0.0
    obs, extras = env.reset(seed)
    run.reset()
    for _ in range(run.config.eval.max_steps):
        frames += _pictures(env)
        step = env.step(run.choose(obs, extras.get("action_mask")))
        total += float(step.reward)
        obs, extras = step.obs, step.extras
        if bool(step.terminated | step.truncated):
            break
    run.reset()
    return frames + _pictures(env), total


def _pictures(env: Any) -> list[Any]:
    return [picture for picture in env.render() or [] if picture is not None]


def _write_gif(path: Path, frames: list[Any], rate: float) -> None:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    if not images:
        raise UserError(f"--render {path}: the environment gave no pictures; expected one that renders rgb_array")
    try:
        images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / rate), loop=0)
    except OSError as error:
        raise UserError(f"--render {path}: cannot be written ({error.strerror or error})") from None
