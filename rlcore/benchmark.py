"""Benchmarks that users can rerun: what hosting costs, and how recipes do over many seeds."""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from rlcore import benchmark_together, build, plain_json, study, workers
from rlcore import config as configs
from rlcore import results as report
from rlcore.callbacks import Log
from rlcore.command import Parser, guarded, positive
from rlcore.config import Config, DatasetConfig
from rlcore.errors import UserError, nearest, note
from rlcore.optim import FUSED, OPTIMIZERS
from rlcore.overheads import flushed, unswept
from rlcore.speed import command as speed
from rlcore.speed import envs
from rlcore.trainer import Trainer


def hosting(recipe: str = "house_prices", updates: int = 3_000, pairs: int = 15) -> dict[str, float]:
    """Time the Trainer against a bare PyTorch loop on the same data, batch size, network and optimiser.

    The two run in turn; the bare loop shuffles, gathers, and steps a fused optimiser, and logs nothing;
    the Trainer also logs. What `rlcore.overheads` saves both are given. Returns microseconds an update: medians of both
    and of their differences by pair.

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


@flushed
def _time_bare(trainer: Trainer, config: Config[Any], updates: int) -> float:
    agent, task = trainer.agent, trainer.source.env.task
    assert isinstance(agent, torch.nn.Module)
    network: Any = copy.deepcopy(agent.network)
    criterion: Any = agent.criterion
    cls, options = OPTIMIZERS[config.optim.name]
    keywords: dict[str, Any] = {name: getattr(config.optim, name) for name in options} | (
        {"fused": True} if cls in FUSED else {}
    )
    matrices = [p for p in network.parameters() if p.dim() >= 2]
    others = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = cls(groups, lr=config.optim.lr, **keywords)
    rng = torch.Generator().manual_seed(0)
    size, done = _batch_size(config, task.size), 0
    with unswept():
        start = time.perf_counter()
        while done < updates:
            order = torch.randperm(task.size, generator=rng)
            for index in order.split(size)[: updates - done]:
                x, y = task.draw(index)
                optimizer.zero_grad()
                total, count = criterion(network(x), y)
                (total / count).backward()
                if config.optim.clip:
                    torch.nn.utils.clip_grad_norm_(network.parameters(), config.optim.clip)
                optimizer.step()
                done += 1
        return time.perf_counter() - start


def results(name: str, options: argparse.Namespace) -> None:
    """Train what a set still lacks, print its results (to standard output) and write them.

    Raises:
        UserError: the set, a recipe or a row is wrong, a run is not the set's, or runs failed (all others are done).
        KeyboardInterrupt: with how to go on.
    """
    wanted = study.read(name)
    every = study.jobs(wanted, options.folder, options.seeds)
    failed = {} if options.report_only else _train(wanted, every, options)
    rows = report.summarise(wanted, every)
    document = options.output or options.folder / "RESULTS.md"
    drawn = [f"img/{path.name}" for path in report.figures(wanted, rows, document.parent / "img")]
    text = report.section(wanted, rows, f"{name}{f' --seeds {options.seeds}' if options.seeds else ''}", drawn)
    report.insert(document, wanted.name, text)
    print(plain_json.dumps({"set": wanted.name, "rows": rows, "figures": drawn}) if options.json else text)
    note(f"written to {document}")
    if failed:
        job, error = next(iter(failed.items()))
        raise UserError(f"{study.count(failed)} failed, first {job.row.name} seed {job.seed}: {error}")


def _train(wanted: study.Set, every: list[study.Job], options: argparse.Namespace) -> dict[study.Job, str]:
    names = [row.name for row in wanted.rows]
    for name in options.only:
        if name not in names:
            raise UserError(f"--only: set '{wanted.name}' has no row '{name}'{nearest(name, names)}")
    chosen = [job for job in every if job.row.name in (options.only or names)]
    status = {job: job.status() if job.config else ("", "") for job in chosen}  # a missing recipe is told before all
    if running := [str(job.path) for job in chosen if status[job][0] == "running"]:
        raise UserError(f"run '{running[0]}': is being trained by another process; expected one at a time")
    for job in chosen:
        if status[job][0] == "differs" and not options.again:
            note(f"{job.path} {status[job][1]}; it is left out (--again trains it anew)")
    todo = [job for job in chosen if status[job][0] in ("failed", "unfinished", "not run")]
    again = [job for job in chosen if status[job][0] == "differs" and options.again]
    todo += again
    seconds = study.estimate(todo, every)
    each = [seconds.get(job.row.name, 0.0) for job in todo]
    kept = sum(status[job][0] == "finished" for job in chosen)
    about = study.span(max([sum(each) / options.jobs, *each], default=0.0))
    more = "" if all(job.row.name in seconds for job in todo) else ", and what has no estimate"
    note(f"estimate: {study.count(todo)} to train ({kept} finished), about {about} on {options.jobs} processes{more}")
    for job in again:
        workers.clear(job)
    try:
        return workers.train(todo, every, options.jobs, seconds)
    except KeyboardInterrupt:
        left = [job for job in todo if job.status()[0] != "finished"]
        raise KeyboardInterrupt(f"interrupted; {study.count(left)} left: the same command goes on") from None


@guarded
def main(arguments: list[str]) -> None:
    """Measure."""
    parser = Parser("Benchmarks. Run them with nothing else running on the machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="hosting|results|speed|together|envs")
    host = commands.add_parser(
        "hosting",
        help="the Trainer against a bare loop",
        text="The Trainer against a bare PyTorch loop on the same batches.",
    )
    host.add_argument("recipes", nargs="*", default=["house_prices", "line"], metavar="RECIPE")
    host.add_argument("--updates", type=positive, default=3_000, help="updates per repetition [3000]")
    host.add_argument("--pairs", type=positive, default=15, help="interleaved repetitions [15]")
    many = commands.add_parser(
        "results",
        help="recipes over many seeds",
        text="Train a named set of recipes over many seeds; write a table with intervals and learning curves. "
        "What is finished is kept, what was begun goes on.",
    )
    shipped = ", ".join(sorted(path.stem for path in study.folder().glob("*.yaml")))
    many.add_argument("set", metavar="SET", help=f"{shipped}, a recipe, or a YAML file")
    many.add_argument("--seeds", default="", metavar="A-B", help="seeds A to B [the set's, mostly 0-9]")
    cpus = os.cpu_count() or 1
    many.add_argument("--jobs", type=positive, default=cpus, help=f"processes; more than one blurs the times [{cpus}]")
    many.add_argument("--folder", type=Path, default=Path("runs/results"), help="where the runs go [runs/results]")
    many.add_argument("--only", nargs="+", default=[], metavar="NAME", help="train only these rows")
    many.add_argument("--output", type=Path, metavar="FILE.md", help="where the section goes [FOLDER/RESULTS.md]")
    many.add_argument("--again", action="store_true", help="train runs anew whose settings are not the set's")
    many.add_argument("--report-only", action="store_true", help="train nothing")
    many.json()
    speed.add(commands)
    benchmark_together.add(commands)
    envs.add(commands)
    options = parser.read(arguments)
    if options.command == "envs":
        envs.run(options)
        return
    if options.command == "together":
        benchmark_together.run(options)
        return
    if options.command == "speed":
        speed.run(options)
        return
    if options.command == "hosting":
        for recipe in options.recipes:
            result = hosting(recipe, options.updates, options.pairs)
            print(f"{recipe}: " + "  ".join(f"{name} {value:.3g}" for name, value in result.items()), flush=True)
        return
    results(options.set, options)
