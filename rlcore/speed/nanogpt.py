"""nanoGPT's train.py, run as it is from a checkout given by path, in characters, with its small CPU setting.

Its evaluations, between the model's ``eval()`` and ``train()``, do not count. The losses are those that it prints,
means over random batches of the validation text.
"""

from __future__ import annotations

import builtins
import os
import re
import runpy
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from rlcore.speed.peer import Job, Watch, main


def measure(job: Job) -> dict[str, Any]:
    """Train and time. The job: checkout, text (a file), updates, look (updates between evaluations), seed, tokens."""
    checkout, updates = Path(job["checkout"]).resolve(), job["updates"]
    text, watch, losses = Path(job["text"]).read_text(encoding="utf-8"), Watch(), list[Any]()
    sys.path.insert(0, str(checkout))
    import model  # pyright: ignore[reportMissingImports]
    import torch

    class Watched(model.GPT):
        def train(self, mode: bool = True) -> Any:
            (watch.start if mode else watch.stop)()
            return super().train(mode)

    def say(*words: Any, **how: Any) -> None:
        if found := re.match(r"step (\d+): .*val loss ([\d.]+)", str(words[0])):
            losses.append((watch.seconds, int(found[1]), float(found[2])))
        builtins.print(*words, **how)

    model.GPT = Watched
    settings = {**job["settings"], "max_iters": updates - 1, "lr_decay_iters": updates, "eval_interval": job["look"]}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _prepare(checkout, Path(folder), text)
        Path("configurator.py").symlink_to(checkout / "configurator.py")  # which it looks for where it is run
        sys.argv = ["train.py", *(f"--{name}={value}" for name, value in settings.items())]
        torch.set_num_threads(1)
        runpy.run_path(str(checkout / "train.py"), init_globals={"print": say}, run_name="__main__")
        watch.stop()
        os.chdir("/")
    return watch.result(updates * job["tokens"], updates, "nanoGPT", losses=losses)


def _prepare(checkout: Path, folder: Path, text: str) -> None:
    """Run its own preparation of the text."""
    data = folder / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    script = data / "prepare.py"
    script.write_text((checkout / "data" / "shakespeare_char" / "prepare.py").read_text(encoding="utf-8"))
    (data / "input.txt").write_text(text, encoding="utf-8")
    sys.modules.setdefault("requests", types.ModuleType("requests"))  # for a download that is not needed
    runpy.run_path(str(script))


if __name__ == "__main__":
    main(measure)
