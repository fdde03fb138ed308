"""What training seeds together saves: an update of K seeds against one seed's, and a study against K runs in turn."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlcore import api, build, plain_yaml, together
from rlcore import config as configs
from rlcore.command import positive
from rlcore.stacked import Stack
from rlcore.trainer import Trainer

FIRST = 1_000  # seeds that no report uses


def add(commands: Any) -> None:
    """Add the subcommand."""
    command = commands.add_parser(
        "together",
        help="many seeds in one process",
        text="An update of K seeds against one seed's, in turn; and a study of K seeds against its runs one by one.",
    )
    command.add_argument("recipe", nargs="?", default="cartpole_dqn", metavar="RECIPE", help="[cartpole_dqn]")
    command.add_argument("--seeds", type=positive, default=10, metavar="K", help="seeds [10]")
    command.add_argument("--updates", type=positive, default=200, help="updates per repetition [200]")
    command.add_argument("--pairs", type=positive, default=15, help="interleaved repetitions [15]")
    command.add_argument("--frames", type=int, default=10_000, help="budget of each run of the study; 0: none [10000]")
    command.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the recipe")


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    given = (item.partition("=") for item in options.set)
    settings = configs.override({}, {name: plain_yaml.parse(text, name) for name, _, text in given})
    result = updates(options.recipe, settings, options.seeds, options.updates, options.pairs)
    if options.frames:
        result |= study(options.recipe, settings, options.seeds, options.frames)
    print(f"{options.recipe}: " + "  ".join(f"{name} {value:.4g}" for name, value in result.items()), flush=True)


def updates(recipe: str, settings: dict[str, Any], seeds: int, number: int, pairs: int) -> dict[str, float]:
    """Return CPU microseconds an update of one seed and of all at once on fixed batches, medians, and their ratio's."""
    single, *many = [_asking(recipe, settings, FIRST + k) for k in range(seeds + 1)]
    stack = Stack([trainer for trainer, _ in many], compiled=None if single[0].optim.compiler is None else {})
    batches = [batch for _, batch in many]
    alone, joint = [], []
    for pair in range(-1, pairs):
        one = _time(lambda: single[0].update(single[1]), number)
        both = one, _time(lambda: stack.update(batches), number)
        if pair >= 0:  # the first pair warms up
            alone.append(both[0])
            joint.append(both[1])
    ratios = [together / one for one, together in zip(alone, joint, strict=True)]
    names = "one_us", "together_us", "ratio"
    return dict(zip(names, map(statistics.median, (alone, joint, ratios)), strict=True))


def _asking(recipe: str, settings: dict[str, Any], seed: int) -> tuple[Trainer, Any]:
    """Return a trainer and the first batch that it wants to learn from."""
    raw = configs.override(configs.read(recipe), {"compile": "off", **settings, "seed": seed})
    trainer = build.trainer(configs.validate(raw))
    trainer.agent.train()
    return trainer, next(trainer.run())


def _time(update: Callable[[], object], number: int) -> float:
    start = time.process_time()
    for _ in range(number):
        update()
    return 1e6 * (time.process_time() - start) / number


def study(recipe: str, settings: dict[str, Any], seeds: int, frames: int) -> dict[str, float]:
    """Return the CPU seconds of a study, final evaluations and files included, and of its runs one after another.

    Nothing ends early. What a process does once, such as imports, is done before, and so is what is compiled once.
    """
    fixed = {"budget": {"frames": frames}, "stop": {"metric": "", "threshold": None}}
    raw = configs.override(configs.override(configs.read(recipe), {"compile": "off", **settings}), fixed)
    chosen = range(FIRST, FIRST + seeds)
    with tempfile.TemporaryDirectory() as folder:
        brief = {"frames": min(frames, 2_000)}
        api.train(raw, out=Path(folder) / "first", seed=FIRST, budget=brief)
        together.train(raw, chosen, out=Path(folder) / "first-study", budget=brief)
        start = time.process_time()
        together.train(raw, chosen, out=Path(folder) / "study")
        middle = time.process_time()
        for seed in chosen:
            api.train(raw, out=Path(folder) / str(seed), seed=seed)
        joint, alone = middle - start, time.process_time() - middle
    return {"study_s": joint, "in_turn_s": alone, "study_ratio": joint / alone}
