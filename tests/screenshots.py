"""Takes the pictures of docs/REPORTS.md anew: python tests/screenshots.py [RUNS], from the root of a checkout.

What is not yet under RUNS (default: runs/screenshots) is trained first, which takes some minutes. Needs chromium.
"""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from browser import browser, opened
from PIL import Image

from rlcore.report import report

IMAGES = Path("docs/img")
SEEDS = range(10)
TRAINED = {f"cartpole_dqn/seed-{seed}": ["cartpole_dqn", f"--seed={seed}"] for seed in SEEDS} | {
    "digits_cnn": ["digits_cnn", "--budget.frames=12580", "--eval.every=2516"],
    "shakespeare": ["shakespeare"],
}
_ROOM = 48  # pixels below what is shown last
_WAIT = 4.0  # seconds until an episode, or TensorBoard, shows something


def train(runs: Path) -> None:
    """Train what is not there."""
    for name, arguments in TRAINED.items():
        if not (runs / name / "result.json").exists():
            command = [sys.executable, "scripts/train.py", *arguments, "--quiet", "--out", str(runs / name)]
            subprocess.run(command, check=True)


def save(page: Any, name: str, last: str = "") -> None:
    """Save what a page shows, as far down as the last element that ``last`` selects, or as the window reaches."""
    if last:
        page.locator(last).last.scroll_into_view_if_needed()  # a film begins when it is seen
    page.wait_for_timeout(1000 * _WAIT)
    clip = None
    if last:
        page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        box = page.locator(last).last.bounding_box()
        clip = {"x": 0, "y": 0, "width": 1280, "height": box["y"] + box["height"] + _ROOM}
    pixels = Image.open(io.BytesIO(page.screenshot(full_page=bool(last), clip=clip)))
    pixels.convert("RGB").quantize(192, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


@contextlib.contextmanager
def tensorboard(runs: Path) -> Iterator[str]:
    """Serve TensorBoard of a folder of runs at a free port, and yield its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://localhost:{port}/"
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}data/runs") as answer:
                if answer.read() != b"[]":
                    break
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Train, report, and take every picture."""
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/screenshots")
    train(runs)
    seeds = [runs / f"cartpole_dqn/seed-{seed}" for seed in SEEDS]
    wanted = {
        "report_dqn": (seeds[:1], ".film"),
        "report_seeds": (seeds, "#comparison ~ .scroll"),
        "report_classification": ([runs / "digits_cnn"], ".texts"),
        "report_language_model": ([runs / "shakespeare"], ".samples"),
    }
    with browser() as chromium:
        for name, (shown, last) in wanted.items():
            path = report(shown, runs / f"{name}.html").resolve()
            with opened(chromium, path.as_uri()) as seen:
                assert not seen.complaints + seen.asked + seen.too_wide() + seen.broken_pictures()
                save(seen.page, name, last)
        with tensorboard(runs / "cartpole_dqn") as url, opened(chromium, f"{url}?darkMode=false#timeseries") as seen:
            seen.page.get_by_role("button", name="Settings").first.click()  # closes the panel
            save(seen.page, "tensorboard")


if __name__ == "__main__":
    main()
