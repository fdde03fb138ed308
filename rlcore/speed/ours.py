"""Ours: a recipe, or settings given in full, trained by the Trainer with its logging, without files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from rlcore import build, compiled_graph
from rlcore import config as configs
from rlcore.callbacks import Log
from rlcore.config import Config
from rlcore.evaluation import evaluate
from rlcore.speed.peer import Job, Watch, main
from rlcore.trainer import Trainer


def measure(job: Job) -> dict[str, Any]:
    """Train and time.

    The job: config (a recipe's name, or settings), overrides, frames, seed; every (frames between evaluations);
    apart (leave out what compiling takes); tokens (of a frame), text (a file to learn from), goal (a
    validation loss that ends training) and look (frames between two looks at it).
    """
    overrides = {**job.get("overrides", {}), "seed": job["seed"], "threads": 1}
    if "frames" in job:
        overrides["budget.frames"] = job["frames"]
    if job.get("text"):
        overrides["env.kwargs.data"] = job["text"]
    config = configs.validate(configs.override(configs.read(job["config"]), overrides))
    trainer = build.trainer(config)
    clock, agent, log = trainer.clock, trainer.agent, Log(config.log.every)
    watch, losses = Watch(job.get("every", 0)), []

    def policy(obs: Any) -> Any:
        agent.eval()
        with torch.inference_mode():
            seen = torch.as_tensor(obs, device=config.device)
            action = agent.act(seen, agent.initial_state(len(obs)), {}, {}, None, explore=False).action
        agent.train()
        return action.numpy(force=True)

    with trainer.training(), _apart(watch) if job.get("apart") else nullcontext():
        watch.start()
        while not clock.done:
            trainer.iterate()
            log.maybe(trainer)
            trainer.row.clear()
            if watch.look(clock.frames, policy) or _reached(job, config, trainer, watch, losses):
                break
    more = {"losses": losses} if losses else {}
    return watch.result(clock.frames * job.get("tokens", 1), clock.updates, "rlcore", **more)


@contextmanager
def _apart(watch: Watch) -> Iterator[None]:
    """Note what tracing and compiling graphs takes."""
    whole = compiled_graph.compile_graph

    def timed(*given: Any, **more: Any) -> Any:
        start = time.perf_counter()
        try:
            return whole(*given, **more)
        finally:
            watch.compiling += time.perf_counter() - start

    compiled_graph.compile_graph = timed
    try:
        yield
    finally:
        compiled_graph.compile_graph = whole


def _reached(job: Job, config: Config[Any], trainer: Trainer, watch: Watch, losses: list[Any]) -> bool:
    """Whether the validation loss is down to the job's goal; note what it is, out of the watch's sight."""
    if "goal" not in job or not (trainer.clock.due(job["look"]) or trainer.clock.done):
        return False
    watch.stop()
    env = build.evaluation_env(config, "validation", 1)
    loss = evaluate(trainer.agent, env, env.episodes or 1, 0)["loss"]
    env.close()
    losses.append((watch.seconds, trainer.clock.updates, loss))
    watch.solved = loss <= job["goal"]
    watch.start()
    return watch.solved


if __name__ == "__main__":
    main(measure)
