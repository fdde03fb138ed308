"""The subcommand ``benchmark.py speed``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlcore import runs
from rlcore.command import positive
from rlcore.errors import UserError, nearest, note
from rlcore.speed import harness, page, parts
from rlcore.speed.settings import Comparison, Size

_FIRST, _LAST = "<!-- measured -->\n", "<!-- end of what was measured -->\n"


def add(commands: Any) -> None:
    """Add the subcommand to `benchmark.py`'s."""
    text = (
        "Ours beside every installed library (pip install 'rlcore[peers]') and the checkouts given, on this machine: "
        "DQN, PPO, PQN and SAC, the time to solve CartPole, compiling, many seeds, environments, worker processes, "
        "ranks, replay, hosting, memory, start-up, a language model, a profile. What was measured is kept, and the "
        "same command goes on. Takes two hours."
    )
    parser = commands.add_parser("speed", help="ours beside other libraries", text=text)
    parser.add_argument("--only", default="", metavar="A,B", help=f"some of {','.join(parts.PARTS)} [all]")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="everything very short: shows only that it runs")
    size.add_argument("--full", action="store_true", help="every library's published length: hours")
    parser.add_argument("--repeats", type=positive, metavar="N", help="of every measurement [1 to 5; to solve: 10]")
    parser.add_argument("--cleanrl", type=Path, metavar="DIR", help="a checkout of CleanRL")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT")
    for peer in ("cleanrl", "tianshou"):
        parser.add_argument(f"--{peer}-python", type=Path, metavar="FILE", help=f"{peer}'s own interpreter [this one]")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what language models learn from [the shipped text]")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="seed of the first repetition [0]")
    folder = Path("runs/speed")
    parser.add_argument("--folder", type=Path, default=folder, help=f"where results are kept [{folder}]")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="the page [FOLDER/SPEED.md]")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")


def run(options: argparse.Namespace) -> None:
    """Measure what is not kept yet and write the page.

    Raises:
        UserError: a part, a checkout or a file does not exist, or the page lacks its marks.
        KeyboardInterrupt: what was measured is kept.
    """
    size: Size = "quick" if options.quick else "full" if options.full else "standard"
    wanted = [name for name in options.only.split(",") if name] or parts.PARTS
    for name in wanted:
        if name not in parts.PARTS:
            raise UserError(f"--only: got '{name}', expected parts of the benchmark{nearest(name, parts.PARTS)}")
    every = [_repeated(c, options.repeats) for c in parts.comparisons(size)]
    bench = _bench(options, size)
    if not options.report_only:
        harness.run(bench, [c for c in every if c.part in wanted])
    document = options.output or options.folder / "SPEED.md"
    extra = {"quick": " --quick", "standard": "", "full": " --full"}[size]
    insert(document, page.render(bench, every, f"python scripts/benchmark.py speed{extra}"))
    note(f"written to {document}")


def _repeated(comparison: Comparison, given: int | None) -> Comparison:
    if given and comparison.kind != "rows":  # whose repetitions are its own
        comparison = replace(comparison, repeats=given)
    return comparison


def _bench(options: argparse.Namespace, size: Size) -> harness.Bench:
    checkouts = {name: path for name in ("cleanrl", "nanogpt") if (path := getattr(options, name))}
    given = {"cleanrl": options.cleanrl_python, "tianshou": options.tianshou_python}
    text = options.text
    for option, path in {**checkouts, **{f"{n}-python": p for n, p in given.items()}, "text": text}.items():
        if path and not path.exists():
            raise UserError(f"--{option} {path}: does not exist; expected a {'file' if path is text else 'path'}")
    interpreters = {name: path.absolute() for name, path in given.items() if path}
    where = {name: path.resolve() for name, path in checkouts.items()}
    return harness.Bench(
        options.folder / size, where, interpreters, str(text.resolve()) if text else "", options.first_seed
    )


def insert(document: Path, text: str) -> None:
    """Put what was measured between its marks in a document; what stands around it stays. New marks go below the title.

    Raises:
        UserError: a mark is missing or stands in the wrong place, or the file cannot be written.
    """
    old = document.read_text(encoding="utf-8") if document.exists() else "# Speed\n"
    counts = old.count(_FIRST), old.count(_LAST)
    if counts == (0, 0):
        title, _, rest = old.partition("\n")
        new = f"{title}\n\n{_FIRST}{text}{_LAST}{rest}"
    elif counts != (1, 1) or old.index(_LAST) < old.index(_FIRST):
        raise UserError(f"{document}: expected '{_FIRST.strip()}' once and '{_LAST.strip()}' once after it")
    else:
        new = old[: old.index(_FIRST)] + _FIRST + text + old[old.index(_LAST) :]
    document.parent.mkdir(parents=True, exist_ok=True)
    runs.write_text(document, new)
