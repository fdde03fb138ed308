"""Benchmarks that users can rerun: what hosting costs, and how a recipe does over many seeds."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from rlcore import build, study
from rlcore import config as configs
from rlcore.callbacks import Log
from rlcore.cli import Parser, guarded, positive
from rlcore.config import Config, DatasetConfig
from rlcore.errors import UserError
from rlcore.optim import FUSED, OPTIMIZERS
from rlcore.trainer import Trainer


def hosting(recipe: str = "house_prices", updates: int = 3_000, pairs: int = 15) -> dict[str, float]:
    """Time the Trainer against a bare PyTorch loop on the same data, batch size, network and optimiser.

    The two run in turn; the bare loop shuffles, gathers, and steps a fused optimiser, and logs nothing;
    the Trainer also logs. Returns microseconds an update: medians of both and of their differences by pair.

    Raises:
        UserError: the recipe does not learn from a dataset.
    """
    config = configs.validate(configs.read(recipe))
    if not isinstance(config.source, DatasetConfig):
        raise UserError(f"recipe '{recipe}' learns from {config.source.name}; expected one that learns from a dataset")
    hosted, bare = [], []
    for pair in range(-1, pairs):
        ours, plain = _trainer(config, updates), _trainer(config, updates)
        if pair % 2:
            times = _time_hosted(ours), _time_bare(plain, config, updates)
        else:
            times = tuple(reversed((_time_bare(plain, config, updates), _time_hosted(ours))))
        if pair >= 0:  # the first pair warms up
            hosted.append(1e6 * times[0] / updates)
            bare.append(1e6 * times[1] / updates)
    extra = [ours - plain for ours, plain in zip(hosted, bare, strict=True)]
    ratios = [ours / plain for ours, plain in zip(hosted, bare, strict=True)]
    quartiles = statistics.quantiles(extra, n=4)
    return {
        "bare_us": statistics.median(bare),
        "hosted_us": statistics.median(hosted),
        "extra_us": statistics.median(extra),
        "extra_us_q1": quartiles[0],
        "extra_us_q3": quartiles[2],
        "ratio": statistics.median(ratios),
    }


def _trainer(config: Config[Any], updates: int) -> Trainer:
    trainer = build.trainer(config)
    task = trainer.source.env.task
    epochs = updates / -(-task.size // _batch_size(config, task.size))
    trainer.clock.budget = trainer.clock.horizon = int(epochs * task.size)
    trainer.callbacks.append(Log(config.log.every))
    return trainer


def _batch_size(config: Config[Any], size: int) -> int:
    assert isinstance(config.source, DatasetConfig)
    return min(config.source.batch_size or size, size)


def _time_hosted(trainer: Trainer) -> float:
    start = time.perf_counter()
    trainer.fit()
    return time.perf_counter() - start


def _time_bare(trainer: Trainer, config: Config[Any], updates: int) -> float:
    agent, task = trainer.agent, trainer.source.env.task
    assert isinstance(agent, torch.nn.Module)
    network: Any = copy.deepcopy(agent.network)
    cls, options = OPTIMIZERS[config.optim.name]
    keywords: dict[str, Any] = {name: getattr(config.optim, name) for name in options} | (
        {"fused": True} if cls in FUSED else {}
    )
    optimizer = cls(network.parameters(), lr=config.optim.lr, **keywords)
    x, y = task.draw(torch.arange(task.size))
    rng = torch.Generator().manual_seed(0)
    size, done = _batch_size(config, task.size), 0
    start = time.perf_counter()
    while done < updates:
        order = torch.randperm(task.size, generator=rng)
        for index in order.split(size)[: updates - done]:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(network(x[index]), y[index])
            loss.backward()
            optimizer.step()
            done += 1
    return time.perf_counter() - start


def _range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"got '{text}', expected A-B, such as 0-9")
    return list(range(int(first), int(last or first) + 1))


@guarded
def main(arguments: list[str]) -> None:
    """Measure."""
    parser = Parser("Benchmarks. Run them with nothing else running on the machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="hosting|seeds")
    host = commands.add_parser(
        "hosting",
        help="the Trainer against a bare loop",
        text="The Trainer against a bare PyTorch loop on the same batches.",
    )
    host.add_argument("recipes", nargs="*", default=["house_prices", "line"], metavar="RECIPE")
    host.add_argument("--updates", type=positive, default=3_000, help="updates per repetition [3000]")
    host.add_argument("--pairs", type=positive, default=15, help="interleaved repetitions [15]")
    seeds = commands.add_parser(
        "seeds",
        help="a recipe over many seeds",
        text="Train a recipe on many seeds; print a table, draw the learning curve.",
    )
    seeds.add_argument("recipe", metavar="RECIPE")
    seeds.add_argument("--seeds", type=_range, default=list(range(10)), metavar="A-B", help="seeds A to B [0-9]")
    seeds.add_argument("--jobs", type=positive, default=1, help="processes; more than one blurs the times [1]")
    seeds.add_argument("--folder", type=Path, default=Path("runs/seeds"), help="where the runs go [runs/seeds]")
    seeds.add_argument("--figure", type=Path, help="draw the learning curve into this PNG or SVG file")
    options = parser.parse_args(arguments)
    if options.command == "hosting":
        for recipe in options.recipes:
            result = hosting(recipe, options.updates, options.pairs)
            print(f"{recipe}: " + "  ".join(f"{name} {value:.3g}" for name, value in result.items()), flush=True)
        return
    paths = study.train_seeds(options.recipe, options.seeds, options.folder, options.jobs)
    print(study.table(options.recipe, study.summarise(paths)))
    if options.figure:
        study.draw(paths, options.figure, f"{options.recipe}, {len(paths)} seeds")
