"""Watch a trained agent: one greedy episode in a window or a GIF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlcore.errors import UserError
from rlcore.gym_vector import GymVector
from rlcore.make import make_env
from rlcore.run import Run


def render(run: Run, target: str, seed: int | None = None) -> float:
    """Play the episode that starts from ``seed`` in gymnasium's environment; return its return.

    Args:
        run: the trained agent.
        target: "window", or a path that ends in .gif.
        seed: default: the run's eval.final_seed.

    Raises:
        UserError: the environment does not render, a package for it is missing, or the path is no .gif.
    """
    path = Path(target)
    if target != "window" and path.suffix != ".gif":
        raise UserError(f"--render: got '{target}', expected window or FILE.gif")
    settings = run.config.env
    env = make_env(
        settings.id,
        1,
        backend="sync",
        kwargs=settings.kwargs,
        wrappers=settings.wrappers,
        autoreset="disabled",
        render_mode="human" if target == "window" else "rgb_array",
    )
    assert isinstance(env, GymVector)
    frames, total = _play(run, env, run.config.eval.final_seed if seed is None else seed)
    rate = env.env.metadata.get("render_fps", 30)
    env.close()
    if target != "window":
        _write_gif(path, frames, rate)
    return total


def _play(run: Run, env: GymVector, seed: int) -> tuple[list[Any], float]:
    frames, total = [], 0.0
    obs, extras = env.reset(seed)
    run.reset()
    for _ in range(run.config.eval.max_steps):
        frames += list(env.render() or [])
        step = env.step(run.choose(obs, extras.get("action_mask")))
        total += float(step.reward)
        obs, extras = step.obs, step.extras
        if bool(step.terminated | step.truncated):
            break
    run.reset()
    return frames + list(env.render() or []), total


def _write_gif(path: Path, frames: list[Any], rate: float) -> None:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames if frame is not None]
    if not images:
        raise UserError(f"--render {path}: the environment gave no pictures; expected one that renders rgb_array")
    try:
        images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / rate), loop=0)
    except OSError as error:
        raise UserError(f"--render {path}: cannot be written ({error.strerror or error})") from None
