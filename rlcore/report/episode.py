"""An episode of the agent at work: a moving picture, and a strip of stills for print and for who wants no motion."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np

from rlcore import video
from rlcore.errors import UserError
from rlcore.report.drawing import Picture, data_uri
from rlcore.run import Run

MOST = 160  # pictures in the film
_SECONDS, _RATE = 10, 25  # what a film in time lapse takes at most, and its pictures a second at most
STILLS = 6
_WIDTH = 240  # of a still, pixels
_GAP = 8


class Episode(NamedTuple):
    """What was played."""

    picture: Picture
    seed: int
    total: float  # rewards
    steps: int
    ended: str


def episode(run: Run, seed: int) -> Episode:
    """Play the greedy episode that starts from ``seed``.

    A long one is shown in time lapse: of its pictures every k-th is kept, where k is the least power of two that
    leaves at most `MOST`.

    Raises:
        UserError: the environment gives no pictures, or a package for it is missing.
    """
    env = video.stage(run.config, "test", "report")
    try:
        draw, fps, every, kept = video.panel(run.config, env), video.rate(env), 1, []
        last: Any = None
        for i, moment in enumerate(video.play(run.agent, env, seed, run.config.eval.max_steps)):
            picture = draw.beside(moment)  # the panel wants to see every moment
            if i % every == 0:
                kept.append((moment.picture, picture))
            if len(kept) > MOST:
                kept, every = kept[::2], 2 * every
            last = (moment, picture)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"report: {' '.join(str(error).split())}; rendering needs rlcore[render]") from error
    finally:
        env.close()
    moment, picture = last
    rate = min(_RATE, max(fps / every, len(kept) / _SECONDS))
    film = [*(shown for _, shown in kept), *[picture] * 5]  # the end stays for a moment
    chosen = [kept[round(i)][0] for i in np.linspace(0, len(kept) - 1, min(STILLS, len(kept)))]
    how = f"seed {seed}: return {moment.total:.6g} in {moment.step} steps, {moment.ended}"
    return Episode(
        Picture(
            source=data_uri(video.gif(film, rate), "image/gif"),
            still=data_uri(_strip(chosen), "image/png"),
            alt=f"The agent plays the episode of {how}.",
        ),
        seed,
        moment.total,
        moment.step,
        moment.ended,
    )


def _strip(pictures: list[Any]) -> bytes:
    """Return pictures (H, W, 3) beside each other as a PNG."""
    from PIL import Image

    images = [Image.fromarray(picture) for picture in pictures]
    height = round(_WIDTH * images[0].height / images[0].width)
    strip = Image.new("RGB", (len(images) * (_WIDTH + _GAP) - _GAP, height), "white")
    for i, image in enumerate(images):
        strip.paste(image.resize((_WIDTH, height)), (i * (_WIDTH + _GAP), 0))
    file = io.BytesIO()
    strip.quantize(64).save(file, "PNG", optimize=True)
    return file.getvalue()
