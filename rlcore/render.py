"""Watch a trained agent: one greedy episode in a window, a GIF or an MP4 film, its numbers beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rlcore import video
from rlcore.errors import UserError
from rlcore.run import Run
from rlcore.video import Picture


def render(run: Run, target: str, seed: int | None = None) -> float:
    """Play the episode that starts from ``seed``, evaluation's first, and return its return.

    Args:
        run: the trained agent.
        target: "window", or a path that ends in .gif or .mp4.
        seed: default: the run's eval.final_seed.

    Raises:
        UserError: the environment does not render, a package for it is missing, or the path is neither.
    """
    path, what = Path(target), f"--render {target}"
    if target != "window" and (path.suffix not in (".gif", ".mp4") or not path.absolute().parent.is_dir()):
        raise UserError(f"--render: got '{target}', expected window, or FILE.gif or FILE.mp4 in a folder that exists")
    env = video.stage(run.config, "test", what, window=target == "window")
    total = 0.0
    draw, fps = video.panel(run.config, env), video.rate(env)

    def pictures() -> Iterator[Picture]:
        nonlocal total
        for moment in video.play(run.agent, env, run.config.eval.final_seed if seed is None else seed, most):
            total = moment.total
            yield draw.beside(moment)

    most = run.config.eval.max_steps
    try:
        if target == "window":
            show(pictures(), fps, draw.title)
        elif path.suffix == ".gif":
            path.write_bytes(video.gif(pictures(), fps))
        else:
            video.mp4(path, pictures(), fps)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror or error})") from None
    except (ImportError, RuntimeError) as error:  # packages, modes, and pygame's missing display
        raise UserError(f"{what}: {' '.join(str(error).split())}; rendering needs rlcore[render]") from error
    finally:
        env.close()
    return total


def show(pictures: Iterable[Picture], fps: float, title: str) -> None:
    """Show pictures of one size in a window until they end or it is closed."""
    import pygame

    pygame.display.init()
    clock, window = pygame.time.Clock(), None
    try:
        for picture in pictures:
            if window is None:
                window = pygame.display.set_mode(picture.shape[1::-1])
                pygame.display.set_caption(title)
            window.blit(pygame.image.frombuffer(picture.tobytes(), picture.shape[1::-1], "RGB"), (0, 0))
            pygame.display.flip()
            if any(event.type == pygame.QUIT for event in pygame.event.get()):
                return
            clock.tick(fps)
    finally:
        pygame.display.quit()
